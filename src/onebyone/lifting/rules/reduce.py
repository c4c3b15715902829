"""Reductions over positions become pools over the window; those over channels, reductions of the map's channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onebyone.lifting.grid import Grid, Integers
from onebyone.lifting.index import Gather, as_gather, as_window, decode, identity
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import AdaptivePool, Call, Reduce, Reduction
from onebyone.lifting.rules.window_pools import pooled, pooled_in_parts
from onebyone.lifting.values import Cannot, Lifted

#: How many bins of different sizes, counted over all channels, are pooled one by one.
MOST_BINS = 65536


def reduce(lifter: Lifter, call: Call, operator: Reduce) -> Lifted:
    """A reduction over positions is a windowed pool; over channels, a reduction of the map's channels."""
    value = lifter.lifted(operator.source)
    return reduced(lifter, call, value, operator.axes, operator.keep_axes, operator.reduction)


def reduced(
    lifter: Lifter,
    call: Call,
    value: Lifted,
    axes: Sequence[int],
    keep_axes: bool,
    reduction: Reduction,
) -> Lifted:
    """A value reduced over some of its axes."""
    index = value.indices()
    kept = [axis for axis in range(index.ndim) if axis not in axes]
    lead = tuple(index.shape[axis] for axis in kept)
    rows = index.transpose(*kept, *axes).reshape(*lead, -1)
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(index.shape)) if keep_axes else lead
    window = as_window(rows, value.grid)
    if not isinstance(window, str):
        result = pooled(lifter, call, value, window.kernel, reduction)
        return result.with_index(window.index.reshape(shape))
    if value.index is not None:
        plan = as_gather(index, value.grid)
        if not isinstance(plan, str) and not plan.broadcast:  # positions in steps, or some of the channels
            return reduced(lifter, call, lifter.gathered(value, plan), axes, keep_axes, reduction)
    parts = by_channel(rows, value.grid)
    if parts is not None and min(parts.shape[-2:]) > 1:  # first over the positions of each channel
        each = reduced(lifter, call, value.with_index(parts), [parts.ndim - 1], False, reduction)
        return _over_last(lifter, each, reduction, shape)
    return _over_last(lifter, value.with_index(rows), reduction, shape)


def by_channel(rows: Integers, grid: Grid) -> Integers | None:
    """Rows `(*lead, F)` to be reduced in any order, as `(*lead, channels, elements of each)`; None where a row does
    not have equally many elements of each of its channels."""
    channel, _ = decode(rows, grid)
    order = np.argsort(channel, kind="stable")  # so that all rows keep one order
    rows, channel = np.take_along_axis(rows, order, -1), np.take_along_axis(channel, order, -1)
    count = int(np.count_nonzero(np.diff(channel.reshape(-1, rows.shape[-1])[0]))) + 1
    if rows.shape[-1] % count:
        return None
    split = channel.reshape(*rows.shape[:-1], count, -1)
    even = (split == split[..., :1]).all() and (np.diff(split[..., 0]) != 0).all()
    return rows.reshape(split.shape) if even else None


def _over_last(lifter: Lifter, value: Lifted, reduction: Reduction, shape: tuple[int, ...]) -> Lifted:
    """A reduction over the value's last axis, its elements side by side as channels; the result has `shape`."""
    grouped, groups = lifter.with_groups(value, (len(value.shape) - 1,))
    split = lifter.emit.split_channels(grouped.handle, (groups.count, -1))
    grid = replace(grouped.grid, channels=groups.count)
    result = Lifted(lifter.emit.reduce(split, reduction, (2,)), grid, None, value.pooled)
    return result.with_index(groups.lead.reshape(shape))


def adaptive_pool(lifter: Lifter, call: Call, operator: AdaptivePool) -> Lifted:
    """Means or maxima over the bins that the nominal size gives."""
    bins = tuple(operator.bins)
    if len(bins) != lifter.axes:
        raise Cannot(f"adaptive pooling over other axes than the image's {lifter.axes}")
    value = lifter.as_map(lifter.lifted(operator.source))
    spans = [_spans(n, m) for n, m in zip(value.grid.nominal, bins, strict=True)]
    kernels = [sorted({stop - start for start, stop in axis}) for axis in spans]
    if any(len(k) > 1 for k in kernels):
        return _uneven(lifter, call, value, spans, operator.reduction)
    if bins == value.grid.nominal:
        return value
    result = pooled(lifter, call, value, tuple(k[0] for k in kernels), operator.reduction)
    index = identity(result.grid.shape)
    for axis, pairs in enumerate(spans):
        index = index.take([start for start, _ in pairs], axis=axis + 1)
    return result.with_index(index)


def _spans(size: int, bins: int) -> list[tuple[int, int]]:
    """Bin i is [⌊i·n/m⌋, ⌈(i+1)·n/m⌉) (PyTorch, AdaptiveAveragePooling)."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def _uneven(
    lifter: Lifter, call: Call, value: Lifted, spans: list[list[tuple[int, int]]], reduction: Reduction
) -> Lifted:
    """Bins of different sizes: a pool for each bin, cropped to where it begins, side by side as channels."""
    shape, channels = tuple(len(axis) for axis in spans), value.grid.channels
    count = int(np.prod(shape))
    if count * channels > MOST_BINS:
        raise Cannot(
            f"adaptive pooling from {value.grid.nominal} to {shape} positions, in bins of different sizes"
        )
    one, parts = (1,) * lifter.axes, []
    for position in np.ndindex(*shape):
        pairs = [spans[axis][p] for axis, p in enumerate(position)]
        part = pooled_in_parts(lifter, call, value, tuple(stop - start for start, stop in pairs), reduction)
        starts = np.tile(np.asarray([[start] for start, _ in pairs]), (1, channels))
        parts.append(lifter.gathered(part, Gather(np.arange(channels), starts, one, one)))
    index = np.arange(channels)[:, None] + channels * np.arange(count)[None, :]
    return lifter.concatenated(parts).with_index(index.reshape(channels, *shape))
