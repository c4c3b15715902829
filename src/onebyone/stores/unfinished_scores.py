"""The scores of a scan that is running or was interrupted, read from its working folder. Nothing in it is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.stores.array_files import NpyWriter
from onebyone.stores.file_sink import Block, BlockGrid
from onebyone.stores.map_description import MapDescription
from onebyone.stores.ome_zarr_writer import zarr_library
from onebyone.stores.regions import Span
from onebyone.stores.working_folder import DESCRIPTION, read_marks, read_sizes, working_path
from onebyone.stores.zarr_checks import checked_store
from onebyone.stores.zarr_metadata import array_metadata

_MAX_BYTES = 2**24
_DAMAGED = (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError)


@dataclass(frozen=True)
class UnfinishedScores:
    """The scores (channels, *positions) of a map, indexed as an array; those of blocks that are not durable are NaN."""

    folder: Path
    grid: BlockGrid
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then positions per axis."""
        return self.grid.shape

    @property
    def chunk(self) -> tuple[int, ...]:
        """The number of positions of a block per axis."""
        return self.grid.chunk

    @property
    def ndim(self) -> int:
        """The number of axes, channels included."""
        return len(self.shape)

    @property
    def total(self) -> int:
        """The number of blocks of the whole map."""
        return prod(self.grid.blocks)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        items = list(index) if isinstance(index, tuple) else [index]
        channels, *spatial = items + [slice(None)] * (self.ndim - len(items))
        places = [_places(item, n) for item, n in zip(spatial, self.shape[1:], strict=True)]
        values = np.full((self.shape[0], *map(len, places)), np.nan, np.float32)
        parts = [_by_block(p, c) for p, c in zip(places, self.chunk, strict=True)]
        marks = read_marks(self.folder, self.grid.blocks)
        for chosen in product(*parts):
            block = tuple(number for number, _, _ in chosen)
            stored = self._stored(block) if marks[block] else None
            if stored is not None:
                inside = np.ix_(np.arange(self.shape[0]), *(local for _, local, _ in chosen))
                values[(slice(None), *(where for _, _, where in chosen))] = stored[inside]
        kept = tuple(slice(None) if isinstance(item, slice) else 0 for item in spatial)
        result: NDArray[np.float32] = values[(channels, *kept)]
        return result

    def blocks(self) -> Iterator[tuple[Span, ...]]:
        """The positions of every block that is durable, in the order of the blocks."""
        for block in np.argwhere(read_marks(self.folder, self.grid.blocks)).tolist():
            yield self.grid.region(tuple(block))

    def _stored(self, block: Block) -> NDArray[np.float32] | None:
        """The scores of a block; None where they do not fit, or were just moved away because the scan is complete."""
        region = self.grid.region(block)
        try:
            if (self.folder / "map.zarr").is_dir():
                stored = self._zarr[(slice(None), *(span.slice for span in region))]
            else:
                file = NpyWriter.file(self.folder / "blocks", region)
                stored = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, KeyError, RuntimeError, BadInput):  # RuntimeError: of codecs
            return None
        values: NDArray[np.float32] = np.asarray(stored)
        fits = (values.shape, values.dtype) == ((self.shape[0], *map(len, region)), self.dtype)
        return values if fits else None

    @cached_property
    def _zarr(self) -> Any:
        """The array of the full resolution, whose chunks are checked as they are read."""
        root = self.folder / "map.zarr"
        store = checked_store(root, "0", array_metadata(root, "0"))
        array = zarr_library("reading OME-Zarr").open_array(store, path="0", mode="r")
        if tuple(array.shape) != self.shape:
            raise BadInput(f"{root} has the shape {tuple(array.shape)}; expected {self.shape}")
        return array


def is_unfinished(out: Path) -> bool:
    """Whether the scan that writes `out` has begun and is not complete."""
    return (working_path(out) / DESCRIPTION).is_file()


def open_unfinished_scores(out: Path) -> tuple[UnfinishedScores, MapDescription]:
    """The scores of the scan that writes `out`, with the blocks that are durable whenever they are read.

    Raises BadInput where there is no such scan, or what its folder says is damaged.
    """
    folder = working_path(out)
    file = folder / DESCRIPTION
    try:
        if file.is_symlink() or file.stat().st_size > _MAX_BYTES:
            raise ValueError("it was not written by a scan")
        description = MapDescription.from_dict(json.loads(file.read_text(encoding="utf-8")))
        shape, chunk = read_sizes(folder)
        if len(shape) != len(chunk) + 1 or min(*shape, *chunk) < 1 or len(description.channels) != shape[0]:
            raise ValueError(
                f"its blocks are {chunk} of a map {shape}, with {len(description.channels)} channels"
            )
        return UnfinishedScores(folder, BlockGrid(shape, chunk)), description
    except BadInput as error:
        raise BadInput(f"{file} does not describe an unfinished scan: it {error}") from error
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{file} does not describe an unfinished scan: {reason}") from error


def _places(item: slice | int, count: int) -> NDArray[np.intp]:
    """The positions, in ascending order, that a slice or a number selects of `count`."""
    chosen = range(count)[item]
    return np.asarray([chosen] if isinstance(chosen, int) else chosen, np.intp)


def _by_block(places: NDArray[np.intp], chunk: int) -> list[tuple[int, NDArray[np.intp], slice]]:
    """Positions in ascending order, by block: its number, the positions inside it, and where they are among all."""
    numbers, first = np.unique(places // chunk, return_index=True)
    ends = [*first[1:].tolist(), len(places)]
    return [
        (block, places[start:stop] - block * chunk, slice(start, stop))
        for block, start, stop in zip(numbers.tolist(), first.tolist(), ends, strict=True)
    ]
