"""GeoTIFF and Cloud Optimized GeoTIFF (COG) through rasterio (GDAL): read by window, scores written with their place.

Only GDAL's driver for TIFF is used, because other formats of GDAL refer to files and addresses outside of the file.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import require_file
from onebyone.errors import BadInput, MissingExtra
from onebyone.stores.array_files import NpyWriter
from onebyone.stores.axes import short_reason
from onebyone.stores.high_bit_depth import chosen_page
from onebyone.stores.map_description import MapDescription
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Region

_TAG = "ONEBYONE"
_TILE = 256
_ROWS_BYTES = 2**24


def rasterio_library(purpose: str) -> Any:
    """The module rasterio. Raises MissingExtra, which names `purpose`, where it is not installed."""
    try:
        import rasterio
    except ImportError as error:
        raise MissingExtra("rasterio", "geo", purpose) from error
    return rasterio


@contextmanager
def opened(path: Path, purpose: str, page: str | None = None) -> Iterator[Any]:
    """A TIFF, or one of its pages by GDAL's name, opened by rasterio, closed at the end.

    Raises BadInput where it cannot be read.
    """
    library = rasterio_library(purpose)
    dataset = _open(library, path, {}, page)
    with dataset:
        yield dataset


def _page_name(path: Path, page: int | None) -> str | None:
    """GDAL's name of a page of a file with several, overviews and masks not counted; None where there is one page."""
    with opened(path, "reading a GeoTIFF") as first:
        names = first.subdatasets or [None]
    name: str | None = names[chosen_page(path, len(names), page)]
    return name


def _open(library: Any, path: Path, options: dict[str, Any], page: str | None = None) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", library.errors.NotGeoreferencedWarning)
            file = require_file(path).resolve()
            return library.open(page or file, driver="GTiff", sharing=False, **options)
    except library.errors.RasterioError as error:
        raise BadInput(f"{path} cannot be read as a GeoTIFF: {short_reason(error)}") from error


class GeoTiffSource:
    """A GeoTIFF at one of its levels (0 is the full resolution, then its overviews); an `ImageSource`.

    Of a file with several pages, `page` is read, or the first one with a warning; overviews are no pages.

    Palettes become RGB, grey in which 0 is white is inverted, and grey of fewer than 8 bits is stretched to 0 to 255,
    as in files that are not geo-referenced. Alpha is not a channel: with it, and with a mask inside the file,
    `has_mask` is true, and `with_data` tells which pixels are there.

    Raises
    ------
    BadInput
        where the file cannot be read, has no such page or level, or mixes types of values.
    """

    def __init__(self, path: Path, level: int = 0, page: int | None = None) -> None:
        self._library = rasterio_library("reading a GeoTIFF")
        self._path = path
        name = _page_name(path, page)
        with opened(path, "reading a GeoTIFF", name) as full:
            size0 = (full.height, full.width)
            count = len(full.overviews(1))
            world = (
                tuple(full.transform)[:6] if full.crs is not None or not full.transform.is_identity else None
            )
            crs = None if full.crs is None else full.crs.to_wkt()
            self._table = _table(full, self._library.enums.ColorInterp.palette)
            flags = [flag for band in full.mask_flag_enums for flag in band]
        if not 0 <= level <= count:
            raise BadInput(f"level={level}: {path} has {count + 1} level(s), counted from 0")
        options = {} if level == 0 else {"overview_level": level - 1}
        self._dataset = _open(self._library, path, options, name)
        dataset = self._dataset
        if len(set(dataset.dtypes)) != 1:
            raise BadInput(f"{path}: its bands have different types: {', '.join(dataset.dtypes)}")
        alpha = [
            dataset.colorinterp[b] == self._library.enums.ColorInterp.alpha for b in range(dataset.count)
        ]
        self._bands = [b + 1 for b in range(dataset.count) if not alpha[b]]
        self._alpha = [b + 1 for b in range(dataset.count) if alpha[b]]
        self.size: tuple[int, ...] = (dataset.height, dataset.width)
        self.channels = len(self._bands) if self._table is None else self._table.shape[1]
        self.dtype: np.dtype[Any] = np.dtype(dataset.dtypes[0])
        self.levels = count + 1
        nodata = dataset.nodata
        # a value that states no data is one of the file's own, before the table: GDAL's mask is right for it
        self.nodata: float | None = None if nodata is None or self._table is not None else float(nodata)
        masks = self._library.enums.MaskFlags
        recoded = self._table is not None and nodata is not None
        self.has_mask = bool(self._alpha) or masks.per_dataset in flags or recoded
        scale = tuple(a / b for a, b in zip(size0, self.size, strict=True))
        self.placement = Placement((0.0, 0.0), scale, transform=world, crs=crs)

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (h, w, channels). Raises BadInput where the file is damaged there."""
        rows, columns = region
        window = ((rows.start, rows.stop), (columns.start, columns.stop))
        read = partial(self._dataset.read, self._bands, window=window)
        values = np.moveaxis(self._checked(region, read), 0, -1)[:: rows.step, :: columns.step]
        return values if self._table is None else self._table[values[..., 0]]

    def with_data(self, region: Region) -> NDArray[np.bool_]:
        """Whether each pixel of a region is there: neither transparent nor masked. Raises BadInput as `read` does."""
        rows, columns = region
        window = ((rows.start, rows.stop), (columns.start, columns.stop))
        if self._alpha:  # GDAL's mask has the alpha of the last band only
            masks = self._checked(region, partial(self._dataset.read, self._alpha, window=window))
        else:
            masks = self._checked(region, partial(self._dataset.dataset_mask, window=window))[None]
        flags: NDArray[np.bool_] = (masks[:, :: rows.step, :: columns.step] != 0).all(axis=0)
        return flags

    def _checked(self, region: Region, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What `read` gives. Raises BadInput where the file is damaged."""
        rows, columns = region
        try:
            return read()
        except self._library.errors.RasterioError as error:
            raise BadInput(
                f"{self._path} cannot be read at rows {rows.start} to {rows.stop}, columns {columns.start} to "
                f"{columns.stop}: {short_reason(error)}"
            ) from error


def _table(dataset: Any, palette: object) -> NDArray[Any] | None:
    """The colours (values, 1 or 3) that the stored integers of a single band mean; None where they are the pixels."""
    kind = np.dtype(dataset.dtypes[0])
    if dataset.count != 1 or kind not in (np.uint8, np.uint16):
        return None
    count = np.iinfo(kind).max + 1
    if dataset.colorinterp[0] == palette:
        table = np.zeros((count, 3), np.uint8)
        for value, colour in dataset.colormap(1).items():
            table[value] = colour[:3]
        grey = (table == table[:, :1]).all()  # as GDAL shows single bits
        return table[:, :1] if grey else table
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * kind.itemsize))
    inverted = dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    if bits >= 8 and not inverted:
        return None
    values = np.arange(count)
    if bits < 8:
        values = np.minimum(values, 2**bits - 1) * 255 // (2**bits - 1)
    top = 255 if bits <= 8 else 2**bits - 1
    return (np.clip(top - values, 0, top) if inverted else values).astype(kind)[:, None]


class GeoTiffWriter(NpyWriter):
    """Collects blocks as files and publishes the map as a tiled GeoTIFF with a transform; a `MapWriter`.

    The transform is that of the positions: into the image's coordinate reference system where it has one, and into the
    pixels of its full resolution otherwise.
    """

    def __init__(self, shape: tuple[int, ...], block: tuple[int, ...], *, fill: float) -> None:
        if len(shape) != 3:
            raise BadInput(f"GeoTIFF has two spatial axes, and the score map has {len(shape) - 1}; use .npy")
        super().__init__(shape, block)
        self._fill = fill
        self._rasterio = rasterio_library("writing a GeoTIFF")

    def require_own(self, target: Path) -> None:
        """Raise BadInput where no tag of the file describes a score map."""
        tiff_description(target)

    def _publish_array(
        self, array: Path, values: NDArray[np.float32], target: Path, description: MapDescription
    ) -> None:
        """Write the GeoTIFF in the working folder and rename it into place."""
        channels, height, width = self._shape
        placement = description.placement
        a, b, c, d, e, f = placement.world_transform or _pixel_transform(placement)
        new = array.with_name("map.tif")
        try:
            with self._rasterio.open(
                new, "w", driver="GTiff", height=height, width=width, count=channels, dtype="float32",
                crs=None if placement.crs is None else self._rasterio.crs.CRS.from_wkt(placement.crs),
                transform=self._rasterio.Affine(a, b, c, d, e, f), nodata=self._fill,
                tiled=True, blockxsize=_TILE, blockysize=_TILE, compress="deflate", predictor=3, bigtiff="if_safer",
                interleave="band",
            ) as dataset:  # fmt: skip
                dataset.update_tags(**{_TAG: description.to_text()})
                rows = max(_TILE, _ROWS_BYTES // (4 * width) // _TILE * _TILE)
                for band, name in enumerate(description.channels, start=1):
                    dataset.set_band_description(band, name)
                    for start in range(0, height, rows):
                        stop = min(start + rows, height)
                        part = np.ascontiguousarray(values[band - 1, start:stop])
                        dataset.write(part, band, window=((start, stop), (0, width)))
        except self._rasterio.errors.RasterioError as error:
            reason = short_reason(error.__cause__ or error)
            raise OSError(f"GDAL cannot write its temporary file ({reason}); is the disk full?") from error
        os.replace(new, target)


def tiff_description(target: Path) -> MapDescription:
    """The description in a tag of a score map. Raises BadInput where there is none."""
    if not target.is_file():
        raise BadInput("is not a score map of onebyone")
    with opened(target, "reading a GeoTIFF") as dataset:
        return MapDescription.from_text(dataset.tags().get(_TAG, ""))


def _pixel_transform(placement: Placement) -> tuple[float, ...]:
    (oy, ox), (sy, sx) = placement.offset, placement.scale
    return sx, 0.0, ox, 0.0, sy, oy


def is_georeferenced(path: Path) -> bool:
    """Whether a TIFF states a coordinate reference system or a transform.

    They are GeoKeyDirectory (34735), ModelPixelScale (33550) and ModelTransformation (34264) of the GeoTIFF standard.
    """
    try:
        tifffile = importlib.import_module("tifffile")
        with tifffile.TiffFile(path) as tiff:
            return any(code in tiff.pages[0].tags for code in (34735, 33550, 34264))
    except Exception:  # the reader that follows reports the damage, or that tifffile is not installed
        return False
