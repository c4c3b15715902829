"""Tune one network, and compare the result with other engines in a new interleaved run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import onebyone
from bench.models.networks import SEED, Network
from bench.models.peers import ON_GPU, PEERS
from onebyone.tuning.clock import Clock, InterleavedTimings, NoContention
from onebyone.tuning.contention import ContentionMonitor
from onebyone.tuning.result import Tuned

OTHER_ENGINES = ("onnxruntime", "openvino")
ALL, TORCH, FAST = "all", "torch", "fast"
"""Our results: with any engine; with PyTorch alone; and the plan of the latter with `fast_products=True`."""
ROUNDS, SECONDS = 40, 40.0
_MAX_COMPARISONS = 3
Report = Callable[[str], None]


def measure(
    network: Network, *, budget: float, device: str, dtype: torch.dtype, report: Report
) -> dict[str, Any]:
    """Return all results of one network as plain data; times in milliseconds."""
    start = time.perf_counter()
    model, x = network.make()
    model, x = model.to(device, dtype), x.to(device, dtype)
    tuned = _tuned(model, x, budget, device, report)
    tuned |= _fast(tuned[TORCH], model, x)
    calls: dict[str, Callable[[], object]] = {f"ours:{k}": partial(t.model, x) for k, t in tuned.items()}
    failed: dict[str, str] = {}
    for name in ON_GPU if device == "cuda" else PEERS:
        report(f"building {name}")
        try:
            calls[name] = PEERS[name](model, x)
        except Exception as error:  # an engine may raise anything
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    report("measuring")
    times = _timed(calls, device)
    return {
        "name": network.name,
        "shape": list(network.shape),
        "macs": _macs(model, x),
        "peak_gflops": max(t.plan.peak_gflops for t in tuned.values()),
        "ours": {key: _ours(t, times, f"ours:{key}", _macs(model, x)) for key, t in tuned.items()},
        "peers": {name: _peer(times, name, tuned) for name in calls if not name.startswith("ours:")},
        "failed": failed,
        "disturbed_rounds": times.disturbed,
        "rounds": len(next(iter(times.samples.values()))),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _tuned(model: nn.Module, x: Tensor, budget: float, device: str, report: Report) -> dict[str, Tuned]:
    """Return the fastest form with PyTorch alone, and the fastest with any engine."""
    report(f"tuning with PyTorch alone, {budget:.0f} s")
    alone = onebyone.tune(model, x, engines=TORCH, budget=budget, seed=SEED)
    if device == "cuda":
        return {ALL: alone, TORCH: alone}
    report("tuning with the other engines")
    others = onebyone.tune(model, x, engines=OTHER_ENGINES, budget=budget / 3, seed=SEED)
    for _ in range(_MAX_COMPARISONS):
        times = _timed({"alone": partial(alone.model, x), "others": partial(others.model, x)}, device, 15.0)
        if not times.kept_disturbed:
            break  # otherwise every round was disturbed, and the comparison is repeated
    faster = alone if times.ratio("alone", "others") < 1 else others
    return {ALL: faster, TORCH: alone}


def _fast(alone: Tuned, model: nn.Module, x: Tensor) -> dict[str, Tuned]:
    """Return the choice with PyTorch alone with `fast_products=True`, if its engine has such products."""
    if alone.plan.choice["engine"] != "onebyone":
        return {}
    plan = replace(alone.plan, fast_products=True)
    return {FAST: onebyone.tune(model, x, plan=plan, seed=SEED)}


def _timed(
    calls: dict[str, Callable[[], object]], device: str, seconds: float = SECONDS
) -> InterleavedTimings:
    gpu = device == "cuda"
    clock = Clock(
        wait=torch.cuda.synchronize if gpu else _nothing,
        monitor=NoContention() if gpu else ContentionMonitor(),
        seed=SEED,
    )
    with torch.inference_mode():
        return clock.interleave(calls, seconds, rounds=ROUNDS, least=8)


def _nothing() -> None:
    pass


def _ours(tuned: Tuned, times: InterleavedTimings, name: str, macs: int) -> dict[str, Any]:
    timing, plan = times[name], tuned.plan
    chosen = next(c for c in plan.candidates if _is_choice(c, plan.choice))
    gflops = 2e-6 * macs / timing.median_ms
    return {
        "engine": plan.choice["engine"],
        "form": plan.choice["form"],
        "layers_flipped": len(plan.choice["layers"]),
        "why": plan.why,
        "median_ms": timing.median_ms,
        "spread_ms": timing.spread_ms,
        # the figures in the plan were measured without fast products
        "rounding_ratio": None if plan.fast_products else chosen["rounding_ratio"],
        "row_ratio": None if plan.fast_products else chosen["row_ratio"],
        "gflops": round(gflops, 1),
        "of_peak": round(gflops / plan.peak_gflops, 3),
        "plan": plan.to_dict(),
    }


def _is_choice(candidate: Any, choice: Any) -> bool:
    return candidate["refused"] is None and all(
        candidate[k] == choice[k] for k in ("engine", "form", "dtype")
    )


def _peer(times: InterleavedTimings, name: str, tuned: dict[str, Tuned]) -> dict[str, Any]:
    timing = times[name]
    ratios = {f"ratio_{key}": times.ratio(name, f"ours:{key}") for key in tuned}
    return {"median_ms": timing.median_ms, "spread_ms": timing.spread_ms, **ratios}


def _macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of products, convolutions and attention, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops()) // 2
