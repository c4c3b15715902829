"""Scans whose score map is kept in memory, and what every score map is made of."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.dense.agreement import Agreement, PositionScores, default_sample_size, measure_agreement
from onebyone.dense.checks import PixelCheck
from onebyone.dense.coverage import Coverage
from onebyone.dense.device_pixels import reader_and_runner
from onebyone.dense.executor import LocalExecutor, TileJob, prefetch_pays, tile_batches
from onebyone.dense.network import ScoreOutput
from onebyone.dense.plan import Tile
from onebyone.dense.preprocessing import normalise
from onebyone.dense.progress import Progress, progress_reporter
from onebyone.dense.runner import TileRunner
from onebyone.dense.score_map import ScoreMap
from onebyone.dense.work import ScanWork
from onebyone.stores.placement import placement_of
from onebyone.stores.sink import ArraySink
from onebyone.stores.source import ArraySource, ImageSource


def scan_in_memory(
    work: ScanWork,
    source: ImageSource,
    output: ScoreOutput,
    compared: int | None,
    progress: Progress,
    coverage: Coverage | None = None,
) -> ScoreMap:
    """Scan an image into a map in memory. The first tile that cannot be read ends the scan."""
    plan = work.plan
    outside = coverage.outside if coverage else frozenset()
    tiles_inside = [tile for tile in plan if tile.block not in outside]
    executor = LocalExecutor(prefetch=reads_ahead(work, source))
    check = PixelCheck(source, work.labels)
    sinks: list[ArraySink] = []  # made when the number of channels is known

    def take(tile: Tile, scores: NDArray[np.float32]) -> None:
        if not sinks:
            sinks.append(ArraySink((len(scores), *plan.positions)))
        sinks[0].write(tile.write, scores)

    start = time.perf_counter()
    with work.runner() as run, progress_reporter(progress, len(tiles_inside), "scanning") as report:
        done = 0
        reader, on_batch = reader_and_runner(run, source, work.labels, work.settings, executor.buffers, check)
        job = TileJob(plan, reader, on_batch, take)
        for tiles in executor.execute(job, tile_batches(tiles_inside, work.batch)):
            done += len(tiles)
            report(done)
        check.finish()
        scores = sinks[0].values  # at least one tile was computed
        if coverage is not None:
            fill_outside(coverage, scores)
        seconds = time.perf_counter() - start
        agreement = compare_with_crops(work, source, scores, output, run, compared, coverage)
    return ScoreMap(
        scores=scores, agreement=agreement, seconds=seconds, **map_facts(work, source, output, coverage)
    )  # fmt: skip


def fill_outside(coverage: Coverage, scores: NDArray[np.float32]) -> None:
    """Set the positions of a map that are not scored to the fill value."""
    for block in product(*(range(len(axis)) for axis in coverage.plan.axis_tiles)):
        part = scores[:, *(span.slice for span in coverage.plan.block_region(block))]
        part[...] = coverage.filled(block, part)


def reads_ahead(work: ScanWork, source: ImageSource) -> bool:
    """Whether a thread reads the next batch: where reading waits for a disk, or the network leaves a core idle."""
    on_cpu = work.settings.device.type == "cpu"
    return not isinstance(source, ArraySource) or prefetch_pays(on_cpu, torch.get_num_threads())


def map_facts(
    work: ScanWork, source: ImageSource, output: ScoreOutput, coverage: Coverage | None = None
) -> dict[str, Any]:
    """The fields of a score map that are known before the scan."""
    return {
        "geometry": work.plan.geometry,
        "labels": work.labels,
        "image_size": source.size,
        "kind": output.kind,
        "device": str(work.settings.device),
        "passes": len(work.plan),
        "agreement_skipped": output.skipped,
        "placement": placement_of(source),
        "unscored": "" if coverage is None else str(coverage),
        "resized_from": getattr(source, "original_size", None),
        "output": work.settings.output,
    }


def compare_with_crops(
    work: ScanWork,
    source: ImageSource,
    scores: PositionScores,
    output: ScoreOutput,
    run: TileRunner,
    compared: int | None,
    coverage: Coverage | None = None,
) -> Agreement | None:
    """The agreement of a map with a sample of windows; None where it is not measured."""
    if not output.comparable or work.windows is not None:
        return None
    geometry = work.plan.geometry
    size = default_sample_size(geometry, source.size) if compared is None else compared
    return measure_agreement(
        scores,
        geometry,
        lambda window: normalise(source.read(window), work.labels),
        run,
        size,
        None if coverage is None else coverage.sample,
    )
