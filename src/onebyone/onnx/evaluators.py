"""Run ONNX models: by ONNX's own reference implementation, and by ONNX Runtime as users run them.

The reference implementation (onnx 1.23) is wrong or incomplete in places: BatchNormalization before opset 14 takes the
statistics of the batch, GlobalMaxPool is wrong at rank 3, operators of ONNX Runtime are missing, and DequantizeLinear
needs opset 19. What is known is replaced here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onebyone.errors import MissingExtra
from onebyone.records import first_line

Array = np.ndarray[Any, Any]


class NotRunnable(Exception):
    """A model that an evaluator cannot run; the message says why."""


def run_reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs by the reference implementation, in the types of the model.

    Raises:
        NotRunnable: it lacks an operator, or fails on these inputs.
    """
    try:
        with np.errstate(all="ignore"):
            outputs = ReferenceEvaluator(model, new_ops=_REPLACED).run(None, dict(feeds))
    except Exception as error:
        raise NotRunnable(f"the ONNX reference implementation cannot run it: {first_line(error)}") from error
    return [np.asarray(value) for value in outputs]


def run_onnx_runtime(
    model: onnx.ModelProto | str,
    feeds: Mapping[str, Array],
    *,
    optimised: bool = True,
    outputs: Sequence[str] | None = None,
) -> list[Array]:
    """The outputs by ONNX Runtime on the processor; `model` may be a path, for models of 2 GB and more.

    Raises:
        MissingExtra: onnxruntime is not installed.
        NotRunnable: ONNX Runtime does not load the model, or fails on these inputs.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx", "running an ONNX model") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, str) else model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return [np.asarray(value) for value in session.run(outputs, dict(feeds))]
    except Exception as error:
        raise NotRunnable(f"ONNX Runtime cannot run it: {first_line(error)}") from error


class BatchNormalization(OpRun):  # type: ignore[misc]
    """Inference, with the given statistics, in every opset."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attributes: Any
    ) -> tuple[Array]:
        epsilon = attributes.get("epsilon") or 1e-5
        shape = (1, -1) + (1,) * (x.ndim - 2)
        factor = scale / np.sqrt(var + np.asarray(epsilon, var.dtype))
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape),)


class GlobalMaxPool(OpRun):  # type: ignore[misc]
    """The largest value over all axes of positions."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class FusedMatMul(OpRun):  # type: ignore[misc]
    """A matrix product with its operands transposed in their last two axes on request."""

    op_domain = "com.microsoft"

    def _run(self, a: Array, b: Array, **attributes: Any) -> tuple[Array]:
        a = np.swapaxes(a, -1, -2) if attributes.get("transA") and a.ndim > 1 else a
        b = np.swapaxes(b, -1, -2) if attributes.get("transB") and b.ndim > 1 else b
        alpha = attributes.get("alpha")
        return (np.matmul(a, b) * a.dtype.type(1.0 if alpha is None else alpha),)


_REPLACED = [BatchNormalization, GlobalMaxPool, FusedMatMul]
