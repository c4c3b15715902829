"""Values of a whole window that act on each of its places: squeeze-and-excitation, instance and group statistics.

Neighbouring windows share their places, so such a value cannot be right for all of them. It is refused, or taken by a
choice: over the window around each place, or over the image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.lifting.grid import Grid
from onebyone.lifting.index import Gather
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, handle_of
from onebyone.pytorch.lift.rules import register
from onebyone.pytorch.lift.rules_place import at_each_place
from onebyone.pytorch.lift.sliding import arguments
from onebyone.pytorch.lift.window_pools import pooled

aten = torch.ops.aten

CHOOSE = (
    "global context: a value pooled over the whole window acts on every place of it; choose context='window' "
    "(pooled over the window around each place) or context='image' (over the whole image)"
)


def in_context(walk: Walk, node: fx.Node, value: Lifted, plan: Gather, nominal: tuple[int, ...]) -> Lifted:
    """A value per window, laid out for maps of `nominal` places per window, by the walk's choice of context."""
    if not value.pooled:
        raise Cannot("a value of one place is repeated over places, and it is no pool over the window")
    if walk.context is None:
        raise Cannot(CHOOSE)
    walk.context_nodes |= value.pooled
    walk.not_exact(
        node, f"global context, taken over the {walk.context}: neighbouring windows share their places"
    )
    gathered = walk.gathered(value, plan)
    if gathered.grid.image_wide:
        return gathered
    size = [nominal[a] if a in plan.broadcast else 1 for a in range(walk.axes)]
    handle = walk.call(emitter.spread, gathered.handle, tuple(size))
    return replace(gathered, handle=handle, grid=_spread(gathered.grid, size))


def _spread(grid: Grid, size: list[int]) -> Grid:
    fields = tuple(f.shifted(-((n - 1) // 2)) for f, n in zip(grid.fields, size, strict=True))
    sizes = tuple(tuple(m + n - 1 for m in s) for s, n in zip(grid.sizes, size, strict=True))
    return replace(grid, fields=fields, sizes=sizes, nominal=tuple(size))


@register(aten.instance_norm.default)
def instance_norm(walk: Walk, node: fx.Node) -> Lifted:
    """Mean and variance of each channel over the places."""
    a = arguments(node)
    value = walk.as_map(walk.lifted(a["input"]))
    if not a["use_input_stats"]:
        raise Cannot("an instance norm with running statistics")
    return _standardised(
        walk, node, value, value.grid.channels, walk.value(a["weight"]), walk.value(a["bias"]), a["eps"]
    )


@register(aten.group_norm.default, aten.native_group_norm.default)
def group_norm(walk: Walk, node: fx.Node) -> Any:
    """Mean and variance over groups of channels and the places; as it is where the window has one place."""
    a = arguments(node)
    value = walk.lifted(node.args[0])
    if max(value.grid.nominal) == 1 or len(value.shape) == 1:
        return at_each_place(walk, node)
    value = walk.as_map(value)
    groups = int(a["num_groups"] if "num_groups" in a else a["group"])
    result = _standardised(
        walk, node, value, groups, walk.value(a["weight"]), walk.value(a["bias"]), a["eps"]
    )
    return (result, None, None) if "native" in str(node.target) else result


def _standardised(
    walk: Walk, node: fx.Node, value: Lifted, groups: int, weight: Any, bias: Any, eps: float
) -> Lifted:
    """`(x - mean) / sqrt(var + eps) * weight + bias`, with the statistics by context."""
    nominal, channels = value.grid.nominal, value.grid.channels
    mean = pooled(walk, node, value, nominal, "mean")
    square = pooled(walk, node, replace(value, handle=value.handle * value.handle), nominal, "mean")
    first = emitter.over_groups(mean.handle, groups)
    second = emitter.over_groups(square.handle, groups)
    spread = (second - first * first).clamp_min(0)
    plan, each = _everywhere(channels, nominal), channels // groups
    low = in_context(walk, node, replace(mean, handle=emitter.of_groups(first, each)), plan, nominal)
    scale = emitter.of_groups(torch.rsqrt(spread + eps), each)
    high = in_context(walk, node, replace(mean, handle=scale), plan, nominal)
    if low.grid.image_wide:
        (met, grid), low_handle, high_handle = (value, value.grid), low.handle, high.handle
    else:
        (met, a, b), grid = walk.met([value, low, high])
        low_handle, high_handle = a.handle, b.handle
    handle = (met.handle - low_handle) * high_handle
    ids = np.arange(channels)
    if isinstance(weight, Const):
        handle = handle * emitter.per_channel(handle_of(weight), ids, walk.axes)
    if isinstance(bias, Const):
        handle = handle + emitter.per_channel(handle_of(bias), ids, walk.axes)
    return Lifted(handle, replace(grid, channels=channels), None, value.pooled)


def _everywhere(channels: int, nominal: tuple[int, ...]) -> Gather:
    """One value a channel for all places."""
    axes = len(nominal)
    wide = tuple(a for a in range(axes) if nominal[a] > 1)
    starts = np.zeros((axes, channels), dtype=np.int64)
    return Gather(np.arange(channels), starts, (1,) * axes, (1,) * axes, wide)
