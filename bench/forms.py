"""`python -m bench.forms`: time every layer shape of the benchmark's networks in each of its forms, side by side.

Linear layers, 1×1 and other convolutions run with the shapes and memory formats that the networks call them with. The
measured times are compared with the cost model, which predicts from shapes alone, with its default rates and with rates
fitted to all other networks: how often its first choice is the fastest form, and how much slower its first choice is.

With `--device cuda`, `--dtype` and `--batch` name what is measured; float32 is IEEE's, or TF32 for both layers with
`--tf32`, because PyTorch's defaults would compare convolutions in TF32 with linear layers in float32.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console

from bench.models.networks import NETWORKS, Network
from bench.models.summary import geomean
from bench.zoo.totals import machine
from bench.zoo.work import ROOT
from onebyone.laws import cost
from onebyone.records import by, table
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.clock import Clock
from onebyone.tuning.contention import ContentionMonitor
from onebyone.tuning.layer_groups import group_layers
from onebyone.tuning.layer_times import LayerTimes, measure_group, peak_gflops, work_of
from onebyone.tuning.machine import describe_machine

RESULTS = ROOT / "bench" / "results"
TIE = 1.05
"""Forms within 5 % of the fastest count as equally fast."""


def shapes(
    network: Network, clock: Clock, seconds: float, seen: set[Any], place: dict[str, Any], batch: int
) -> Iterator[LayerTimes]:
    """Time the layers of one network whose shapes no earlier network had; `place` is the device and the dtype."""
    model, x = network.make()
    model, x = model.to(**place), x.repeat(batch, *[1] * (x.dim() - 1)).to(**place)
    for group in group_layers(model, CallSignature.of(model, x)):
        key = (group.kind, group.weight, tuple(group.sample.shape), group.sample.stride(), group.cost.macs)
        if key not in seen and group.convertible:
            seen.add(key)
            times = measure_group(group, clock, seconds)
            if len(times.timings) > 1:
                yield times


def row(network: str, times: LayerTimes) -> dict[str, Any]:
    """Return one shape as plain data; times in milliseconds."""
    group, best = times.group, times.fastest()
    assert best is not None
    return {
        "network": network,
        "layer": group.pattern,
        "kind": group.kind,
        "input": list(group.sample.shape),
        "weight": list(group.weight),
        "channels_last": group.channels_last,
        "macs": group.cost.macs,
        "forms": {n: {"median_ms": t.median_ms, "spread_ms": t.spread_ms} for n, t in times.timings.items()},
        "fastest": best,
        "spread": max(t.median_ms for t in times.timings.values()) / times.timings[best].median_ms,
    }


def predictions(measured: dict[str, list[LayerTimes]]) -> dict[str, Any]:
    """Evaluate the cost model's first choice, with its default rates and with rates fitted to all other networks."""
    default = [_slowdown_of_model(t, cost.DEFAULT) for times in measured.values() for t in times]
    fitted = []
    for name, times in measured.items():
        others = [t for other, rest in measured.items() if other != name for t in rest]
        if others:
            processor = cost.fit(list(_work_and_seconds(others)))
            fitted += [_slowdown_of_model(t, processor) for t in times]
    unchanged = [_slowdown(t, next(iter(t.timings))) for times in measured.values() for t in times]
    return {
        "default": _summary(default),
        "fitted_to_other_networks": _summary(fitted),
        "as_it_is": _summary(unchanged),
    }


def _work_and_seconds(measured: Iterable[LayerTimes]) -> Iterator[tuple[cost.Work, float]]:
    for times in measured:
        for name, timing in times.timings.items():
            work = work_of(times.group, name)
            if work is not None:
                yield work, timing.median_ms / 1e3


def _slowdown_of_model(times: LayerTimes, processor: cost.Processor) -> float:
    works = [work_of(times.group, name) for name in times.timings]
    return _slowdown(times, cost.rank([w for w in works if w is not None], processor)[0])


def _slowdown(times: LayerTimes, form: str) -> float:
    """Return the time of a form ÷ that of the fastest form."""
    best = times.fastest()
    assert best is not None
    return times.timings[form].median_ms / times.timings[best].median_ms


def _summary(slowdowns: Sequence[float]) -> dict[str, Any]:
    """Return how often a choice is the fastest (or within 5 % of it), and its time ÷ the fastest's."""
    return {
        "shapes": len(slowdowns),
        "first_is_fastest": sum(s == 1.0 for s in slowdowns) / max(1, len(slowdowns)),
        "first_within_5_percent": sum(s <= TIE for s in slowdowns) / max(1, len(slowdowns)),
        "geomean_slower": geomean(list(slowdowns)),
        "worst_slower": max(slowdowns, default=None),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, and write the results."""
    options = _options().parse_args(arguments)
    gpu, device = options.device == "cuda", torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    clock = Clock(wait=torch.cuda.synchronize) if gpu else Clock(monitor=ContentionMonitor())
    console, place = Console(stderr=True), {"device": device, "dtype": getattr(torch, options.dtype)}
    peak = peak_gflops(clock, device, 5.0)
    measured: dict[str, list[LayerTimes]] = defaultdict(list)
    seen: set[Any] = set()
    for network in NETWORKS:
        with console.status(network.name), torch.inference_mode():
            measured[network.name] = list(shapes(network, clock, options.seconds, seen, place, options.batch))
    rows = [row(name, t) for name, times in measured.items() for t in times]
    data = {
        "machine": machine() | describe_machine(device),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        **({"batch": options.batch, "tf32": options.tf32} if gpu else {}),
        "peak_gflops": round(peak, 1),
        "shapes": rows,
        "wins": {k: sum(r["fastest"] == k for r in rows) for k in sorted({r["fastest"] for r in rows})},
        "cost_model": predictions(measured),
    }
    tf32 = "-tf32" if options.tf32 else ""
    name = f"forms-cuda-{options.dtype}{tf32}.json" if gpu else "forms.json"
    (RESULTS / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    _print(data)
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.forms", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each shape")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tf32", action="store_true", help="round the inputs of float32 products to TF32")
    parser.add_argument("--batch", type=int, default=1, help="times the batch of the network's input")
    return parser


def _print(data: dict[str, Any]) -> None:
    forms = sorted({f for r in data["shapes"] for f in r["forms"]})
    lines = []
    for r in data["shapes"]:
        by_form = [r["forms"].get(f) for f in forms]
        cells = ["–" if t is None else f"{2e-6 * r['macs'] / t['median_ms']:.0f}" for t in by_form]
        layer = f"{by(r['input'])} → {r['weight'][0]}"
        lines.append([r["network"], r["layer"], layer, *cells, r["fastest"], f"{r['spread']:.1f}×"])
    print(f"GFLOP/s of each form; the peak rate of large products is {data['peak_gflops']:.0f}")
    print(table(("network", "layer", "shape", *forms, "fastest", "spread"), lines))
    for name, s in data["cost_model"].items():
        print(
            f"{name}: first choice fastest {s['first_is_fastest']:.0%}, within 5 % of it "
            f"{s['first_within_5_percent']:.0%} of {s['shapes']} shapes; "
            f"{s['geomean_slower']:.2f}× the fastest's time on average, {s['worst_slower']:.1f}× at worst"
        )


if __name__ == "__main__":
    raise SystemExit(main())
