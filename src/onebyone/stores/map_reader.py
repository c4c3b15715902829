"""Score maps on disk, read by region."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.stores.array_files import read_description
from onebyone.stores.geotiff import GeoTiffSource, tiff_description
from onebyone.stores.map_description import MapDescription
from onebyone.stores.ome_zarr_writer import stored_description, zarr_library
from onebyone.stores.regions import Span
from onebyone.stores.zarr_checks import checked_store
from onebyone.stores.zarr_metadata import array_metadata

_MAX_LEVELS = 32


class StoredMap:
    """The scores (channels, *positions) of a finished map, read from its file when they are indexed.

    `values` is any array that is indexed as NumPy's are. `numpy.asarray` reads the whole map. Several threads may read
    at the same time; each read is served alone, because not every format allows more. `coarser` is the next level of
    the file's pyramid, the means of 2×2 (or 2×2×2) values; None where the file has none.
    """

    def __init__(self, values: Any, coarser: StoredMap | None = None) -> None:
        self._values = values
        self.coarser = coarser
        self._lock = Lock()

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then positions per axis."""
        return tuple(self._values.shape)

    @property
    def ndim(self) -> int:
        """The number of axes, channels included."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the scores."""
        return np.dtype(np.float32)

    @property
    def chunk(self) -> tuple[int, ...]:
        """Positions per axis that are read at once."""
        stored = getattr(self._values, "shards", None) or getattr(self._values, "chunks", None)
        return tuple(stored[1:]) if stored else (1024,) * (self.ndim - 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        with self._lock:
            return np.asarray(self._values[index], dtype=np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)


class _Bands:
    """The bands of a GeoTIFF, indexed as an array (channels, rows, columns)."""

    def __init__(self, source: GeoTiffSource) -> None:
        self._source = source
        self.shape = (source.channels, *source.size)
        self.dtype = source.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        items = index if isinstance(index, tuple) else (index,)
        channels, *spatial = items if Ellipsis not in items else (slice(None),)
        spatial += [slice(None)] * (2 - len(spatial))
        spans = []
        for item, size in zip(spatial, self._source.size, strict=True):
            start, stop, step = (
                item.indices(size) if isinstance(item, slice) else (int(item), int(item) + 1, 1)
            )
            spans.append(Span(start, stop, step))
        values = np.moveaxis(self._source.read(spans), -1, 0)
        kept = tuple(slice(None) if isinstance(item, slice) else 0 for item in spatial)
        result: NDArray[Any] = values[(channels, *kept)]
        return result


def open_map(path: str | os.PathLike[str]) -> tuple[StoredMap, MapDescription]:
    """Open a finished score map: OME-Zarr, GeoTIFF, or `.npy` with its description beside it. No scores are read yet.

    Raises BadInput where it is not a score map, or its array does not fit its description.
    """
    file, coarser = Path(path), None
    if not file.exists():
        raise BadInput(f"cannot read {file}: No such file or directory")
    try:
        if file.suffix.lower() == ".npy":
            description = read_description(file)
            values: Any = np.load(file, mmap_mode="r", allow_pickle=False)
        elif file.suffix.lower() in (".tif", ".tiff"):
            description = tiff_description(file)
            values = _Bands(GeoTiffSource(file))
        else:
            description = stored_description(file)
            values = _zarr_level(file, 0)
            coarser = _coarser(file, 1, tuple(values.shape))
    except BadInput as error:
        raise BadInput(f"{file} {error}") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadInput(f"{file} cannot be read as a score map: {error}") from error
    scores = StoredMap(values, coarser)
    if scores.ndim < 2 or np.dtype(values.dtype) != np.float32 or len(scores) != len(description.channels):
        raise BadInput(
            f"{file} is not a score map: an array of shape {scores.shape} and type {values.dtype} for "
            f"{len(description.channels)} channels"
        )
    return scores, description


def _zarr_level(file: Path, level: int) -> Any:
    """One array of a pyramid, whose chunks are checked as they are read."""
    name = str(level)
    store = checked_store(file, name, array_metadata(file, name))
    return zarr_library("reading OME-Zarr").open_array(store, path=name, mode="r")


def _coarser(file: Path, level: int, finer: tuple[int, ...]) -> StoredMap | None:
    """The levels of a pyramid from `level` on; None where there is none of half as many positions."""
    shape = (finer[0], *(-(-n // 2) for n in finer[1:]))
    if level > _MAX_LEVELS or not (file / str(level)).is_dir():
        return None
    values = _zarr_level(file, level)
    if tuple(values.shape) != shape or np.dtype(values.dtype) != np.float32:
        return None
    return StoredMap(values, _coarser(file, level + 1, shape))
