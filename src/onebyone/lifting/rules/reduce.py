"""Reductions: pools over the window, means and maxima over places or channels, layer normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.lifting.grid import Grid, Integers
from onebyone.lifting.index import Gather, as_gather, as_window, decode, identity
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, handle_of, op_name
from onebyone.pytorch.lift.rules import register
from onebyone.pytorch.lift.rules_shape import with_index
from onebyone.pytorch.lift.sliding import arguments
from onebyone.pytorch.lift.window_pools import pooled

aten = torch.ops.aten


@register(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
def reduce(walk: Walk, node: fx.Node) -> Lifted:
    """A reduction over places is a windowed pool; over channels, a reduction of the map's channels."""
    a = arguments(node)
    value = walk.lifted(node.args[0])
    name = op_name(node.target).removeprefix("aten.")
    return reduced(walk, node, value, value_axes(a["dim"], len(value.shape)), bool(a["keepdim"]), name)


def value_axes(dims: Any, rank: int) -> list[int]:
    """Reduced axes of the value without its batch; the batch itself may not be reduced."""
    listed = [dims] if isinstance(dims, int) else list(dims if dims is not None else range(rank + 1))
    axes = [d % (rank + 1) for d in listed or range(rank + 1)]
    if 0 in axes:
        raise Cannot("a reduction over the batch")
    return sorted(d - 1 for d in axes)


def reduced(walk: Walk, node: fx.Node, value: Lifted, dims: list[int], keepdim: bool, name: str) -> Lifted:
    """The mean, sum, amax, amin or linalg_vector_norm of a value over some of its axes; over places a pool."""
    index = value.indices()
    kept = [d for d in range(index.ndim) if d not in dims]
    lead = tuple(index.shape[d] for d in kept)
    rows = index.transpose(*kept, *dims).reshape(*lead, -1)
    shape = tuple(1 if d in dims else n for d, n in enumerate(index.shape)) if keepdim else lead
    window = as_window(rows, value.grid)
    if not isinstance(window, str):
        result = pooled(walk, node, value, window.kernel, name)
        return with_index(result, window.index.reshape(shape))
    plan = as_gather(index, value.grid) if value.index is not None else ""
    if not isinstance(plan, str) and not plan.broadcast:  # places taken in steps, or some of the channels
        return reduced(walk, node, walk.gathered(value, plan), dims, keepdim, name)
    parts = by_channel(rows, value.grid)
    if parts is not None and min(parts.shape[-2:]) > 1:  # first over the places of each channel
        each = reduced(walk, node, with_index(value, parts), [parts.ndim - 1], False, name)
        return with_index(*_over_last(walk, each, name, shape))
    return with_index(*_over_last(walk, with_index(value, rows), name, shape))


def by_channel(rows: Integers, grid: Grid) -> Integers | None:
    """Rows `(*lead, F)` to be reduced in any order, as `(*lead, channels, elements of each)`; None where a row has
    not equally many elements of each of its channels."""
    channel, _ = decode(rows, grid)
    order = np.argsort(channel, axis=-1, kind="stable")
    sorted_rows, found = np.take_along_axis(rows, order, -1), np.take_along_axis(channel, order, -1)
    count = int(np.count_nonzero(np.diff(found.reshape(-1, rows.shape[-1])[0]))) + 1
    if rows.shape[-1] % count:
        return None
    split = found.reshape(*rows.shape[:-1], count, -1)
    even = (split == split[..., :1]).all() and (np.diff(split[..., 0]) != 0).all()
    return sorted_rows.reshape(split.shape) if even else None


def _over_last(walk: Walk, value: Lifted, name: str, shape: tuple[int, ...]) -> tuple[Lifted, Integers]:
    """A reduction over the value's last axis, its elements side by side as channels; and the result's index."""
    laid, groups = walk.with_groups(value, (len(value.shape) - 1,))
    handle = laid.handle.unflatten(1, (groups.count, -1))
    handle = emitter.norm(handle, 2) if "norm" in name else getattr(torch, name)(handle, 2)
    grid = replace(laid.grid, channels=groups.count)
    return Lifted(handle, grid, None, value.pooled), groups.lead.reshape(shape)


@register(
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten._adaptive_avg_pool2d
)
def adaptive_avg_pool(walk: Walk, node: fx.Node) -> Lifted:
    """Means over the bins that the nominal size gives."""
    return _adaptive(walk, node, "mean")


@register(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d)
def adaptive_max_pool(walk: Walk, node: fx.Node) -> Any:
    """Maxima over the bins that the nominal size gives."""
    return (_adaptive(walk, node, "amax"), None)


def _adaptive(walk: Walk, node: fx.Node, name: str) -> Lifted:
    wanted = node.args[1]
    if len(wanted if isinstance(wanted, (list, tuple)) else [wanted]) != walk.axes:
        raise Cannot(f"adaptive pooling over other axes than the image's {walk.axes}")
    value = walk.as_map(walk.lifted(node.args[0]))
    out = [int(n) for n in (wanted if isinstance(wanted, (list, tuple)) else [wanted])]  # type: ignore[arg-type]
    bins = [_bins(n, m) for n, m in zip(value.grid.nominal, out, strict=True)]
    kernels = [sorted({stop - start for start, stop in axis}) for axis in bins]
    if any(len(k) > 1 for k in kernels):
        return _uneven(walk, node, value, bins, name)
    kernel = tuple(k[0] for k in kernels)
    if tuple(out) == value.grid.nominal:
        return value
    result = pooled(walk, node, value, kernel, name)
    if tuple(out) == (1,) * walk.axes:
        return result
    index = identity(result.grid.shape)
    for axis, starts in enumerate(bins):
        index = index.take([start for start, _ in starts], axis=axis + 1)
    return with_index(result, index)


def _bins(size: int, out: int) -> list[tuple[int, int]]:
    """Bin i is [⌊i·n/m⌋, ⌈(i+1)·n/m⌉) (PyTorch, AdaptiveAveragePooling)."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _uneven(walk: Walk, node: fx.Node, value: Lifted, bins: list[list[tuple[int, int]]], name: str) -> Lifted:
    """Bins of different sizes: a pool for each bin, cropped to where it begins, side by side as channels."""
    shape = tuple(len(b) for b in bins)
    if int(np.prod(shape)) * value.grid.channels > 65536:
        raise Cannot(
            f"adaptive pooling from {value.grid.nominal} to {shape} places, in bins of different sizes"
        )
    parts = []
    for place in np.ndindex(*shape):
        spans = [bins[axis][p] for axis, p in enumerate(place)]
        part = pooled(walk, node, value, tuple(stop - start for start, stop in spans), name)
        starts = np.tile(np.asarray([[start] for start, _ in spans]), (1, value.grid.channels))
        one = (1,) * walk.axes
        parts.append(walk.gathered(part, Gather(np.arange(value.grid.channels), starts, one, one)))
    maps, grid = walk.met(parts)
    handle = walk.call(torch.cat, [m.handle.node for m in maps], 1)
    channels = value.grid.channels
    index = np.arange(channels)[:, None] + channels * np.arange(int(np.prod(shape)))[None, :]
    whole = replace(grid, channels=channels * int(np.prod(shape)))
    return with_index(Lifted(handle, whole, None, value.pooled), index.reshape(channels, *shape))


@register(aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default)
def layer_norm(walk: Walk, node: fx.Node) -> Any:
    """Over the channels of each place, by means and variances along the channel axis."""
    a = arguments(node)
    value = walk.lifted(a["input"])
    count = len(a["normalized_shape"])
    laid, restore = _rows(walk, value, tuple(range(len(value.shape) - count, len(value.shape))))
    weight, bias = walk.value(a.get("weight")), walk.value(a.get("bias"))
    eps = a.get("eps")
    given = [handle_of(t).reshape(-1) if isinstance(t, Const) else None for t in (weight, bias)]
    kind = "rms" if "rms_norm" in str(node.target) else "layer"
    result = restore(walk.call(emitter.channel_standard, laid.handle, kind, *given, eps))
    return (result, None, None) if "native" in str(node.target) else result


def _rows(walk: Walk, value: Lifted, axes: tuple[int, ...]) -> tuple[Lifted, Callable[[Any], Lifted]]:
    """The value on a map whose channels are its elements along `axes`; and how to go on with a new map of that kind."""
    laid, index = walk.with_channels(value, axes)

    def restore(handle: Any) -> Lifted:
        return with_index(replace(laid, handle=handle, index=None), index)

    return laid, restore
