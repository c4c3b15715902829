"""Score maps that are written to disk by region, block by block, so that an interrupted scan goes on.

Positions are collected in memory until their block is complete. A complete block is written by one call, flushed to
disk and then marked as durable in the working folder. `finish` completes the file inside the working folder and renames
it into place: the output's own name never holds a part of a map. The bytes do not depend on the order of the writes, so
an output that was interrupted and resumed equals one that was not.

Other processes may write blocks too, through a `BlockSink` each; the process that has the `FileSink` marks them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import write_text
from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal
from onebyone.stores.map_description import MapDescription
from onebyone.stores.regions import Region, Span
from onebyone.stores.working_folder import DESCRIPTION, WorkingFolder, flush_to_disk, working_path

Block = tuple[int, ...]

#: Positions per axis of a chunk, and the largest size of a block in bytes (all channels of its positions).
_CHUNK = {1: 2**16, 2: 256, 3: 64}
_MAX_BLOCK_BYTES = 2**24
#: Blocks are enlarged, up to their largest size, until a map has at most this number of them.
_MAX_BLOCKS = 2**14


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Mapper(Protocol):
    """Applies a function to each item, in this process or in others, to which the function and the items are sent."""

    def __call__(self, function: Callable[[_Item], _Result], items: Sequence[_Item], /) -> Iterable[_Result]:
        """The results, in the order of the items."""
        ...


def map_here(function: Callable[[_Item], _Result], items: Sequence[_Item], /) -> Iterable[_Result]:
    """A `Mapper` that works in this process."""
    return map(function, items)


class MapWriter(Protocol):
    """The part of a sink that depends on the format. All of its files are inside the working folder until `publish`."""

    def require_own(self, target: Path) -> None:
        """Raise BadInput where `target` is not a score map of onebyone in this format."""
        ...

    def begun(self, folder: Path) -> bool:
        """Whether the working folder holds the data of blocks. False after `publish` moved them to the output."""
        ...

    def start(self, folder: Path) -> None:
        """Make or open the files in the working folder."""
        ...

    def put(self, region: tuple[Span, ...], values: NDArray[np.float32]) -> None:
        """Write the values (channels, h, w) of one block and flush them to disk."""
        ...

    def get(self, region: tuple[Span, ...]) -> NDArray[np.float32]:
        """The values (channels, h, w) of a block that was written."""
        ...

    def publish(self, target: Path, description: MapDescription, mapper: Mapper) -> None:
        """Complete the output in the working folder and rename it to `target`. `mapper` may do long work."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


def block_shape(
    channels: int, positions: tuple[int, ...], chunk: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Positions per axis of the blocks of a map.

    A chunk of 256×256 positions, halved where all channels of it would exceed 16 MiB, and doubled within this limit
    where there would be more than 16,384 blocks. `chunk` states another size.

    >>> block_shape(3, (1000, 300)), block_shape(1000, (5000, 5000)), block_shape(2, (100_000, 100_000))
    ((256, 256), (64, 64), (1024, 1024))
    """
    if chunk is not None:
        if len(chunk) != len(positions) or min(chunk) < 1:
            raise BadInput(f"chunk={chunk}: expected {len(positions)} positive integers, one per axis")
        return tuple(min(c, n) for c, n in zip(chunk, positions, strict=True))
    axes = len(positions)
    side = _CHUNK[axes]
    while side > 1 and 4 * channels * side**axes > _MAX_BLOCK_BYTES:
        side //= 2
    while (
        prod(-(-n // side) for n in positions) > _MAX_BLOCKS
        and 4 * channels * (2 * side) ** axes <= _MAX_BLOCK_BYTES
    ):
        side *= 2
    return (side,) * axes


@dataclass(frozen=True)
class BlockGrid:
    """The blocks of a map (channels, *positions): `chunk` positions per axis each, fewer at the far edges.

    >>> grid = BlockGrid((1, 5, 4), (3, 4))
    >>> grid.blocks, grid.region((1, 0))
    ((2, 1), (Span(start=3, stop=5, step=1), Span(start=0, stop=4, step=1)))
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of blocks per axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape[1:], self.chunk, strict=True))

    def region(self, block: Block) -> tuple[Span, ...]:
        """The positions of a block."""
        return tuple(
            Span(b * c, min((b + 1) * c, n))
            for b, c, n in zip(block, self.chunk, self.shape[1:], strict=True)
        )

    def touched(self, region: Region) -> list[Block]:
        """The blocks that a region touches."""
        return list(
            product(
                *(
                    sorted({position // c for position in range(s.start, s.stop, s.step)})
                    for s, c in zip(region, self.chunk, strict=True)
                )
            )
        )


class BlockSink:
    """Collects positions and stores every block when its last position has arrived, once.

    `path` is the output, `stored` is called with each block after its data were flushed to disk, and `is_done` tells
    which blocks are not needed. Several regions may be written at the same time where they share no block.

    Raises BadInput where a block cannot be written.
    """

    def __init__(
        self,
        path: Path,
        writer: MapWriter,
        grid: BlockGrid,
        fill: float,
        is_done: Callable[[Block], bool],
        stored: Callable[[Block], None],
    ) -> None:
        self.path, self._writer, self._grid, self._fill = path, writer, grid, fill
        self._is_done, self._stored, self._lock = is_done, stored, Lock()
        self._pending: dict[Block, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}

    def write(self, region: Region, values: NDArray[np.float32]) -> None:
        """Write `values` (channels, h, w) to a region of positions, one span per axis.

        Positions of blocks that are durable already are not written again.
        """
        expected = (self._grid.shape[0], *map(len, region))
        if values.shape != expected:
            raise ValueError(f"values have the shape {values.shape} and the region {expected}")
        self._add(region, values)

    def skip(self, region: Region) -> None:
        """Leave a region at the fill value, and count its positions as written."""
        self._add(region, None)

    def discard(self, region: Region) -> None:
        """Forget what was written to blocks of the region that are not complete."""
        with self._lock:
            for block in self._grid.touched(region):
                self._pending.pop(block, None)

    def put(self, block: Block, values: NDArray[np.float32]) -> None:
        """Write a whole block (channels, h, w)."""
        try:
            self._writer.put(self._grid.region(block), values)
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"cannot write a block of the scores {self.path}: {reason}") from error
        self._stored(block)

    def _add(self, region: Region, values: NDArray[np.float32] | None) -> None:
        for block in self._grid.touched(region):
            if self._is_done(block):
                continue
            if values is not None and tuple(region) == self._grid.region(block):
                self.put(block, values)
                continue
            spans = zip(region, block, self._grid.chunk, strict=True)
            parts = [_overlap(s, b * c, c) for s, b, c in spans]
            inside, given = tuple(p[0] for p in parts), tuple(p[1] for p in parts)
            with self._lock:
                scores, written = self._pending.get(block) or self._empty(block)
                self._pending[block] = scores, written
                if values is not None:
                    scores[(slice(None), *inside)] = values[(slice(None), *given)]
                written[inside] = True
                complete = bool(written.all())
                if complete:
                    del self._pending[block]
            if complete:
                self.put(block, scores)

    def _empty(self, block: Block) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        size = tuple(map(len, self._grid.region(block)))
        return np.full((self._grid.shape[0], *size), self._fill, np.float32), np.zeros(size, np.bool_)


@dataclass(frozen=True)
class SharedBlocks:
    """What another process needs to write blocks of a map; it can be pickled.

    `path` is the output, whose working folder the process must see.
    """

    path: Path
    writer: Callable[[], MapWriter]
    grid: BlockGrid
    fill: float

    def open(self, stored: Callable[[Block], None]) -> BlockSink:
        """A sink for blocks that are not durable; `stored` is told which were written."""
        writer = self.writer()
        writer.start(working_path(self.path))
        return BlockSink(self.path, writer, self.grid, self.fill, lambda block: False, stored)


class FileSink(BlockSink):
    """A score map on disk: an implementation of `ScoreSink` over a `MapWriter`.

    `path` is the output. `shape` is (channels, *positions), `fill` the value of positions that are skipped, and
    `writer` makes the writer of its format. A working folder of the same scan is continued: `complete` is true where
    that scan had come to its end, and only its working folder was left. An earlier score map at `path` is replaced.

    Raises
    ------
    Refused
        where `path` exists and is not a score map of onebyone.
    BadInput
        where the folder of `path` does not exist or cannot be written; where another scan was interrupted there, or is
        running.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        writer: Callable[[], MapWriter],
        shape: tuple[int, ...],
        description: MapDescription,
        *,
        fill: float = float("nan"),
        chunk: tuple[int, ...] | None = None,
    ) -> None:
        output = Path(os.path.abspath(path))
        self.shape, self.fill = tuple(shape), fill
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.chunk = block_shape(self.shape[0], self.shape[1:], chunk)
        grid = BlockGrid(self.shape, self.chunk)
        self.shared = SharedBlocks(output, writer, grid, fill)
        self._description, opened = description, writer()
        exists = _require_own(output, opened)
        sizes = {"shape": list(self.shape), "chunk": list(self.chunk), "fill": repr(float(fill))}
        self._folder = WorkingFolder(output, {**description.key, **sizes}, grid.blocks)
        super().__init__(output, opened, grid, fill, self._folder.is_done, self._folder.mark)
        begun = opened.begun(self._folder.path)
        self.complete = exists and not begun and self._folder.remaining == 0
        if self.complete:  # the scan ended between its last two steps
            self._folder.remove()
            return
        if not begun:
            self._folder.clear()
        write_text(self._folder.path / DESCRIPTION, description.to_text())
        opened.start(self._folder.path)

    def is_done(self, block: Block) -> bool:
        """Whether a block is on disk."""
        return self._folder.is_done(block)

    def durable(self, region: Region) -> bool:
        """Whether every block of the region is on disk."""
        return all(map(self._folder.is_done, self._grid.touched(region)))

    def mark(self, blocks: Iterable[Block], peak: float = 0.0) -> None:
        """State that other processes wrote blocks and flushed them to disk; `peak` as in `note_peak`."""
        self.note_peak(peak)
        for block in blocks:
            self._folder.mark(block)

    def note_peak(self, magnitude: float) -> None:
        """Note the largest magnitude of the pixels of the blocks that are written next."""
        self._folder.note_peak(magnitude)

    @property
    def peak(self) -> float:
        """The largest magnitude of pixels that was noted, by this process or earlier ones."""
        return self._folder.peak

    def get(self, block: Block) -> NDArray[np.float32]:
        """The values (channels, h, w) of a block that is on disk."""
        return self._writer.get(self._grid.region(block))

    def position(self, index: tuple[int, ...]) -> NDArray[np.float32]:
        """The values (channels) of one position of a block that is on disk."""
        block = tuple(i // c for i, c in zip(index, self.chunk, strict=True))
        inside: tuple[Any, ...] = tuple(i % c for i, c in zip(index, self.chunk, strict=True))
        values: NDArray[np.float32] = self.get(block)[(slice(None), *inside)]
        return values

    def finish(self, description: MapDescription | None = None, mapper: Mapper = map_here) -> None:
        """Complete the output and rename it into place.

        `description` replaces the one that was given before, with what is known at the end only. `mapper` can send
        the long work of the format to other processes, which see the same folder.

        Raises ValueError where a position was neither written nor skipped.
        """
        if self.complete:
            return
        folder = self._folder
        if folder.remaining:
            raise ValueError(
                f"{folder.remaining} blocks of {self.path} were not written; the scan is incomplete"
            )
        folder.flush()
        try:
            if self.path.is_dir():  # an earlier score map of onebyone; `__init__` checked this
                os.replace(self.path, folder.path / f"replaced{self.path.suffix}")
            self._writer.publish(self.path, description or self._description, mapper)
        except OSError as error:
            raise BadInput(f"cannot write {self.path}: {error.strerror or error}") from error
        flush_to_disk(self.path.parent)
        self.complete = True
        folder.remove()

    def close(self) -> None:
        """Release files and memory. Without `finish`, what is durable is kept in the working folder."""
        self._pending.clear()
        if not self.complete:
            self._folder.close()
        self._writer.close()


def _overlap(span: Span, start: int, length: int) -> tuple[slice, slice]:
    """Where a span meets the block [start, start + length): inside the block, and inside the span's own values."""
    first = max(0, -(-(start - span.start) // span.step))
    last = min(len(span), -(-(start + length - span.start) // span.step))
    begin = span.start + first * span.step - start
    return slice(begin, begin + (last - first - 1) * span.step + 1, span.step), slice(first, last)


def _require_own(path: Path, writer: MapWriter) -> bool:
    """Whether something exists at `path`. Raises Refused where it is not a score map of onebyone."""
    if not os.path.lexists(path):
        if not path.parent.is_dir():
            raise BadInput(f"cannot write {path}: the folder {path.parent} does not exist")
        return False
    try:
        writer.require_own(path)
    except BadInput as error:
        reason = f"it exists and {error}, so it is not overwritten; choose another name, or delete it"
        raise Refused([Refusal(str(path), "output", reason)], "the score map cannot be written") from error
    return True
