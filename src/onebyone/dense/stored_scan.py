"""Scans that survive: finished blocks are kept, what cannot be read is reported, and the rest is computed."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.agreement import Agreement
from onebyone.dense.blocks import Block, block_groups
from onebyone.dense.checks import PixelCheck
from onebyone.dense.coverage import FILL, Coverage
from onebyone.dense.device_pixels import reader_and_runner
from onebyone.dense.executor import LocalExecutor, TileJob, tile_batches
from onebyone.dense.fingerprint import of_image
from onebyone.dense.guarded_source import GuardedSource, place
from onebyone.dense.map_files import map_description, require_map_path
from onebyone.dense.memory_scan import compare_with_crops, map_facts, reads_ahead
from onebyone.dense.network import ScoreOutput
from onebyone.dense.plan import Tile
from onebyone.dense.progress import Progress, progress_reporter
from onebyone.dense.runner import TileRunner
from onebyone.dense.score_map import ScoreMap
from onebyone.dense.work import ScanWork
from onebyone.errors import Unfinished
from onebyone.stores.file_sink import BlockSink, FileSink, Mapper, SharedBlocks, map_here
from onebyone.stores.map_description import MapDescription
from onebyone.stores.placement import placement_of
from onebyone.stores.sinks import open_sink
from onebyone.stores.source import ImageSource

_SHOWN = 3  # failures that the message names; `Unfinished.failures` has all


@dataclass(frozen=True)
class Done:
    """What a part of a scan did: the number of its tiles, and what failed, by block.

    Another process also says which blocks it wrote, and the `peak` of their pixels.
    """

    tiles: int
    failures: Mapping[Block, tuple[str, str]] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    peak: float = 0.0


@dataclass(frozen=True)
class Distribution:
    """Other processes that do a part of a scan.

    `compute` computes groups of blocks, whose sinks the shared blocks give. `mapper` completes the file.
    """

    compute: Callable[[ScanWork, SharedBlocks, Iterable[list[Tile]]], Iterator[Done]]
    mapper: Mapper


def compute(
    work: ScanWork,
    run: TileRunner,
    source: ImageSource,
    sink: BlockSink,
    note_peak: Callable[[float], None],
    groups: Iterable[list[Tile]],
    executor: LocalExecutor | None = None,
    computed: Callable[[], None] = lambda: None,
) -> Iterator[Done]:
    """Compute groups of blocks and store each block durably. Yields what was done after each batch.

    Before a block is stored, `note_peak` gets the largest magnitude of the pixels so far. A block of which a tile
    cannot be read is left out. `computed` is called when only writing is left.
    """
    executor = executor or LocalExecutor()
    guard = GuardedSource(source)
    failed: dict[Block, tuple[str, str]] = {}
    left_out: set[Block] = set()
    reader, on_batch = reader_and_runner(run, guard, work.labels, work.settings, executor.buffers)

    def take(tile: Tile, scores: NDArray[np.float32]) -> None:
        if tile.block in left_out:
            sink.discard(tile.write)
        else:
            note_peak(guard.peak)
            sink.write(tile.write, scores)

    waiting: deque[list[Tile]] = deque()  # groups whose batches were handed out and are not read yet
    held: set[Block] = set()

    def read(tiles: Sequence[Tile]) -> NDArray[Any]:
        if tiles[0].block not in held:  # batches are read in order, so the next group begins
            group = waiting.popleft()
            held.clear()
            held.update(tile.block for tile in group)
            guard.hold(group)
        batch = reader(tiles)
        for tile in tiles:
            if (reason := guard.failures.get(tile.read)) is not None:
                failed.setdefault(tile.block, (place(tile.read), reason))
                left_out.add(tile.block)
        return batch

    def batches() -> Iterator[list[Tile]]:
        for group in groups:
            waiting.append(group)
            yield from tile_batches(group, work.batch)

    def end_computing() -> None:
        reader.release()
        computed()

    job = TileJob(work.plan, read, on_batch, take, end_computing)
    for tiles in executor.execute(job, batches()):
        new = {tile.block: failed.pop(tile.block) for tile in tiles if tile.block in failed}
        yield Done(len(tiles), new)


def remaining_groups(
    work: ScanWork, is_done: Callable[[Block], bool], outside: Collection[Block] = ()
) -> Iterator[list[Tile]]:
    """The groups of blocks of which some are not done. Blocks in `outside` are in no group."""
    for group in block_groups((t for t in work.plan if t.block not in outside), work.batch):
        if any(not is_done(tile.block) for tile in group):
            yield group


def collect(
    progress: Iterable[Done], sink: FileSink, done: int, total: int, report: Callable[[int], None]
) -> None:
    """Follow a computation to its end. Raises Unfinished, with every place, where a part of it failed."""
    failures: dict[Block, tuple[str, str]] = {}
    for part in progress:
        sink.mark(part.blocks, part.peak)
        failures.update(part.failures)
        done = min(total, done + part.tiles)
        report(done)
    if failures:
        places = list(failures.values())
        shown = "; ".join(f"{where}: {reason}" for where, reason in places[:_SHOWN])
        more = f"; and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        raise Unfinished(
            f"{len(places)} tile(s) could not be computed ({shown}{more}). All others are kept: run the same scan "
            "again to compute only these",
            places,
        )


@dataclass(frozen=True)
class StoredPositions:
    """The positions of a map whose blocks are all on disk; `PositionScores` of a sink."""

    sink: FileSink

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then positions per axis."""
        return self.sink.shape

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[np.float32]:
        """`stored[:, i, j]`: the scores of a position."""
        return self.sink.position(index[1:])


def scan_to_file(
    work: ScanWork,
    source: ImageSource,
    output: ScoreOutput,
    compared: int | None,
    progress: Progress,
    out: str | os.PathLike[str],
    image: Any,
    distribution: Distribution | None = None,
    coverage: Coverage | None = None,
) -> ScoreMap:
    """Scan an image into a file, and go on where an earlier process of the same scan stopped.

    The time of the scan is no part of the file, so that it is the same after a crash.

    Raises Unfinished where parts of the image could not be computed, and BadInput where the range of the pixels does
    not fit the labels; see `FileSink` for the rest.
    """
    require_map_path(out)
    key = {**work.describe(), "image": of_image(image, source), "kind": str(output.kind)}
    key |= {} if coverage is None else coverage.describe()
    start = time.perf_counter()
    with work.runner() as run:
        channels = run(np.zeros((1, source.channels, *work.plan.network.window), np.float32)).shape[1]
        shape = (channels, *work.plan.positions)

        def described(agreement: Agreement | None) -> MapDescription:
            nothing: Any = np.broadcast_to(np.float32(0), shape)  # occupies one number
            facts = map_facts(work, source, output, coverage)
            facts = ScoreMap(scores=nothing, agreement=agreement, **facts).facts()
            return map_description(facts, channels, placement_of(source).of_map(work.plan.geometry), key)

        with closing(open_sink(out, shape, described(None), fill=FILL, chunk=work.plan.tile)) as sink:
            if not sink.complete:
                compute_all(work, run, source, sink, progress, distribution, coverage)
                check = PixelCheck(source, work.labels)
                check.peak = sink.peak
                check.finish()
                positions = StoredPositions(sink)
                agreement = compare_with_crops(work, source, positions, output, run, compared, coverage)
                sink.finish(described(agreement), distribution.mapper if distribution else map_here)
    return replace(ScoreMap.load(out), seconds=time.perf_counter() - start)


def compute_all(
    work: ScanWork,
    run: TileRunner,
    source: ImageSource,
    sink: FileSink,
    progress: Progress,
    distribution: Distribution | None = None,
    coverage: Coverage | None = None,
) -> None:
    """Compute every block that the sink does not have, in this process or in others."""
    outside: Collection[Block] = () if coverage is None else coverage.outside
    tiles_done = sum(tile.block in outside or sink.is_done(tile.block) for tile in work.plan)
    executor = LocalExecutor(prefetch=reads_ahead(work, source), write_behind=True)
    with progress_reporter(progress, len(work.plan), "scanning") as report:
        report(tiles_done)
        groups = remaining_groups(work, sink.is_done, outside)
        parts = (
            distribution.compute(work, sink.shared, groups)
            if distribution
            else compute(work, run, source, sink, sink.note_peak, groups, executor)
        )
        collect(parts, sink, tiles_done, len(work.plan), report)
    if coverage is not None:
        for block in coverage.outside:
            sink.skip(work.plan.block_region(block))
        for block in coverage.partial:  # may be repeated after a crash, with the same result
            sink.put(block, coverage.filled(block, sink.get(block)))
