"""Operators that slide over a map: convolutions, pools and padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import as_stencil
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Convolution, Linear, Pad, Pool
from onebyone.lifting.rules.each_position import at_each_position
from onebyone.lifting.rules.extra_axes import (
    convolution_along,
    pool_other_axes,
    spatial_axes,
    with_extra_axes,
    without_extra_axes,
)
from onebyone.lifting.rules.fill import filled
from onebyone.lifting.rules.product import linear
from onebyone.lifting.rules.shape import side_by_side
from onebyone.lifting.rules.window_pools import pooled
from onebyone.lifting.values import Cannot, Const, Lifted, handle_or_none

_PoolRule = Callable[[Lifter, Call, Pool, Lifted, list[Sliding]], Lifted]


def convolution(lifter: Lifter, call: Call, operator: Convolution) -> Lifted:
    """The same convolution on a map of any size."""
    value, weight = lifter.lifted(operator.source), operator.weight
    if not isinstance(weight, Const):
        raise Cannot("a kernel that depends on the image")
    ops = [
        Sliding(k, s, d, *p)
        for k, s, d, p in zip(
            weight.shape[2:], operator.stride, operator.dilation, operator.padding, strict=True
        )
    ]
    if len(ops) > lifter.axes and max(value.grid.nominal) > 1:
        return convolution_along(lifter, call, operator, value, weight, ops)
    if len(ops) != lifter.axes:
        return at_each_position(lifter, call)
    if operator.groups == 1 and _is_linear_on_several_positions(value, ops):
        matrix = Const(lifter.emit.reshape(weight.handle, weight.shape[:2]), weight.shape[:2], weight.name)
        return linear(lifter, call, Linear(value, matrix, operator.bias, axis=-1 - lifter.axes))
    value = lifter.as_map(value)
    # a kernel over the whole map is a linear layer over it: its stride has no effect within one window
    ops = [
        replace(op, stride=1) if op == Sliding(n, op.stride) else op
        for op, n in zip(ops, value.grid.nominal, strict=True)
    ]
    grid = lifter.slid(call, value.grid, ops, weight.shape[0])
    kernel, bias = weight.handle, handle_or_none(operator.bias)
    handle = lifter.emit.convolution(value.handle, kernel, bias, ops, operator.groups)
    return Lifted(handle, grid, None, value.pooled)


def _is_linear_on_several_positions(value: Lifted, ops: Sequence[Sliding]) -> bool:
    """Whether a 1×1 convolution reads channels that are elements of several positions of the map, flattened before.

    It is then a linear layer on windows, which needs no map with a channel for each of those elements.
    """
    if value.index is None or not value.index.size or any(replace(op, stride=1) != Sliding(1) for op in ops):
        return False
    if any(op.stride > 1 and n > 1 for op, n in zip(ops, value.shape[1:], strict=True)):
        return False
    stencil = as_stencil(np.moveaxis(value.index, 0, -1), value.grid)
    return not isinstance(stencil, str) and not stencil.is_pointwise


def pool(lifter: Lifter, call: Call, operator: Pool) -> Lifted:
    """The same pool on a map of any size; over other axes than the image's, a reduction of windows of the index."""
    value = lifter.lifted(operator.source)
    settings = zip(operator.kernel, operator.stride, operator.dilation, operator.padding, strict=True)
    ops = [Sliding(k, s, d, *p, operator.ceil_mode) for k, s, d, p in settings]
    rule: _PoolRule = _max_pool if operator.reduction == "max" else _mean_pool
    if len(ops) == lifter.axes:
        value = lifter.as_map(value)
        return rule(lifter, call, operator, value, _within(value, ops))
    # a pool over as many axes as the value has pools the channels too
    kept = spatial_axes(lifter, value) if len(value.shape) == len(ops) + 1 else ()
    if not kept or any(op.kernel > 1 for axis, op in enumerate(ops, 1) if axis not in kept):
        return pool_other_axes(lifter, call, operator)
    source = lifter.as_map(without_extra_axes(value, kept))
    result = rule(lifter, call, operator, source, _within(source, [ops[axis - 1] for axis in kept]))
    return with_extra_axes(result, kept, len(value.shape))


def _max_pool(lifter: Lifter, call: Call, _operator: Pool, value: Lifted, ops: list[Sliding]) -> Lifted:
    if _over_whole_map(value, ops):
        return pooled(lifter, call, value, value.grid.nominal, "max")
    nominal = lifter.slid(call, value.grid, ops).nominal
    past = _past_the_end(value, ops)
    # a partial last position of ceil_mode, completed by padding: the maximum with minus infinity
    completed = [
        Sliding(op.kernel, op.stride, op.dilation, op.pad_before, op.pad_after + extra).at_one_position(
            n + extra
        )
        for op, n, extra in zip(ops, value.grid.nominal, past, strict=True)
    ]
    grid = replace(value.grid.through(completed), nominal=nominal)
    return Lifted(lifter.emit.max_pool(value.handle, completed), grid, None, value.pooled)


def _mean_pool(lifter: Lifter, call: Call, operator: Pool, value: Lifted, ops: list[Sliding]) -> Lifted:
    nominal = lifter.slid(call, value.grid, ops).nominal
    if not any(_past_the_end(value, ops)):  # then ceil_mode adds nothing that a window needs
        ops = [replace(op, ceil_mode=False) for op in ops]
        if _over_whole_map(value, ops) and operator.divisor in (None, math.prod(value.grid.nominal)):
            return pooled(lifter, call, value, value.grid.nominal, "mean")
        ops = [op.at_one_position(n) for op, n in zip(ops, value.grid.nominal, strict=True)]
    grid = replace(value.grid.through(ops), nominal=nominal)
    handle = lifter.emit.mean_pool(value.handle, ops, operator.count_padding, operator.divisor)
    return Lifted(handle, grid, None, value.pooled)


def _within(value: Lifted, ops: list[Sliding]) -> list[Sliding]:
    """Kernels no larger than the map, which ceil_mode allows to be larger: one position then takes the whole axis."""
    return [
        replace(op, kernel=min(op.kernel, n)) if op.ceil_mode and not op.padded() and op.dilation == 1 else op
        for op, n in zip(ops, value.grid.nominal, strict=True)
    ]


def _past_the_end(value: Lifted, ops: list[Sliding]) -> list[int]:
    """How far the last position reaches past the map on each axis, in one window: 0 unless ceil_mode makes it
    partial."""
    ends = [
        (op.out_size(n) - 1) * op.stride - op.pad_before + op.extent
        for op, n in zip(ops, value.grid.nominal, strict=True)
    ]
    return [max(0, end - n - op.pad_after) for end, n, op in zip(ends, value.grid.nominal, ops, strict=True)]


def _over_whole_map(value: Lifted, ops: list[Sliding]) -> bool:
    """Whether a pool takes the whole of a window's map, each position once: a global pool, written with a kernel."""
    return all(
        op == Sliding(n, op.stride, ceil_mode=op.ceil_mode)
        for op, n in zip(ops, value.grid.nominal, strict=True)
    )


def pad(lifter: Lifter, call: Call, operator: Pad) -> Lifted:
    """Padding by fixed amounts; negative amounts crop. Padding of channels puts a constant beside them."""
    value = _cropped(lifter.lifted(operator.source), operator.amounts)
    if len(operator.amounts) > len(value.shape):
        raise Cannot("padding of the batch")
    missing = [(0, 0)] * (len(value.shape) - len(operator.amounts))
    pairs = missing + [(max(0, before), max(0, after)) for before, after in operator.amounts]
    spatial = spatial_axes(lifter, value)
    for axis, amounts in enumerate(pairs):
        if axis not in spatial and any(amounts):
            if operator.mode != "constant":
                raise Cannot("channels are padded by other channels")
            value = _with_constants(lifter, call, value, axis, amounts, operator.number)
    pairs = [pair for axis, pair in enumerate(pairs) if axis in spatial]
    if not any(map(any, pairs)):
        return value
    source = lifter.as_map(without_extra_axes(value, spatial))
    grid = lifter.slid(
        call, source.grid, [Sliding(1, pad_before=before, pad_after=after) for before, after in pairs]
    )
    handle = lifter.emit.pad(source.handle, pairs, operator.mode, operator.number)
    return with_extra_axes(Lifted(handle, grid, None, source.pooled), spatial, len(value.shape))


def _with_constants(
    lifter: Lifter, call: Call, value: Lifted, axis: int, amounts: tuple[int, int], number: float
) -> Lifted:
    """The value with constants before and after it along one of its axes."""
    before, after = (filled(lifter, number, call.dtype, value, axis, n) if n else None for n in amounts)
    return side_by_side(lifter, [v for v in (before, value, after) if v is not None], axis)


def _cropped(value: Lifted, amounts: Sequence[tuple[int, int]]) -> Lifted:
    """The value without what negative padding removes, which is a choice of elements."""
    if all(n >= 0 for pair in amounts for n in pair):
        return value
    index = value.indices()
    for from_last, pair in enumerate(reversed(amounts)):
        before, after = (min(0, n) for n in pair)
        axis = index.ndim - 1 - from_last
        if axis < 0:
            raise Cannot("a crop of the batch")
        index = index.take(range(-before, index.shape[axis] + after), axis=axis)
    return value.with_index(index)
