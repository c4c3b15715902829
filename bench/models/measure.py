"""One network: tuned, and then measured beside its peers in a fresh interleaved run."""

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

OTHERS = ("onnxruntime", "openvino")
ALL, TORCH, FAST = "all", "torch", "fast"
"""Ours: any engine; PyTorch alone; and the plan of that with `fast_products=True`."""
ROUNDS, SECONDS = 40, 40.0
_TRIES = 3
Say = Callable[[str], None]


class Steady(Clock):
    """Each sample follows a call of its own that is not timed: no peer pays for the caches another one left."""

    def sample(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Seconds one call takes, once the one before it was the same."""
        call()
        return super().sample(call, repeats)


def measure(network: Network, *, budget: float, device: str, dtype: torch.dtype, say: Say) -> dict[str, Any]:
    """Everything there is to tell of one network, as plain data; times in milliseconds."""
    start = time.perf_counter()
    model, x = network.make()
    model, x = model.to(device, dtype), x.to(device, dtype)
    tuned = _tuned(model, x, budget, device, say)
    tuned |= _fast(tuned[TORCH], model, x)
    calls: dict[str, Callable[[], object]] = {f"ours:{k}": partial(t.model, x) for k, t in tuned.items()}
    failed: dict[str, str] = {}
    for name in ON_GPU if device == "cuda" else PEERS:
        say(f"building {name}")
        try:
            calls[name] = PEERS[name](model, x)
        except Exception as error:  # whatever an engine raises is its reason
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    say("measuring")
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


def _tuned(model: nn.Module, x: Tensor, budget: float, device: str, say: Say) -> dict[str, Tuned]:
    """The fastest of PyTorch alone, and the fastest of all engines."""
    say(f"tuning with PyTorch alone, {budget:.0f} s")
    alone = onebyone.tune(model, x, engines=TORCH, budget=budget, seed=SEED)
    if device == "cuda":
        return {ALL: alone, TORCH: alone}
    say("tuning with the other engines")
    others = onebyone.tune(model, x, engines=OTHERS, budget=budget / 3, seed=SEED)
    for _ in range(_TRIES):
        times = _timed({"alone": partial(alone.model, x), "others": partial(others.model, x)}, device, 15.0)
        if not times.kept_disturbed:
            break  # else something else had the processor throughout: no ground to choose on
    faster = alone if times.ratio("alone", "others") < 1 else others
    return {ALL: faster, TORCH: alone}


def _fast(alone: Tuned, model: nn.Module, x: Tensor) -> dict[str, Tuned]:
    """What was chosen of PyTorch alone, without an error bound for each row, where its engine has such products."""
    if alone.plan.choice["engine"] != "onebyone":
        return {}
    plan = replace(alone.plan, fast_products=True)
    return {FAST: onebyone.tune(model, x, plan=plan, seed=SEED)}


def _timed(
    calls: dict[str, Callable[[], object]], device: str, seconds: float = SECONDS
) -> InterleavedTimings:
    gpu = device == "cuda"
    clock = Steady(
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
        # a plan that is applied with another setting has figures of the one it was made with
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
