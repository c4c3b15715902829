"""Values of a whole window that act on each of its positions: squeeze-and-excitation, group and instance statistics.

Neighbouring windows share their positions, so such a value cannot be right for all of them. It is refused, or it is
taken, as the user chooses, over the window around each position or over the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onebyone.lifting.grid import Grid
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, GroupNorm
from onebyone.lifting.rules.each_position import at_each_position
from onebyone.lifting.rules.window_pools import pooled
from onebyone.lifting.values import Cannot, Const, Lifted

CHOOSE = (
    "global context: a value pooled over the whole window acts on every position of it; choose context='window' "
    "(pooled over the window around each position) or context='image' (over the whole image)"
)


def in_context(lifter: Lifter, call: Call, value: Lifted, size: Sequence[int]) -> Lifted:
    """A value per window as one per position, taken over the chosen context.

    `value` has one position per window on the axes on which it is repeated; `size` is how many times per axis (1: not).
    """
    if not value.pooled:
        raise Cannot("a value of one position that is not pooled over the window is repeated over positions")
    if lifter.context is None:
        raise Cannot(CHOOSE)
    lifter.context_pools |= value.pooled
    lifter.not_exact(
        call, f"global context, taken over the {lifter.context}: neighbouring windows share their positions"
    )
    if value.grid.image_wide:
        return value
    # each position gets the value of the window that is centred on it, at the edges that of the nearest window
    sides = [((n - 1) // 2, n - 1 - (n - 1) // 2) for n in size]
    handle = lifter.emit.pad(value.handle, sides, "replicate")
    return replace(value, handle=handle, grid=_around_positions(value.grid, size))


def _around_positions(grid: Grid, size: Sequence[int]) -> Grid:
    """The grid of one window per position, from the grid of one position per window of `size` positions."""
    nominal = tuple(m + n - 1 for m, n in zip(grid.nominal, size, strict=True))
    fields = tuple(f.shifted(-((n - 1) // 2)) for f, n in zip(grid.fields, size, strict=True))
    sizes = tuple(tuple(m + n - 1 for m in s) for s, n in zip(grid.sizes, size, strict=True))
    return replace(grid, fields=fields, sizes=sizes, nominal=nominal)


def group_norm(lifter: Lifter, call: Call, operator: GroupNorm) -> Lifted:
    """`(x - mean) / sqrt(var + eps) * weight + bias`, with the statistics of groups of channels over the positions.

    Where the window has one position, the operator runs unchanged.
    """
    emit, value = lifter.emit, lifter.lifted(operator.source)
    if max(value.grid.nominal) == 1 or len(value.shape) == 1:
        return at_each_position(lifter, call)
    value = lifter.as_map(value)
    nominal, channels = value.grid.nominal, value.grid.channels
    groups = operator.groups or channels
    mean = pooled(lifter, call, value, nominal, "mean")
    square = pooled(
        lifter, call, replace(value, handle=emit.multiply(value.handle, value.handle)), nominal, "mean"
    )
    first, second = (
        emit.reduce(emit.split_channels(v.handle, (groups, -1)), "mean", (2,)) for v in (mean, square)
    )
    variance = emit.maximum(emit.subtract(second, emit.multiply(first, first)), 0.0)
    root = emit.reciprocal_root(emit.add(variance, operator.epsilon))
    each = channels // groups
    centre, scale = (
        in_context(lifter, call, replace(mean, handle=emit.repeat_channels(statistic, each)), nominal)
        for statistic in (first, root)
    )
    grid = value.grid
    if not centre.grid.image_wide:
        (value, centre, scale), grid = lifter.aligned([value, centre, scale])
    handle = emit.multiply(emit.subtract(value.handle, centre.handle), scale.handle)
    ids = np.arange(channels)
    if isinstance(operator.weight, Const):
        handle = emit.multiply(handle, emit.per_channel(operator.weight.handle, ids, lifter.axes))
    if isinstance(operator.bias, Const):
        handle = emit.add(handle, emit.per_channel(operator.bias.handle, ids, lifter.axes))
    return Lifted(handle, grid, None, value.pooled)
