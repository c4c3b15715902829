"""TIFF, BigTIFF and OME-TIFF by region, with tifffile: only the tiles or strips that a region touches are decoded.

Memory: the region itself, the decoded tiles or strips that it touches one at a time, and a cache of 64 MiB of them,
because neighbouring regions overlap. A strip or tile is decoded as a whole, so a file whose single strip is the whole
image needs the memory of the whole image, and is refused above 1 GiB. Uncompressed images are memory-mapped.
"""

from __future__ import annotations

import importlib
import struct
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, MissingExtra, OnebyoneWarning
from onebyone.stores.axes import SlicedSource, require_region, short_reason
from onebyone.stores.high_bit_depth import alpha_samples, chosen_page, opaque
from onebyone.stores.levels import chosen_level
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Region
from onebyone.stores.tiff_metadata import microns_per_pixel, nodata_value

_CACHE_BYTES = 2**26
_MAX_SEGMENT_BYTES = 2**30
_MAX_PAGES = 2**16
_MAX_SEGMENTS = 2**26
#: Compressions whose decoders write at most the declared size, or whose headers are checked: none, LZW, JPEG (old and
#: new), deflate (both numbers), PackBits, JPEG 2000 (Aperio's two numbers and the registered one), LZMA and Zstandard.
_COMPRESSIONS = (1, 5, 7, 8, 32946, 32773, 33003, 33005, 34712, 34925, 50000)
_JPEG, _JPEG2000 = (7,), (33003, 33005, 34712)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6


def tifffile_library(name: object) -> Any:
    """The module tifffile. Raises MissingExtra where it is not installed."""
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        raise MissingExtra("tifffile", "images", f"{name}: reading a TIFF by region") from error


def is_installed() -> bool:
    """Whether tifffile can be imported."""
    try:
        importlib.import_module("tifffile")
    except ImportError:
        return False
    return True


class TiffSource:
    """One level of one image of a TIFF; an `ImageSource`. `pages` hold its channels, one after another."""

    def __init__(self, tiff: Any, path: Path, pages: Sequence[Any], placement: Placement) -> None:
        self._tiff, self._path, self._pages = tiff, path, tuple(pages)
        weakref.finalize(self, tiff.close)
        page = self._pages[0].keyframe
        separate, depth, height, width, contiguous = page.shaped
        if depth != 1:
            raise BadInput(
                f"{path}: its page is a volume of {depth} slices; expected an image of rows and columns"
            )
        self.size: tuple[int, ...] = (int(height), int(width))
        self._samples = int(separate * contiguous)
        alpha = alpha_samples([int(kind) for kind in page.extrasamples], self._samples)
        self._alpha = [n * self._samples + a for n in range(len(self._pages)) for a in alpha]
        self._invert = int(page.photometric) == _WHITE_IS_ZERO and page.dtype.kind == "u"
        self.channels = self._samples * len(self._pages) - len(self._alpha)
        self.dtype: np.dtype[Any] = np.dtype(page.dtype)
        self.placement = placement
        self.nodata: float | None = nodata_value(page)
        if self._invert and self.nodata is not None:  # the file states it before the inversion
            self.nodata = np.iinfo(self.dtype).max - self.nodata
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached_bytes, self._lock = 0, Lock()
        self._tile = (
            (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        )
        self._contiguous = int(contiguous)
        _require_segments(path, page, self._tile)

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (h, w, channels). Raises BadInput where the file is damaged there."""
        rows, columns = region
        require_region(region, self._samples * len(self._pages) * self.dtype.itemsize, str(self._path))
        height, width = rows.stop - rows.start, columns.stop - columns.start
        out = np.empty((height, width, self._samples * len(self._pages)), self.dtype)
        for number, index, (y, x, sample) in self._segments(
            rows.start, rows.stop, columns.start, columns.stop
        ):
            segment = self._segment(number, index)
            top, left = max(y, rows.start), max(x, columns.start)
            bottom = min(y + segment.shape[0], rows.stop)
            right = min(x + segment.shape[1], columns.stop)
            first = number * self._samples + sample
            target = out[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
            target[..., first : first + segment.shape[2]] = segment[
                top - y : bottom - y, left - x : right - x
            ]
        if self._alpha:
            out = opaque(out, self._alpha).reshape(height, width, self.channels)
        if self._invert:
            out = np.iinfo(self.dtype).max - out
        return out[:: rows.step, :: columns.step]

    def _segments(
        self, top: int, bottom: int, left: int, right: int
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """The segments that a rectangle touches: page number, index in the page, and (row, column, sample)."""
        (h, w), (height, width) = self._tile, self.size
        across, down = -(-width // w), -(-height // h)
        planes = range(0, self._samples, self._contiguous)
        rows, columns = range(top // h, -(-bottom // h)), range(left // w, -(-right // w))
        for number, (plane, sample), y, x in product(
            range(len(self._pages)), enumerate(planes), rows, columns
        ):
            yield number, (plane * down + y) * across + x, (y * h, x * w, sample)

    def _segment(self, number: int, index: int) -> NDArray[Any]:
        """A decoded tile or strip (h, w, samples), from the cache where it is there."""
        with self._lock:
            cached = self._cache.get((number, index))
            if cached is not None:
                self._cache.move_to_end((number, index))
                return cached
            values = self._decoded(number, index)
            self._cache[number, index] = values
            self._cached_bytes += values.nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return values

    def _decoded(self, number: int, index: int) -> NDArray[Any]:
        page = self._pages[number]
        keyframe = page.keyframe
        where = f"{self._path} cannot be read at tile or strip {index}"
        try:
            offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
            if count > 2 * _MAX_SEGMENT_BYTES or offset + count > self._tiff.filehandle.size:
                raise BadInput(f"{where}: it extends beyond the end of the file")
            data = None
            if count:
                self._tiff.filehandle.seek(offset)
                data = self._tiff.filehandle.read(count)
                _require_header(keyframe, data, self._tile, where)
            values, _, shape = keyframe.decode(data, index, jpegtables=page.jpegtables)
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # decoders raise errors of many types on damaged data
            raise BadInput(f"{where}: {short_reason(error)}") from error
        if values is None:  # a sparse file: nothing was written there
            return np.full(shape[1:], keyframe.nodata, self.dtype)
        result: NDArray[Any] = values[0]
        down, across = (-(-n // t) for n, t in zip(self.size, self._tile, strict=True))
        corner = (index // across % down * self._tile[0], index % across * self._tile[1])
        least = [min(t, n - c) for t, n, c in zip(self._tile, self.size, corner, strict=True)]
        if result.shape[0] < least[0] or result.shape[1] < least[1] or result.shape[2] != self._contiguous:
            raise BadInput(f"{where}: it has the shape {result.shape}; expected {(*least, self._contiguous)}")
        return result


def open_tiff(
    path: Path,
    *,
    axes: str | None = None,
    page: int | None = None,
    level: int | None = None,
    mpp: float | None = None,
) -> TiffSource | SlicedSource | None:
    """Open a TIFF for reading by region; None where it can only be read as a whole (see `readable_by_region`).

    `axes` names the axes of the whole file where its pages form one image, such as "CYX". `page` selects one page of a
    file with several images. `level` and `mpp` select a level of a pyramid.

    A file with several images of which `page` selects none is read at its first, with a warning.

    Raises BadInput where the file is damaged.
    """
    library = tifffile_library(path)
    try:
        tiff = library.TiffFile(path)
    except Exception as error:  # tifffile raises errors of many types on a damaged file
        raise BadInput(f"{path} cannot be read as a TIFF: {short_reason(error)}") from error
    source = None
    try:
        pages = _main_pages(tiff, path, axes, page)
        if not all(readable_by_region(p) for level_pages in pages for p in level_pages):
            return None
        size0 = pages[0][0].keyframe.shaped[2:4]
        scales = [tuple(a / b for a, b in zip(size0, p[0].keyframe.shaped[2:4], strict=True)) for p in pages]
        microns = microns_per_pixel(tiff, pages[0][0].keyframe)
        chosen = chosen_level(str(path), scales, microns, level, mpp)
        source = TiffSource(tiff, path, pages[chosen], Placement((0.0, 0.0), scales[chosen], microns))
    except (BadInput, OnebyoneWarning, MemoryError):
        raise
    except Exception as error:  # tifffile raises errors of many types on a damaged file
        raise BadInput(f"{path} cannot be read as a TIFF: {short_reason(error)}") from error
    finally:
        if source is None:
            tiff.close()
    return source


def _main_pages(tiff: Any, path: Path, axes: str | None, page: int | None) -> list[list[Any]]:
    """Per level, the pages that hold the channels of the image to read."""
    count = _page_count(tiff, path)
    if page is not None:
        selected = tiff.pages[chosen_page(path, count, page)]
        return _checked_levels(path, [[selected], *([sub] for sub in selected.pages or ())])
    series = tiff.series[0]
    letters, shape = series.axes, series.shape
    if axes is not None:
        if len(axes) != len(shape):
            raise BadInput(
                f"axes={axes!r}: {path} has the shape {shape} ({letters}); expected {len(shape)} letters"
            )
        letters = axes.upper()
    long = [letter for letter, n in zip(letters, shape, strict=True) if n > 1 and letter not in "YXSC"]
    if long or (len(tiff.series) > 1 and axes is None and not _same_image(tiff.series)):
        if count == 1:
            raise BadInput(
                f"{path} holds {'×'.join(map(str, shape))} values on the axes {letters} in one page, which is not "
                "supported; save one plane, or a NumPy array with axes="
            )
        return _checked_levels(path, [[tiff.pages[chosen_page(path, count, None)]]])  # with a warning
    levels = [[p for p in lv.pages if p is not None] for lv in series.levels]
    planes = [n for letter, n in zip(letters, shape, strict=True) if letter == "C"]
    expected = planes[0] if planes and not _inside_page(levels[0][0], series, letters) else 1
    if len(levels[0]) != expected:
        raise BadInput(
            f"{path}: its {expected} channels are stored in {len(levels[0])} pages, which is not supported"
        )
    return _checked_levels(path, levels)


def _inside_page(page: Any, series: Any, letters: str) -> bool:
    """Whether the axis C of a series is inside each page (samples), and not one page per channel."""
    return len(letters) == len(page.keyframe.shape) or series.keyframe.shape == series.shape


def _same_image(series: Sequence[Any]) -> bool:
    """Whether the further series of a file are labels, thumbnails or macro photographs of a slide."""
    return str(series[0].kind).lower() in ("svs", "scn", "ndpi", "bif", "philips", "ventana", "ome", "qpi")


def _page_count(tiff: Any, path: Path) -> int:
    """The number of pages, bounded: a chain of pages may be a loop."""
    seen = 0
    for seen, _ in enumerate(tiff.pages, start=1):
        if seen > _MAX_PAGES:
            raise BadInput(f"{path} has more than {_MAX_PAGES:,} pages, or a loop of pages")
    return seen


def _checked_levels(path: Path, levels: list[list[Any]]) -> list[list[Any]]:
    """Levels that get smaller, with equal samples and types; others end the pyramid."""
    if not levels or not levels[0]:
        raise BadInput(f"{path} has no page that is an image")
    kept = levels[:1]
    for level in levels[1:]:
        first, last, this = (lv[0].keyframe for lv in (kept[0], kept[-1], level))
        same = (this.samplesperpixel, this.dtype, len(level)) == (
            first.samplesperpixel,
            first.dtype,
            len(kept[0]),
        )
        smaller = all(a <= b for a, b in zip(this.shaped[2:4], last.shaped[2:4], strict=True))
        if not same or not smaller or this.shaped[2:4] == last.shaped[2:4] or 0 in this.shaped:
            break
        kept.append(level)
    return kept


def readable_by_region(page: Any) -> bool:
    """Whether `TiffSource` reads a page without loss: an upright grey or RGB image in a common compression.

    Others (palettes, CMYK, bits, rotated pages) are small in practice and are read as a whole by `pictures`.
    """
    page = page.keyframe
    dtype = page.dtype
    if (
        dtype is None
        or not (dtype in (np.uint8, np.uint16) or dtype.kind == "f")
        or page.bitspersample not in (8, 16, 32, 64)
    ):
        return False
    photometric = int(page.photometric)
    colours = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
    compressed_colours = photometric == _YCBCR and int(page.compression) in (*_JPEG, *_JPEG2000)
    upright = int(page.tags.valueof(274, 1)) == 1
    return (colours or compressed_colours) and upright and int(page.compression) in _COMPRESSIONS


def _require_segments(path: Path, page: Any, tile: tuple[int, int]) -> None:
    """Raise BadInput where the table of tiles or strips cannot be right, or one does not fit into memory."""
    if 0 in page.shaped or min(tile) < 1:
        raise BadInput(f"{path}: its page has the size {page.shaped}; expected at least one pixel")
    height = min(tile[0], page.imagelength) if not page.is_tiled else tile[0]
    size = height * tile[1] * int(page.shaped[4]) * page.dtype.itemsize
    if size > _MAX_SEGMENT_BYTES:
        raise BadInput(
            f"{path}: each of its {'tiles' if page.is_tiled else 'strips'} holds {height}×{tile[1]} pixels, "
            f"{size:,} bytes, which are decoded at once; expected at most {_MAX_SEGMENT_BYTES:,}. "
            "Write it in tiles first"
        )
    down, across = (-(-n // t) for n, t in zip(page.shaped[2:4], tile, strict=True))
    count = down * across * int(page.shaped[0])
    if count > _MAX_SEGMENTS or len(page.dataoffsets) < count or len(page.databytecounts) < count:
        raise BadInput(
            f"{path}: its page has {len(page.dataoffsets)} tiles or strips; expected {count} for its size"
        )


def _require_header(page: Any, data: bytes, tile: tuple[int, int], where: str) -> None:
    """Raise BadInput where a compressed picture states a larger size than its tile: its decoder would allocate it."""
    compression = int(page.compression)
    stated = None
    if compression in _JPEG:
        stated = _jpeg_size(data)
    elif compression in _JPEG2000:
        start = data.find(b"\xff\x4f\xff\x51")
        if 0 <= start <= len(data) - 24:
            width, height, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
            stated = (height - top, width - left)
    if stated is not None and (stated[0] > tile[0] or stated[1] > tile[1]):
        raise BadInput(
            f"{where}: its data state {stated[0]}×{stated[1]} pixels; expected at most {tile[0]}×{tile[1]}"
        )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the frame header (SOF) of a JPEG stream; None without one. ITU-T T.81, B.2.2."""
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return height, width
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
