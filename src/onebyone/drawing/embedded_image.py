"""The user's image, made small enough to be carried by a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.image_files import pillow, to_rgb_picture
from onebyone.dense.images import load_image
from onebyone.errors import BadInput

MOST = 560
"""Pixels of its longer side that a picture carries, at most: sharp in print at a column's width, and small."""


@dataclass(frozen=True)
class Photo:
    """An image: its size in pixels (H, W), and a PNG file of it that may be smaller."""

    size: tuple[int, int]
    png: bytes


def photo(image: Any) -> Photo:
    """Read a path, a Pillow image, or an array (H, W) or (H, W, C) of 1, 3 or 4 channels.

    Raises
    ------
    BadInput
        where it cannot be read, or is no picture.
    MissingExtra
        without Pillow.
    """
    values = load_image(image)
    if values.shape[2] not in (1, 3, 4):
        raise BadInput(f"image of shape {values.shape}: expected 1, 3 or 4 channels on two axes")
    module = pillow("drawing on an image")
    picture = to_rgb_picture(values[:, :, :3], "drawing on an image")
    size = (picture.height, picture.width)
    picture.thumbnail((MOST, MOST), module.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.quantize(192, method=module.Quantize.MEDIANCUT).save(file, "PNG", optimize=True)
    return Photo(size, file.getvalue())


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of a PNG file of ours."""
    return np.asarray(pillow("drawing on an image").open(io.BytesIO(png)).convert("RGB"))
