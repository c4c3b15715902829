"""Operators on maps: convolutions, pools, padding, batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import as_stencil
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.extra_axes import (
    axes_of_places,
    convolution_along,
    pool_other_axes,
    with_axes,
    without_axes,
)
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, handle_of
from onebyone.pytorch.lift.rules import register
from onebyone.pytorch.lift.rules_filled import filled
from onebyone.pytorch.lift.rules_place import at_each_place
from onebyone.pytorch.lift.rules_shape import joined, with_index
from onebyone.pytorch.lift.sliding import arguments, padding_of, per_axis, pooled_axes, slide
from onebyone.pytorch.lift.window_pools import pooled

aten = torch.ops.aten

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@register(aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution.default)
def convolution(walk: Walk, node: fx.Node) -> Lifted:
    """The same convolution on a map of any size."""
    a = arguments(node)
    value = walk.lifted(a["input"])
    weight = walk.value(a["weight"])
    if not isinstance(weight, Const):
        raise Cannot("a kernel that depends on the image")
    if a.get("transposed"):
        raise Cannot("a transposed convolution gives a finer map than it reads")
    if len(weight.shape) > walk.axes + 2 and max(value.grid.nominal) > 1:
        return convolution_along(walk, node, value, weight)
    if len(weight.shape) != walk.axes + 2:
        return at_each_place(walk, node)
    value = walk.as_map(value)
    kernel = weight.shape[2:]
    stride, dilation = per_axis(a["stride"], walk.axes), per_axis(a["dilation"], walk.axes)
    ops = [
        Sliding(k, s, d, before, after)
        for k, s, d, (before, after) in zip(
            kernel, stride, dilation, padding_of(a, kernel, dilation), strict=True
        )
    ]
    # a kernel over the whole map is a linear layer over it: a window cannot show its stride
    whole = [op == Sliding(n, op.stride) for op, n in zip(ops, value.grid.nominal, strict=True)]
    ops = [replace(op, stride=1) if covers else op for op, covers in zip(ops, whole, strict=True)]
    grid = slide(walk, node, value, ops, weight.shape[0])
    rest = [_constant(walk, r) for r in node.args[1:]]
    if len(rest) > _STRIDE and any(whole):
        rest[_STRIDE] = [op.stride for op in ops]
    handle = walk.call(node.target, value.handle, *rest, **node.kwargs)  # type: ignore[arg-type]
    return Lifted(handle, grid, None, value.pooled)


_STRIDE = 2  # where convolutions have their stride, after the input: weight, bias, stride


def _constant(walk: Walk, argument: Any) -> Any:
    value = walk.value(argument)
    return handle_of(value) if isinstance(value, Const) else value


@register(
    aten.max_pool1d,
    aten.max_pool2d,
    aten.max_pool3d,
    aten.max_pool2d_with_indices,
    aten.max_pool3d_with_indices,
)
def max_pool(walk: Walk, node: fx.Node) -> Any:
    """The same maximum on a map of any size."""
    result = _pool(walk, node, "amax", _max_pool)
    return (result, None) if "with_indices" in str(node.target) else result


@register(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
def avg_pool(walk: Walk, node: fx.Node) -> Lifted:
    """The same mean on a map of any size."""
    return _pool(walk, node, "mean", _avg_pool)


def _pool(walk: Walk, node: fx.Node, name: str, over_places: Callable[..., Lifted]) -> Lifted:
    """A pool over the image's axes, by `over_places`; over others, as a reduction of windows of the index."""
    a, own = arguments(node), pooled_axes(node)
    value = walk.lifted(node.args[0])
    kernel = per_axis(a["kernel_size"], own)
    lists = (per_axis(v, own) for v in (a["stride"] or kernel, a.get("dilation", 1), a["padding"]))
    ops = [Sliding(k, s, d, p, p, bool(a["ceil_mode"])) for k, s, d, p in zip(kernel, *lists, strict=True)]
    if own == walk.axes:
        value = walk.as_map(value)
        return over_places(walk, node, value, _within(value, ops))
    kept = axes_of_places(walk, value)
    if not kept or any(op.kernel > 1 for axis, op in enumerate(ops, 1) if axis not in kept):
        return pool_other_axes(walk, node, name)
    laid = walk.as_map(without_axes(value, kept))
    result = over_places(walk, node, laid, _within(laid, [ops[axis - 1] for axis in kept]))
    return with_axes(result, kept, len(value.shape))


def _max_pool(walk: Walk, node: fx.Node, value: Lifted, ops: list[Sliding]) -> Lifted:
    if _whole_map(value, ops):
        return pooled(walk, node, value, value.grid.nominal, "amax")
    nominal = slide(walk, node, value, ops).nominal
    past = _past_the_end(value, ops)
    handle = value.handle
    if any(past):  # a partial last place, whole: the maximum with nothing
        pads = [n for extra in reversed(past) for n in (0, extra)]
        handle = walk.call(F.pad, handle, pads, value=-math.inf)
    whole = [
        Sliding(op.kernel, op.stride, op.dilation, op.pad_before, op.pad_after + extra)
        for op, extra in zip(ops, past, strict=True)
    ]
    whole = [op.at_one_place(n + extra) for op, n, extra in zip(whole, value.grid.nominal, past, strict=True)]
    lists = ([getattr(op, name) for op in whole] for name in ("kernel", "stride", "pad_before", "dilation"))
    grid = replace(value.grid.through(whole), nominal=nominal)
    return Lifted(emitter.max_pool(handle, *lists), grid, None, value.pooled)


def _within(value: Lifted, ops: list[Sliding]) -> list[Sliding]:
    """Kernels no larger than the map, which ceil_mode allows to be larger: then one place takes the whole axis."""
    return [
        replace(op, kernel=n)
        if op.ceil_mode and op.kernel > n and not op.padded() and op.dilation == 1
        else op
        for op, n in zip(ops, value.grid.nominal, strict=True)
    ]


def _past_the_end(value: Lifted, ops: list[Sliding]) -> list[int]:
    """How far the last place reaches past the map, on each axis, in one window: 0 unless ceil_mode makes it partial."""
    ends = [
        (op.out_size(n) - 1) * op.stride - op.pad_before + op.extent
        for op, n in zip(ops, value.grid.nominal, strict=True)
    ]
    return [max(0, end - n - op.pad_after) for end, n, op in zip(ends, value.grid.nominal, ops, strict=True)]


def _whole_map(value: Lifted, ops: list[Sliding]) -> bool:
    """Whether a pool takes the whole of a window's map, once each place: a global pool, written with a kernel."""
    return all(
        op == Sliding(n, op.stride, 1, 0, 0, op.ceil_mode)
        for op, n in zip(ops, value.grid.nominal, strict=True)
    )


def _avg_pool(walk: Walk, node: fx.Node, value: Lifted, ops: list[Sliding]) -> Lifted:
    a = arguments(node)
    divisor = a.get("divisor_override")
    nominal = slide(walk, node, value, ops).nominal
    if not any(_past_the_end(value, ops)):  # then ceil_mode adds nothing that a window needs
        ops = [replace(op, ceil_mode=False) for op in ops]
        if _whole_map(value, ops) and divisor in (None, math.prod(value.grid.nominal)):
            return pooled(walk, node, value, value.grid.nominal, "mean")
        ops = [op.at_one_place(n) for op, n in zip(ops, value.grid.nominal, strict=True)]
    grid = replace(value.grid.through(ops), nominal=nominal)
    given = [[getattr(op, name) for op in ops] for name in ("kernel", "stride", "pad_before")]
    last = [a["count_include_pad"], *([] if walk.axes == 1 else [divisor])]
    if walk.axes == 1 and divisor is not None:
        raise Cannot("a divisor of its own, over an axis that the network added")
    plain = getattr(aten, f"avg_pool{walk.axes}d").default
    handle = walk.call(plain, value.handle, *given, any(op.ceil_mode for op in ops), *last)
    return Lifted(handle, grid, None, value.pooled)


@register(aten.pad, aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d)
def pad(walk: Walk, node: fx.Node) -> Lifted:
    """Padding by fixed amounts; negative amounts crop. Of channels, it is a constant beside them."""
    amounts = [int(p) for p in node.args[1]]  # type: ignore[union-attr, arg-type]
    value = _cropped(walk.lifted(node.args[0]), amounts)
    grow = [max(0, p) for p in amounts]
    pairs = [(grow[2 * i], grow[2 * i + 1]) for i in range(len(grow) // 2)][::-1]
    pairs = [(0, 0)] * (len(value.shape) - len(pairs)) + pairs  # one for each axis of the value
    if len(pairs) > len(value.shape):
        raise Cannot("padding of the batch")
    a = arguments(node)
    places = axes_of_places(walk, value)
    for axis, (before, after) in enumerate(pairs):
        if axis not in places and (before or after):
            if a.get("mode", "constant") != "constant" or "on_pad" in str(node.target):
                raise Cannot("channels are padded by other channels")
            value = _with_constants(walk, node, value, axis, (before, after), a.get("value") or 0)
    pairs = [pair for axis, pair in enumerate(pairs) if axis in places]
    if not any(map(any, pairs)):
        return value
    rank = len(value.shape)
    value = walk.as_map(without_axes(value, places))
    grid = slide(walk, node, value, [Sliding(1, 1, 1, before, after) for before, after in pairs])
    sides = [side for pair in reversed(pairs) for side in pair]
    handle = walk.call(node.target, value.handle, sides, *node.args[2:], **node.kwargs)  # type: ignore[arg-type]
    return with_axes(Lifted(handle, grid, None, value.pooled), places, rank)


def _with_constants(
    walk: Walk, node: fx.Node, value: Lifted, axis: int, amounts: tuple[int, int], number: Any
) -> Lifted:
    """The value with constants before and after it along one of its axes."""
    dtype = node.meta["val"].dtype
    before, after = (filled(number, dtype, value, axis, n) if n else None for n in amounts)
    return joined(walk, [v for v in (before, value, after) if v is not None], axis + 1)


def _cropped(value: Lifted, amounts: list[int]) -> Lifted:
    """The value without what negative padding takes away: a choice of elements, so the index does it."""
    if all(p >= 0 for p in amounts):
        return value
    index = value.indices()
    for i in range(len(amounts) // 2):
        before, after = (min(0, p) for p in amounts[2 * i : 2 * i + 2])
        axis = index.ndim - 1 - i
        if axis < 0:
            raise Cannot("a crop of the batch")
        index = index.take(range(-before, index.shape[axis] + after), axis=axis)
    return with_index(value, index)


@register(
    aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default, aten.cudnn_batch_norm.default
)
def batch_norm(walk: Walk, node: fx.Node) -> Any:
    """A batch norm a channel; on a flattened map, a scale and a shift by position for the next linear layer."""
    a = arguments(node)
    value = walk.lifted(a["input"])
    mean, var = walk.value(a["running_mean"]), walk.value(a["running_var"])
    if a.get("training") or not isinstance(mean, Const) or not isinstance(var, Const):
        raise Cannot("a batch norm that takes its statistics from the batch")
    weight, bias = walk.value(a["weight"]), walk.value(a["bias"])
    result: Lifted
    try:
        laid = _channels_first(walk, value)
    except Cannot:
        laid = None
    if laid is None:
        result = _by_position(value, mean, var, weight, bias, float(a["eps"]))
    else:
        handle = _normalise(
            walk, node, laid, (mean, var, weight, bias), float(a["eps"]), float(a["momentum"])
        )
        result = with_index(replace(laid, handle=handle), laid.indices())
    return (result, None, None) if "native" in str(node.target) else result


def _channels_first(walk: Walk, value: Lifted) -> Lifted:
    """The value on a map whose channels are the value's first axis, in order."""
    if value.index is None:
        return value
    stencil = as_stencil(np.moveaxis(value.index, 0, -1), value.grid)
    if not isinstance(stencil, str) and max(stencil.kernel) > 1:
        raise Cannot("its channels are elements of a flattened map")
    laid, index = walk.with_channels(value, (0,))
    return replace(laid, index=index)


def _by_position(value: Lifted, mean: Const, var: Const, weight: Any, bias: Any, eps: float) -> Lifted:
    if len(value.shape) != 1:
        raise Cannot("a batch norm whose channels are not those of the map")
    scale = torch.rsqrt(handle_of(var) + eps)
    if isinstance(weight, Const):
        scale = scale * handle_of(weight)
    shift = -handle_of(mean) * scale
    if isinstance(bias, Const):
        shift = shift + handle_of(bias)
    return replace(value, affine=(scale, shift))


def _normalise(
    walk: Walk, node: fx.Node, value: Lifted, tensors: tuple[Any, Any, Any, Any], eps: float, momentum: float
) -> Any:
    """A batch-norm module over the network's own tensors where they belong to one module, so that training goes on."""
    mean, var, weight, bias = tensors
    path = str(mean.name).rpartition(".")[0] if mean.name else ""
    names = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}
    ours = path and all(c is None or c.name == f"{path}.{n}" for n, c in names.items())
    if ours and (weight is None) == (bias is None):
        if path not in walk.modules:
            walk.modules[path] = _module(walk, path, int(mean.shape[0]), eps, momentum, weight is not None)
        return walk.proxy(walk.graph.call_module(path, (value.handle.node,)))
    given = [handle_of(t) if isinstance(t, Const) else t for t in tensors]
    return walk.call(F.batch_norm, value.handle, *given, False, momentum, eps)


def _module(walk: Walk, path: str, features: int, eps: float, momentum: float, affine: bool) -> nn.Module:
    tensors = walk.traced.tensors
    module: nn.Module = _BATCH_NORMS[walk.axes - 1](features, eps, momentum, affine, device="meta")
    for name in ("weight", "bias"):
        if affine:
            held = tensors[f"{path}.{name}"]
            module.register_parameter(name, held if isinstance(held, nn.Parameter) else nn.Parameter(held))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        module.register_buffer(name, tensors.get(f"{path}.{name}"))
    return module.eval()
