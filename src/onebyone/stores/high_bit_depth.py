"""Reading pictures of more than eight bits per channel, with tifffile and imagecodecs.

Pillow supports 16 bits for grey pictures only. Of a colour PNG or TIFF of 16 bits it silently keeps the upper eight; it
reads separate 16-bit planes as if they had 8 bits, reads signed bytes as unsigned, does not invert 16-bit grey values
in which 0 is white, and leaves out channels beyond colours and alpha. Such files are read here without loss, or
refused.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, MissingExtra, OnebyoneWarning

if TYPE_CHECKING:
    from PIL import Image

_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 274, 277, 339  # TIFF 6.0, section 8
_WHITE_IS_ZERO, _SIGNED = 0, 2
_DEEP_MODES = ("I", "F")  # Pillow's modes of 16 and 32 bits, with I;16 and its byte orders
_TRANSPARENT = "the picture is partly transparent: compose it with a background first"
_ACCEPTED = "unsigned integers of 8 or 16 bits, or floating point"


def loses_bits(picture: Image.Image) -> bool:
    """Whether Pillow would change the values of an opened file, or leave some out.

    It is decided from the header; no pixel is read.
    """
    deep_mode = picture.mode.startswith(_DEEP_MODES)
    if picture.format == "TIFF":
        tags: Any = picture.tag_v2  # type: ignore[attr-defined]
        if tags.get(_SAMPLES, 1) > len(picture.getbands()):
            return True
        bits = int(np.max(tags.get(_BITS, 1)))
        if bits > 8 and deep_mode:
            return bool(tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
        return bits > 8 or _SIGNED in np.ravel(tags.get(_SAMPLE_FORMAT, 1))
    if deep_mode:
        return False
    if picture.format == "JPEG2000":
        return _jpeg2000_bits(picture) > 8
    for tile in getattr(picture, "tile", ()):
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(str(a).endswith((";16B", ";16L", ";16N")) for a in arguments):
            return True
        if tile.codec_name.startswith("ppm") and arguments[-1] > 255:  # the largest value of the file
            return True
    return False


def read_deep(file: Path, picture: Image.Image, page: int) -> NDArray[Any]:
    """A page of a file for which `loses_bits`, as (H, W) or (H, W, C), turned upright.

    Raises BadInput where the file cannot be read without loss.
    """
    if picture.format == "TIFF":
        return read_tiff(file, page)
    if picture.format != "PNG":
        raise BadInput(
            f"{file} is a {picture.format} picture in colour of more than 8 bits per channel, which is not supported; "
            "expected PNG, TIFF, or an array in .npy"
        )
    try:
        codecs = importlib.import_module("imagecodecs")
    except ImportError as error:
        raise MissingExtra(
            "imagecodecs", "images", f"{file}: reading colour of 16 bits per channel"
        ) from error
    values: NDArray[Any] = codecs.png_decode(file.read_bytes())
    if values.ndim == 3 and values.shape[-1] in (2, 4):
        values = opaque(values)
    require_no_transparent_colour(values, picture.info.get("transparency"))
    return upright(values, picture.getexif().get(_ORIENTATION, 1))


def chosen_page(file: Path, pages: int, page: int | None) -> int:
    """The page to read: `page`, or the first where it is None, with a warning where the file has more.

    Raises BadInput where the file has no such page.
    """
    if page is None:
        if pages > 1:
            warnings.warn(
                f"{file} has {pages} pages or frames, and the first is read; page= selects another, counted from 0",
                OnebyoneWarning,
                stacklevel=2,
            )
        return 0
    if not 0 <= page < pages:
        has = "one page" if pages == 1 else f"{pages} pages"
        raise BadInput(f"page={page}: {file} has {has}, counted from 0")
    return page


def read_tiff(file: Path, page: int | None, max_pixels: int | None = None) -> NDArray[Any]:
    """A page of a TIFF as (H, W) or (H, W, C), turned upright. `page` is as for `chosen_page`.

    Raises
    ------
    BadInput
        for values that are neither unsigned integers of 8 or 16 bits nor floating point, for a colour space other than
        grey and RGB, and for a page that is partly transparent or has more than `max_pixels` pixels.
    """
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise MissingExtra("tifffile", "images", f"{file}: reading a TIFF of this kind") from error
    with tifffile.TiffFile(file) as tiff:
        selected = tiff.pages[chosen_page(file, len(tiff.pages), page)]
        if max_pixels is not None and selected.imagewidth * selected.imagelength > max_pixels:
            raise BadInput(f"{file} is a picture of more than {max_pixels:,} pixels")
        colour_space = str(getattr(selected.photometric, "name", selected.photometric))
        if colour_space not in ("MINISBLACK", "MINISWHITE", "RGB"):
            raise BadInput(f"{file}: its colour space is {colour_space}; convert it to grey or RGB first")
        if selected.dtype is None or not (
            selected.dtype in (np.uint8, np.uint16) or selected.dtype.kind == "f"
        ):
            raise BadInput(f"{file}: its values are of type {selected.dtype}; expected {_ACCEPTED}")
        values: NDArray[Any] = selected.asarray()
        if selected.axes.startswith("S"):  # one plane per channel
            values = np.moveaxis(values, 0, -1)
        extra = [int(kind) for kind in selected.extrasamples]
        orientation = selected.tags.valueof(_ORIENTATION, 1)
    alpha = alpha_samples(extra, selected.samplesperpixel)
    if alpha:
        values = opaque(values, alpha)
    if colour_space == "MINISWHITE" and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    return upright(values, int(orientation))


def alpha_samples(extra: Sequence[int], samples: int) -> tuple[int, ...]:
    """Which samples of a TIFF's pixel are alpha; `extra` are the kinds of those after the colours (tag ExtraSamples).

    Kind 1 is associated alpha, kind 2 unassociated, and 0 any other data, which may come after alpha.

    >>> alpha_samples([2, 0], 5), alpha_samples([], 3)
    ((3,), ())
    """
    return tuple(samples - len(extra) + place for place, kind in enumerate(extra) if kind in (1, 2))


def opaque(values: NDArray[Any], alpha: Sequence[int] = (-1,)) -> NDArray[Any]:
    """Values (H, W, C) without the channels `alpha`; (H, W) where one is left.

    Raises BadInput where alpha is not opaque everywhere.
    """
    full = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    if (values[..., list(alpha)] != full).any():
        raise BadInput(_TRANSPARENT)
    rest: NDArray[Any] = np.delete(values, list(alpha), axis=-1)
    return rest[..., 0] if rest.shape[-1] == 1 else rest


def require_no_transparent_colour(values: NDArray[Any], colour: object) -> None:
    """Raise BadInput where pixels (H, W) or (H, W, C) have the colour that a PNG declares transparent (chunk tRNS)."""
    if isinstance(colour, int | tuple):
        pixels = values if values.ndim == 3 else values[..., None]
        if (pixels == np.asarray(colour)).all(axis=-1).any():
            raise BadInput(_TRANSPARENT)


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rows and columns rotated and flipped as EXIF's orientation (1 to 8) says.

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
    position = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(position)
    start = head.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(head[start + 40 : start + 42], "big")
    sizes = head[start + 42 : start + 42 + 3 * count : 3]
    return max(((size & 0x7F) + 1 for size in sizes), default=8) if start >= 0 else 8
