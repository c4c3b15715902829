"""Reads the user's image and reduces it, so that it can be embedded in a figure."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.images import load_image
from onebyone.errors import BadInput
from onebyone.stores.pictures import pillow, to_rgb_picture

MAX_SIDE = 560
"""Pixels of the longer side of an embedded image, at most: sharp in print at the width of a column, and small."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image: its size in pixels (H, W), and the bytes of a PNG file, which may be smaller."""

    size: tuple[int, int]
    png: bytes


def embedded_image(image: Any) -> EmbeddedImage:
    """Read a path, a Pillow image, or an array (H, W) or (H, W, C) of 1, 3 or 4 channels.

    Raises
    ------
    BadInput
        if it cannot be read, or does not have such a shape.
    MissingExtra
        if Pillow is not installed.
    """
    values = load_image(image)
    if values.shape[2] not in (1, 3, 4):
        raise BadInput(f"image of shape {values.shape}: expected 1, 3 or 4 channels on two axes")
    if values.dtype == np.uint16:
        values = (values // 257).astype(np.uint8)
    elif values.dtype != np.uint8:
        top = 255.0 if values.max() > 1 else 1.0  # floating-point images are usually 0 to 1, else 0 to 255
        values = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
    module = pillow("drawing on an image")
    picture = to_rgb_picture(values[:, :, :3], "drawing on an image")
    size = (picture.height, picture.width)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), module.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.quantize(192, method=module.Quantize.MEDIANCUT).save(file, "PNG", optimize=True)
    return EmbeddedImage(size, file.getvalue())


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an embedded PNG file."""
    return np.asarray(pillow("drawing on an image").open(io.BytesIO(png)).convert("RGB"))
