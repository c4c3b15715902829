"""`python -m bench.gigapixel`: memory and time of a scan as the image grows, and the gain of a second worker.

The image is computed where it is read, from the coordinates of its pixels, so that no disk limits it and any size
exists. Each scan runs in a process of its own, with one thread, from the image to an OME-Zarr store; its peak memory is
the largest resident set that the system reports for that process after its first scan. `memory_ratio` is the peak of
the largest image over that of the one that has a hundredth of its pixels, and `time_per_pixel_ratio` the same for the
processor time per pixel.

The speed of the machine's memory, which limits these scans, changes by half within minutes where the host has other
guests. So the largest scan pauses `TURNS` times, each time the smaller one runs in a process of its own, and their
median counts. A scan of up to `SHORT` pixels takes less than two seconds, of which the first use of memory by the
process is a tenth; it is repeated in its process, and the medians of the repetitions count. The first scan of each
process is kept beside them (`first_wall_seconds`, `first_processor_seconds`).

`dask_scaling` is the wall time with one worker over that with two, of one thread each, after the workers have loaded
the network: the median of rounds in which both take turns. It is measured for the network of `bench.dense`'s
efficiency, which computes 218 times as much per pixel as that of the scans, whose scans read and write for half of
their time (`dask_scaling_light`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import onebyone
from bench.dense_networks import unpadded
from bench.zoo.work import ROOT
from onebyone.dense import scan
from onebyone.records import Labels, table
from onebyone.stores.regions import Region

RESULTS = ROOT / "bench" / "results" / "gigapixel.json"
ROUNDS = 5
#: Scans of up to `SHORT` pixels are repeated this often.
REPETITIONS = 5
SHORT = 10**8
#: How often the largest scan pauses for one of a hundredth of its pixels.
TURNS = 5
#: Networks for which two workers are compared with one, and the pixels on a side of the image.
SCALING = {"unpadded": 20_000, "light": 31_623}


@dataclass(frozen=True)
class ComputedImage:
    """A square RGB image of `side` pixels, computed where it is read: (row · 3 + column · 5 + channel) modulo 256."""

    side: int

    @property
    def size(self) -> tuple[int, ...]:
        """Rows and columns."""
        return (self.side, self.side)

    @property
    def channels(self) -> int:
        """Three."""
        return 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """8-bit integers."""
        return np.dtype(np.uint8)

    def read(self, region: Region) -> np.ndarray:
        """The pixels of a region (h, w, 3)."""
        rows, columns = (np.arange(s.start, s.stop, dtype=np.int64) for s in region)
        values = np.empty((len(rows), len(columns), 3), np.uint8)
        plane = (rows * 3).astype(np.uint8)[:, None] + (columns * 5).astype(np.uint8)[None]  # modulo 256
        for channel in range(3):
            np.add(plane, np.uint8(channel), out=values[..., channel])
        return values


def network(name: str) -> Any:
    """A classifier of windows of 64 pixels without padding: "light", of stride 32, or "unpadded", of stride 4."""
    torch.manual_seed(0)
    light = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 16, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    ).eval()
    net = light if name == "light" else unpadded()
    return onebyone.convolutionalize(net, window=64).with_labels(Labels(scale=1 / 255))


def one_scan(side: int, workers: int, name: str, smaller: int = 0) -> dict[str, Any]:
    """Scan an image in this process, or with `workers`; seconds (medians of short scans) and peak memory.

    With `smaller`, the scan pauses `TURNS` times, and each time an image of that side is scanned in another process.
    """
    torch.set_num_threads(1)
    d = network(name)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        options: dict[str, Any] = {}
        if workers:
            from onebyone.dense.cluster import cluster_client

            client = stack.enter_context(cluster_client(None, workers))
            client.wait_for_workers(workers)
            options["dask"] = client
        scan(d, ComputedImage(512), out=Path(folder) / "warm.zarr", **options)  # loads the libraries
        times: list[tuple[float, float]] = []
        turns: list[dict[str, Any]] = []
        paused, peak = 0.0, 0

        def progress(done: int, total: int) -> None:
            nonlocal paused
            if smaller and done * (TURNS + 1) >= total * (len(turns) + 1) and len(turns) < TURNS:
                start = time.perf_counter()
                turns.append(in_process(smaller, 0, name))
                paused += time.perf_counter() - start

        for repetition in range(1 + (0 if workers or side * side > SHORT else REPETITIONS)):
            start, processor = time.perf_counter(), time.process_time()
            scan(
                d, ComputedImage(side), out=Path(folder) / f"{repetition}.zarr", progress=progress, **options
            )
            times.append((time.perf_counter() - start - paused, time.process_time() - processor))
            peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wall, processor = (statistics.median(column) for column in zip(*(times[1:] or times), strict=True))
    return {
        "pixels": side * side,
        "wall_seconds": round(wall, 3),
        "processor_seconds": round(processor, 3),
        "first_wall_seconds": round(times[0][0], 3),
        "first_processor_seconds": round(times[0][1], 3),
        "peak_bytes": peak,
        **({"turns": turns} if turns else {}),
    }


def in_process(side: int, workers: int, name: str = "light", smaller: int = 0) -> dict[str, Any]:
    """`one_scan` in a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.gigapixel",
            "--one",
            str(side),
            "--workers",
            str(workers),
            "--network",
            name,
            "--smaller",
            str(smaller),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def scaling(side: int, name: str) -> dict[str, Any]:
    """Rounds of one worker and two on an image of `side`² pixels, and the median of the ratios of their times."""
    pairs = [[in_process(side, workers, name) for workers in (1, 2)] for _ in range(ROUNDS)]
    ratios = [one["wall_seconds"] / two["wall_seconds"] for one, two in pairs]
    return {
        "pixels": side * side,
        "median": round(statistics.median(ratios), 2),
        "rounds": [round(ratio, 2) for ratio in ratios],
        "one_worker": [one for one, _ in pairs],
        "two_workers": [two for _, two in pairs],
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=10, help="the largest image has 10^LARGEST pixels")
    parser.add_argument("--network", choices=("light", "unpadded"), default="light")
    parser.add_argument("--only-scaling", action="store_true", help="the scans keep their figures")
    parser.add_argument("--one", type=int, help="side of a single scan")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument(
        "--smaller", type=int, default=0, help="side of the image that is scanned in pauses of it"
    )
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(
            json.dumps(one_scan(arguments.one, arguments.workers, arguments.network, arguments.smaller))
            + "\n"
        )
        return
    figures = {} if not arguments.only_scaling else json.loads(RESULTS.read_text(encoding="utf-8"))
    if not arguments.only_scaling:
        sides = {f"1e{e}": round(10 ** (e / 2)) for e in range(6, arguments.largest + 1)}
        last, compared = list(sides)[-1], list(sides)[-3]
        scans = {label: in_process(side, 0) for label, side in sides.items() if label != last}
        large = scans[last] = in_process(sides[last], 0, smaller=sides[compared])
        turns = large["turns"]
        small = {
            "pixels": scans[compared]["pixels"],
            **{
                key: statistics.median(turn[key] for turn in turns)
                for key in ("processor_seconds", "peak_bytes")
            },
        }
        figures = {
            "sizes": "full" if arguments.largest >= 10 else "reduced: the machine was shared with other work",
            "compared": [last, compared],
            "memory_ratio": round(large["peak_bytes"] / small["peak_bytes"], 3),
            "time_per_pixel_ratio": round(
                large["processor_seconds"] / large["pixels"] / (small["processor_seconds"] / small["pixels"]),
                3,
            ),
            "scans": scans,
        }
    workers = {name: scaling(side, name) for name, side in SCALING.items()}
    figures |= {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
        "dask_scaling": workers["unpadded"]["median"],
        "dask_scaling_light": workers["light"]["median"],
        "workers": workers,
    }
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Console().print(table(("figure", "value"), [(k, str(v)) for k, v in figures.items()]))


if __name__ == "__main__":
    main()
