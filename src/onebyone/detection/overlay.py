"""Detections drawn on their image with Pillow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path
from onebyone.dense.image_files import pillow
from onebyone.dense.images import load_image
from onebyone.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from onebyone.detection.detections import Detections

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF")
"""Told apart by people with any colour vision; Okabe and Ito, "Color Universal Design", 2008, with white in
the place of black, which the boxes' dark edge already has."""

_EDGE = "#000000"
_DARK_TEXT = 0.45  # relative luminance from which black text reads better than white


def draw(found: Detections, image: Any, page: int | None = None) -> Image.Image:
    """A copy of `image` with every box, class and score on it; the best boxes on top.

    Raises BadInput if the image cannot be read or is not of the detections' size.
    """
    picture = _as_picture(image, page)
    if (picture.height, picture.width) != tuple(found.image_size):
        size = f"{picture.height}×{picture.width}"
        raise BadInput(
            f"the image is {size} and the detections are for {'×'.join(map(str, found.image_size))}"
        )
    return _draw(found, picture)


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format of the name's ending, whole or not at all."""
    with atomic_path(path) as temporary:
        try:
            picture.save(temporary)
        except (ValueError, KeyError) as error:
            raise BadInput(f"cannot write {path}: {error}") from error


def colour_of(label: int) -> str:
    """The colour of a class, as #RRGGBB: by number, so that it is the same in every picture."""
    return PALETTE[label % len(PALETTE)]


def _as_picture(image: Any, page: int | None) -> Image.Image:
    module = pillow("drawing detections")
    values = load_image(image, page=page).values
    if values.dtype == np.uint16:
        values = (values // 257).astype(np.uint8)
    elif values.dtype != np.uint8:
        top = 255.0 if values.max() > 1 else 1.0  # floating images are 0 to 1 by custom, or 0 to 255
        values = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
    if values.shape[2] not in (1, 3):
        raise BadInput(f"cannot draw on an image of {values.shape[2]} channels; expected 1 or 3")
    grey = values[:, :, 0] if values.shape[2] == 1 else values
    picture: Image.Image = module.fromarray(np.ascontiguousarray(grey)).convert("RGB")
    return picture


def _draw(found: Detections, picture: Image.Image) -> Image.Image:
    from PIL import ImageDraw, ImageFont

    pen = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 500))
    height = max(11, round(min(picture.size) / 75))
    font = ImageFont.load_default(size=height)
    rows = list(zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True))
    for box, label, _ in reversed(rows):
        _box(pen, box, colour_of(label), line)
    tags = _Tags(found.boxes.astype(np.float64), picture.size)
    for box, label, score in rows:
        _tag(pen, tags, box, f"{found.classes[label]} ({score:.2f})", colour_of(label), font)
    return picture


def _box(pen: ImageDraw.ImageDraw, box: list[float], colour: str, line: int) -> None:
    x1, y1, x2, y2 = round(box[0]), round(box[1]), round(box[2]) - 1, round(box[3]) - 1
    x2, y2 = max(x1, x2), max(y1, y2)
    # a dark edge on both sides keeps every colour visible on every ground
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_EDGE)
    inner = (x1 + line, y1 + line, x2 - line, y2 - line)
    if inner[0] <= inner[2] and inner[1] <= inner[3]:
        pen.rectangle(inner, outline=_EDGE)
    pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)


class _Tags:
    """Finds room for tags beside their boxes, where they cover as little as may be of boxes and other tags."""

    def __init__(self, boxes: NDArray[np.float64], size: tuple[int, int]) -> None:
        self._boxes, self._size = boxes, size
        self._tags, self._count = np.empty_like(boxes), 0

    def place(self, box: list[float], wide: int, high: int) -> tuple[int, int]:
        """Where the tag of `box` goes: its first corner."""
        left, top, right, bottom = (round(v) for v in box)
        wanted = [(x, y) for y in (top - high, bottom) for x in (left - 1, right - wide + 1)] + [
            (right, top),
            (left - wide, top),
            (left, top),
        ]
        room = max(0, self._size[0] - wide), max(0, self._size[1] - high)
        inside = [(min(max(0, x), room[0]), min(max(0, y), room[1])) for x, y in wanted]
        costs = [self._covered(x, y, wide, high) for x, y in inside]
        x, y = inside[int(np.argmin(costs))]  # the first of the best
        self._tags[self._count] = (x, y, x + wide, y + high)
        self._count += 1
        return x, y

    def _covered(self, x: int, y: int, wide: int, high: int) -> float:
        """Pixels of boxes that a tag there would cover; those of tags, which must be read, count four times."""
        tag = (x, y, x + wide, y + high)
        return _shared(tag, self._boxes) + 4 * _shared(tag, self._tags[: self._count])


def _shared(one: tuple[int, int, int, int], others: NDArray[np.float64]) -> float:
    """The area that a rectangle shares with others (K, 4), summed."""
    wide = np.minimum(one[2], others[:, 2]) - np.maximum(one[0], others[:, 0])
    high = np.minimum(one[3], others[:, 3]) - np.maximum(one[1], others[:, 1])
    return float((np.maximum(wide, 0) * np.maximum(high, 0)).sum())


def _tag(
    pen: ImageDraw.ImageDraw,
    tags: _Tags,
    box: list[float],
    text: str,
    colour: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Class and score on the class's colour."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = round(right - left) + 6, round(bottom - top) + 5
    x, y = tags.place(box, wide, high)
    pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour, outline=_EDGE)
    ink = "black" if _luminance(colour) > _DARK_TEXT else "white"
    pen.text((x + 3 - left, y + 2 - top), text, fill=ink, font=font)


def _luminance(colour: str) -> float:
    """How bright #RRGGBB looks, 0 to 1 (WCAG 2.2's weights, on gamma-encoded values)."""
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
