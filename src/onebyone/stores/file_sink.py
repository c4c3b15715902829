"""Score maps that are written to disk by region, block by block, so that an interrupted scan goes on.

Positions are collected in memory until their block is complete. A complete block is written by one call, flushed to
disk and then marked as durable in the working folder. `finish` completes the file inside the working folder and renames
it into place: the output's own name never holds a part of a map. The bytes do not depend on the order of the writes, so
an output that was interrupted and resumed equals one that was not.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import product
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal
from onebyone.stores.map_description import MapDescription
from onebyone.stores.regions import Region, Span
from onebyone.stores.working_folder import WorkingFolder, flush_to_disk, working_path

#: Positions per axis of a chunk, and the largest size of a block in bytes (all channels of its positions).
_CHUNK = {1: 2**16, 2: 256, 3: 64}
_MAX_BLOCK_BYTES = 2**24
#: Blocks are enlarged, up to their largest size, until a map has at most this number of them.
_MAX_BLOCKS = 2**14


class MapWriter(Protocol):
    """The part of a sink that depends on the format. All of its files are inside the working folder until `publish`."""

    def stored(self, target: Path) -> MapDescription:
        """The description of a finished output. Raises BadInput where `target` is not one."""
        ...

    def start(self, folder: Path) -> None:
        """Make or open the files in the working folder."""
        ...

    def put(self, region: tuple[Span, ...], values: NDArray[np.float32]) -> None:
        """Write the values (channels, h, w) of one block and flush them to disk."""
        ...

    def publish(self, target: Path) -> None:
        """Complete the output in the working folder and rename it to `target`."""
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


class FileSink:
    """A score map on disk: an implementation of `ScoreSink` over a `MapWriter`.

    `path` is the output. `shape` is (channels, *positions), `fill` the value of positions that are skipped. A working
    folder of the same scan is continued. An output of the same scan that is already complete is kept: every region is
    durable then, and `complete` is true.

    Raises
    ------
    Refused
        where `path` exists and is not a score map of onebyone, or another scan was interrupted there.
    BadInput
        where the folder of `path` does not exist or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        writer: MapWriter,
        shape: tuple[int, ...],
        description: MapDescription,
        *,
        fill: float = float("nan"),
        chunk: tuple[int, ...] | None = None,
    ) -> None:
        self.path, self.shape, self.fill = Path(os.path.abspath(path)), tuple(shape), fill
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.chunk = block_shape(self.shape[0], self.shape[1:], chunk)
        self._grid = tuple(-(-n // c) for n, c in zip(self.shape[1:], self.chunk, strict=True))
        self._writer, self._lock = writer, Lock()
        self._pending: dict[tuple[int, ...], tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}
        existing = _existing(self.path, writer)
        self.complete = existing is not None and existing.to_text() == description.to_text()
        self._folder: WorkingFolder | None = None
        key = {
            **description.key,
            "shape": list(self.shape),
            "chunk": list(self.chunk),
            "fill": repr(float(fill)),
        }
        if not self.complete:
            self._folder = WorkingFolder(self.path, key, self._grid)
            writer.start(self._folder.path)
        elif working_path(self.path).is_dir():  # the scan ended between its last two steps
            with suppress(Refused):
                WorkingFolder(self.path, key, self._grid).remove()

    def write(self, region: Region, values: NDArray[np.float32]) -> None:
        """Write `values` (channels, h, w) to a region of positions, one span per axis.

        Positions of blocks that are durable already are not written again.
        """
        expected = (self.shape[0], *map(len, region))
        if values.shape != expected:
            raise ValueError(f"values have the shape {values.shape} and the region {expected}")
        self._add(region, values)

    def skip(self, region: Region) -> None:
        """Leave a region at the fill value, and count its positions as written."""
        self._add(region, None)

    def durable(self, region: Region) -> bool:
        """Whether every block of the region is on disk."""
        folder = self._folder
        return folder is None or all(folder.is_done(block) for block in self._blocks(region))

    def finish(self) -> None:
        """Complete the output and rename it into place.

        Raises ValueError where a position was neither written nor skipped.
        """
        folder = self._folder
        if folder is None:
            return
        if folder.remaining:
            raise ValueError(
                f"{folder.remaining} blocks of {self.path} were not written; the scan is incomplete"
            )
        folder.flush()
        try:
            if os.path.lexists(self.path):  # an earlier score map of onebyone; `__init__` checked this
                os.replace(self.path, folder.path / f"replaced{self.path.suffix}")
            self._writer.publish(self.path)
        except OSError as error:
            raise BadInput(f"cannot write {self.path}: {error.strerror or error}") from error
        flush_to_disk(self.path.parent)
        self._folder, self.complete = None, True
        folder.remove()

    def close(self) -> None:
        """Release files and memory. Without `finish`, what is durable is kept in the working folder."""
        self._pending.clear()
        if self._folder is not None:
            self._folder.flush()
        self._writer.close()

    def _blocks(self, region: Region) -> list[tuple[int, ...]]:
        """The blocks that a region touches."""
        return list(
            product(
                *(
                    sorted({position // c for position in range(s.start, s.stop, s.step)})
                    for s, c in zip(region, self.chunk, strict=True)
                )
            )
        )

    def _add(self, region: Region, values: NDArray[np.float32] | None) -> None:
        folder = self._folder
        if folder is None:
            return
        for block in self._blocks(region):
            if folder.is_done(block):
                continue
            parts = [_overlap(s, b * c, c) for s, b, c in zip(region, block, self.chunk, strict=True)]
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
                try:
                    self._writer.put(self._span(block), scores)
                except OSError as error:
                    raise BadInput(f"cannot write {self.path}: {error.strerror or error}") from error
                folder.mark(block)

    def _span(self, block: tuple[int, ...]) -> tuple[Span, ...]:
        return tuple(
            Span(b * c, min((b + 1) * c, n))
            for b, c, n in zip(block, self.chunk, self.shape[1:], strict=True)
        )

    def _empty(self, block: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        size = tuple(map(len, self._span(block)))
        return np.full((self.shape[0], *size), self.fill, np.float32), np.zeros(size, np.bool_)


def _overlap(span: Span, start: int, length: int) -> tuple[slice, slice]:
    """Where a span meets the block [start, start + length): inside the block, and inside the span's own values."""
    first = max(0, -(-(start - span.start) // span.step))
    last = min(len(span), -(-(start + length - span.start) // span.step))
    begin = span.start + first * span.step - start
    return slice(begin, begin + (last - first - 1) * span.step + 1, span.step), slice(first, last)


def _existing(path: Path, writer: MapWriter) -> MapDescription | None:
    """The description of the score map at `path`; None where nothing exists there. Refused where it is not ours."""
    if not os.path.lexists(path):
        if not path.parent.is_dir():
            raise BadInput(f"cannot write {path}: the folder {path.parent} does not exist")
        return None
    try:
        return writer.stored(path)
    except BadInput as error:
        reason = f"it exists and {error}, so it is not overwritten; choose another name, or delete it"
        raise Refused([Refusal(str(path), "output", reason)], "the score map cannot be written") from error
