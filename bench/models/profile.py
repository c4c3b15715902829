"""`python -m bench.models.profile`: the time of each kind of operator, for our result and for faster peers.

For each network of `bench/results/models.json` on which a peer is faster than PyTorch alone, the chosen form and that
peer are profiled, and the milliseconds are summed by kind of operator. Profiling slows down execution, so that only the
shares are meaningful.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import onebyone
from bench.models.networks import NETWORKS, SEED
from bench.models.peers import export_onnx
from bench.zoo.work import ROOT
from onebyone.tuning.plan import TuningPlan
from onebyone.tuning.result import Tuned

RESULTS = ROOT / "bench" / "results"
RUNS = 20
LISTED = 8


def torch_profile(call: Callable[[], object]) -> Counter[str]:
    """Return the milliseconds of one call by operator, without the operators that it calls."""
    with (
        torch.inference_mode(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
    ):
        for _ in range(RUNS):
            call()
    times: Counter[str] = Counter()
    for event in profile.key_averages():
        times[_kind(event.key)] += event.self_cpu_time_total / 1e3 / RUNS
    return times


def _kind(name: str) -> str:
    """Return the name of an operator without the number of its instance.

    >>> _kind("LlgaPartition_241"), _kind("aten::add")
    ('fused by oneDNN (LlgaPartition)', 'aten::add')
    """
    return "fused by oneDNN (LlgaPartition)" if name.startswith("LlgaPartition_") else name


def _tuned_profile(tuned: Tuned, x: Tensor) -> Counter[str]:
    """Profile a tuned network; by `model.times` if its engine is one call of C++, where torch.profiler sees nothing."""
    times: Counter[str] = Counter()
    for _ in range(RUNS):
        for kind, ms in tuned.model.times(x).items():
            times[kind] += ms / RUNS
    return times or torch_profile(partial(tuned.model, x))


def onnxruntime_profile(model: nn.Module, x: Tensor) -> Counter[str]:
    """Return the milliseconds of one run by operator type, from the session's profiler."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, x, path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: x.numpy()}
        for _ in range(RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"] / 1e3 / RUNS
    return times


def openvino_profile(model: nn.Module, x: Tensor) -> Counter[str]:
    """Return the milliseconds of one inference by node type, from the request's counters."""
    import openvino as ov

    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, x, path)
        core = ov.Core()
        request = core.compile_model(core.read_model(path), "CPU", hints).create_infer_request()
    times: Counter[str] = Counter()
    for turn in range(RUNS + 2):
        request.infer({0: x.numpy()})
        if turn >= 2:
            for node in request.profiling_info:
                times[node.node_type] += node.real_time.total_seconds() * 1e3 / RUNS
    return times


PROFILES = {"onnxruntime": onnxruntime_profile, "openvino": openvino_profile}


def faster_peers(result: dict[str, Any]) -> list[str]:
    """Return the peers with a profiler that are faster than PyTorch alone on a network, the fastest first."""
    peers = result["peers"]
    faster = [n for n in PROFILES if n in peers and peers[n]["ratio_torch"] < 1]
    return sorted(faster, key=lambda n: float(peers[n]["ratio_torch"]))


def main() -> int:
    """Profile the networks on which a peer is faster, write `bench/results/profiles.json`, and print it."""
    models = json.loads((RESULTS / "models.json").read_text(encoding="utf-8"))["models"]
    console, out = Console(stderr=True), []
    for result in models:
        names = faster_peers(result)
        if not names:
            continue
        console.print(result["name"])
        network = next(n for n in NETWORKS if n.name == result["name"])
        model, x = network.make()
        tuned = onebyone.tune(
            model, x, plan=TuningPlan.from_dict(result["ours"]["torch"]["plan"]), force=True, seed=SEED
        )
        profiles = {"ours": _top(_tuned_profile(tuned, x))}
        profiles |= {name: _top(PROFILES[name](model, x)) for name in names[:1]}
        out.append({"name": result["name"], "ours": result["ours"]["torch"]["engine"], "ms": profiles})
    (RESULTS / "profiles.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(out, indent=1))
    return 0


def _top(times: Counter[str]) -> dict[str, float]:
    listed = {name: round(ms, 3) for name, ms in times.most_common(LISTED)}
    return listed | {"everything else": round(sum(times.values()) - sum(listed.values()), 3)}


if __name__ == "__main__":
    raise SystemExit(main())
