"""Batch, layer, instance, group and root-mean-square norms, and local response normalisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onebyone.lifting.operators import BatchNorm, GroupNorm, LayerNorm
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.onnx.lift.graph_lifter import Decoder, GraphLifter

#: Before this opset, GroupNormalization has one scale for each group instead of one for each channel.
_SCALES_PER_CHANNEL = 21


def batch_norm(lifter: GraphLifter, node: ir.Node) -> BatchNorm:
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


def layer_norm(lifter: GraphLifter, node: ir.Node) -> LayerNorm:
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


def instance_norm(lifter: GraphLifter, node: ir.Node) -> GroupNorm:
    value, weight, bias = (lifter.operand(node, number) for number in range(3))
    return GroupNorm(value, None, weight, bias, node.attributes.get_float("epsilon", 1e-5))


def group_norm(lifter: GraphLifter, node: ir.Node) -> GroupNorm:
    value = lifter.lifted(lifter.operand(node, 0))
    groups = node.attributes.get_int("num_groups", 1)
    constants = [lifter.operand(node, number) for number in (1, 2)]
    if lifter.opset < _SCALES_PER_CHANNEL:
        constants = [_per_channel(constant, value.shape[0] // groups) for constant in constants]
    return GroupNorm(value, groups, *constants, node.attributes.get_float("epsilon", 1e-5))


def _per_channel(constant: Const, each: int) -> Const:
    """One number for each group, as one for each channel."""
    if not isinstance(constant, Const):
        raise Cannot("a scale or a shift that depends on the image")
    weight = constant.handle
    wide = weight.derived(("each", each), "channels", lambda: np.repeat(weight.array, each))
    return Const(wide, (constant.shape[0] * each,))


def local_response(lifter: GraphLifter, node: ir.Node) -> Lifted:
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
