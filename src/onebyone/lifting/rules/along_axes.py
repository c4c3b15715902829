"""Operators along the elements of one position, or of one window: softmax, variance, sorting, running sums, maxima.

They mix the elements along some axes of the value and treat all others alike. So the elements along those axes become
channels, in groups where the other axes select channels too, and the operator itself runs along them. Where their
order has no meaning, the positions of a window are a view of the map instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import Groups, as_window
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import AxisOperator, Call
from onebyone.lifting.rules.reduce import by_channel
from onebyone.lifting.rules.window_pools import LAW, image_wide
from onebyone.lifting.values import Cannot, Handle, Lifted
from onebyone.records import by


def along_axes(lifter: Lifter, call: Call, operator: AxisOperator) -> Any:
    """The operator along axes whose elements are made the channels of one position, or over the positions of a window.

    Gives one lifted value for each of the call's results.
    """
    value, axes = lifter.lifted(operator.source), tuple(operator.axes)
    over_window = _over_window(lifter, call, operator, value) if operator.any_order else None
    if over_window is not None:
        return over_window
    index = np.moveaxis(value.indices(), axes, range(-len(axes), 0))
    rows = value.with_index(index.reshape(*index.shape[: -len(axes)], -1))
    grouped, groups = lifter.with_groups(rows, (len(rows.shape) - 1,))
    handles = operator.apply(lifter.emit.split_channels(grouped.handle, (groups.count, -1)), (2,))
    return _results(lifter, call, operator, handles, grouped, groups)


def _over_window(lifter: Lifter, call: Call, operator: AxisOperator, value: Lifted) -> Any:
    """The results where the elements are those of a rectangle of positions of each channel; else None."""
    axes = tuple(operator.axes)
    index = np.moveaxis(value.indices(), axes, range(-len(axes), 0))
    rows = by_channel(index.reshape(*index.shape[: -len(axes)], -1), value.grid)
    window = "" if rows is None else as_window(rows, value.grid)
    if isinstance(window, str) or max(window.kernel) == 1:
        return None
    windows = _windows(lifter, call, operator, value, window.kernel).with_index(window.index)
    grouped, groups = lifter.with_groups(windows, (window.index.ndim - 1,))
    split = lifter.emit.split_channels(grouped.handle, (groups.count, -1))
    handles = operator.apply(split, (2, *range(-lifter.axes, 0)))
    return _results(lifter, call, operator, handles, grouped, groups)


def _windows(
    lifter: Lifter, call: Call, operator: AxisOperator, value: Lifted, kernel: tuple[int, ...]
) -> Lifted:
    """A view of the map with the `kernel` positions from each position on as its last axes."""
    name, over_window = call.name.rpartition(".")[2], kernel == value.grid.nominal
    if over_window and lifter.head == "cam" and call.key not in lifter.context_pools:
        raise Cannot(f"head='cam' needs an average pool before the classifier, not {name}")
    grid = value.grid.through([Sliding(k) for k in kernel])
    if over_window and call.key in lifter.image_wide:
        if not operator.any_extent:
            raise Cannot(f"context='image' of {name}, which depends on the number of positions")
        handle = lifter.emit.single_positions(value.handle, lifter.axes)
        grid = image_wide(grid)
    else:
        handle = lifter.emit.windows(value.handle, kernel)
    lifter.change(call, LAW, f"{name} over the map", f"{name} over {by(kernel)}")
    keys = {call.key} if over_window else set()
    return Lifted(handle, grid, None, value.pooled | keys)


def _results(
    lifter: Lifter,
    call: Call,
    operator: AxisOperator,
    handles: Sequence[Handle],
    grouped: Lifted,
    groups: Groups,
) -> Any:
    """What the operator gave for the groups, as lifted values of the shapes that the network has."""
    results = []
    for handle, shape in zip(handles, call.shapes, strict=True):
        if operator.reduces:  # one number for each row
            length, index = 1, groups.out_index(1).reshape(shape)
        else:
            (axis,) = operator.axes
            length, handle = shape[axis], lifter.emit.merge_channels(handle, 2)
            index = np.ascontiguousarray(np.moveaxis(groups.out_index(length), -1, axis))
        grid = replace(grouped.grid, channels=groups.count * length)
        results.append(Lifted(handle, grid, None, grouped.pooled).with_index(index))
    return results[0] if len(results) == 1 else tuple(results)
