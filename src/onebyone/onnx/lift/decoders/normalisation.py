"""Batch, layer, instance, group and root-mean-square norms, and local response normalisation."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.lifting.operators import BatchNorm, GroupNorm, LayerNorm
from onebyone.lifting.rules.each_position import at_each_position
from onebyone.lifting.rules.table import lift
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.onnx.lift.graph_lifter import Decoder, OnnxGraphLifter

#: Before this opset, GroupNormalization has one scale for each group instead of one for each channel.
_SCALES_PER_CHANNEL = 21


def batch_norm(lifter: OnnxGraphLifter, node: ir.Node) -> BatchNorm:
    operands = [lifter.operand(node, number) for number in range(5)]
    value, weight, bias, mean, variance = operands
    if node.attributes.get_int("training_mode", 0) or any(v.uses() for v in node.outputs[1:]):
        raise Cannot("a batch norm that takes its statistics from the batch")
    source = node.inputs[0]
    assert source is not None
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return BatchNorm(
        value, mean, variance, weight, bias, epsilon, lambda x: lifter.emit_as_it_is(node, {source: x})
    )


def layer_norm(lifter: OnnxGraphLifter, node: ir.Node) -> LayerNorm:
    value = lifter.lifted(lifter.operand(node, 0))
    if any(v.uses() for v in node.outputs[1:]):
        raise Cannot("the mean or the deviation of a layer norm as a result of its own")
    rank = len(value.shape) + 1
    axis = node.attributes.get_int("axis", -1) % rank
    if axis == 0:
        raise Cannot("a norm over the batch")
    weight, bias = (_of_shape(lifter.operand(node, number), value.shape[axis - 1 :]) for number in (1, 2))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    is_rms = node.op_type == "RMSNormalization"
    return LayerNorm(value, rank - axis, weight, bias, epsilon, root_mean_square=is_rms)


def _of_shape(constant: Const | None, shape: tuple[int, ...]) -> Const | None:
    """A scale or shift, broadcast to `shape`."""
    if constant is None or constant.shape == shape:
        return constant
    if not isinstance(constant, Const):
        raise Cannot("a scale or a shift that depends on the image")
    weight, leading = constant.handle, constant.shape
    while len(leading) > len(shape) and leading[0] == 1:
        leading = leading[1:]
    try:
        np.broadcast_shapes(leading, shape)
    except ValueError as error:
        raise Cannot(f"a scale of shape {constant.shape} for elements of shape {shape}") from error
    wide = weight.derived(
        ("broadcast", shape), "broadcast", lambda: np.broadcast_to(weight.array.reshape(leading), shape)
    )
    return Const(wide, shape)


def instance_norm(lifter: OnnxGraphLifter, node: ir.Node) -> Any:
    """Also on a map whose groups of channels were made one axis each, which is how group norms are exported."""
    value, weight, bias = (lifter.operand(node, number) for number in range(3))
    value, epsilon = lifter.lifted(value), node.attributes.get_float("epsilon", 1e-5)
    groups, grid = value.shape[0], value.grid
    if value.index is None or len(value.shape) == lifter.axes + 1:
        return GroupNorm(value, None, weight, bias, epsilon)
    if max(grid.nominal) == 1 or _becomes_a_vector(lifter, node):
        return at_each_position(lifter, lifter.call_of(node))
    if not np.array_equal(value.index.ravel(), np.arange(prod(grid.shape))) or grid.channels % groups:
        raise Cannot(f"a value of shape {value.shape} is not a map with {lifter.axes} spatial axes")
    whole = replace(value, index=None)
    weight, bias = (_per_channel(constant, grid.channels // groups) for constant in (weight, bias))
    call = replace(lifter.call_of(node), shapes=(whole.shape,))
    return lift(lifter, call, GroupNorm(whole, groups, weight, bias, epsilon)).with_index(value.index)


def _becomes_a_vector(lifter: OnnxGraphLifter, node: ir.Node) -> bool:
    """Whether what follows makes a vector of the result, so that its elements need no positions."""
    uses = list(node.outputs[0].uses())
    following = uses[0].node if len(uses) == 1 else None
    if following is None or following.op_type not in ("Reshape", "Flatten"):
        return False
    target = [0, 0] if following.op_type == "Flatten" else _numbers_or_none(lifter, following.inputs[1])
    return target is not None and len(target) == 2


def _numbers_or_none(lifter: OnnxGraphLifter, source: ir.Value | None) -> Any:
    value = None if source is None else lifter.values.get(source)
    return value.handle.array if isinstance(value, Const) else None


def group_norm(lifter: OnnxGraphLifter, node: ir.Node) -> GroupNorm:
    value = lifter.lifted(lifter.operand(node, 0))
    groups = node.attributes.get_int("num_groups", 1)
    constants = [lifter.operand(node, number) for number in (1, 2)]
    if lifter.opset < _SCALES_PER_CHANNEL:
        constants = [_per_channel(constant, value.shape[0] // groups) for constant in constants]
    weight, bias = constants
    return GroupNorm(value, groups, weight, bias, node.attributes.get_float("epsilon", 1e-5))


def _per_channel(constant: Const, each: int) -> Const:
    """One number for each group, as one for each channel."""
    if not isinstance(constant, Const):
        raise Cannot("a scale or a shift that depends on the image")
    weight = constant.handle
    wide = weight.derived(("each", each), "channels", lambda: np.repeat(weight.array, each))
    return Const(wide, (constant.shape[0] * each,))


def local_response(lifter: OnnxGraphLifter, node: ir.Node) -> Lifted:
    """Over neighbouring channels of each position: the operator itself, on a map of any size."""
    value, source = lifter.as_map(lifter.lifted(lifter.operand(node, 0))), node.inputs[0]
    assert source is not None
    return replace(value, handle=lifter.emit_as_it_is(node, {source: value.handle}))


DECODERS: dict[str, Decoder] = {
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response,
}
