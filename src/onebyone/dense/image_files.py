"""Pillow, wrapped: picture files to arrays. The only place, with detect.drawing, that knows Pillow."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import require_file
from onebyone.dense.high_bit_depth import chosen_page, loses_bits, opaque, read_deep, read_tiff
from onebyone.errors import BadInput, MissingExtra, OnebyoneWarning

if TYPE_CHECKING:
    from PIL import Image


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, and the same of BigTIFF


def pillow(purpose: str) -> ModuleType:
    """The module PIL.Image, or MissingExtra saying what `purpose` needs it for."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "images", purpose) from error
    return Image


def read_picture(path: str | os.PathLike[str], page: int | None = None) -> NDArray[Any]:
    """A picture in a file as (H, W) or (H, W, 3), uint8 or uint16 or floating point, turned upright (EXIF).

    Palettes and other colour spaces become RGB. The size is checked against Pillow's own limit
    (`PIL.Image.MAX_IMAGE_PIXELS`) before a pixel is unpacked. `page` is the page or frame, from 0, of a file
    with several; where it is None, the first is read, with a warning if there are more.

    Raises
    ------
    BadInput
        if the file cannot be read, is no picture, is truncated, is too large, is partly transparent, has no
        such page, or holds values that cannot be read whole.
    """
    module = pillow("reading a picture")
    file = require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", module.DecompressionBombWarning)
            with module.open(file) as picture:
                # MPO: a photograph with its previews; the first is the photograph
                pages = 1 if picture.format == "MPO" and page is None else getattr(picture, "n_frames", 1)
                number = chosen_page(file, pages, page)
                picture.seek(number)
                return read_deep(file, picture, number) if loses_bits(picture) else as_array(picture)
    except (module.DecompressionBombWarning, module.DecompressionBombError) as error:
        limit = f"{module.MAX_IMAGE_PIXELS:,} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        raise BadInput(f"{file} is a picture of more than {limit}, the limit set for one read") from error
    except module.UnidentifiedImageError as error:
        if file.read_bytes()[:4] in _TIFF:
            return _other_tiff(file, page, module.MAX_IMAGE_PIXELS)
        raise BadInput(f"{file} is not a picture that Pillow can read") from error
    except (BadInput, OnebyoneWarning, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a broken file
        raise BadInput(f"{file} cannot be read as a picture: {error}") from error


def _other_tiff(file: Path, page: int | None, most_pixels: int) -> NDArray[Any]:
    """A TIFF that Pillow does not know: floating-point colours, more channels than four."""
    try:
        return read_tiff(file, page, most_pixels)
    except (BadInput, OnebyoneWarning, MemoryError):
        raise
    except Exception as error:
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
        return opaque(np.array(upright.convert("RGBA")))
    return np.array(upright.convert("RGB"))


def _grey16(values: NDArray[Any]) -> NDArray[Any]:
    """Pillow holds some 16-bit greys in 32-bit integers."""
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise BadInput("the picture holds 32-bit integers beyond 16 bits: scale it to 8 or 16 bits first")
    return values.astype(np.uint16)
