"""The zoo of ONNX files as a sweep: what runs on a file, and what its result says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.onnx_zoo.exports import LIBRARIES
from bench.onnx_zoo.files import File
from bench.zoo.work import Sweep


def _run(file: File, report: Callable[[Any], None]) -> None:
    from bench.onnx_zoo.steps import FileRun

    FileRun(file, report).all()


def _described(file: File) -> dict[str, Any]:
    return {"key": file.key, "group": file.group, "source": file.source, "exporter": file.exporter}


FILES = Sweep(
    "onnx_zoo",
    Path(__file__).parent,
    "bench.onnx_zoo.preload",
    _run,
    _described,
    libraries=LIBRARIES,
    parts=("laws", "results", "onnx", "verification"),
)
