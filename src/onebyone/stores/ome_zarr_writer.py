"""Score maps as OME-Zarr 0.5 (Zarr v3) or 0.4 (Zarr v2): chunked, compressed, with a pyramid, written by zarr-python.

The channels are the classes. Every level is the mean of 2×2 positions of the one before it, without those that are not
a number, so its scale is exactly twice as large. The coordinates of OME-Zarr are those of the centres of pixels: pixel
(row i) of a level is at `translation + scale · i`. With the placement (offset, scale) of `stores.placement`, in
microns of the image's full resolution or, where those are not known, in its pixels,

    scale_l = m·2^l·scale,   translation_l = m·(offset + 2^l·scale/2 − 1/2)

so that a viewer that shows the image with `scale = m` and no translation shows the scores in the right place.

A chunk has as many channels of its positions as fit into 256 KiB (1 MiB in three dimensions), because each chunk is
read and written by a call of its own. Where a block holds several chunks (large maps, or many classes), it is one
shard in 0.5.

Specifications: https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/0.4/.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, MissingExtra
from onebyone.stores.file_sink import Mapper, block_shape
from onebyone.stores.map_description import MapDescription
from onebyone.stores.regions import Span
from onebyone.stores.working_folder import flush_to_disk

VERSIONS = ("0.5", "0.4")
_SPATIAL = "zyx"
_INNER = {2: 256, 3: 64}  # positions per axis of a chunk that holds one channel
_SMALLEST_LEVEL = 256  # levels are added until no axis is longer than this
#: zarr's settings of an array, which it takes when the array is made or opened. Every chunk of a block that is done
#: has a file, also where all of it is the fill value. Many small chunks are read at once for the pyramid; by default
#: each is a task of its own.
_ARRAY_SETTINGS = {"array.write_empty_chunks": True, "codec_pipeline.batch_size": 64}
_MAX_FILES = 1024  # chunks are sharded where there would be more files
#: Colours of the channels in viewers, without #: Okabe and Ito, "Color Universal Design", 2008.
_COLOURS = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7", "FFFFFF")


def zarr_library(purpose: str) -> ModuleType:
    """The module zarr. Raises MissingExtra, which names `purpose`, where it is not installed."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra("zarr", "stores", purpose) from error
    module: ModuleType = zarr
    return module


class OmeZarrWriter:
    """Writes blocks of a map to a Zarr array, and its pyramid when it is published; a `MapWriter`.

    `shape` is (channels, *positions) and `block` the positions of a block; `fill` is stored as the array's fill value.

    Raises BadInput for another `version` than 0.4 or 0.5, and for maps that have not two or three spatial axes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        block: tuple[int, ...],
        fill: float,
        version: str = "0.5",
    ) -> None:
        if version not in VERSIONS:
            raise BadInput(f"ome_version={version!r}: expected one of {', '.join(VERSIONS)}")
        if len(shape) not in (3, 4):
            raise BadInput(
                f"OME-Zarr has two or three spatial axes, and the score map has {len(shape) - 1}; use .npy"
            )
        self._zarr = zarr_library("writing OME-Zarr")
        self._shape, self._block, self._fill = shape, block, fill
        self._v3 = version == "0.5"
        self._version = version
        self._root = Path()
        self._array: Any = None

    def require_own(self, target: Path) -> None:
        """Raise BadInput where the attributes of the group do not describe a score map."""
        stored_description(target)

    def begun(self, folder: Path) -> bool:
        """Whether the working folder holds the array."""
        return (folder / "map.zarr").is_dir()

    def start(self, folder: Path) -> None:
        """Make the array of the full resolution in the working folder, or open it."""
        self._root = folder / "map.zarr"
        self._array = self._level(0, self._shape, self._block)

    def put(self, region: tuple[Span, ...], values: NDArray[np.float32]) -> None:
        """Write one block and flush its chunks to disk."""
        self._array[(slice(None), *(span.slice for span in region))] = values
        files = self._files_of(region)
        for file in (*files, *dict.fromkeys(f.parent for f in files)):
            flush_to_disk(file)

    def get(self, region: tuple[Span, ...]) -> NDArray[np.float32]:
        """The values of a block."""
        return np.asarray(self._array[(slice(None), *(span.slice for span in region))], dtype=np.float32)

    def publish(self, target: Path, description: MapDescription, mapper: Mapper) -> None:
        """Write the pyramid and the metadata, then rename the store into place."""
        low, high = self._write_pyramid(mapper)
        for file in self._root.rglob("*.partial"):  # what zarr was writing in a process that was killed
            file.unlink()
        ome = ome_metadata(description, len(self._shape) - 1, self._levels(), self._version, (low, high))
        group = self._zarr.open_group(self._root, mode="a", zarr_format=3 if self._v3 else 2)
        mine = {"onebyone": description.to_dict()}
        group.attrs.put({"ome": ome, **mine} if self._v3 else {**ome, **mine})
        os.replace(self._root, target)

    def close(self) -> None:
        """Release the array."""
        self._array = None

    def _levels(self) -> int:
        """The number of levels of the pyramid."""
        count, longest = 1, max(self._shape[1:])
        while longest > _SMALLEST_LEVEL:
            count, longest = count + 1, -(-longest // 2)
        return count

    def _level(self, level: int, shape: tuple[int, ...], block: tuple[int, ...]) -> Any:
        """One array of the pyramid, opened or created."""
        path = self._root / str(level)
        with self._zarr.config.set(_ARRAY_SETTINGS):
            if (path / ("zarr.json" if self._v3 else ".zarray")).exists():
                return self._zarr.open_array(path, mode="r+")
            return self._new_level(path, shape, block)

    def _new_level(self, path: Path, shape: tuple[int, ...], block: tuple[int, ...]) -> Any:
        """An empty array of the pyramid."""
        chunk = chunk_shape(shape[0], block)
        counts = [-(-n // c) for n, c in zip((shape[0], *block), chunk, strict=True)]  # chunks of a block
        files = prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
        sharded = self._v3 and files > _MAX_FILES and prod(counts) > 1
        axes = ("c", *_SPATIAL[-len(block) :])
        codecs: Any = (
            {"compressors": self._zarr.codecs.ZstdCodec(level=3), "dimension_names": axes}
            if self._v3
            else {"compressors": _zstd_v2(), "chunk_key_encoding": {"name": "v2", "separator": "/"}}
        )
        return self._zarr.create_array(
            path,
            shape=shape,
            dtype="float32",
            chunks=chunk,
            shards=(counts[0] * chunk[0], *block) if sharded else None,
            fill_value=self._fill,
            zarr_format=3 if self._v3 else 2,
            overwrite=True,
            **codecs,
        )

    def _files_of(self, region: tuple[Span, ...]) -> list[Path]:
        """The files that hold the chunks of a block at full resolution."""
        array = self._array
        unit = array.shards or array.chunks
        channels = range(-(-self._shape[0] // unit[0]))
        spans = [range(s.start // u, -(-s.stop // u)) for s, u in zip(region, unit[1:], strict=True)]
        prefix = self._root / "0" / "c" if self._v3 else self._root / "0"
        return [prefix.joinpath(*map(str, index)) for index in product(channels, *spans)]

    def _write_pyramid(self, mapper: Mapper) -> tuple[float, float]:
        """Write all levels below the first, block by block. Returns the least and the greatest finite score.

        The blocks of a level cover whole chunks of the one before it, where these are small enough, so that each chunk
        is read once.
        """
        finer: Any = self._array
        extremes: list[tuple[float, float]] = []
        for level in range(1, max(2, self._levels())):
            shape = (self._shape[0], *(-(-n // 2) for n in finer.shape[1:]))
            block = _aligned_block(block_shape(self._shape[0], shape[1:]), finer.chunks[1:])
            coarser = self._level(level, shape, block) if level < self._levels() else None
            ranges = [range(0, n, b) for n, b in zip(shape[1:], block, strict=True)]
            places = [
                tuple(slice(f, min(f + b, n)) for f, b, n in zip(first, block, shape[1:], strict=True))
                for first in product(*ranges)
            ]
            measured = level == 1  # the coarser levels hold means, whose extremes are not those of the scores
            of_level = list(mapper(partial(_write_coarser, finer, coarser, measured), places))
            extremes += [pair for pair in of_level if pair is not None]
            finer = coarser
        low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
        return (low, high) if low < high else (0.0, 1.0)


def _aligned_block(largest: tuple[int, ...], finer: tuple[int, ...]) -> tuple[int, ...]:
    """A block of the next level, of at most `largest` positions per axis.

    Where it can be, it is a multiple of the chunks of the finer level, and so covers whole chunks of it.

    >>> _aligned_block((256, 256), (226, 35)), _aligned_block((256, 256), (1021, 64))
    ((226, 245), (256, 256))
    """
    return tuple(most // n * n or most for most, n in zip(largest, finer, strict=True))


def _write_coarser(
    finer: Any, coarser: Any, measured: bool, place: tuple[slice, ...]
) -> tuple[float, float] | None:
    """Write a block of the next level, if there is one. If `measured`, returns the least and the greatest finite score
    that it covers."""
    values = finer[(slice(None), *(slice(2 * p.start, 2 * p.stop) for p in place))]
    if coarser is not None:
        coarser[(slice(None), *place)] = np.stack([halved(channel) for channel in values])
    if not measured:
        return None
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (float("inf"), float("-inf"))


def halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of every 2×2 (or 2×2×2) values, without those that are not a number; fewer at the far edges.

    >>> halved(np.array([[1, 3, 5], [np.nan, 5, 7]], np.float32)).tolist()
    [[3.0, 6.0]]
    """
    missing = np.isnan(values)
    total = values.astype(np.float64)
    if missing.any():
        total[missing] = 0.0
        count = np.logical_not(missing).astype(np.float64)
        for axis in range(values.ndim):
            count = _sums_of_pairs(count, axis)
    else:
        count = np.ones(())
        for length in values.shape:
            count = np.multiply.outer(count, _sums_of_pairs(np.ones(length), 0))
    for axis in range(values.ndim):
        total = _sums_of_pairs(total, axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: NDArray[np.float32] = (total / count).astype(np.float32)
    return mean


def _sums_of_pairs(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Each value at an even index plus the one after it; the last one alone where their number is odd."""
    rows = np.moveaxis(values, axis, 0)
    sums = rows[::2].copy()
    sums[: len(rows) // 2] += rows[1::2]
    return np.moveaxis(sums, 0, axis)


def ome_metadata(
    description: MapDescription, axes: int, levels: int, version: str, display: tuple[float, float]
) -> dict[str, Any]:
    """The metadata of a multiscale image (`multiscales`, `omero`), as the version of OME-Zarr states them."""
    placement = description.placement
    unit = {} if placement.microns_per_pixel is None else {"unit": "micrometer"}
    microns = placement.microns_per_pixel or (1.0,) * axes
    datasets = []
    for level in range(levels):
        scale = [2**level * s for s in placement.scale]
        move = [m * (o + s / 2 - 0.5) for m, o, s in zip(microns, placement.offset, scale, strict=True)]
        steps = [m * s for m, s in zip(microns, scale, strict=True)]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, *steps]},
                    {"type": "translation", "translation": [0.0, *move]},
                ],
            }
        )
    names = [{"name": name, "type": "space", **unit} for name in _SPATIAL[-axes:]]
    multiscale: dict[str, Any] = {
        "name": "scores",
        "axes": [{"name": "c", "type": "channel"}, *names],
        "datasets": datasets,
        "type": "mean",
    }
    low, high = display
    channels = [
        {
            "label": name,
            "color": _COLOURS[number % len(_COLOURS)],
            "active": number < 4,
            "window": {"min": low, "max": high, "start": low, "end": high},
        }
        for number, name in enumerate(description.channels)
    ]
    if version == "0.5":
        return {"version": version, "multiscales": [multiscale], "omero": {"channels": channels}}
    return {"multiscales": [{"version": version, **multiscale}], "omero": {"channels": channels}}


def stored_description(target: Path) -> MapDescription:
    """The description in the attributes of a Zarr group on disk. Raises BadInput where it is not a score map."""
    from onebyone.stores.zarr_metadata import group_attributes

    return MapDescription.from_dict(group_attributes(target).get("onebyone"))


def chunk_shape(channels: int, block: tuple[int, ...]) -> tuple[int, ...]:
    """The chunks (channels, *positions) of a map whose blocks have `block` positions per axis.

    Chunks divide a block. A block without a useful divisor is one chunk.

    >>> chunk_shape(4, (31, 31)), chunk_shape(1000, (64, 64)), chunk_shape(3, (512, 1011))
    ((4, 31, 31), (16, 64, 64), (1, 256, 1011))
    """
    largest = _INNER[len(block)]
    inner = [_divisor(b, largest) for b in block]
    most = max(1, largest ** len(block) // prod(inner))
    return (-(-channels // -(-channels // most)), *inner)


def _divisor(block: int, largest: int) -> int:
    """The largest divisor up to `largest`; the block itself where that would be less than a quarter of `largest`."""
    if block <= largest:
        return block
    return next((n for n in range(largest, largest // 4, -1) if block % n == 0), block)


def _zstd_v2() -> Any:
    import numcodecs

    return numcodecs.Zstd(level=3)
