"""Values with more axes than the image: axes of one element that a network adds to a signal, pools over channels.

A network of signals may give them a second axis of one element and use two-dimensional layers (CREPE does). Such an
axis is no axis of the image: a kernel meets one element there, and zeros where it is padded.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import fx

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import as_gather
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, handle_of
from onebyone.pytorch.lift.rules_place import at_each_place
from onebyone.pytorch.lift.rules_reduce import reduced
from onebyone.pytorch.lift.rules_shape import with_index
from onebyone.pytorch.lift.sliding import arguments, padding_of, per_axis, pooled_axes, slide


def axes_of_places(walk: Walk, value: Lifted) -> tuple[int, ...]:
    """The axes of a value (the batch not counted) that are the image's, where its first axis is channels and all others
    have one element; none where it is not such a value."""
    if value.index is None:
        return tuple(range(1, walk.axes + 1))
    rank = len(value.shape)
    for kept in combinations(range(1, rank), walk.axes):
        if any(n > 1 for axis, n in enumerate(value.shape) if axis and axis not in kept):
            continue
        plan = as_gather(without_axes(value, kept).indices(), value.grid)
        if not isinstance(plan, str) and not plan.broadcast:
            return kept
    return ()


def without_axes(value: Lifted, kept: tuple[int, ...]) -> Lifted:
    """The value without its axes of one element beside channels and the axes `kept`."""
    index = value.indices()
    return with_index(value, index.reshape(index.shape[0], *(index.shape[axis] for axis in kept)))


def with_axes(value: Lifted, kept: tuple[int, ...], rank: int) -> Lifted:
    """The inverse: axes of one element put back, `rank` axes in all."""
    index = value.indices()
    sizes = dict(zip(kept, index.shape[1:], strict=True))
    return with_index(value, index.reshape(index.shape[0], *(sizes.get(axis, 1) for axis in range(1, rank))))


def convolution_along(walk: Walk, node: fx.Node, value: Lifted, weight: Const) -> Lifted:
    """A convolution over more axes than the image has: over one element on each of the others."""
    kept = axes_of_places(walk, value)
    if not kept:
        return at_each_place(walk, node)
    a = arguments(node)
    kernel = weight.shape[2:]
    stride, dilation = per_axis(a["stride"], len(kernel)), per_axis(a["dilation"], len(kernel))
    padding = padding_of(a, kernel, dilation)
    ops = [Sliding(k, s, d, *p) for k, s, d, p in zip(kernel, stride, dilation, padding, strict=True)]
    matrix, bias = handle_of(weight), walk.value(a["bias"])
    for axis in reversed(range(len(kernel))):
        if axis + 1 not in kept:
            tap, rest = divmod(ops[axis].pad_before, ops[axis].dilation)
            if rest or tap >= ops[axis].kernel or ops[axis].out_size(1) != 1:
                raise Cannot("a convolution that makes several places of one")
            matrix = matrix.select(2 + axis, tap)
    along = [ops[axis - 1] for axis in kept]
    if any(op.pad_before != op.pad_after for op in along):
        raise Cannot("unequal padding before and after, along axes that the network added")
    laid = walk.as_map(without_axes(value, kept))
    grid = slide(walk, node, laid, along, weight.shape[0])
    lists = ([getattr(op, name) for op in along] for name in ("stride", "pad_before", "dilation"))
    given = handle_of(bias) if isinstance(bias, Const) else None
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[walk.axes - 1]
    handle = convolve(laid.handle, matrix, given, *lists, a["groups"])
    return with_axes(Lifted(handle, grid, None, value.pooled), kept, len(value.shape))


def pool_other_axes(walk: Walk, node: fx.Node, name: str) -> Lifted:
    """A pool over other axes than the image's (over channels, for one), as a reduction of windows of the index."""
    value = walk.lifted(node.args[0])
    if max(value.grid.nominal) == 1:
        return at_each_place(walk, node)
    a = arguments(node)
    own = pooled_axes(node)
    kernel = per_axis(a["kernel_size"], own)
    stride = per_axis(a["stride"] or kernel, own)
    plain = not any(per_axis(a["padding"], own)) and not a["ceil_mode"] and not a.get("divisor_override")
    if not plain or set(per_axis(a.get("dilation", 1), own)) != {1}:
        raise Cannot(f"a pool over {own} axes of an image with {walk.axes}, with padding or dilation")
    index = value.indices()
    axes = tuple(range(index.ndim - own, index.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(index, kernel, axes)
    steps = [slice(None)] * (index.ndim - own) + [slice(None, None, s) for s in stride]
    windows = np.ascontiguousarray(windows[tuple(steps)])
    last = list(range(windows.ndim - own, windows.ndim))
    return reduced(walk, node, with_index(value, windows), last, False, name)
