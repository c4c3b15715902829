"""Picture files to arrays with Pillow, which is optional."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import require_file
from onebyone.errors import BadInput, MissingExtra, OnebyoneWarning
from onebyone.stores.high_bit_depth import (
    chosen_page,
    loses_bits,
    opaque,
    read_deep,
    read_tiff,
    require_no_transparent_colour,
)

if TYPE_CHECKING:
    from PIL import Image


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, and the same of BigTIFF


def pillow(purpose: str) -> ModuleType:
    """The module PIL.Image. Raises MissingExtra, which names `purpose`, where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "images", purpose) from error
    return Image


def read_picture(path: str | os.PathLike[str], page: int | None = None) -> NDArray[Any]:
    """A picture file as (H, W) or (H, W, 3), uint8, uint16 or floating point, turned upright (EXIF).

    Palettes and other colour spaces are converted to RGB. The size is checked against Pillow's own limit
    (`PIL.Image.MAX_IMAGE_PIXELS`) before anything is decompressed. `page` is the page or frame, from 0, of a file with
    several; None reads the first, with a warning where there are more.

    Raises
    ------
    BadInput
        where the file cannot be read, is not a picture, is truncated, is too large, is partly transparent, has no
        such page, or has values that cannot be read without loss.
    """
    module = pillow("reading a picture")
    file = require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", module.DecompressionBombWarning)
            with module.open(file) as picture:
                # an MPO file is a photograph and its previews; the photograph comes first
                pages = 1 if picture.format == "MPO" and page is None else getattr(picture, "n_frames", 1)
                number = chosen_page(file, pages, page)
                picture.seek(number)
                return read_deep(file, picture, number) if loses_bits(picture) else as_array(picture)
    except (module.DecompressionBombWarning, module.DecompressionBombError) as error:
        limit = f"{module.MAX_IMAGE_PIXELS:,} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        raise BadInput(f"{file} is a picture of more than {limit}, the limit for one file") from error
    except module.UnidentifiedImageError as error:
        if file.read_bytes()[:4] in _TIFF:
            return _unsupported_tiff(file, page, module.MAX_IMAGE_PIXELS)
        raise BadInput(f"{file} is not a picture that Pillow can read") from error
    except (BadInput, OnebyoneWarning, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise errors of many types on a damaged file
        raise BadInput(f"{file} cannot be read as a picture: {error}") from error


def _unsupported_tiff(file: Path, page: int | None, max_pixels: int) -> NDArray[Any]:
    """A TIFF that Pillow does not support: floating-point colour, or more than four channels."""
    try:
        return read_tiff(file, page, max_pixels)
    except (BadInput, OnebyoneWarning, MemoryError):
        raise
    except Exception as error:
        raise BadInput(f"{file} cannot be read as a picture: {error}") from error


def as_array(picture: Image.Image) -> NDArray[Any]:
    """A Pillow image as (H, W) grey or (H, W, 3) RGB. Raises BadInput where it is partly transparent."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        values = np.asarray(upright)
        values = values.astype(np.uint16) if upright.mode.startswith("I;16") else _grey16(values)
    elif upright.mode in ("L", "F", "RGB"):
        values = np.array(upright)
    elif upright.mode == "1":
        values = np.array(upright.convert("L"))
    else:
        return _converted(upright)
    require_no_transparent_colour(values, upright.info.get("transparency"))
    return values


def _converted(upright: Image.Image) -> NDArray[Any]:
    """A picture with a palette, with alpha or in another colour space as (H, W, 3) RGB."""
    if upright.has_transparency_data:
        return opaque(np.array(upright.convert("RGBA")))
    return np.array(upright.convert("RGB"))


def _grey16(values: NDArray[Any]) -> NDArray[Any]:
    """16-bit grey values that Pillow keeps in 32-bit integers."""
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise BadInput("the picture has integers below 0 or above 65,535: scale them to 8 or 16 bits first")
    return values.astype(np.uint16)


def to_rgb_picture(values: NDArray[Any], purpose: str) -> Image.Image:
    """Pixels (H, W, C) of 1 or 3 channels as an RGB picture of 8 bits.

    16-bit integers are divided by 257. Floating-point images are taken as 0 to 1 where no value is above 1, else as 0
    to 255. `purpose` is named where Pillow is not installed (MissingExtra).

    Raises BadInput for another number of channels.
    """
    module = pillow(purpose)
    if values.shape[2] not in (1, 3):
        raise BadInput(f"cannot draw on an image of {values.shape[2]} channels; expected 1 or 3")
    if values.dtype == np.uint16:
        values = (values // 257).astype(np.uint8)
    elif values.dtype != np.uint8:
        top = 255.0 if values.max() > 1 else 1.0
        values = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
    plain = values[:, :, 0] if values.shape[2] == 1 else values
    picture: Image.Image = module.fromarray(np.ascontiguousarray(plain)).convert("RGB")
    return picture
