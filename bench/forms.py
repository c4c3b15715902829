"""`python -m bench.forms`: every layer shape of the benchmark's networks, in each of its forms, side by side.

Linear layers, 1×1 and other convolutions as the networks call them: at their real shapes and layouts. Beside the
times stands what the cost model says before anything runs, with its default rates and with rates fitted to every
other network: how often its first choice is the measured best, and how much slower its first choice is.
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

RESULTS = ROOT / "bench" / "results" / "forms.json"
TIE = 1.05
"""Forms within 5 % of the fastest are as good as it."""


def shapes(network: Network, clock: Clock, seconds: float, seen: set[Any]) -> Iterator[LayerTimes]:
    """The layers of one network that no earlier one had, timed."""
    model, x = network.make()
    for group in group_layers(model, CallSignature.of(model, x)):
        key = (group.kind, group.weight, tuple(group.sample.shape), group.sample.stride(), group.cost.macs)
        if key not in seen and group.convertible:
            seen.add(key)
            found = measure_group(group, clock, seconds)
            if len(found.timings) > 1:
                yield found


def row(network: str, found: LayerTimes) -> dict[str, Any]:
    """One shape as plain data; times in milliseconds."""
    group, best = found.group, found.fastest()
    assert best is not None
    return {
        "network": network,
        "layer": group.pattern,
        "kind": group.kind,
        "input": list(group.sample.shape),
        "weight": list(group.weight),
        "channels_last": group.channels_last,
        "macs": group.cost.macs,
        "forms": {n: {"median_ms": t.median_ms, "spread_ms": t.spread_ms} for n, t in found.timings.items()},
        "fastest": best,
        "spread": max(t.median_ms for t in found.timings.values()) / found.timings[best].median_ms,
    }


def predictions(measured: dict[str, list[LayerTimes]]) -> dict[str, Any]:
    """How good the cost model's first choice is: with its default rates, and fitted to all the other networks."""
    default = [_judged(f, cost.DEFAULT) for found in measured.values() for f in found]
    fitted = []
    for name, found in measured.items():
        others = [f for other, rest in measured.items() if other != name for f in rest]
        if others:
            processor = cost.fit(list(_pairs(others)))
            fitted += [_judged(f, processor) for f in found]
    own = [_slower(f, _own(f)) for found in measured.values() for f in found]
    return {"default": _share(default), "fitted_to_other_networks": _share(fitted), "as_it_is": _share(own)}


def _pairs(found: Iterable[LayerTimes]) -> Iterator[tuple[cost.Work, float]]:
    for one in found:
        for name, timing in one.timings.items():
            work = work_of(one.group, name)
            if work is not None:
                yield work, timing.median_ms / 1e3


def _judged(found: LayerTimes, processor: cost.Processor) -> float:
    works = [work_of(found.group, name) for name in found.timings]
    return _slower(found, cost.rank([w for w in works if w is not None], processor)[0])


def _own(found: LayerTimes) -> str:
    return next(iter(found.timings))


def _slower(found: LayerTimes, form: str) -> float:
    best = found.fastest()
    assert best is not None
    return found.timings[form].median_ms / found.timings[best].median_ms


def _share(slower: Sequence[float]) -> dict[str, Any]:
    """Of shapes: how often the choice is the fastest (or within 5 % of it), and its time ÷ the fastest's."""
    return {
        "shapes": len(slower),
        "first_is_fastest": sum(s == 1.0 for s in slower) / max(1, len(slower)),
        "first_within_5_percent": sum(s <= TIE for s in slower) / max(1, len(slower)),
        "geomean_slower": geomean(list(slower)),
        "worst_slower": max(slower, default=None),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write `bench/results/forms.json`."""
    parser = argparse.ArgumentParser(prog="python -m bench.forms", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each shape")
    seconds = parser.parse_args(arguments).seconds
    console, clock = Console(stderr=True), Clock(monitor=ContentionMonitor())
    peak = peak_gflops(clock, torch.device("cpu"), 5.0)
    measured: dict[str, list[LayerTimes]] = defaultdict(list)
    seen: set[Any] = set()
    for network in NETWORKS:
        with console.status(network.name), torch.inference_mode():
            measured[network.name] = list(shapes(network, clock, seconds, seen))
    rows = [row(name, f) for name, found in measured.items() for f in found]
    data = {
        "machine": machine() | describe_machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "peak_gflops": round(peak, 1),
        "shapes": rows,
        "wins": {k: sum(r["fastest"] == k for r in rows) for k in sorted({r["fastest"] for r in rows})},
        "cost_model": predictions(measured),
    }
    RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    _print(data)
    return 0


def _print(data: dict[str, Any]) -> None:
    forms = sorted({f for r in data["shapes"] for f in r["forms"]})
    lines = []
    for r in data["shapes"]:
        times = [r["forms"].get(f) for f in forms]
        cells = ["–" if t is None else f"{2e-6 * r['macs'] / t['median_ms']:.0f}" for t in times]
        layer = f"{by(r['input'])} → {r['weight'][0]}"
        lines.append([r["network"], r["layer"], layer, *cells, r["fastest"], f"{r['spread']:.1f}×"])
    print(f"GFLOP/s of each form; the largest product seen here reaches {data['peak_gflops']:.0f}")
    print(table(("network", "layer", "shape", *forms, "fastest", "spread"), lines))
    for name, found in data["cost_model"].items():
        print(
            f"{name}: first choice fastest {found['first_is_fastest']:.0%}, within 5 % of it "
            f"{found['first_within_5_percent']:.0%} of {found['shapes']} shapes; "
            f"{found['geomean_slower']:.2f}× the fastest's time on average, {found['worst_slower']:.1f}× at worst"
        )


if __name__ == "__main__":
    raise SystemExit(main())
