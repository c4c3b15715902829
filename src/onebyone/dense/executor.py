"""Executors: they run a job on all tiles of a plan. The one here runs them in this process, one batch after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.plan import ScanPlan, Tile
from onebyone.errors import BadInput
from onebyone.stores.sink import ScoreSink

_Floats = NDArray[np.float32]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class TileJob:
    """What is done to each batch of tiles, in three steps that an executor can overlap or distribute.

    `read` gives the network's input for tiles of one shape, and `run` is the network, a `TileRunner`. `open_sink`
    makes the sink for a number of channels, which may be known only after the network has run once.
    """

    plan: ScanPlan
    read: Callable[[Sequence[Tile]], _Floats]
    run: Callable[[_Floats], _Floats]
    open_sink: Callable[[int], ScoreSink]
    sink: ScoreSink | None = field(default=None, init=False)

    def predict(self, tiles: Sequence[Tile], batch: _Floats) -> _Floats:
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
        """Write the positions that each tile owns to the sink, directly from the network's output."""
        if self.sink is None:
            self.sink = self.open_sink(maps.shape[1])
        for tile, scores in zip(tiles, maps, strict=True):
            self.sink.write(tile.write, scores[:, *(span.slice for span in tile.keep)])


class Executor(Protocol):
    """Runs a job on batches of tiles."""

    def execute(self, job: TileJob, batches: Iterable[list[Tile]]) -> Iterator[list[Tile]]:
        """Read, predict and write every batch. Yields each batch after it was written, in any order."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Runs in this process. With `prefetch`, a second thread reads the next batch while the network runs.

    The reader of the job then needs two buffers.
    """

    prefetch: bool = False

    def execute(self, job: TileJob, batches: Iterable[list[Tile]]) -> Iterator[list[Tile]]:
        """Read, predict and write every batch. Yields each batch after it was written, in the order of `batches`."""
        for tiles, batch in prefetched(job.read, batches, self.prefetch):
            job.write(tiles, job.predict(tiles, batch))
            yield tiles


def tile_batches(plan: ScanPlan, size: int) -> Iterator[list[Tile]]:
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
