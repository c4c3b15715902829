"""Executors: they run a job on all tiles of a plan. The one here runs them in this process, one batch after another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.plan import ScanPlan, Tile
from onebyone.errors import BadInput

_Floats = NDArray[np.float32]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Batches that may wait to be written while the network goes on.
PENDING_WRITES = 2


@dataclass(frozen=True)
class TileJob:
    """What is done to each batch of tiles, in three steps that an executor can overlap or distribute.

    `read` gives a batch for tiles of one shape, `run` is the network on such batches, and `take` gets the scores
    (channels, h, w) of the positions that each tile owns. `computed` is called when the network has run on the last
    batch, so that only writing may be left.
    """

    plan: ScanPlan
    read: Callable[[Sequence[Tile]], NDArray[Any]]
    run: Callable[[NDArray[Any]], _Floats]
    take: Callable[[Tile, _Floats], None]
    computed: Callable[[], None] = lambda: None

    def predict(self, tiles: Sequence[Tile], batch: NDArray[Any]) -> _Floats:
        """The network's output for the batch of some tiles: (tiles, channels, *positions).

        Raises BadInput where it has other positions than the geometry of the network says.
        """
        maps = self.run(batch)
        expected = self.plan.network.positions(tiles[0].read_shape)
        if maps.shape[:1] + maps.shape[2:] != (len(tiles), *expected):
            raise BadInput(
                f"the network gives an output of shape {maps.shape} for {tiles[0].read_shape} pixels; "
                f"expected {expected} positions by its geometry"
            )
        return maps

    def write(self, tiles: Sequence[Tile], maps: _Floats) -> None:
        """Hand on the positions that each tile owns, directly from the network's output."""
        for tile, scores in zip(tiles, maps, strict=True):
            self.take(tile, scores[:, *(span.slice for span in tile.keep)])


class Executor(Protocol):
    """Runs a job on batches of tiles."""

    def execute(self, job: TileJob, batches: Iterable[list[Tile]]) -> Iterator[list[Tile]]:
        """Read, predict and write every batch. Yields each batch after it was written, in any order."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Runs in this process.

    With `prefetch`, a second thread reads the next batch while the network runs. With `write_behind`, a thread of its
    own writes while the network runs, at most `PENDING_WRITES` batches behind. The reader of the job needs `buffers`
    buffers, because batches and the outputs that share their memory are then in use at the same time.
    """

    prefetch: bool = False
    write_behind: bool = False

    @property
    def buffers(self) -> int:
        """The number of batches that can be in use at a time."""
        return 1 + self.prefetch + PENDING_WRITES * self.write_behind

    def execute(self, job: TileJob, batches: Iterable[list[Tile]]) -> Iterator[list[Tile]]:
        """Read, predict and write every batch. Yields each batch after it was written, in the order of `batches`."""
        predicted = ((t, job.predict(t, batch)) for t, batch in prefetched(job.read, batches, self.prefetch))
        if not self.write_behind:
            for tiles, maps in predicted:
                job.write(tiles, maps)
                yield tiles
            job.computed()
            return
        with ThreadPoolExecutor(1, thread_name_prefix="onebyone-writer") as writer:
            pending: deque[tuple[list[Tile], Future[None]]] = deque()
            for tiles, maps in predicted:
                pending.append((tiles, writer.submit(job.write, tiles, maps)))
                while len(pending) > PENDING_WRITES or (pending and pending[0][1].done()):
                    yield _written(pending)
            job.computed()
            while pending:
                yield _written(pending)


def _written(pending: deque[tuple[list[Tile], Future[None]]]) -> list[Tile]:
    """The oldest batch, after it was written. Raises what writing it raised."""
    tiles, future = pending.popleft()
    future.result()
    return tiles


def tile_batches(plan: Iterable[Tile], size: int) -> Iterator[list[Tile]]:
    """Batches of up to `size` consecutive tiles that read the same number of pixels per axis."""
    batch: list[Tile] = []
    for tile in plan:
        if batch and (len(batch) == size or tile.read_shape != batch[0].read_shape):
            yield batch
            batch = []
        batch.append(tile)
    if batch:
        yield batch


def prefetched(
    read: Callable[[_Item], _Result], items: Iterable[_Item], enabled: bool = True
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what `read` returns for it. Where enabled, a thread reads one item ahead of the caller."""
    if not enabled:
        for item in items:
            yield item, read(item)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="onebyone-reader") as reader:
        waiting = None
        for item in items:
            # by now the caller is done with the item before `waiting`, whose buffer the reader overwrites
            submitted = (item, reader.submit(read, item))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = submitted
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def prefetch_pays(on_cpu: bool, compute_threads: int) -> bool:
    """Whether a second thread should read: the network runs on another device, or leaves a core idle.

    Where the network computes on every core, a reader would take from it as much time as it saves.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return not on_cpu or available > compute_threads
