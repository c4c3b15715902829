"""Drawing boxes and their captions on an image with Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path
from onebyone.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

#: Colours that can be distinguished with any colour vision: Okabe and Ito, "Color Universal Design", 2008, with white
#: in place of black, which is the colour of the boxes' edges.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF")

_EDGE = "#000000"
_MAX_TAGS = 1000  # captions of more boxes cover each other
_MIN_LUMINANCE_FOR_BLACK_TEXT = 0.45
_TAG_OVERLAP_COST = (
    4  # covering a pixel of another tag, which has text, costs as much as covering four of boxes
)


def draw_boxes(
    picture: Image.Image, boxes: NDArray[np.float32], labels: NDArray[np.int64], captions: Sequence[str]
) -> None:
    """Draw boxes (K, 4) x1, y1, x2, y2 on an RGB picture, the first on top, and captions of the first 1,000.

    The label of a box determines its colour.
    """
    from PIL import ImageDraw, ImageFont

    pen = ImageDraw.Draw(picture)
    line_width = max(2, round(min(picture.size) / 500))
    font = ImageFont.load_default(size=max(11, round(min(picture.size) / 75)))
    rows = list(zip(boxes.tolist(), map(colour_of, labels.tolist()), captions, strict=True))
    for box, colour, _ in reversed(rows):
        _draw_box(pen, box, colour, line_width)
    layout = _TagLayout(boxes.astype(np.float64), picture.size)
    for box, colour, caption in rows[:_MAX_TAGS]:
        _draw_tag(pen, layout, box, caption, colour, font)


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture atomically, in the format of the file name's suffix. Raises BadInput where it cannot be."""
    with atomic_path(path) as temporary:
        try:
            picture.save(temporary)
        except (ValueError, KeyError) as error:
            raise BadInput(f"cannot write {path}: {error}") from error


def colour_of(label: int) -> str:
    """The colour of a class as #RRGGBB. It depends on the label only, so it is the same in every picture."""
    return PALETTE[label % len(PALETTE)]


def _draw_box(pen: ImageDraw.ImageDraw, box: list[float], colour: str, line_width: int) -> None:
    x1, y1, x2, y2 = round(box[0]), round(box[1]), round(box[2]) - 1, round(box[3]) - 1
    x2, y2 = max(x1, x2), max(y1, y2)
    # a dark edge on both sides keeps every colour visible on every background
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_EDGE)
    inner = (x1 + line_width, y1 + line_width, x2 - line_width, y2 - line_width)
    if inner[0] > inner[2] or inner[1] > inner[3]:
        pen.rectangle(
            (x1, y1, x2, y2), fill=colour
        )  # Pillow would draw the wide lines beyond the opposite sides
    else:
        pen.rectangle(inner, outline=_EDGE)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=line_width)


class _TagLayout:
    """Places tags next to their boxes where they cover the fewest pixels of boxes and of tags placed before."""

    def __init__(self, boxes: NDArray[np.float64], picture_size: tuple[int, int]) -> None:
        self._boxes, self._picture_size = boxes, picture_size
        self._tags, self._count = np.empty_like(boxes), 0

    def place(self, box: list[float], width: int, height: int) -> tuple[int, int]:
        """The first corner (x, y) of a tag for `box`."""
        left, top, right, bottom = (round(v) for v in box)
        candidates = [
            *((x, y) for y in (top - height, bottom) for x in (left - 1, right - width + 1)),
            (right, top),
            (left - width, top),
            (left, top),
        ]
        limits = max(0, self._picture_size[0] - width), max(0, self._picture_size[1] - height)
        inside = [(min(max(0, x), limits[0]), min(max(0, y), limits[1])) for x, y in candidates]
        costs = [self._cost((x, y, x + width, y + height)) for x, y in inside]
        x, y = inside[int(np.argmin(costs))]  # the first of the cheapest
        self._tags[self._count] = (x, y, x + width, y + height)
        self._count += 1
        return x, y

    def _cost(self, tag: tuple[int, int, int, int]) -> float:
        tags = self._tags[: self._count]
        return _shared_area(tag, self._boxes) + _TAG_OVERLAP_COST * _shared_area(tag, tags)


def _shared_area(rectangle: tuple[int, int, int, int], others: NDArray[np.float64]) -> float:
    """The area that a rectangle shares with others (K, 4), summed."""
    widths = np.minimum(rectangle[2], others[:, 2]) - np.maximum(rectangle[0], others[:, 0])
    heights = np.minimum(rectangle[3], others[:, 3]) - np.maximum(rectangle[1], others[:, 1])
    return float((np.maximum(widths, 0) * np.maximum(heights, 0)).sum())


def _draw_tag(
    pen: ImageDraw.ImageDraw,
    layout: _TagLayout,
    box: list[float],
    caption: str,
    colour: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Draw a caption on a rectangle of the class's colour."""
    left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
    width, height = round(right - left) + 6, round(bottom - top) + 5
    x, y = layout.place(box, width, height)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour, outline=_EDGE)
    text_colour = "black" if _luminance(colour) > _MIN_LUMINANCE_FOR_BLACK_TEXT else "white"
    pen.text((x + 3 - left, y + 2 - top), caption, fill=text_colour, font=font)


def _luminance(colour: str) -> float:
    """The luminance of #RRGGBB from 0 to 1, with the weights of WCAG 2.2 on gamma-encoded values."""
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
