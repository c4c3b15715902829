"""Arrays as pictures: colour scales, and the bytes of PNG and JPEG files.

The colour scales encode values in opacity and are transparent at 0, so that pictures are readable on a light page and
on a dark one.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from onebyone.stores.pictures import pillow

BLUE = (46, 125, 209)
ORANGE = (230, 110, 30)
"""The two ends of a signed scale, distinguishable with every common colour blindness and in greyscale."""


def png(pixels: NDArray[np.uint8], *, quantised: int | None = None) -> bytes:
    """Pixels (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA as the bytes of a PNG file.

    `quantised` is the largest number of colours to keep, which reduces the size of the file.

    Raises
    ------
    MissingExtra
        if Pillow is not installed.
    """
    pil = pillow("drawing a picture")
    image = pil.fromarray(np.ascontiguousarray(pixels))
    if quantised is not None:
        image = image.quantize(quantised, method=pil.Quantize.FASTOCTREE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def jpeg(pixels: NDArray[np.uint8], quality: int = 88) -> bytes:
    """Pixels (H, W) or (H, W, 3) as the bytes of a JPEG file, for photographs on a page.

    Raises
    ------
    MissingExtra
        if Pillow is not installed.
    """
    file = io.BytesIO()
    pillow("drawing a picture").fromarray(np.ascontiguousarray(pixels)).save(
        file, "JPEG", quality=quality, optimize=True
    )
    return file.getvalue()


def signed(values: NDArray[np.floating], limit: float | None = None) -> NDArray[np.uint8]:
    """Values (H, W) as RGBA: blue below zero, orange above, transparent at zero and opaque at ±`limit`.

    `limit` None means the largest magnitude. NaN is transparent.

    >>> signed(np.array([[-2.0, 0.0, 1.0]]))[0, :, 3].tolist()
    [255, 0, 128]
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    most = float(np.abs(values).max(initial=0.0)) if limit is None else limit
    strength = np.clip(np.abs(values) / most, 0, 1) if most > 0 else np.zeros_like(values)
    colours = np.where(values[..., None] < 0, np.array(BLUE), np.array(ORANGE))
    return np.dstack([colours, np.round(255 * strength)]).astype(np.uint8)


def strength(
    values: NDArray[np.floating], colour: tuple[int, int, int], gamma: float = 1.0
) -> NDArray[np.uint8]:
    """Values (H, W) in [0, 1] as RGBA of one colour, with the value to the power `gamma` as opacity.

    >>> strength(np.array([[0.0, 1.0]]), (1, 2, 3)).tolist()
    [[[1, 2, 3, 0], [1, 2, 3, 255]]]
    """
    opacity = np.round(255 * np.clip(values, 0, 1) ** gamma)
    flat = np.broadcast_to(np.array(colour), (*values.shape, 3))
    return np.dstack([flat, opacity]).astype(np.uint8)


def tiled(tiles: NDArray[np.floating], columns: int, gap: int = 1) -> NDArray[np.float64]:
    """Tiles (n, h, w) arranged in rows of `columns`, with gaps of `gap` elements filled with NaN.

    >>> tiled(np.ones((3, 1, 1)), columns=2).shape
    (3, 3)
    """
    count, height, width = tiles.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for number, tile in enumerate(tiles):
        y, x = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return sheet
