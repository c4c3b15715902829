"""Operators along the elements of one place, or of one window: softmax, variance, sorting, running sums, maxima.

They mix the elements along some axes of the value and leave all others alone. So the elements along those axes become
channels, in groups where the other axes choose among channels too, and the operator itself runs along them. Where the
order does not matter, the places of a window are a view of the map instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import Groups, as_window
from onebyone.pytorch.lift.exported_graph import module_path
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, functional, op_name
from onebyone.pytorch.lift.rules import refusing, register
from onebyone.pytorch.lift.rules_reduce import by_channel, reduced, value_axes
from onebyone.pytorch.lift.rules_shape import with_index
from onebyone.pytorch.lift.sliding import arguments
from onebyone.records import Change

aten = torch.ops.aten

#: Over any number of axes, in any order: of channels, of the places of a window, or of both.
ORDER_FREE = (
    aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim, aten.var_mean.correction,
    aten.std_mean.correction, aten.var_mean.dim, aten.std_mean.dim, aten.logsumexp.default, aten.nansum.default,
    aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype,
    aten.count_nonzero.dim_IntList,
)  # fmt: skip
#: Over one axis, whose elements keep their order.
ORDERED = (
    aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default, aten.cumsum.default,
    aten.cumprod.default, aten.logcumsumexp.default, aten.cummax.default, aten.cummin.default, aten.sort.default,
    aten.sort.stable, aten.argsort.default, aten.argsort.stable, aten.topk.default,
    aten.kthvalue.default, aten.median.dim, aten.nanmedian.dim, aten.mode.default, aten.argmax.default,
    aten.argmin.default, aten.prod.dim_int, aten.any.dim, aten.all.dim, aten.diff.default,
)  # fmt: skip

refusing(
    "a reduction over the whole batch, which mixes its samples",
    aten.mean.default, aten.sum.default, aten.max.default, aten.min.default, aten.prod.default, aten.var.default,
    aten.std.default, aten.median.default, aten.any.default, aten.all.default, aten.var_mean.default,
    aten.std_mean.default, aten.norm.Scalar, aten.norm.ScalarOpt_dtype,
)  # fmt: skip


@register(*ORDERED)
def along(walk: Walk, node: fx.Node) -> Any:
    """The operator along one axis, whose elements are brought side by side as channels of one place."""
    given = arguments(node)
    value = walk.lifted(node.args[0])
    axes = value_axes(given["dim"], len(value.shape))
    laid, groups = walk.with_groups(value, tuple(axes))
    made = _run(walk, node, laid.handle.unflatten(1, (groups.count, -1)), [2])
    return _results(node, made, laid, groups, axes)


@register(aten.max.dim, aten.min.dim)
def extremum(walk: Walk, node: fx.Node) -> Any:
    """The largest or smallest elements, and where they are; the first alone where no one asks for the second."""
    if any(user.args[1] == 1 for user in node.users):
        return along(walk, node)
    given = arguments(node)
    value = walk.lifted(node.args[0])
    name = "amax" if "max" in str(node.target) else "amin"
    axes = value_axes(given["dim"], len(value.shape))
    return (reduced(walk, node, value, axes, bool(given["keepdim"]), name), None)


@register(aten.linalg_vector_norm.default)
def vector_norm(walk: Walk, node: fx.Node) -> Any:
    """A norm; of order 2 by the pools that any network has."""
    given = arguments(node)
    if given["ord"] != 2 or given["dtype"] is not None:
        return over(walk, node)
    value = walk.lifted(node.args[0])
    axes = value_axes(given["dim"], len(value.shape))
    return reduced(walk, node, value, axes, bool(given["keepdim"]), "linalg_vector_norm")


@register(*ORDER_FREE)
def over(walk: Walk, node: fx.Node) -> Any:
    """A reduction over channels, over the places of a window, or over both."""
    given = arguments(node)
    value = walk.lifted(node.args[0])
    axes = value_axes(given["dim"], len(value.shape))
    index = np.moveaxis(value.indices(), axes, range(-len(axes), 0))
    rows = index.reshape(*index.shape[: -len(axes)], -1)
    laid = by_channel(rows, value.grid)
    plan = "" if laid is None else as_window(laid, value.grid)
    if isinstance(plan, str) or max(plan.kernel) == 1:
        brought, groups = walk.with_groups(with_index(value, rows), (rows.ndim - 1,))
        made = _run(walk, node, brought.handle.unflatten(1, (groups.count, -1)), [2])
        return _results(node, made, brought, groups, axes)
    windows = _windows(walk, node, value, plan.kernel)
    brought, groups = walk.with_groups(with_index(windows, plan.index), (plan.index.ndim - 1,))
    handle = brought.handle.unflatten(1, (groups.count, -1))
    made = _run(walk, node, handle, [2, *range(-walk.axes, 0)])
    return _results(node, made, brought, groups, axes)


def _windows(walk: Walk, node: fx.Node, value: Lifted, kernel: tuple[int, ...]) -> Lifted:
    """A view of the map with the `kernel` places from each place on as its last axes, `(N, C, *places, *kernel)`."""
    name, full = op_name(node.target).removeprefix("aten."), kernel == value.grid.nominal
    if full and walk.head == "cam" and node.name not in walk.context_nodes:
        raise Cannot(f"head='cam' needs an average pool before the classifier, not {name}")
    grid = value.grid.through([Sliding(k) for k in kernel])
    handle = value.handle
    if full and node.name in walk.image_wide:
        if not name.startswith(("var", "std")):
            raise Cannot(f"context='image' of {name}, which depends on the number of places")
        for _ in kernel:
            handle = handle.unsqueeze(2)
        grid = replace(grid, sizes=((1,) * len(grid.sizes[0]),) * walk.axes, image_wide=True)
    else:
        for axis, length in enumerate(kernel):
            handle = handle.unfold(2 + axis, length, 1)
    size = "×".join(map(str, kernel))
    law = "global pool = pool over the window"
    walk.changes.append(
        Change(module_path(node), op_name(node.target), law, f"{name} over the map", f"{name} over {size}")
    )
    return Lifted(handle, grid, None, value.pooled | ({node.name} if full else set()))


def _run(walk: Walk, node: fx.Node, handle: Any, dims: list[int]) -> Any:
    """The node's own operator on `handle` over `dims`, kept where it can keep them."""
    given = arguments(node)
    if any(isinstance(walk.value(v), (Const, Lifted)) for v in list(given.values())[1:]):
        raise Cannot("an argument that is a tensor")
    target = functional(node.target)
    args, kwargs = [handle], {}
    for argument in list(target._schema.arguments)[1:]:
        held = given[argument.name]
        if argument.name == "dim":
            held = dims if "List" in str(argument.type) else dims[0]
        elif argument.name == "keepdim":
            held = False
        if argument.kwarg_only:
            kwargs[argument.name] = held
        else:
            args.append(held)
    return walk.call(target, *args, **kwargs)


def _results(node: fx.Node, made: Any, laid: Lifted, groups: Groups, axes: list[int]) -> Any:
    """What the operator gave on the groups, as lifted values of the shapes that the network knows."""
    metas = node.meta["val"]
    if isinstance(metas, torch.Tensor):
        return _result(node, made, metas, laid, groups, axes)
    return tuple(_result(node, made[i], m, laid, groups, axes) for i, m in enumerate(metas))


def _result(
    node: fx.Node, handle: Any, meta: torch.Tensor, laid: Lifted, groups: Groups, axes: list[int]
) -> Lifted:
    shape = tuple(int(n) for n in meta.shape[1:])
    if "keepdim" in arguments(node):  # one number a row
        grid = replace(laid.grid, channels=groups.count)
        return with_index(Lifted(handle, grid, None, laid.pooled), groups.out_index(1).reshape(shape))
    (axis,) = axes
    grid = replace(laid.grid, channels=groups.count * shape[axis])
    index = np.ascontiguousarray(np.moveaxis(groups.out_index(shape[axis]), -1, axis))
    return with_index(Lifted(handle.flatten(1, 2), grid, None, laid.pooled), index)
