"""`python -m bench.gpu`: the two layers and dense inference on a GPU (needs one).

- "precision": a linear layer and the same layer as a 1×1 convolution, with PyTorch's defaults, in IEEE float32, with
  TF32 allowed for both, and in bfloat16: the error against float64, relative to the largest output, and the time.
- "dense": ResNet-18 (window 224, stride 32) and an unpadded network (window 64, stride 4) on one image. The any-size
  form (`onebyone.scan`), the network on every window that MONAI's `SlidingWindowSplitter` gives, in batches, and every
  window by `scan_windows`, in IEEE float32, with PyTorch's defaults (TF32 in convolutions), and in 16 bits.
- "large": the same networks on an image of 268 megapixels: seconds of the network alone on the tiles, which are already
  on the GPU, over those of the whole scan from pixels in memory to scores in memory.

Seconds are wall-clock time, the GPU's queue included; medians of `REPEATS` runs. MONAI is read from the folder in
MONAI_PATH; without it, its part is left out. It runs once, with PyTorch's defaults.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import onebyone
from bench.dense import LABELS, monai_splitter, monai_windows
from bench.dense_networks import resnet18, unpadded
from bench.zoo.totals import machine
from bench.zoo.work import ROOT
from onebyone.dense import choose_tile, plan_scan, scan, scan_windows
from onebyone.records import table
from onebyone.tuning.machine import describe_machine

RESULTS = ROOT / "bench" / "results" / "gpu.json"
DEVICE = torch.device("cuda")
REPEATS = 3
PRECISIONS = {"ieee": (False, False), "defaults": (False, True), "tf32": (True, True)}
"""Whether products and whether convolutions may round their inputs to TF32."""


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Compute float32 as named in `PRECISIONS`; PyTorch's defaults are restored afterwards."""
    products, convolutions = PRECISIONS[name]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True


def seconds(run: Callable[[], Any], repeats: int = REPEATS, calls: int = 1) -> tuple[float, Any]:
    """The median wall-clock seconds of a call after one that is not timed, and the result of the last."""
    result, times = run(), []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times), result


def measure_precision(rows: int = 8192, width: int = 1024) -> list[dict[str, Any]]:
    """A linear layer of `width` inputs and outputs on `rows` tokens, and the same layer as a 1×1 convolution."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(width, width)).to(DEVICE).eval()
    x = torch.randn(rows, width).to(DEVICE)
    correct = copy.deepcopy(linear).double()(x.double()).detach()
    conv = onebyone.convert(linear, to="conv", copy=True).model
    found = []
    for name in (*PRECISIONS, "bfloat16"):
        for form, model in (("linear", linear), ("conv", conv)):
            y, layer = x, model
            if name == "bfloat16":
                y, layer = x.bfloat16(), copy.deepcopy(model).bfloat16()
            with precision(name if name in PRECISIONS else "defaults"), torch.inference_mode():
                taken, out = seconds(partial(layer, y), 9, 20)
            error = float((out.double() - correct).abs().max() / correct.abs().max())
            tflops = 2e-12 * rows * width * width / taken
            found.append(
                {"precision": name, "form": form, "error": error, "ms": 1e3 * taken, "tflops": tflops}
            )
    return found


def measure_dense(name: str, model: nn.Module, window: int, side: int) -> list[dict[str, Any]]:
    """One network on one image in every precision: the any-size form, MONAI's windows, and `scan_windows`."""
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    model = model.to(DEVICE)
    d = onebyone.convolutionalize(model, window=window).with_labels(LABELS)
    splitter, version = monai_splitter()
    found = []
    for setting in ("ieee", "defaults", "bfloat16", "float16"):
        half = setting if setting not in PRECISIONS else None
        with precision(setting if half is None else "defaults"):
            torch.cuda.reset_peak_memory_stats()
            dense, result = seconds(partial(scan, d, image, device=DEVICE, compared=0, half=half))
            row = {"network": name, "side": side, "precision": setting, "windows": result.windows}
            row |= {"seconds_dense": dense, "gpu_gib": torch.cuda.max_memory_allocated() / 2**30}
            if half is None:
                run = partial(scan_windows, model, image, d.geometry, labels=LABELS, device=DEVICE)
                row["seconds_windows"], crops = seconds(run, 1)
                row["difference"] = float(np.abs(result.scores - crops.scores).max())
                row["largest"] = float(np.abs(crops.scores).max())
                row["windows_over_dense"] = row["seconds_windows"] / dense
            if setting == "defaults" and splitter is not None:
                stride = d.geometry.stride[0]
                start = (
                    time.perf_counter()
                )  # its result is on the processor, so that nothing is left in the queue
                monai_windows(model, image, window, stride, splitter, DEVICE, 256)
                row["seconds_monai"] = time.perf_counter() - start
                row |= {"monai": version, "monai_over_dense": row["seconds_monai"] / dense}
        found.append(row)
    return found


def measure_large(name: str, model: nn.Module, window: int, side: int) -> dict[str, Any]:
    """The share of the network's own time in a scan of a large image, with PyTorch's defaults."""
    rows = np.random.default_rng(0).integers(0, 256, (512, side, 3), dtype=np.uint8)
    image = np.tile(rows, (side // 512, 1, 1))
    d = onebyone.convolutionalize(model.to(DEVICE), window=window).with_labels(LABELS)
    whole, result = seconds(partial(scan, d, image, device=DEVICE, compared=0), 1)
    last, _ = seconds(partial(scan, d, image, device=DEVICE, compared=0, channels_last=True), 1)
    plan = plan_scan(d.geometry, (side, side), tile=choose_tile(d.geometry, (side, side), min_pixels=2**22))
    tiles = list(plan)
    x = torch.randn(1, 3, *tiles[0].read_shape, device=DEVICE)
    with torch.inference_mode():
        network, _ = seconds(lambda: [d.model(x) for _ in tiles], 1)
    return {
        "network": name,
        "megapixels": side * side / 1e6,
        "tiles": len(tiles),
        "passes": result.passes,
        "seconds_scan": whole,
        "seconds_scan_channels_last": last,
        "seconds_network": network,
        "efficiency": network / whole,
        "megapixels_per_second": side * side / 1e6 / whole,
    }


def main() -> int:
    """Measure, print and save the figures with the machine's description."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--side", type=int, default=2048, help="pixels per side of the image of the part dense"
    )
    parser.add_argument(
        "--large", type=int, default=16384, help="pixels per side of the image of the part large"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu: PyTorch finds no CUDA device here")
        return 2
    networks = (("ResNet-18", resnet18(), 224), ("unpadded, stride 4", unpadded(), 64))
    data: dict[str, Any] = {"machine": machine() | describe_machine(DEVICE)}
    data["precision"] = measure_precision()
    data["dense"] = [row for n, m, window in networks for row in measure_dense(n, m, window, arguments.side)]
    data["large"] = [measure_large(n, m, window, arguments.large) for n, m, window in networks]
    RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for part in ("precision", "dense", "large"):
        keys = tuple(dict.fromkeys(key for row in data[part] for key in row))
        cells = [[_cell(row.get(key)) for key in keys] for row in data[part]]
        Console(width=200).print(table(keys, cells))
    return 0


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
