"""Values with more axes than the image: axes of one element that a network adds to a signal, pools over channels.

A network of signals may give them a second axis of one element and use two-dimensional layers (CREPE does). Such an
axis is not an axis of the image: a kernel covers one element there, and zeros where it is padded.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import as_gather
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Convolution, Pool
from onebyone.lifting.rules.each_position import at_each_position
from onebyone.lifting.rules.reduce import reduced
from onebyone.lifting.values import Cannot, Const, Lifted, handle_or_none


def spatial_axes(lifter: Lifter, value: Lifted) -> tuple[int, ...]:
    """The axes of a value that are the image's, where its first axis is channels and all other axes have one element;
    empty where the value is not of that kind."""
    if value.index is None:
        return tuple(range(1, lifter.axes + 1))
    rank = len(value.shape)
    for kept in combinations(range(1, rank), lifter.axes):
        if any(n > 1 for axis, n in enumerate(value.shape) if axis and axis not in kept):
            continue
        plan = as_gather(without_extra_axes(value, kept).indices(), value.grid)
        if not isinstance(plan, str) and not plan.broadcast:
            return kept
    return ()


def without_extra_axes(value: Lifted, kept: tuple[int, ...]) -> Lifted:
    """The value with its channels and the axes `kept` alone; the others have one element."""
    index = value.indices()
    return value.with_index(index.reshape(index.shape[0], *(index.shape[axis] for axis in kept)))


def with_extra_axes(value: Lifted, kept: tuple[int, ...], rank: int) -> Lifted:
    """The inverse: axes of one element put back, `rank` axes in all."""
    index = value.indices()
    sizes = dict(zip(kept, index.shape[1:], strict=True))
    return value.with_index(index.reshape(index.shape[0], *(sizes.get(axis, 1) for axis in range(1, rank))))


def convolution_along(
    lifter: Lifter, call: Call, operator: Convolution, value: Lifted, weight: Const, ops: list[Sliding]
) -> Lifted:
    """A convolution over more axes than the image has: over one element on each of the others."""
    kept = spatial_axes(lifter, value)
    if not kept:
        return at_each_position(lifter, call)
    kernel = weight.handle
    for axis in reversed(range(len(ops))):
        if axis + 1 not in kept:
            tap, rest = divmod(ops[axis].pad_before, ops[axis].dilation)
            if ops[axis].out_size(1) != 1:
                raise Cannot("a convolution that makes several positions of one")
            if rest or tap >= ops[axis].kernel:
                raise Cannot("a convolution that reads padding alone along an axis of one element")
            kernel = lifter.emit.tap(kernel, 2 + axis, tap)
    along = [ops[axis - 1] for axis in kept]
    source = lifter.as_map(without_extra_axes(value, kept))
    grid = lifter.slid(call, source.grid, along, weight.shape[0])
    bias = handle_or_none(operator.bias)
    handle = lifter.emit.convolution(source.handle, kernel, bias, along, operator.groups)
    return with_extra_axes(Lifted(handle, grid, None, value.pooled), kept, len(value.shape))


def pool_other_axes(lifter: Lifter, call: Call, operator: Pool) -> Lifted:
    """A pool over other axes than the image's (over channels, for example), as a reduction of windows of the index."""
    value = lifter.lifted(operator.source)
    if max(value.grid.nominal) == 1:
        return at_each_position(lifter, call)
    count = len(operator.kernel)
    padded = any(map(any, operator.padding)) or operator.ceil_mode or operator.divisor
    if padded or set(operator.dilation) != {1}:
        raise Cannot(f"a pool over {count} axes of an image with {lifter.axes}, with padding or dilation")
    index = value.indices()
    axes = tuple(range(index.ndim - count, index.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(index, tuple(operator.kernel), axes)
    steps = [slice(None)] * (index.ndim - count) + [slice(None, None, s) for s in operator.stride]
    windows = np.ascontiguousarray(windows[tuple(steps)])
    last = range(windows.ndim - count, windows.ndim)
    return reduced(lifter, call, value.with_index(windows), last, False, operator.reduction)
