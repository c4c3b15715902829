"""Pillow, wrapped: picture files to arrays. The only place, with detect.drawing, that knows Pillow."""

from __future__ import annotations

import os
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, MissingExtra
from onebyone.files import require_file

if TYPE_CHECKING:
    from PIL import Image


def pillow(purpose: str) -> ModuleType:
    """The module PIL.Image, or MissingExtra saying what `purpose` needs it for."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "images", purpose) from error
    return Image


def read_picture(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The first picture in a file as (H, W) or (H, W, 3), uint8 or uint16 or float32, turned upright (EXIF).

    Palettes and other colour spaces become RGB. The size is checked against Pillow's own limit
    (`PIL.Image.MAX_IMAGE_PIXELS`) before a pixel is unpacked.

    Raises
    ------
    BadInput
        if the file cannot be read, is no picture, is truncated, is too large, or is partly transparent.
    """
    module = pillow("reading a picture")
    file = require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", module.DecompressionBombWarning)
            with module.open(file) as picture:
                return as_array(picture)
    except (module.DecompressionBombWarning, module.DecompressionBombError) as error:
        limit = f"{module.MAX_IMAGE_PIXELS:,} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        raise BadInput(f"{file} is a picture of more than {limit}, the limit set for one read") from error
    except module.UnidentifiedImageError as error:
        raise BadInput(f"{file} is not a picture that Pillow can read") from error
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a broken file
        raise BadInput(f"{file} cannot be read as a picture: {error}") from error


def as_array(picture: Image.Image) -> NDArray[Any]:
    """A Pillow image as (H, W) grey or (H, W, 3) RGB. Raises BadInput where it is partly transparent."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):
        return np.asarray(upright).astype(np.uint16)
    if upright.mode == "I":
        return _grey16(np.asarray(upright))
    if upright.mode in ("L", "F", "RGB"):
        return np.array(upright)
    if upright.mode == "1":
        return np.array(upright.convert("L"))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        if np.asarray(upright)[..., 3].min() < 255:
            raise BadInput("the picture is partly transparent: lay it on a background first")
    return np.array(upright.convert("RGB"))


def _grey16(values: NDArray[Any]) -> NDArray[Any]:
    """Pillow holds some 16-bit greys in 32-bit integers."""
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise BadInput("the picture holds 32-bit integers beyond 16 bits: scale it to 8 or 16 bits first")
    return values.astype(np.uint16)
