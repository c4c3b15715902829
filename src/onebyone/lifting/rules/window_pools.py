"""Pools over a window's positions: at stride 1 on a larger map, over the image, or left out for a class map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import Grid
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Reduction
from onebyone.lifting.values import Handle, Lifted
from onebyone.records import by

#: The law by which a pool over all positions of a window becomes a sliding one.
LAW = "global pool = pool over the window"


def pooled(
    lifter: Lifter, call: Call, value: Lifted, kernel: tuple[int, ...], reduction: Reduction
) -> Lifted:
    """The map pooled over `kernel` positions at stride 1: each window's own pool.

    A pool over the whole window is the network's head (`head="cam"` leaves it out) or a context (`context="image"`
    takes it over the image).
    """
    positions = int(np.prod(kernel))
    if positions == 1 or kernel != value.grid.nominal:
        return pooled_in_parts(lifter, call, value, kernel, reduction)
    if call.key in lifter.image_wide:
        handle = _image_pool(lifter, value.handle, reduction, positions)
        grid = image_wide(value.grid.through([Sliding(k) for k in kernel]))
        return Lifted(handle, grid, None, value.pooled | {call.key})
    if reduction == "mean" and lifter.head == "cam" and call.key not in lifter.context_pools:
        return _left_out(lifter, call, value, kernel)
    result = pooled_in_parts(lifter, call, value, kernel, reduction)
    return replace(result, pooled=value.pooled | {call.key})


def pooled_in_parts(
    lifter: Lifter, call: Call, value: Lifted, kernel: tuple[int, ...], reduction: Reduction
) -> Lifted:
    """As `pooled`, where `kernel` covers a part of the window beside others, or by chance all of it."""
    if max(kernel) == 1:
        handle = lifter.emit.absolute(value.handle) if reduction == "norm" else value.handle
        return replace(value, index=None, handle=handle)
    handle = _window_pool(lifter, value.handle, kernel, reduction)
    lifter.change(call, LAW, "pool over the map", f"{by(kernel)} pool at stride 1")
    return Lifted(handle, value.grid.through([Sliding(k) for k in kernel]), None, value.pooled)


def image_wide(grid: Grid) -> Grid:
    """The grid of a map of one position that belongs to the whole image."""
    return replace(grid, sizes=((1,) * len(grid.sizes[0]),) * len(grid.nominal), image_wide=True)


def _window_pool(lifter: Lifter, handle: Handle, kernel: tuple[int, ...], reduction: Reduction) -> Handle:
    emit, ops, positions = lifter.emit, [Sliding(k) for k in kernel], float(np.prod(kernel))
    if reduction == "max":
        return emit.max_pool(handle, ops)
    if reduction == "min":
        return emit.negative(emit.max_pool(emit.negative(handle), ops))
    if reduction == "mean":
        return emit.mean_pool(handle, ops)
    if reduction == "sum":
        return emit.multiply(emit.mean_pool(handle, ops), positions)
    squares = emit.mean_pool(emit.multiply(handle, handle), ops)
    return emit.square_root(emit.multiply(squares, positions))


def _image_pool(lifter: Lifter, handle: Handle, reduction: Reduction, positions: int) -> Handle:
    """Over the whole image; sums and norms as if the image had the window's number of positions."""
    emit, axes = lifter.emit, range(2, 2 + lifter.axes)
    if reduction in ("max", "min", "mean"):
        return emit.reduce(handle, reduction, axes, keep_axes=True)
    if reduction == "sum":
        return emit.multiply(emit.reduce(handle, "mean", axes, keep_axes=True), float(positions))
    squares = emit.reduce(emit.multiply(handle, handle), "mean", axes, keep_axes=True)
    return emit.square_root(emit.multiply(squares, float(positions)))


def _left_out(lifter: Lifter, call: Call, value: Lifted, kernel: tuple[int, ...]) -> Lifted:
    """The map as it is, one position per window: what comes after the pool runs at each position."""
    lifter.left_out[call.key] = (kernel, value.grid.jump)
    lifter.change(call, "average pool commutes with linear", "pool over the map", "left out (class map)")
    one = (1,) * lifter.axes
    return Lifted(value.handle, replace(value.grid, nominal=one), None, value.pooled | {call.key})
