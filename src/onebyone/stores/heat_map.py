"""A score map drawn over its image: one colour per position, with a legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.records import by
from onebyone.stores.pictures import pillow
from onebyone.stores.placement import Placement

if TYPE_CHECKING:
    from PIL import Image

#: Colours of the values 0, 1/8, …, 1: the colour maps "inferno" and "viridis" of matplotlib (Smith and van der Walt,
#: 2015), whose lightness increases evenly, so that they can be read with any colour vision and in grey.
RAMPS = {
    "inferno": (
        *(
            (0, 0, 4),
            (31, 12, 72),
            (85, 15, 109),
            (136, 34, 106),
            (186, 54, 85),
            (227, 89, 51),
            (249, 140, 10),
        ),
        *((249, 201, 50), (252, 255, 164)),
    ),
    "viridis": (
        *(
            (68, 1, 84),
            (71, 45, 123),
            (59, 82, 139),
            (44, 114, 142),
            (33, 145, 140),
            (40, 174, 128),
            (94, 201, 98),
        ),
        *((173, 220, 48), (253, 231, 37)),
    ),
}
#: The opacity of the colour of 1; that of a value is proportional to it, so the image stays visible where it is low.
OPACITY = 0.75


def heat_map(
    picture: Image.Image, values: NDArray[np.floating], placement: Placement, title: str = ""
) -> Image.Image:
    """The picture with the values (H', W') from 0 to 1 drawn over it, and a legend below.

    `placement` relates positions of the map to pixels of the picture (see `Placement.of_map`). Each position colours
    the stride × stride pixels around the centre of its window; pixels near the border that are the centre of no window
    keep their colour.

    Raises
    ------
    BadInput
        for values outside [0, 1].

    Example
    -------
    >>> from PIL import Image
    >>> from onebyone.laws.geometry import Geometry
    >>> place = Placement.identity().of_map(Geometry((4, 4), (2, 2), (0, 0), (4, 4), (0, 0), True))
    >>> drawn = heat_map(Image.new("RGB", (8, 8)), np.eye(3), place)
    >>> drawn.getpixel((1, 1)), drawn.getpixel((3, 1)), drawn.getpixel((0, 0))
    ((189, 191, 123), (0, 0, 0), (0, 0, 0))
    """
    if values.ndim != 2 or not np.all((values >= 0) & (values <= 1)):
        raise BadInput(
            f"values of shape {by(values.shape)}: expected probabilities (height, width) from 0 to 1"
        )
    rows, inside_rows = _positions(picture.height, values.shape[0], placement.offset[0], placement.scale[0])
    columns, inside_columns = _positions(
        picture.width, values.shape[1], placement.offset[1], placement.scale[1]
    )
    pixels = np.array(picture.convert("RGB"))
    # row by row, so that large pictures need no copies in floating point
    for y in np.flatnonzero(inside_rows):
        shown = values[rows[y], columns[inside_columns]]
        opacity = OPACITY * shown[:, None]
        mixed = pixels[y, inside_columns] * (1 - opacity) + ramp_colours(shown) * opacity
        pixels[y, inside_columns] = np.rint(mixed).astype(np.uint8)
    return _with_legend(pillow("drawing a heat map").fromarray(pixels), title)


def ramp_colours(values: NDArray[np.floating], name: str = "inferno") -> NDArray[np.float64]:
    """RGB colours (…, 3) from 0 to 255 of values from 0 to 1, by the colour map of a name.

    Raises BadInput for a name that is not in `RAMPS`.

    >>> ramp_colours(np.array([0.0, 1.0])).tolist()
    [[0.0, 0.0, 4.0], [252.0, 255.0, 164.0]]
    """
    if name not in RAMPS:
        raise BadInput(f"colours={name!r}: expected one of {', '.join(RAMPS)}")
    ramp = np.array(RAMPS[name], np.float64)
    steps = np.linspace(0, 1, len(ramp))
    return np.stack([np.interp(values, steps, ramp[:, k]) for k in range(3)], axis=-1)


def _positions(
    pixels: int, positions: int, offset: float, scale: float
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each pixel of an axis, the position that its centre belongs to, and whether there is one."""
    index = np.floor((np.arange(pixels) + 0.5 - offset) / scale).astype(np.intp)
    inside = (index >= 0) & (index < positions)
    return index, inside


def _with_legend(picture: Image.Image, title: str) -> Image.Image:
    """The picture with a strip below: the title, and the colours from 0 to 1 as they look on black."""
    from PIL import ImageDraw, ImageFont

    if picture.width < 120:
        return picture  # the text would not fit
    size = max(11, min(28, picture.width // 60))
    height, margin, bar = 2 * size, size // 2, min(picture.width // 3, 16 * size)
    font = ImageFont.load_default(size=size)
    drawn: Image.Image = pillow("drawing a heat map").new(
        "RGB", (picture.width, picture.height + height), "white"
    )
    drawn.paste(picture, (0, 0))
    pen = ImageDraw.Draw(drawn)
    left, right = picture.width - bar - 3 * size, picture.width - 2 * size
    colours = ramp_colours(np.linspace(0, 1, right - left))
    for x, colour in enumerate(colours):
        red, green, blue = (round(v) for v in colour)
        pen.line(
            (left + x, picture.height + margin, left + x, picture.height + height - margin),
            (red, green, blue),
        )
    middle = picture.height + height // 2
    pen.text((left - margin, middle), "0", "black", font, "rm")
    pen.text((right + margin, middle), "1", "black", font, "lm")
    room = left - 3 * margin
    if pen.textlength(title, font) > room:
        fitting = (
            n for n in range(min(len(title), room), 0, -1) if pen.textlength(title[:n] + "…", font) <= room
        )
        title = title[: next(fitting, 0)].rstrip() + "…"
    pen.text((margin, middle), title, "black", font, "lm")
    return drawn
