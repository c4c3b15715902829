"""`python -m bench.scan`: how much of a light network's own throughput a scan reaches on a large image.

The network is four convolutions of 8 to 16 channels and two linear layers, on windows of 32 pixels; the image is RGB in
uint8 with scale, mean and standard deviation. "Own" runs the network on ready float32 batches of the scan's own tiles
and throws the results away, for as many tiles as the image has; "scan" is `onebyone.scan`, from pixels in memory to a
score map. Both run in one process in turn, and the ratio is that of the fastest rounds, in processor seconds where one
thread runs (which other processes disturb less) and by the clock where more do. A tile's pixels that its neighbour
reads too count once. "Formula" is what reading cost
before: each step of the preprocessing over the whole tile, then joining and changing the layout.
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
from onebyone.dense.batch_reader import Feed
from onebyone.dense.images import Pixels, load_image
from onebyone.dense.plan import ScanPlan, Tile, plan_scan, tile_for
from onebyone.dense.runner import laid_out
from onebyone.records import Labels, table

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


def own(model: nn.Module, batch: torch.Tensor, tiles: int) -> None:
    """The network alone, on as many ready tiles as the scan has."""
    with torch.inference_mode():
        for _ in range(tiles):
            model(batch)


def formula(pixels: Pixels, tiles: Sequence[Tile]) -> None:
    """Preprocessing step by step, a tile at a time, in channels-last order."""
    for tile in tiles:
        laid_out(torch.cat([pixels.read([span.slice for span in tile.read], LABELS)]), True)


def reading(pixels: Pixels, tiles: Sequence[Tile]) -> None:
    """The scan's own reading alone."""
    feed = Feed(pixels, LABELS, True)
    for tile in tiles:
        feed([tile])


def measure(megapixels: float, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of each part, the fastest of `rounds` rounds in turn, and their ratios."""
    torch.set_num_threads(threads)
    side = round((megapixels * 1e6) ** 0.5)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    d = onebyone.convolutionalize(network(), window=WINDOW).with_labels(LABELS)
    pixels = load_image(image, channels=3, labels=LABELS)
    plan: ScanPlan = plan_scan(d.geometry, pixels.size, tile=tile_for(d.geometry, pixels.size))
    tiles = list(plan)
    batch = Feed(pixels, LABELS, True)(tiles[:1])
    parts: dict[str, Callable[[], object]] = {
        "own": lambda: own(d.model, batch, len(tiles)),
        "scan": lambda: onebyone.scan(d, image),
        "reading": lambda: reading(pixels, tiles),
        "formula": lambda: formula(pixels, tiles),
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
        "scan_of_own": round(seconds["own"] / plan.pixels_read * side * side / seconds["scan"], 3),
        "reading_of_formula": round(seconds["reading"] / seconds["formula"], 3),
    }


def main() -> None:
    """Measure, print, and keep the figures with the machine's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    found = measure(given.megapixels, given.rounds, given.threads)
    RESULTS.write_text(json.dumps({"machine": machine(), "scan": found}, indent=1) + "\n", encoding="utf-8")
    Console().print(table(("figure", "value"), [(k, str(v)) for k, v in found.items()]))


if __name__ == "__main__":
    main()
