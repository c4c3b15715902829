"""tifffile and imagecodecs, wrapped: pictures of more than eight bits per channel, which Pillow would cut to eight.

Pillow holds grey pictures of 16 bits, and colour of 8: of the 16 bits of a coloured PNG or TIFF it keeps the
upper half without a word, reads separate planes of 16 bits as if they had 8, signed bytes as unsigned, and does
not invert 16-bit greys in which 0 is white. Such files are read here, whole; what cannot be is refused.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, MissingExtra, OnebyoneWarning

if TYPE_CHECKING:
    from PIL import Image

_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339  # TIFF 6.0, section 8, and its EXIF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_DEEP_MODES = ("I", "F")  # Pillow's modes of 16 and 32 bits, with I;16 and its byte orders
_ACCEPTED = "8 or 16 bits without sign, or floating point"


def loses_bits(picture: Image.Image) -> bool:
    """Whether Pillow would change the values of an opened file: from its header, no pixel is read."""
    deep_mode = picture.mode.startswith(_DEEP_MODES)
    if picture.format == "TIFF":
        tags: Any = picture.tag_v2  # type: ignore[attr-defined]
        bits = int(np.max(tags.get(_BITS, 1)))
        if bits > 8 and deep_mode:
            return bool(tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
        return bits > 8 or _SIGNED in np.ravel(tags.get(_SAMPLE_FORMAT, 1))
    if deep_mode:
        return False
    if picture.format == "JPEG2000":
        return _jpeg2000_bits(picture) > 8
    for tile in getattr(picture, "tile", ()):
        given = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(str(a).endswith((";16B", ";16L", ";16N")) for a in given):
            return True
        if tile.codec_name.startswith("ppm") and given[-1] > 255:  # its largest value
            return True
    return False


def read_deep(file: Path, picture: Image.Image, page: int) -> NDArray[Any]:
    """A page of a file that `loses_bits`, as (H, W) or (H, W, C), turned upright. Raises BadInput if it cannot be."""
    if picture.format == "TIFF":
        return read_tiff(file, page)
    if picture.format != "PNG":
        raise BadInput(
            f"{file} is a {picture.format} picture in colour of more than 8 bits per channel, which is not read; "
            "expected PNG, TIFF, or an array in .npy"
        )
    try:
        codecs = importlib.import_module("imagecodecs")
    except ImportError as error:
        raise MissingExtra(
            "imagecodecs", "images", f"{file}: reading colour of 16 bits per channel"
        ) from error
    values: NDArray[Any] = codecs.png_decode(file.read_bytes())
    alpha = values.shape[-1] in (2, 4) and values.ndim == 3
    return upright(opaque(values) if alpha else values, picture.getexif().get(_ORIENTATION, 1))


def chosen_page(file: Path, pages: int, page: int | None) -> int:
    """The page to read: the one asked for, or the first, with a warning where there are more.

    Raises BadInput where there is no such page.
    """
    if page is None:
        if pages > 1:
            warnings.warn(
                f"{file} has {pages} pages or frames, and the first is read; page= chooses one, counted from 0",
                OnebyoneWarning,
                stacklevel=2,
            )
        return 0
    if not 0 <= page < pages:
        has = "one page" if pages == 1 else f"{pages} pages"
        raise BadInput(f"page={page}: {file} has {has}, counted from 0")
    return page


def read_tiff(file: Path, page: int | None, most_pixels: int | None = None) -> NDArray[Any]:
    """A page of a TIFF as (H, W) or (H, W, C), turned upright; the first where `page` is None, as `chosen_page` says.

    Raises
    ------
    BadInput
        for values that are neither unsigned 8 or 16 bits nor floating point, colours other than grey and RGB, a
        page that is partly transparent or has more than `most_pixels`.
    """
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise MissingExtra("tifffile", "images", f"{file}: reading a TIFF of this kind") from error
    with tifffile.TiffFile(file) as tiff:
        held = tiff.pages[chosen_page(file, len(tiff.pages), page)]
        if most_pixels is not None and held.imagewidth * held.imagelength > most_pixels:
            raise BadInput(f"{file} is a picture of more than {most_pixels:,} pixels")
        colours = str(getattr(held.photometric, "name", held.photometric))
        if colours not in ("MINISBLACK", "MINISWHITE", "RGB"):
            raise BadInput(f"{file}: its colours are {colours}; convert it to grey or RGB first")
        if held.dtype is None or not (held.dtype in (np.uint8, np.uint16) or held.dtype.kind == "f"):
            raise BadInput(f"{file}: its values are of type {held.dtype}; expected {_ACCEPTED}")
        values: NDArray[Any] = held.asarray()
        if held.axes.startswith("S"):  # planes one after the other
            values = np.moveaxis(values, 0, -1)
        extra = [int(kind) for kind in held.extrasamples]
        orientation = held.tags.valueof(_ORIENTATION, 1)
    if 1 in extra or 2 in extra:  # alpha, associated or not
        values = opaque(values)
    if colours == "MINISWHITE" and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    return upright(values, int(orientation))


def opaque(values: NDArray[Any]) -> NDArray[Any]:
    """Values (H, W, C) without their last channel, alpha. Raises BadInput where it is not opaque everywhere."""
    alpha, rest = values[..., -1], values[..., :-1]
    full = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    if (alpha != full).any():
        raise BadInput("the picture is partly transparent: lay it on a background first")
    return rest[..., 0] if rest.shape[-1] == 1 else rest


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rows and columns turned as EXIF's orientation (1 to 8) says.

    >>> upright(np.array([[1, 2, 3]]), 6).ravel().tolist(), upright(np.array([[1, 2, 3]]), 3).tolist()
    ([1, 2, 3], [[3, 2, 1]])
    """
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _jpeg2000_bits(picture: Image.Image) -> int:
    """Bits of the widest component: the SIZ marker of the codestream (ISO/IEC 15444-1, A.5.1)."""
    stream = getattr(picture, "fp", None)
    if stream is None:
        return 8
    here = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(here)
    start = head.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(head[start + 40 : start + 42], "big")
    sizes = head[start + 42 : start + 42 + 3 * count : 3]
    return max(((size & 0x7F) + 1 for size in sizes), default=8) if start >= 0 else 8
