"""`python -m bench.dense`: dense inference against window by window, and a scan against the network alone.

One process, one thread, the same image for all parts. Times are processor seconds of the process, which other
processes disturb less than the wall clock. What takes minutes runs once; the scans that take seconds run twice before
it and twice after it, and their median counts.

- "resnet18": ResNet-18, window 224, stride 32. MONAI's `SlidingWindowSplitter` gives the windows, and the network runs
  on batches of them; `onebyone.scan` runs the any-size form once. `with_tune` scans with the form that `tune` chose for
  the tile.
- "stride4": an unpadded network, window 64, stride 4, against every window cropped (`scan_windows`, which takes the
  fastest of several batch sizes and memory orders for them). The bound on the difference is that of a running error
  analysis (`forward_bound`).
- "efficiency": processor seconds of the network alone on the tiles of a tiled TIFF, over those of the whole scan from
  the TIFF to OME-Zarr, and of a script with Dask's `map_overlap` on the same file.
- "finer": a network with two pools at stride 1, by shifted passes and by dilation.

MONAI is read from the folder in MONAI_PATH (pip install --target FOLDER --no-deps monai). Without it, its part is left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import onebyone
from bench.dense_networks import LAST_MAP, light, resnet18, unpadded
from bench.zoo.totals import machine
from bench.zoo.work import ROOT
from onebyone.dense import choose_tile, plan_scan, scan, scan_windows
from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.images import open_image
from onebyone.dense.preprocessing import normalise
from onebyone.dense.tuned_runner import tuned_tile
from onebyone.laws.bounds import gamma
from onebyone.memory import reused_memory
from onebyone.records import Labels, table

RESULTS = ROOT / "bench" / "results" / "dense.json"
LABELS = Labels(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


class Repeated:
    """Runs that are repeated around a longer measurement; the median of their processor seconds."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.times: list[float] = []
        self.result: Any = None

    def again(self, times: int = 2) -> None:
        """Run `times` times more."""
        for _ in range(times):
            taken, self.result = seconds(self.run)
            self.times.append(taken)

    @property
    def median(self) -> float:
        """The median of all runs so far."""
        return statistics.median(self.times)


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of the convolutions and linear layers of a run on an input of `shape`."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(torch.zeros(shape))
    return int(counter.get_total_flops() // 2)


def monai_windows(
    model: nn.Module,
    image: np.ndarray,
    window: int,
    stride: int,
    splitter: Any,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
) -> np.ndarray:
    """The scores of every window that MONAI's splitter gives of an image on a device, in batches."""
    x = torch.from_numpy(np.moveaxis(image, -1, 0)[None].copy()).to(device).float()
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (LABELS.mean, LABELS.std))
    x = (x * LABELS.scale - mean) / std
    windows = splitter(patch_size=(window, window), overlap=1 - stride / window, pad_mode=None)(x)
    scores: list[torch.Tensor] = []
    batch: list[torch.Tensor] = []
    with torch.inference_mode():
        for patch, _ in windows:
            batch.append(patch)
            if len(batch) == batch_size:
                scores.append(model(torch.cat(batch)))
                batch = []
        if batch:
            scores.append(model(torch.cat(batch)))
    return torch.cat(scores).cpu().numpy()


def monai_splitter() -> tuple[Any, str]:
    """MONAI's splitter and its version, from MONAI_PATH; (None, "") where it is not there."""
    folder = os.environ.get("MONAI_PATH", "")
    if not folder:
        return None, ""
    sys.path.append(folder)
    from monai.inferers import SlidingWindowSplitter

    found = next(
        (d.version for d in distributions(path=[folder]) if d.metadata["Name"].lower() == "monai"), ""
    )
    return SlidingWindowSplitter, found


def measure_resnet(size: int, tune: bool) -> dict[str, Any]:
    """ResNet-18 against MONAI, with the same engine and with the form that `tune` chose."""
    model = resnet18()
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    d = onebyone.convolutionalize(model, window=224).with_labels(LABELS)
    dense = Repeated(lambda: scan(d, image, compared=0))
    dense.again()
    windows = dense.result.windows
    figures: dict[str, Any] = {
        "size": size,
        "windows": windows,
        "mac_ratio": round(windows * macs(model, (1, 3, 224, 224)) / macs(d.model, (1, 3, size, size)), 2),
    }
    splitter, version = monai_splitter()
    if splitter is not None:
        with reused_memory():  # as in a scan
            monai_seconds, vectors = seconds(lambda: monai_windows(model, image, 224, 32, splitter))
        dense.again()
        figures |= {
            "monai": version,
            "seconds_monai": round(monai_seconds, 3),
            "monai_windows": len(vectors),
            "speedup_vs_monai": round(monai_seconds / dense.median, 2),
        }
    figures["seconds_dense"] = [round(t, 3) for t in dense.times]
    if tune and splitter is not None:
        tile = plan_scan(d.geometry, (size, size), tile=choose_tile(d.geometry, (size, size)))
        shape = next(iter(tile)).read_shape
        tuned = tuned_tile(d.model, (1, 3, *shape), torch.device("cpu"))
        fastest = replace(d, model=tuned.model)
        # the order of the example, which the chosen engine was built for
        quick = Repeated(lambda: scan(fastest, image, compared=0, channels_last=False))
        quick.again(4)
        figures |= {
            "tuned": tuned.plan.choice["name"],
            "seconds_tuned": [round(t, 3) for t in quick.times],
            "speedup_vs_monai_with_tune": round(monai_seconds / quick.median, 2),
        }
    return figures


def forward_bound(model: nn.Sequential, image: np.ndarray) -> float:
    """The largest bound on the difference of two float32 results, by a running error analysis over the image.

    A layer of reduction length n turns the error e of its input a into at most |W| e + γ_(n+1) (|W| |a| + |b|). ReLU
    and max-pools do not increase it. Two results differ by twice that (Higham, Accuracy and Stability, 3.3).
    """
    x = torch.from_numpy(normalise(image, LABELS))[None].double()
    error = gamma(3, 2.0**-24) * x.abs()
    with torch.inference_mode():
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = layer.weight.double()
                if isinstance(layer, nn.Linear):
                    weight = weight.view(len(weight), -1, *LAST_MAP)
                bias = layer.bias.double()
                magnitude = F.conv2d(x.abs(), weight.abs(), bias.abs())
                error = F.conv2d(error, weight.abs()) + gamma(weight[0].numel() + 1, 2.0**-24) * magnitude
                x = F.conv2d(x, weight, bias)
            elif isinstance(layer, nn.MaxPool2d):
                x, error = layer(x), layer(error)
            elif isinstance(layer, nn.ReLU):
                x = layer(x)
    return 2 * float(error.max())


def measure_stride4(size: int) -> dict[str, Any]:
    """The unpadded network against every window cropped."""
    model = unpadded()
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    d = onebyone.convolutionalize(model, window=64).with_labels(LABELS)
    dense = Repeated(lambda: scan(d, image))
    dense.again()
    window_seconds, crops = seconds(lambda: scan_windows(model, image, d.geometry, labels=LABELS))
    dense.again()
    ratio = crops.windows * macs(model, (1, 3, 64, 64)) / macs(d.model, (1, 3, size, size))
    return {
        "size": size,
        "windows": crops.windows,
        "stride": d.geometry.stride[0],
        "mac_ratio": round(ratio, 1),
        "seconds_dense": [round(t, 3) for t in dense.times],
        "seconds_windows": round(window_seconds, 3),
        "speedup_vs_windows_stride4": round(window_seconds / dense.median, 1),
        "max_abs_difference": float(np.abs(dense.result.scores - crops.scores).max()),
        "bound": forward_bound(model, image),
    }


def tiled_tiff(path: Path, side: int) -> None:
    """A tiled, compressed TIFF of smooth noise, written strip of tiles by strip."""
    import tifffile

    generator = np.random.default_rng(0)

    def tiles() -> Iterator[np.ndarray]:
        block = generator.integers(0, 256, (512, 512, 3), dtype=np.uint8)
        for k in range((-(-side // 512)) ** 2):
            yield np.roll(block, k, axis=0)

    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(512, 512), compression="zlib",
                     compressionargs={"level": 1}, photometric="rgb")  # fmt: skip


def measure_efficiency(megapixels: float) -> dict[str, Any]:
    """The share of the network's own time in a scan from a tiled TIFF to OME-Zarr, and the same with `map_overlap`."""
    side = round((megapixels * 1e6) ** 0.5)
    d = onebyone.convolutionalize(unpadded(), window=64).with_labels(LABELS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        tiled_tiff(path, side)
        source = open_image(path, channels=3)
        plan = plan_scan(d.geometry, source.size, tile=choose_tile(d.geometry, source.size), aligned=True)
        tiles = list(plan)
        batch = torch.from_numpy(BatchReader(source, LABELS, True)(tiles[:1]).copy()).contiguous(
            memory_format=torch.channels_last
        )
        with torch.inference_mode(), reused_memory():  # as in a scan
            network, _ = seconds(lambda: [d.model(batch) for _ in tiles])
        scan(d, np.zeros((80, 80, 3), np.uint8), out=Path(folder) / "warm.zarr")  # imports the libraries
        wall = time.perf_counter()
        whole, result = seconds(lambda: scan(d, path, out=Path(folder) / "scores.zarr"))
        wall = time.perf_counter() - wall
        overlap, overlap_scores = seconds(lambda: map_overlap(d, path))
        difference = float(np.abs(np.asarray(result.scores) - overlap_scores).max())
    return {
        "megapixels": round(side * side / 1e6, 1),
        "tiles": len(tiles),
        "tile_pixels": list(tiles[0].read_shape),
        "pixels_read": round(plan.pixels_read / side**2, 3),
        "seconds_network": round(network, 3),
        "seconds_scan": round(whole, 3),
        "wall_seconds_scan": round(wall, 3),
        "scan_efficiency": round(network / whole, 3),
        "seconds_map_overlap": round(overlap, 3),
        "map_overlap_efficiency": round(network / overlap, 3),
        "map_overlap_difference": difference,
    }


def map_overlap(d: Any, path: Path) -> np.ndarray:
    """What one would write with Dask: overlapping chunks of the image, and the network on each."""
    import dask
    import dask.array as da
    import tifffile

    stride, window = d.geometry.stride[0], d.geometry.window[0]
    pixels = da.from_array(tifffile.imread(path), chunks=(512, 512, 3))
    rows, columns = (n // stride * stride for n in pixels.shape[:2])
    depth = -(-(window - stride) // stride) * stride
    overlapping = da.overlap.overlap(
        pixels[:rows, :columns], depth={0: (0, depth), 1: (0, depth), 2: 0}, boundary="none"
    )  # fmt: skip

    def run(block: np.ndarray) -> np.ndarray:
        x = (block.astype(np.float32) * np.float32(LABELS.scale) - np.float32(LABELS.mean)) / np.float32(
            LABELS.std
        )
        with torch.inference_mode():
            return d.model(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 0)[None])))[0].numpy()

    parts = [[dask.delayed(run)(block) for block in row[:, 0]] for row in overlapping.to_delayed()]
    with dask.config.set(scheduler="synchronous"):
        blocks = dask.compute(parts)[0]
    positions = d.geometry.positions((rows, columns))
    rows_of = [np.concatenate([b[:, : 512 // stride, : 512 // stride] for b in row], 2) for row in blocks]
    return np.concatenate(rows_of, 1)[:, : positions[0], : positions[1]]


def measure_finer(size: int) -> dict[str, Any]:
    """A map of stride 1 by shifted passes and by dilation."""
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    d = onebyone.convolutionalize(light(), window=14).with_labels(LABELS)
    shifted, a = seconds(lambda: scan(d, image, stride=1))
    once, b = seconds(lambda: scan(d, image, stride=1, finer="dilation"))
    return {
        "size": size,
        "seconds_shifts": round(shifted, 3),
        "seconds_dilation": round(once, 3),
        "dilation_speedup": round(shifted / once, 2),
        "max_abs_difference": float(np.abs(a.scores - b.scores).max()),
    }


def main() -> None:
    """Measure, print and save the figures with the machine's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="pixels per side of the image for ResNet-18")
    parser.add_argument("--stride4-size", type=int, default=2048)
    parser.add_argument("--megapixels", type=float, default=100.0)
    parser.add_argument("--parts", nargs="+", help="measure only these parts; the others keep their figures")
    parser.add_argument(
        "--no-tune", action="store_true", help="leave out the scan in the form that tune chose"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        described = machine()
    except PackageNotFoundError:
        described = {"cores": os.cpu_count(), "torch": torch.__version__}
    figures: dict[str, Any] = {"machine": described, "threads": 1, "clock": "process_time"}
    if arguments.parts and RESULTS.exists():
        figures = {**json.loads(RESULTS.read_text(encoding="utf-8")), **figures}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "finer": lambda: measure_finer(512),
        "stride4": lambda: measure_stride4(arguments.stride4_size),
        "efficiency": lambda: measure_efficiency(arguments.megapixels),
        "resnet18": lambda: measure_resnet(arguments.size, not arguments.no_tune),
    }
    for name, part in parts.items():
        if arguments.parts and name not in arguments.parts:
            continue
        load = os.getloadavg()[0]
        figures[name] = {**part(), "load_before": round(load, 2), "load_after": round(os.getloadavg()[0], 2)}
        rows = [(key, str(value)) for key, value in figures[name].items()]
        Console().print(table((name, "value"), rows))
        for key in (
            "speedup_vs_monai",
            "speedup_vs_windows_stride4",
            "max_abs_difference",
            "bound",
            "scan_efficiency",
        ):
            if key in figures[name] and name != "finer":
                figures[key] = figures[name][key]
        full = {"stride4": 2048, "efficiency": 99, "resnet18": 2048}
        sizes = {
            part: figures.get(part, {}).get("megapixels" if part == "efficiency" else "size", 0)
            for part in full
        }
        reduced = [part for part in full if sizes[part] < full[part]]
        figures["sizes"] = f"reduced: {', '.join(reduced)}" if reduced else "full"
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
