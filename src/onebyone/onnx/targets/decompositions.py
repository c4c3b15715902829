"""Operators that a target lacks, written as other operators of the same meaning.

Source: the function bodies and definitions of the ONNX operator reference. A form that rounds in another order is
marked as not exact, and verified in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import is_constant, shape_of, sizes_of
from onebyone.onnx.graph_writer import GraphWriter, WrittenLayer
from onebyone.onnx.model_rewriting import Rewriting
from onebyone.onnx.weight_rewriting import WeightRewriter

#: From this opset on, the axes of ReduceMean are an input.
REDUCE_AXES_ARE_AN_INPUT = 18
#: From this opset on, GroupNormalization has one scale per channel; before, one per group.
GROUP_NORMALIZATION_BY_CHANNEL = 21
#: Types whose mean and variance ONNX computes in float32.
_SHORT = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def decompose(node: ir.Node, writer: GraphWriter, weights: WeightRewriter) -> Rewriting | str | None:
    """The node in other operators; a reason where no form of exact meaning is written."""
    decomposition = _DECOMPOSITIONS.get(node.op_type) if node.domain == "" else None
    data = node.inputs[0] if node.inputs else None
    if decomposition is None or data is None:
        return f"no other form of {node.op_type} with exactly its meaning is written"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its second output is used"
    law, write, is_exact = decomposition
    value = write(node, data, writer, weights)
    if isinstance(value, str):
        return value
    sizes = sizes_of(data)
    operators = " ".join(dict.fromkeys(n.op_type for n in writer.nodes if n.op_type not in ("Constant",)))
    layer = WrittenLayer(data, value, law, operators, None if sizes is None else tuple(sizes))  # type: ignore[arg-type]
    return Rewriting(layer, (node,), node.op_type, 1, is_exact)


def _scalar(writer: GraphWriter, like: ir.Value, number: float, label: str) -> ir.Value:
    kind = like.dtype or ir.DataType.FLOAT
    return writer.constant(ir.tensor(np.asarray(number).astype(kind.numpy()), dtype=kind), label)


def _mean(writer: GraphWriter, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    sizes = sizes_of(value)
    shape = None if sizes is None else [1 if a in axes else s for a, s in enumerate(sizes)]
    if writer.opset >= REDUCE_AXES_ARE_AN_INPUT:
        operands = [value, writer.integers(axes, "axes")]
        return writer.op("ReduceMean", operands, {"keepdims": 1}, shape=shape)
    return writer.op("ReduceMean", [value], {"axes": list(axes), "keepdims": 1}, shape=shape)


def _standardised(writer: GraphWriter, value: ir.Value, axes: Sequence[int], epsilon: float) -> ir.Value:
    """(x − mean) / √(variance + ε) over `axes`."""
    shape = sizes_of(value)
    centred = writer.op("Sub", [value, _mean(writer, value, axes)], shape=shape)
    variance = _mean(writer, writer.op("Mul", [centred, centred], shape=shape), axes)
    small = sizes_of(variance)
    shifted = writer.op("Add", [variance, _scalar(writer, value, epsilon, "epsilon")], shape=small)
    return writer.op("Div", [centred, writer.op("Sqrt", [shifted], shape=small)], shape=shape)


def _layer_normalization(
    node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter
) -> ir.Value | str:
    sizes = sizes_of(data)
    if sizes is None:
        return "the rank of its input is not known"
    axis = node.attributes.get_int("axis", -1) % len(sizes)
    is_short = data.dtype in _SHORT and node.attributes.get_int("stash_type", 1) == 1
    value = _cast(writer, data, ir.DataType.FLOAT) if is_short else data
    value = _standardised(writer, value, range(axis, len(sizes)), node.attributes.get_float("epsilon", 1e-5))
    value = _cast(writer, value, data.dtype) if is_short else value
    for operator, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        if operand is not None:
            value = writer.op(operator, [value, operand], shape=sizes)
    return value


def _instance_normalization(
    node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter
) -> ir.Value | str:
    sizes = sizes_of(data)
    if sizes is None:
        return "the rank of its input is not known"
    value = _standardised(writer, data, range(2, len(sizes)), node.attributes.get_float("epsilon", 1e-5))
    return _per_channel(node, value, writer, weights, 1)


def _group_normalization(
    node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter
) -> ir.Value | str:
    sizes = sizes_of(data)
    groups = node.attributes.get_int("num_groups", 0)
    if sizes is None or not isinstance(sizes[1], int) or None in sizes[2:]:
        return "its channels or positions are not known"
    if data.dtype in _SHORT:
        return "its mean is computed in float32, which its parts would not be"
    size = sizes[1] // groups * prod(s or 1 for s in sizes[2:])
    grouped = writer.op("Reshape", [data, writer.integers([0, groups, size])], shape=[sizes[0], groups, size])
    value = _standardised(writer, grouped, [2], node.attributes.get_float("epsilon", 1e-5))
    back = writer.integers([0, *(s or 1 for s in sizes[1:])])
    value = writer.op("Reshape", [value, back], shape=sizes)
    repeats = 1 if writer.opset >= GROUP_NORMALIZATION_BY_CHANNEL else sizes[1] // groups
    return _per_channel(node, value, writer, weights, repeats)


def _per_channel(
    node: ir.Node, value: ir.Value, writer: GraphWriter, weights: WeightRewriter, repeats: int
) -> ir.Value | str:
    """value · scale + bias, with one constant per channel, or one for `repeats` channels."""
    sizes = sizes_of(value) or []
    for operator, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        shape = None if operand is None else shape_of(operand)
        if operand is None or shape is None or not is_constant(operand):
            return "its scale or bias is not a constant"
        ones = (1,) * (len(sizes) - 2)
        steps = [("reshape", (shape[0], 1)), ("broadcast", (shape[0], repeats))] if repeats > 1 else []
        new = weights.rewrite(writer, operand, [*steps, ("reshape", (shape[0] * repeats, *ones))])
        value = writer.op(operator, [value, new], shape=sizes)
    return value


def _cast(writer: GraphWriter, value: ir.Value, kind: ir.DataType | None) -> ir.Value:
    kind = kind or ir.DataType.FLOAT
    return writer.op("Cast", [value], {"to": int(kind)}, shape=sizes_of(value), dtype=kind)


def _gelu(node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter) -> ir.Value:
    shape = sizes_of(data)

    def times(value: ir.Value, number: float, label: str) -> ir.Value:
        return writer.op("Mul", [value, _scalar(writer, data, number, label)], shape=shape)

    if node.attributes.get_string("approximate", "none") == "tanh":
        square = writer.op("Mul", [data, data], shape=shape)
        inner = writer.op("Mul", [times(square, 0.044715, "cubic"), data], shape=shape)
        inner = writer.op("Add", [data, inner], shape=shape)
        curve = writer.op("Tanh", [times(inner, sqrt(2 / np.pi), "slope")], shape=shape)
    else:
        curve = writer.op("Erf", [times(data, 1 / sqrt(2), "slope")], shape=shape)
    shifted = writer.op("Add", [curve, _scalar(writer, data, 1.0, "one")], shape=shape)
    return writer.op("Mul", [times(data, 0.5, "half"), shifted], shape=shape)


def _hard_swish(node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter) -> ir.Value:
    """x · max(0, min(1, x / 6 + ½)): every constant is a number of every floating type."""
    shape = sizes_of(data)
    value = writer.op("Div", [data, _scalar(writer, data, 6.0, "six")], shape=shape)
    value = writer.op("Add", [value, _scalar(writer, data, 0.5, "half")], shape=shape)
    return writer.op("Mul", [data, _between_zero_and_one(writer, value)], shape=shape)


def _between_zero_and_one(writer: GraphWriter, value: ir.Value) -> ir.Value:
    shape = sizes_of(value)
    value = writer.op("Max", [value, _scalar(writer, value, 0.0, "zero")], shape=shape)
    return writer.op("Min", [value, _scalar(writer, value, 1.0, "one")], shape=shape)


def _hard_sigmoid(node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter) -> ir.Value:
    shape = sizes_of(data)
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    value = writer.op("Mul", [data, _scalar(writer, data, alpha, "alpha")], shape=shape)
    value = writer.op("Add", [value, _scalar(writer, data, beta, "beta")], shape=shape)
    return _between_zero_and_one(writer, value)


def _reciprocal(node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter) -> ir.Value:
    return writer.op("Div", [_scalar(writer, data, 1.0, "one"), data], shape=sizes_of(data))


def _reshape(node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter) -> ir.Value | str:
    """Squeeze, Unsqueeze and Flatten as a Reshape to fixed sizes, at most one of them left open."""
    sizes = sizes_of(node.outputs[0])
    if sizes is None or sizes.count(None) > 1 or (None in sizes and 0 in sizes):
        return "more than one size of its result is not known"
    target = writer.integers([-1 if size is None else size for size in sizes])
    return writer.op("Reshape", [data, target], shape=sizes)


def _expand(node: ir.Node, data: ir.Value, writer: GraphWriter, weights: WeightRewriter) -> ir.Value | str:
    """Expand as Reshape to the rank of the result, and Tile."""
    before, after = sizes_of(data), sizes_of(node.outputs[0])
    if before is None or after is None or None in (*before, *after) or data.dtype is None:
        return "a size of its input or result is not known"
    full = [1] * (len(after) - len(before)) + [s or 0 for s in before]
    value = data
    if len(full) != len(before):
        value = writer.op("Reshape", [data, writer.integers(full)], shape=full)
    repeats = [(a or 0) // b if b else 1 for a, b in zip(after, full, strict=True)]
    return writer.op("Tile", [value, writer.integers(repeats, "repeats")], shape=after)


_Write = Callable[[ir.Node, ir.Value, GraphWriter, WeightRewriter], "ir.Value | str"]
#: The law, the writer, and whether both forms agree bit for bit.
_DECOMPOSITIONS: dict[str, tuple[str, _Write, bool]] = {
    "LayerNormalization": ("layer normalization = its parts", _layer_normalization, False),
    "InstanceNormalization": ("instance normalization = its parts", _instance_normalization, False),
    "GroupNormalization": ("group normalization = its parts", _group_normalization, False),
    "Gelu": ("gelu = its formula", _gelu, False),
    "HardSwish": ("hard swish = x · max(0, min(1, x / 6 + ½))", _hard_swish, False),
    "HardSigmoid": ("hard sigmoid = max(0, min(1, α·x + β))", _hard_sigmoid, False),
    "Reciprocal": ("reciprocal = 1 / x", _reciprocal, True),
    "Squeeze": ("squeeze = reshape", _reshape, True),
    "Unsqueeze": ("unsqueeze = reshape", _reshape, True),
    "Flatten": ("flatten = reshape", _reshape, True),
    "Expand": ("expand = tile", _expand, True),
}
#: The laws by which operators that insert or remove axes of size 1 become Reshapes.
VIEWS_AS_RESHAPES = frozenset(["squeeze = reshape", "unsqueeze = reshape"])
#: The operators that have another form; no form needs one of these again, except shapes, which become a Reshape.
DECOMPOSED = frozenset(_DECOMPOSITIONS)
