"""The steps that are run on one file: export, and for each direction conversion, verification and checks."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import onebyone
from bench.onnx_zoo.eligible import constant_bytes, eligible_layers, layout_operators
from bench.onnx_zoo.exports import exported
from bench.onnx_zoo.files import File
from bench.zoo.outcome import NotEquivalentError
from bench.zoo.steps import Step, StepRunner, check, timed
from onebyone.onnx.conversion import OnnxConversion

Array = np.ndarray[Any, Any]

#: Bytes that a converted layer may add: the shapes and axes of the operators around it.
SHAPES_OF_A_LAYER = 256


class FileRun(StepRunner):
    """The steps of one file. `report` is called with the record of each step as soon as it ends."""

    def __init__(self, file: File, report: Callable[[Step], None]) -> None:
        super().__init__(report)
        self.file = file
        self.path: Path | None = None

    def all(self) -> None:
        """Run every step."""
        self.step("export", self._export)
        if self.path is not None:
            self.step("conv", lambda figures: self._convert(figures, "conv"))
            self.step("linear", lambda figures: self._convert(figures, "linear"))

    def _export(self, figures: dict[str, Any]) -> None:
        path, self.feeds = exported(self.file)
        self.model = onnx.load(path)
        figures |= {
            "bytes": sum(p.stat().st_size for p in path.parent.glob("model.onnx*")),
            "nodes": len(self.model.graph.node),
            "opset": next(
                entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")
            ),
        }
        self.path = path

    def _convert(self, figures: dict[str, Any], to: str) -> None:
        """Convert, verify, and check the saved file; count layers, layout operators and bytes of constants."""
        assert self.path is not None
        layers = eligible_layers(self.model, to)
        figures["eligible"] = len(layers)
        conversion = timed(figures, "conversion", lambda: onebyone.convert(self.path, to=to))
        assert isinstance(conversion, OnnxConversion)
        changed = Counter(change.path for change in conversion.changes)
        reasons = {refusal.path: refusal.reason for refusal in conversion.refused}
        missed = []
        for layer in layers:
            if changed[layer.path]:
                changed[layer.path] -= 1
            else:
                missed.append(asdict(layer) | {"reason": reasons.get(layer.path, "")})
        figures |= {
            "changes": len(conversion.changes),
            "converted": len(layers) - len(missed),
            "missed": missed,
            "silent": sum(not layer["reason"] for layer in missed),
        }
        if not conversion.changes:
            return
        self._check_file(figures, conversion)
        verification = timed(figures, "proof", lambda: onebyone.verify(self.path, conversion, self.feeds))
        check(figures, "proof", verification)
        figures["proof"]["verification"]["layers_probed"] = sum(
            layer.bitwise is not None for layer in verification.layers
        )

    def _check_file(self, figures: dict[str, Any], conversion: OnnxConversion) -> None:
        """The saved file passes ONNX's checker, runs in ONNX Runtime, and has not grown."""
        with tempfile.TemporaryDirectory() as folder:
            path = conversion.save(Path(folder) / "converted.onnx")
            onnx.checker.check_model(str(path), full_check=True)
            converted = onnx.load(path)
            figures["difference"] = _difference(str(self.path), str(path), self.feeds)
            figures["file_bytes"] = sum(p.stat().st_size for p in path.parent.iterdir())
        before, after = constant_bytes(self.model), constant_bytes(converted)
        figures |= {
            "constant_bytes": [before, after],
            "grew": after > before + SHAPES_OF_A_LAYER * len(conversion.changes),
            "layout_before": layout_operators(self.model),
            "layout_after": layout_operators(converted),
        }


def _difference(before: str, after: str, feeds: dict[str, Array]) -> float | None:
    """The largest difference of an output in ONNX Runtime, over the outputs' standard deviation, without the package.

    Raises:
        NotEquivalentError: the outputs differ in number, shape or type, or one is not finite where the other is.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    runs = [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)
        for path in (before, after)
    ]
    largest = None
    for a, b in zip(*([_array(output) for output in run] for run in runs), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise NotEquivalentError(f"an output {a.shape} {a.dtype} became {b.shape} {b.dtype}")
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                raise NotEquivalentError(f"an output of type {a.dtype} differs")
            continue
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            raise NotEquivalentError("an output is finite in one model only")
        wide = [np.where(np.isfinite(x), x, 0).astype(np.float64) for x in (a, b)]
        spread = float(wide[0].std()) or 1.0
        largest = max(largest or 0.0, float(np.abs(wide[0] - wide[1]).max(initial=0.0)) / spread)
    return None if largest is None else float(f"{largest:.3g}")


def _array(output: Any) -> Array:
    """An output as an array; maps, which scikit-learn's classifiers give, as their values."""
    if isinstance(output, list):
        output = [list(row.values()) if isinstance(row, dict) else row for row in output]
    return np.asarray(output)
