"""Times of ONNX files in ONNX Runtime and OpenVINO, as ratios: the files take turns in every round."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ROUNDS = 15


def onnxruntime_runner(path: Path, feeds: Mapping[str, Array]) -> Callable[[], object]:
    """A function that runs the file once in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feeds))


def openvino_runner(path: Path, feeds: Mapping[str, Array]) -> Callable[[], object]:
    """A function that runs the file once in OpenVINO, on one thread, in float32."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda: compiled(list(feeds.values()))


ENGINES: dict[str, Callable[[Path, Mapping[str, Array]], Callable[[], object]]] = {
    "ONNX Runtime": onnxruntime_runner,
    "OpenVINO": openvino_runner,
}


def time_ratios(files: Mapping[str, Path], feeds: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """By engine, the median time of every file but the first, divided by that of the first, and the first's in ms."""
    found = {}
    for engine, runner in ENGINES.items():
        runs = {name: runner(path, feeds) for name, path in files.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for round_number in range(ROUNDS + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if round_number:  # the first one is for warming up
                    times[name].append(time.perf_counter() - start)
        first, *others = times
        median = {name: statistics.median(taken) for name, taken in times.items()}
        found[engine] = {name: round(median[name] / median[first], 3) for name in others} | {
            "original_ms": round(1000 * median[first], 2)
        }
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean of ratios.

    >>> geometric_mean([0.5, 2.0])
    1.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values))
