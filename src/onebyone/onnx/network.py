"""An ONNX model as a network that is called with tensors, so that the verifier can compare it with any other."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onebyone.errors import BadInput, MissingExtra
from onebyone.onnx.evaluators import (
    Array,
    NotRunnable,
    RuntimeSession,
    onnx_runtime_version,
    proto_of,
    run_onnx_runtime,
    run_reference,
)
from onebyone.onnx.shapes import infer_shapes
from onebyone.results.traces import TracedValue

#: Where PyTorch's exporter (`dynamo=True`) writes the modules around a node, outermost first.
SCOPES = "pkg.torch.onnx.name_scopes"


class OnnxNetwork:
    """Calls an ONNX model with tensors or arrays; see `results.traces.TracedNetwork`.

    ONNX Runtime computes, without graph optimisations where inner values are read. Where it is not installed, ONNX's
    reference implementation does.

    Raises:
        BadInput: on a call, if the inputs do not fit, or are not those of the model's types.
        NotRunnable: on a call, if the evaluator cannot run the model.

    >>> import onnx.parser
    >>> text = '<ir_version: 9, opset_import: ["" : 20]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    >>> OnnxNetwork(ir.serde.deserialize_model(onnx.parser.parse_model(text)))(torch.tensor([-1.0, 2.0]))
    [tensor([0., 2.])]
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.evaluator = (
            onnx_runtime_version() or "the ONNX reference implementation (onnxruntime is not installed)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        return self  # it is never changed, and has no other precision

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The outputs in the model's order."""
        feeds = self._feeds(args, kwargs)
        try:
            return [_tensor(array) for array in self._session.run(feeds)]
        except MissingExtra:
            return [_tensor(array) for array in run_reference(proto_of(self.model), feeds)]

    @cached_property
    def _session(self) -> RuntimeSession:
        """The model in ONNX Runtime, loaded once for all calls."""
        return RuntimeSession(proto_of(self.model))

    def trace(self, *args: Any, **kwargs: Any) -> list[TracedValue]:
        """Every floating value of the main graph on these inputs, in the order of its nodes."""
        watched = self.model.clone()
        infer_shapes(watched)
        outputs = {str(value.name) for value in watched.graph.outputs}
        for node in watched.graph:
            for value in node.outputs:
                if value.name and str(value.name) not in outputs and _is_float(value):
                    watched.graph.outputs.append(value)
        feeds, proto = self._feeds(args, kwargs), proto_of(watched)
        try:
            arrays = run_onnx_runtime(proto, feeds, optimised=False)
        except MissingExtra:
            arrays = run_reference(proto, feeds)
        computed = {str(v.name): a for v, a in zip(watched.graph.outputs, arrays, strict=True)}
        return list(_traced(watched, computed))

    def _feeds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Array]:
        """Arrays by input name: positional arguments in the inputs' order, keywords by name or in the order left."""
        names = [str(value.name) for value in self.model.graph.inputs]
        if len(args) + len(kwargs) != len(names):
            raise BadInput(
                f"x: holds {len(args) + len(kwargs)} values, and the ONNX model has the inputs {', '.join(names)}"
            )
        feeds = dict(zip(names, args, strict=False))
        left = [name for name in names[len(args) :] if name not in kwargs]
        for name, value in kwargs.items():
            feeds[name if name in names else left.pop(0)] = value
        arrays = {name: _array(value) for name, value in feeds.items()}
        for value in self.model.graph.inputs:
            kind = None if value.dtype is None else value.dtype.numpy()
            given = arrays[str(value.name)].dtype
            if kind is not None and kind != given:
                raise BadInput(f"x: the input {value.name!r} is {given}, and the ONNX model takes {kind}")
        return arrays


def _traced(model: ir.Model, computed: Mapping[str, Array]) -> Iterator[TracedValue]:
    positions: dict[ir.Value, tuple[int, ...]] = {}
    count = 0
    for node in model.graph:
        operands = [value for value in node.inputs if value is not None]
        before = tuple(sorted({p for value in operands for p in positions.get(value, ())}))
        weights = tuple(
            _weight(value) for value in operands if value.const_value is not None and _is_float(value)
        )
        for value in node.outputs:
            array = computed.get(str(value.name))
            if array is None or not np.issubdtype(array.dtype, np.floating):
                positions[value] = before  # its operands stand for it: shapes and masks
                continue
            yield TracedValue(str(value.name), layer_of(node), _tensor(array), before, weights)
            positions[value] = (count,)
            count += 1


def layer_of(node: ir.Node) -> str:
    """The dotted path of the module that a node was exported from; empty where the file does not tell.

    The exporters write it in the node's metadata, in the names of its weights (`head.1.weight`), or in its own name.

    >>> layer_of(ir.node("Conv", [], name="/features/features.3/conv/conv.0/Conv"))
    'features.3.conv.0'
    """
    scopes = node.metadata_props.get(SCOPES)
    if scopes:
        path = _scope(scopes)
        if path:
            return path
    for value in node.inputs:
        if value is not None and value.const_value is not None and "." in str(value.name):
            path, _, parameter = str(value.name).rpartition(".")
            if parameter in ("weight", "bias"):
                return path
    parts: list[str] = []
    for segment in str(node.name or "").strip("/").split("/")[:-1]:
        own = segment.split(".")
        # the exporter repeats the parent's name: /features/features.3 is features.3
        overlap = next((n for n in range(len(own) - 1, 0, -1) if parts[-n:] == own[:n]), 0)
        parts += own[overlap:]
    return ".".join(parts)


def _scope(text: str) -> str:
    try:
        scopes = ast.literal_eval(text)
        return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the file is not the exporter's own
        return ""


def _weight(value: ir.Value) -> Tensor:
    assert value.const_value is not None
    return _tensor(np.asarray(value.const_value.numpy()))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _array(value: Any) -> Array:
    if isinstance(value, Tensor):
        if value.dtype == torch.bfloat16:
            return np.asarray(value.detach().view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy()))
        return np.asarray(value.detach().cpu().numpy())
    return np.asarray(value)


def _tensor(array: Array) -> Tensor:
    if array.dtype == ir.DataType.BFLOAT16.numpy():
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise NotRunnable(f"an output is of type {array.dtype}, which is not a tensor of numbers") from error
