"""Normalisations over the last axes, written with elementary operators along any one axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onebyone.layout.orders import Order
from onebyone.layout.values import GraphValue
from onebyone.onnx.constant_values import sizes_of as _sizes
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.layout.operators import (
    OTHER_REDUCTION_AXES_ARE_AN_INPUT,
    REDUCTION_AXES_ARE_AN_INPUT,
    SOFTMAXES,
)

#: The normalisations that subtract the mean.
CENTRED = frozenset(["LayerNormalization", "SkipLayerNormalization"])
#: Source: the contrib operators of ONNX Runtime, docs/ContribOperators.md and skip_layer_norm.cc.
DEFAULT_EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-12}
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def normalised_axes(node: ir.Node, x: GraphValue) -> Order:
    """The axes over which LayerNormalization, RMSNormalization or Softmax (before opset 13) normalises `x`.

    Softmax leaves out axes of size 1 before the first larger one.
    """
    if node.op_type not in SOFTMAXES:
        return tuple(range(node.attributes.get_int("axis", -1) % x.rank, x.rank))
    first = node.attributes.get_int("axis", 1) % x.rank
    significant = [axis for axis in x.axes if axis >= first]
    return tuple(range(significant[0], x.rank)) if significant else ()


def elementary(
    writer: GraphWriter,
    node: ir.Node,
    x: ir.Value,
    position: int,
    scale: ir.Value | None,
    offset: ir.Value | None,
) -> ir.Value:
    """The normalisation of `node` along one dimension of `x`, with parameters that broadcast against it.

    Layer normalisation is (x − mean) / √(variance + ε) · scale + offset, computed in float32 at least.
    """
    if node.op_type in SOFTMAXES:
        return _softmax(writer, node.op_type, x, position)
    dtype = x.dtype
    if dtype in NARROW:
        x = _cast(writer, x, ir.DataType.FLOAT)
    if node.op_type in CENTRED:
        x = _op(writer, "Sub", x, _reduced(writer, "ReduceMean", x, position))
    square = _op(writer, "Mul", x, x)
    epsilon = node.attributes.get_float("epsilon", DEFAULT_EPSILON.get(node.op_type, 1e-5))
    kind = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
    variance = _reduced(writer, "ReduceMean", square, position)
    spread = _op(writer, "Add", variance, writer.constant(np.asarray(epsilon, kind), "epsilon"))
    root = writer.op("Sqrt", [spread], shape=_sizes(spread))
    x = _op(writer, "Div", x, root)
    if dtype is not None and dtype in NARROW:
        x = _cast(writer, x, dtype)
    if scale is not None:
        x = _op(writer, "Mul", x, scale)
    return x if offset is None else _op(writer, "Add", x, offset)


def _softmax(writer: GraphWriter, op_type: str, x: ir.Value, position: int) -> ir.Value:
    """Softmax or LogSoftmax along one axis, where the operator itself would also take in all later axes."""
    shifted = _op(writer, "Sub", x, _reduced(writer, "ReduceMax", x, position))
    powers = writer.op("Exp", [shifted], shape=_sizes(x))
    total = _reduced(writer, "ReduceSum", powers, position)
    if op_type == "Softmax":
        return _op(writer, "Div", powers, total)
    return _op(writer, "Sub", shifted, writer.op("Log", [total], shape=_sizes(total)))


def _op(writer: GraphWriter, op_type: str, x: ir.Value, other: ir.Value) -> ir.Value:
    return writer.op(op_type, [x, other], shape=_sizes(x))


def _cast(writer: GraphWriter, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    return writer.op("Cast", [x], {"to": dtype.value}, dtype=dtype, shape=_sizes(x))


def _reduced(writer: GraphWriter, op_type: str, x: ir.Value, position: int) -> ir.Value:
    sizes = _sizes(x)
    shape = None if sizes is None else [1 if i == position else size for i, size in enumerate(sizes)]
    if writer.opset >= REDUCTION_AXES_ARE_AN_INPUT.get(op_type, OTHER_REDUCTION_AXES_ARE_AN_INPUT):
        return writer.op(op_type, [x, writer.integers([position], "axes")], {"keepdims": 1}, shape=shape)
    return writer.op(op_type, [x], {"axes": [position], "keepdims": 1}, shape=shape)
