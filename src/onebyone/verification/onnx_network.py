"""ONNX models as networks that the verifier calls with tensors: float32 in ONNX Runtime, float64 by the reference."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from onebyone.onnx.evaluators import RuntimeSession, run_reference
from onebyone.onnx.model_file import save_model

Array = np.ndarray[Any, Any]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


class CallableOnnx(nn.Module):
    """A model that takes images `(N, C, *window)`, whatever the layout and the batch of its own input.

    Images in float64 are computed in float64 by ONNX's reference implementation, all others in ONNX Runtime.

    Parameters
    ----------
    model: the model; it has one input.
    channels_last: whether its input is `(N, *window, C)`.
    bare: whether its input has no channel axis.
    batch: the only number of samples that it takes; None if any.

    Raises
    ------
    MissingExtra
        if onnxruntime is not installed.
    NotRunnable
        if ONNX Runtime does not load the model.
    """

    def __init__(
        self, model: ir.Model, *, channels_last: bool = False, bare: bool = False, batch: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.channels_last, self.bare, self.batch = model, channels_last, bare, batch
        with TemporaryDirectory(prefix="onebyone-") as folder:
            # a file, because a model in memory cannot have 2 GB or tensors in other files
            path = save_model(model, Path(folder) / "model.onnx")
            self._session = RuntimeSession(str(path), purpose="verifying an ONNX model")
            self._proto = onnx.load(path)
        self._double: onnx.ModelProto | None = None
        ((self._input, kind),) = self._session.inputs.items()
        self.dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(kind, np.float32)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it has no state that a run changes

    def own_layout(self, image: Array) -> Array:
        """Images `(N, C, *window)` as the model's own input."""
        if self.bare:
            image = image[:, 0]
        elif self.channels_last:
            image = np.moveaxis(image, 1, -1)
        return np.ascontiguousarray(image)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for images `(N, C, *window)`, in batches that the model takes."""
        rows = self.own_layout(image.detach().cpu().numpy())
        size = self.batch or len(rows)
        parts = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            count = len(part)
            filled = np.concatenate([part, *[part[-1:]] * (size - count)])
            outputs = (
                self._reference(filled)
                if image.dtype == torch.float64
                else self._session.run({self._input: filled.astype(self.dtype)})
            )
            parts.append([_rows(output, size)[:count] for output in outputs])
        joined = [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]
        return joined[0] if len(joined) == 1 else tuple(joined)

    def _reference(self, rows: Array) -> list[Array]:
        if self._double is None:
            self._double = in_double(self._proto)
        return run_reference(self._double, {self._input: rows})


def _rows(output: Array, batch: int) -> Array:
    """An output with the batch as its first axis, which a model of one sample may drop."""
    return output if output.ndim and len(output) == batch else output.reshape(batch, -1)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that computes in float64: its tensors, casts and inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _graph_in_double(copy.graph)
    for function in copy.functions:
        _nodes_in_double(function.node)
    return copy


def _graph_in_double(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _tensor_in_double(tensor)
    _nodes_in_double(graph.node)


def _nodes_in_double(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _tensor_in_double(attribute.t)
            if attribute.HasField("g"):
                _graph_in_double(attribute.g)
            if attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = TensorProto.DOUBLE
        if (
            node.op_type == "Constant"
            and node.attribute
            and node.attribute[0].name in ("value_float", "value_floats")
        ):
            literal = node.attribute[0]
            array = np.asarray(
                literal.f if literal.name == "value_float" else literal.floats, dtype=np.float64
            )
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(array)))


def _tensor_in_double(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )
