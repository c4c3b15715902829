"""`python -m bench.scan`: the share of a light network's own throughput that a scan reaches on a large image.

The network has four convolutions of 8 to 16 channels and two linear layers, for windows of 32 pixels. The image is RGB
in uint8 with scale, mean and standard deviation. "network" runs the network on ready float32 batches of the scan's
tiles and discards the results, for as many tiles as the image has. "scan" is `onebyone.scan`, from pixels in memory to
a score map. "reading" is the scan's reading and normalising alone, and "formula" the same by the plain formula: each
step of the preprocessing over the whole tile, then the change of the memory order.

All parts run in one process in turn, and the ratios are of the fastest rounds. With one thread they are measured in
processor seconds, which other processes disturb less, otherwise in wall-clock seconds. Pixels that two tiles read count
once in `scan_of_network`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import onebyone
from bench.zoo.totals import machine
from bench.zoo.work import ROOT
from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.plan import Tile, choose_tile, plan_scan
from onebyone.dense.preprocessing import normalise
from onebyone.dense.runner import in_memory_order
from onebyone.records import Labels, table
from onebyone.stores.source import ArraySource

RESULTS = ROOT / "bench" / "results" / "scan.json"
LABELS = Labels(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WINDOW = 32


def network() -> nn.Module:
    """A light classifier of windows of 32 pixels, without padding."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(),
        nn.Linear(32, 10),
    ).eval()  # fmt: skip


def run_network(model: nn.Module, batch: torch.Tensor, tiles: int) -> None:
    """The network alone, on one ready tile, as often as the scan has tiles."""
    with torch.inference_mode():
        for _ in range(tiles):
            model(batch)


def read_by_formula(source: ArraySource, tiles: Sequence[Tile]) -> None:
    """Preprocessing step by step, a tile at a time, in channels-last order."""
    for tile in tiles:
        in_memory_order(torch.from_numpy(normalise(source.read(tile.read), LABELS))[None], True)


def read_batches(source: ArraySource, tiles: Sequence[Tile]) -> None:
    """The scan's own reading alone."""
    reader = BatchReader(source, LABELS, True)
    for tile in tiles:
        reader([tile])


def measure(megapixels: float, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of each part, the fastest of `rounds` rounds in turn, and their ratios."""
    torch.set_num_threads(threads)
    side = round((megapixels * 1e6) ** 0.5)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    d = onebyone.convolutionalize(network(), window=WINDOW).with_labels(LABELS)
    source = ArraySource(image)
    plan = plan_scan(d.geometry, source.size, tile=choose_tile(d.geometry, source.size))
    tiles = list(plan)
    batch = torch.from_numpy(BatchReader(source, LABELS, True)(tiles[:1]))
    parts: dict[str, Callable[[], object]] = {
        "network": lambda: run_network(d.model, batch, len(tiles)),
        "scan": lambda: onebyone.scan(d, image),
        "reading": lambda: read_batches(source, tiles),
        "formula": lambda: read_by_formula(source, tiles),
    }
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = dict.fromkeys(parts, float("inf"))
    for _ in range(rounds):
        for name, run in parts.items():
            start = clock()
            run()
            seconds[name] = min(seconds[name], clock() - start)
    return {
        "megapixels": round(side * side / 1e6, 1),
        "threads": threads,
        "rounds": rounds,
        "tiles": len(tiles),
        "tile_pixels": list(tiles[0].read_shape),
        "pixels_read": round(plan.pixels_read / (side * side), 3),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "clock": clock.__name__,
        "scan_of_network": round(seconds["network"] / plan.pixels_read * side * side / seconds["scan"], 3),
        "reading_of_formula": round(seconds["reading"] / seconds["formula"], 3),
    }


def main() -> None:
    """Measure, print and save the figures with the machine's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    figures = measure(arguments.megapixels, arguments.rounds, arguments.threads)
    RESULTS.write_text(json.dumps({"machine": machine(), "scan": figures}, indent=1) + "\n", encoding="utf-8")
    Console().print(table(("figure", "value"), [(k, str(v)) for k, v in figures.items()]))


if __name__ == "__main__":
    main()
