"""Networks for accelerators: what targets refuse, layout operators, bytes and times, before and after conversion.

`python -m bench.targets` writes bench/results/targets.json, network by network; a network that is in the file already
is skipped. `--whole` takes the networks at their full depth, otherwise with few layers, which is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import onebyone
from bench.target_networks import NETWORKS, write_onnx
from bench.zoo.totals import machine
from onebyone.atomic_files import write_text
from onebyone.onnx.convert import prepared
from onebyone.onnx.targets.description import describe
from onebyone.targets import find_profile, profile_names, violations

RESULTS = Path(__file__).parent / "results" / "targets.json"
ROUNDS = 15
NOTE = (
    "The machine was shared with other work while this ran: times are ratios of medians of rounds in which the "
    "original and the converted model take turns, and still carry its noise."
    " With few layers, the Mixer is Mixer-S/16. Swin-T has more layout operators after than before, and "
    "tensors of more than four axes: both are known shortcomings."
)
Array = np.ndarray[Any, Any]


def offenders(model: ir.Model) -> dict[str, int]:
    """The number of nodes and inputs that violate each profile's constraints."""
    descriptions = [description for description, _, _ in describe(prepared(model))]
    return {
        name: len({o.path for o in violations(descriptions, find_profile(name))}) for name in profile_names()
    }


def kinds_of_offenders(model: ir.Model, name: str) -> dict[str, int]:
    """What violates one profile, by constraint and operator."""
    descriptions = [description for description, _, _ in describe(prepared(model))]
    found = violations(descriptions, find_profile(name))
    return dict(Counter(f"{o.operator}: {o.constraint} is {o.found}, allowed {o.allowed}" for o in found))


def onnxruntime_runner(path: Path, feeds: dict[str, Array]) -> Any:
    """A function that runs the file once in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def openvino_runner(path: Path, feeds: dict[str, Array]) -> Any:
    """A function that runs the file once in OpenVINO, on one thread, in float32."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda: compiled(list(feeds.values()))


def ratios(paths: list[Path], feeds: dict[str, Array], runner: Any) -> list[float]:
    """The median time of each file, divided by that of the first; the files take turns in every round."""
    runs = [runner(path, feeds) for path in paths]
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    medians = [statistics.median(taken) for taken in times]
    return [median / medians[0] for median in medians]


def measure(name: str, folder: Path, whole: bool) -> dict[str, Any]:
    """One network: converted with a planned layout, and layer by layer for comparison."""
    original = folder / "original.onnx"
    feeds = write_onnx(name, original, small=not whole)
    start = time.perf_counter()
    conversion = onebyone.convert(original, level="graph")
    seconds = time.perf_counter() - start
    planned = conversion.save(folder / "planned.onnx")
    alone = onebyone.convert(original).save(folder / "layer_by_layer.onnx")
    verification = onebyone.verify(original, conversion, feeds)
    before, after = ir.load(original), ir.load(planned)
    counts = {"before": conversion.layout_before, "after": conversion.layout_after}
    paths = [original, planned, alone]
    return {
        "depth": "whole" if whole else "few layers",
        "converted_layers": len(conversion.changes),
        "conversion_seconds": round(seconds, 2),
        "offenders_before": offenders(before),
        "offenders_after": offenders(after),
        "left_for_4d": kinds_of_offenders(after, "4d"),
        "layout_operators": {key: {**count, "total": count.total()} for key, count in counts.items()},
        "file_bytes": {"before": original.stat().st_size, "after": planned.stat().st_size},
        "verified": verification.equivalent,
        "layers_verified_bit_for_bit": sum(bool(layer.bitwise) for layer in verification.layers),
        "unverified": list(verification.unverified),
        "max_error": verification.max_error,
        "time_ratios": {
            engine: dict(zip(("planned", "layer by layer"), ratios(paths, feeds, runner)[1:], strict=True))
            for engine, runner in (("ONNX Runtime", onnxruntime_runner), ("OpenVINO", openvino_runner))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="the networks at their full depth")
    parser.add_argument("--only", help="measure the networks whose name holds this text")
    options = parser.parse_args()
    data: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    for name in NETWORKS:
        known = data["networks"].get(name, {}).get("depth")
        if known == "whole" or (known and not options.whole) or (options.only or "") not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            data["networks"][name] = measure(name, Path(folder), options.whole)
        data |= {"note": NOTE, "machine": machine(), "threads": 1, "cores": os.cpu_count()}
        write_text(RESULTS, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        print(name, json.dumps(data["networks"][name]["layout_operators"]), flush=True)


if __name__ == "__main__":
    main()
