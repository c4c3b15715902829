"""Scans that survive: finished blocks are kept, what cannot be read is reported, and the rest is computed."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.agreement import Agreement
from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.blocks import Block, BlockFolder, BlockWriter, block_groups
from onebyone.dense.checks import PixelCheck
from onebyone.dense.coverage import FILL, Coverage
from onebyone.dense.executor import LocalExecutor, TileJob, tile_batches
from onebyone.dense.fingerprint import of_image
from onebyone.dense.guarded_source import GuardedSource, place
from onebyone.dense.map_files import map_sink, require_map_path
from onebyone.dense.memory_scan import compare_with_crops, map_facts, reads_ahead
from onebyone.dense.network import ScoreOutput
from onebyone.dense.plan import ScanPlan, Tile
from onebyone.dense.progress import Progress, progress_reporter
from onebyone.dense.run_folder import run_folder
from onebyone.dense.runner import TileRunner
from onebyone.dense.score_map import ScoreMap
from onebyone.dense.work import ScanWork
from onebyone.errors import Unfinished
from onebyone.stores.file_sink import FileSink
from onebyone.stores.placement import placement_of
from onebyone.stores.sink import ArraySink, ScoreSink
from onebyone.stores.source import ImageSource

_SHOWN = 3  # failures that the message names; `Unfinished.failures` has all


@dataclass(frozen=True)
class Done:
    """What a part of a scan did: the number of its tiles, and what failed, by block."""

    tiles: int
    failures: Mapping[Block, tuple[str, str]] = field(default_factory=dict)


#: Computes groups of blocks elsewhere.
Distribute = Callable[[ScanWork, BlockFolder, Iterable[list[Tile]]], Iterator[Done]]


def compute(
    work: ScanWork,
    run: TileRunner,
    source: ImageSource,
    folder: BlockFolder,
    groups: Iterable[list[Tile]],
    done: Iterable[Block] = (),
    executor: LocalExecutor | None = None,
) -> Iterator[Done]:
    """Compute groups of blocks and store each block durably. Yields what was done after each batch.

    Blocks in `done` are not stored again. A block of which a tile cannot be read is left out.
    """
    executor = executor or LocalExecutor()
    guard = GuardedSource(source)
    failed: dict[Block, tuple[str, str]] = {}
    skipped = set(done)
    reader = BatchReader(guard, work.labels, work.settings.channels_last, buffers=executor.buffers)
    writer = BlockWriter(work.plan, lambda block, scores: folder.write(block, scores, guard.peak), skipped)

    waiting: deque[list[Tile]] = deque()  # groups whose batches were handed out and are not read yet
    held: set[Block] = set()

    def read(tiles: Sequence[Tile]) -> NDArray[np.float32]:
        if tiles[0].block not in held:  # batches are read in order, so the next group begins
            group = waiting.popleft()
            held.clear()
            held.update(tile.block for tile in group)
            guard.hold(group)
        batch = reader(tiles)
        for tile in tiles:
            if (reason := guard.failures.get(tile.read)) is not None:
                failed.setdefault(tile.block, (place(tile.read), reason))
                skipped.add(tile.block)
        return batch

    def batches() -> Iterator[list[Tile]]:
        for group in groups:
            waiting.append(group)
            yield from tile_batches(group, work.batch)

    job = TileJob(work.plan, read, run, writer.write)
    for tiles in executor.execute(job, batches()):
        new = {tile.block: failed.pop(tile.block) for tile in tiles if tile.block in failed}
        yield Done(len(tiles), new)


def remaining_groups(
    work: ScanWork, done: set[Block], outside: Collection[Block] = ()
) -> Iterator[list[Tile]]:
    """The groups of blocks of which some are not done. Blocks in `outside` are in no group."""
    for group in block_groups((t for t in work.plan if t.block not in outside), work.batch):
        if any(tile.block not in done for tile in group):
            yield group


def collect(progress: Iterable[Done], done: int, total: int, report: Callable[[int], None]) -> None:
    """Follow a computation to its end. Raises Unfinished, with every place, where a part of it failed."""
    failures: dict[Block, tuple[str, str]] = {}
    for part in progress:
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
class StoredBlocks:
    """The finished map of a scan, block by block from its folder: single positions, and all regions in order."""

    plan: ScanPlan
    folder: BlockFolder
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then positions per axis."""
        return (self.channels, *self.plan.positions)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[np.float32]:
        """`blocks[:, i, j]`: the scores of a position."""
        position = index[1:]
        block = tuple(
            min(i // t, -(-n // t) - 1)
            for i, t, n in zip(position, self.plan.tile, self.plan.positions, strict=True)
        )
        region = self.plan.block_region(block)
        scores, _ = self.folder.read(block)
        values: NDArray[np.float32] = scores[
            :, *(i - span.start for i, span in zip(position, region, strict=True))
        ]
        return values

    def write_to(self, sink: ScoreSink, coverage: Coverage | None = None) -> float:
        """Write every block to a sink, in order; skip those without scores. Returns the peak of the image's pixels."""
        peak = 0.0
        written: Block | None = None
        for tile in self.plan:
            if tile.block == written:
                continue
            written = tile.block
            region = self.plan.block_region(tile.block)
            if coverage is not None and tile.block in coverage.outside:
                sink.skip(region)
                continue
            scores, block_peak = self.folder.read(tile.block)
            sink.write(region, scores if coverage is None else coverage.filled(tile.block, scores))
            peak = max(peak, block_peak)
        return peak


def scan_to_file(
    work: ScanWork,
    source: ImageSource,
    output: ScoreOutput,
    compared: int | None,
    progress: Progress,
    out: str | os.PathLike[str],
    image: Any,
    distribute: Distribute | None = None,
    coverage: Coverage | None = None,
) -> ScoreMap:
    """Scan an image into a file, and go on where an earlier process of the same scan stopped.

    Raises Unfinished where parts of the image could not be computed; see `run_folder` for the rest.
    """
    require_map_path(out)
    description = {**work.describe(), "image": of_image(image, source), "kind": str(output.kind)}
    description |= {} if coverage is None else coverage.describe()
    start = time.perf_counter()
    with run_folder(out, description) as folder:
        with work.runner() as run:
            channels = run(np.zeros((1, source.channels, *work.plan.network.window), np.float32)).shape[1]
            target = _Target(work, source, output, out, description, channels, coverage)
            target.check()
            compute_all(work, run, source, folder, progress, distribute, coverage)
            blocks = StoredBlocks(work.plan, folder, channels)
            agreement = compare_with_crops(work, source, blocks, output, run, compared, coverage)
        target.write(blocks, agreement)
    return replace(ScoreMap.load(out), seconds=time.perf_counter() - start)


def compute_all(
    work: ScanWork,
    run: TileRunner,
    source: ImageSource,
    folder: BlockFolder,
    progress: Progress,
    distribute: Distribute | None = None,
    coverage: Coverage | None = None,
) -> None:
    """Compute every block that the folder does not have: in this process, or where `distribute` does it."""
    done = folder.finished()
    outside: Collection[Block] = () if coverage is None else coverage.outside
    tiles_done = sum(tile.block in done or tile.block in outside for tile in work.plan)
    executor = LocalExecutor(prefetch=reads_ahead(work, source), write_behind=True)
    with progress_reporter(progress, len(work.plan), "scanning") as report:
        report(tiles_done)
        groups = remaining_groups(work, done, outside)
        parts = (
            distribute(work, folder, groups)
            if distribute
            else compute(work, run, source, folder, groups, done, executor)
        )
        collect(parts, tiles_done, len(work.plan), report)


@dataclass(frozen=True)
class _Target:
    """The file of a finished map. The time of the scan is no part of it, so that it is the same after a crash."""

    work: ScanWork
    source: ImageSource
    output: ScoreOutput
    out: str | os.PathLike[str]
    description: Mapping[str, Any]
    channels: int
    coverage: Coverage | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.work.plan.positions)

    def check(self) -> None:
        """Raise Refused where the name belongs to something else, before anything is computed."""
        if not self._is_archive() and os.path.lexists(self.out):
            self._sink(None).close()

    def write(self, blocks: StoredBlocks, agreement: Agreement | None) -> None:
        """Write the finished blocks. Raises BadInput where the range of the pixels does not fit the labels."""
        check = PixelCheck(self.source, self.work.labels)
        sink = ArraySink(self.shape, FILL) if self._is_archive() else self._sink(agreement)
        check.peak = blocks.write_to(sink, self.coverage)
        check.finish()
        if isinstance(sink, ArraySink):
            facts = map_facts(self.work, self.source, self.output, self.coverage)
            ScoreMap(scores=sink.values, agreement=agreement, **facts).save(self.out)
        else:
            sink.finish()

    def _is_archive(self) -> bool:
        return Path(self.out).suffix.lower() == ".npz"

    def _sink(self, agreement: Agreement | None) -> FileSink:
        nothing: Any = np.broadcast_to(np.float32(0), self.shape)  # occupies one number
        facts = map_facts(self.work, self.source, self.output, self.coverage)
        described = ScoreMap(scores=nothing, agreement=agreement, **facts)
        plan = self.work.plan
        placement = placement_of(self.source).of_map(plan.geometry)
        return map_sink(self.out, self.shape, plan.tile, described.facts(), placement, self.description)
