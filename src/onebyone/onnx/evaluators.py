"""Run ONNX models: by ONNX's own reference implementation, and by ONNX Runtime as users run them.

The reference implementation (onnx 1.23) is wrong or incomplete in places: BatchNormalization before opset 14 takes the
statistics of the batch, Softmax before opset 13 takes one axis, GlobalMaxPool is wrong at rank 3, GatherElements fails
on one row, and operators of ONNX Runtime are missing. What is known is replaced here, and in `quantised_reference`; so
is Erf, which it computes number by number in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onebyone.errors import BadInput, MissingExtra
from onebyone.onnx.map_types import model_proto
from onebyone.onnx.quantised_reference import ConvInteger, DequantizeLinear, QGemm, QLinearConv
from onebyone.onnx_file import LARGEST_FILE, bytes_of_weights, has_external_data, unmapped
from onebyone.records import first_line

Array = np.ndarray[Any, Any]


class NotRunnable(Exception):
    """A model that an evaluator cannot run; the message says why."""


def random_feeds(model: ir.Model, shape: Sequence[int], seed: int) -> dict[str, Array]:
    """A random array of `shape` for the model's input: standard normal, or 0 and 1 for integers.

    Raises:
        BadInput: the model has several inputs.
    """
    inputs = model.graph.inputs
    if len(inputs) != 1:
        names = ", ".join(str(value.name) for value in inputs)
        raise BadInput(f"shape: the model has {len(inputs)} inputs ({names}), and one shape was given")
    rng = np.random.default_rng(seed)
    kind = inputs[0].dtype or ir.DataType.FLOAT
    values = (
        rng.standard_normal(tuple(shape)) if kind.is_floating_point() else rng.integers(0, 2, tuple(shape))
    )
    return {str(inputs[0].name): values.astype(kind.numpy())}


def feeds_of(model: ir.Model, x: Any) -> dict[str, Array]:
    """An example as one array per input: of an array or tensor, a sequence in the inputs' order, or a dict by name.

    Raises:
        BadInput: another number of values than the model has inputs.
    """
    names = [str(value.name) for value in model.graph.inputs]
    if isinstance(x, Mapping):
        return {str(name): _array(value) for name, value in x.items()}
    values = list(x) if isinstance(x, tuple | list) else [x]
    if len(values) != len(names):
        raise BadInput(f"x: holds {len(values)} values, and the model has the inputs {', '.join(names)}")
    return {name: _array(value) for name, value in zip(names, values, strict=True)}


def _array(value: Any) -> Array:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """The model as ONNX stores it, with external data in the model itself, so that it runs from memory.

    Raises:
        NotRunnable: its weights have more bytes than a model without external data can hold.
    """
    size = bytes_of_weights(model)
    if size > LARGEST_FILE:
        raise NotRunnable(f"its weights have {size:,} bytes, more than a model in memory can hold")
    if has_external_data(model):
        model = model.clone()
        for graph in model.graphs():
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = _in_memory(value.const_value)
    return model_proto(model)


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """A copy of a tensor in another file; arrays that were read from the file before stay as they are."""
    return ir.tensor(np.array(unmapped(tensor).numpy()), dtype=tensor.dtype, name=tensor.name)


def onnx_runtime_version() -> str:
    """The name and version of ONNX Runtime; empty if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return ""
    return f"ONNX Runtime {onnxruntime.__version__}"


def run_reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs by the reference implementation, in the types of the model.

    Raises:
        NotRunnable: it lacks an operator, or fails on these inputs.
    """
    try:
        with np.errstate(all="ignore"):
            opset = next(
                (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 13
            )
            replaced = _REPLACED + (_BEFORE_OPSET_13 if opset < 13 else [])
            outputs = ReferenceEvaluator(model, new_ops=replaced).run(None, dict(feeds))
    except Exception as error:
        raise NotRunnable(f"the ONNX reference implementation cannot run it: {first_line(error)}") from error
    return [np.asarray(value) for value in outputs]


class RuntimeSession:
    """A model loaded by ONNX Runtime on the processor; `model` may be a path, for models of 2 GB and more.

    Attributes:
        inputs: the names of its inputs, each with its type as ONNX Runtime writes it, such as "tensor(float)".

    Raises:
        MissingExtra: onnxruntime is not installed.
        NotRunnable: ONNX Runtime does not load the model; on a call of `run`, that it fails on these inputs.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str,
        *,
        optimised: bool = True,
        purpose: str = "running an ONNX model",
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "engines", purpose) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = model if isinstance(model, str) else model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has errors of several kinds
            raise NotRunnable(f"ONNX Runtime cannot load it: {first_line(error)}") from error
        self.inputs: dict[str, str] = {source.name: source.type for source in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """The outputs of these names, all where None."""
        try:
            return [_values_of(value) for value in self._session.run(outputs, dict(feeds))]
        except Exception as error:
            raise NotRunnable(f"ONNX Runtime cannot run it: {first_line(error)}") from error


def run_onnx_runtime(
    model: onnx.ModelProto | str,
    feeds: Mapping[str, Array],
    *,
    optimised: bool = True,
    outputs: Sequence[str] | None = None,
) -> list[Array]:
    """The outputs by ONNX Runtime, of a model that is run once; see `RuntimeSession` for the arguments and errors."""
    return RuntimeSession(model, optimised=optimised).run(feeds, outputs)


def _values_of(output: Any) -> Array:
    """An output as an array; a sequence of maps becomes one row of values for each map, in the order of the keys."""
    if isinstance(output, list) and output and isinstance(output[0], dict):
        return np.asarray([[value for _, value in sorted(row.items())] for row in output], dtype=np.float32)
    return np.asarray(output)


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


class Erf(OpRun):  # type: ignore[misc]
    """The error function, in the type of its input."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (torch.erf(torch.from_numpy(np.array(x, order="C"))).numpy(),)


class GatherElements(OpRun):  # type: ignore[misc]
    """Elements along an axis, at the positions of the indices on the other axes."""

    op_domain = ""

    def _run(self, x: Array, indices: Array, **attributes: Any) -> tuple[Array]:
        axis = (attributes.get("axis") or 0) % x.ndim
        region = tuple(slice(None if a == axis else size) for a, size in enumerate(indices.shape))
        return (np.take_along_axis(x[region], indices, axis),)


class FusedMatMul(OpRun):  # type: ignore[misc]
    """A matrix product with its operands transposed in their last two axes on request."""

    op_domain = "com.microsoft"

    def _run(self, a: Array, b: Array, **attributes: Any) -> tuple[Array]:
        a = np.swapaxes(a, -1, -2) if attributes.get("transA") and a.ndim > 1 else a
        b = np.swapaxes(b, -1, -2) if attributes.get("transB") and b.ndim > 1 else b
        alpha = attributes.get("alpha")
        return (np.matmul(a, b) * a.dtype.type(1.0 if alpha is None else alpha),)


class Softmax(OpRun):  # type: ignore[misc]
    """Before opset 13: over all axes from `axis` on, as the rows of a matrix."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (_row_softmax(x, attributes.get("axis")),)


class LogSoftmax(OpRun):  # type: ignore[misc]
    """The logarithm of `Softmax`, as it is before opset 13."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (np.log(_row_softmax(x, attributes.get("axis"))),)


def _row_softmax(x: Array, axis: int | None) -> Array:
    axis = 1 if axis is None else axis % x.ndim
    rows = x.reshape(int(np.prod(x.shape[:axis])), -1)
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray((powers / powers.sum(axis=1, keepdims=True)).reshape(x.shape), dtype=x.dtype)


_BEFORE_OPSET_13 = [Softmax, LogSoftmax]
_REPLACED = [
    BatchNormalization,
    Erf,
    GatherElements,
    GlobalMaxPool,
    FusedMatMul,
    ConvInteger,
    DequantizeLinear,
    QGemm,
    QLinearConv,
]
