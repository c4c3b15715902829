"""Batch norms with constant statistics, and layer norms over the channels of each position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onebyone.lifting.index import as_stencil
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import BatchNorm, Call, LayerNorm
from onebyone.lifting.values import Cannot, Const, Lifted


def batch_norm(lifter: Lifter, _call: Call, operator: BatchNorm) -> Lifted:
    """A batch norm per channel; on a flattened map, a scale and a shift by position for the next linear layer."""
    value = lifter.lifted(operator.source)
    if not isinstance(operator.mean, Const) or not isinstance(operator.variance, Const):
        raise Cannot("a batch norm that takes its statistics from the batch")
    try:
        value = _channels_first(lifter, value)
    except Cannot:
        return _by_position(lifter, value, operator, operator.mean, operator.variance)
    return replace(value, handle=operator.apply(value.handle))


def _channels_first(lifter: Lifter, value: Lifted) -> Lifted:
    """The value on a map whose channels are the value's first axis, in order."""
    if value.index is None:
        return value
    stencil = as_stencil(np.moveaxis(value.index, 0, -1), value.grid)
    if not isinstance(stencil, str) and max(stencil.kernel) > 1:
        raise Cannot("its channels are elements of a flattened map")
    return lifter.with_channels(value, (0,))


def _by_position(lifter: Lifter, value: Lifted, operator: BatchNorm, mean: Const, variance: Const) -> Lifted:
    if len(value.shape) != 1:
        raise Cannot("a batch norm whose channels are not those of the map")
    emit = lifter.emit
    scale = emit.reciprocal_root(emit.add(variance.handle, operator.epsilon))
    if isinstance(operator.weight, Const):
        scale = emit.multiply(scale, operator.weight.handle)
    shift = emit.multiply(emit.negative(mean.handle), scale)
    if isinstance(operator.bias, Const):
        shift = emit.add(shift, operator.bias.handle)
    return replace(value, affine=(scale, shift))


def layer_norm(lifter: Lifter, _call: Call, operator: LayerNorm) -> Lifted:
    """Over the last axes, whose elements become the channels of each position."""
    value = lifter.lifted(operator.source)
    rank = len(value.shape)
    value = lifter.with_channels(value, range(rank - operator.axes, rank))
    weight, bias = (
        lifter.emit.reshape(constant.handle, (-1,)) if isinstance(constant, Const) else None
        for constant in (operator.weight, operator.bias)
    )
    handle = lifter.emit.standardise_channels(
        value.handle, weight, bias, operator.epsilon, operator.root_mean_square
    )
    return replace(value, handle=handle)
