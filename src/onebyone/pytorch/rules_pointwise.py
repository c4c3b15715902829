"""Element-wise operators: on one value, on a value and a constant, on two values that meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from onebyone.lifting.grid import Integers
from onebyone.lifting.index import as_gather, in_layout_of
from onebyone.pytorch import emit
from onebyone.pytorch.rules import register
from onebyone.pytorch.rules_context import in_context
from onebyone.pytorch.rules_shape import with_index
from onebyone.pytorch.trace import module_path
from onebyone.pytorch.walk import BY_POSITION, Cannot, Const, Lifted, Walk, functional, handle_of

aten = torch.ops.aten

UNARY = (
    aten.relu, aten.relu_, aten.relu6, aten.relu6_, aten.leaky_relu, aten.leaky_relu_, aten.elu, aten.elu_, aten.selu,
    aten.selu_, aten.celu, aten.celu_, aten.gelu, aten.gelu_, aten.silu, aten.silu_, aten.mish, aten.mish_,
    aten.hardswish, aten.hardswish_, aten.hardsigmoid, aten.hardsigmoid_, aten.hardtanh, aten.hardtanh_, aten.sigmoid,
    aten.sigmoid_, aten.tanh, aten.tanh_, aten.softplus, aten.log_sigmoid, aten.hardshrink, aten.softshrink, aten.clamp,
    aten.clamp_, aten.clamp_min, aten.clamp_min_, aten.clamp_max, aten.abs, aten.neg, aten.exp, aten.log, aten.sqrt,
    aten.rsqrt, aten.reciprocal, aten.square, aten.sign, aten.floor, aten.round, aten.erf, aten.sin,
    aten.cos, aten.log1p,
    aten._to_copy, aten.to, aten.type_as, aten.threshold, aten.threshold_, aten.nan_to_num, aten.expm1,
)  # fmt: skip

BINARY = (
    aten.add, aten.add_, aten.sub, aten.sub_, aten.mul, aten.mul_, aten.div, aten.div_, aten.maximum, aten.minimum,
    aten.pow, aten.pow_, aten.rsub, aten.true_divide, aten.subtract, aten.multiply, aten.divide,
)  # fmt: skip


@register(*UNARY)
def unary(walk: Walk, node: fx.Node) -> Lifted:
    """The operator acts on the map as it is; the index stays."""
    value = walk.lifted(node.args[0])
    if any(isinstance(walk.value(a), (Const, Lifted)) for a in node.args[1:]):
        raise Cannot("an argument that is a tensor")
    handle = walk.call(functional(node.target), value.handle, *node.args[1:], **node.kwargs)
    return replace(value, handle=handle)


@register(aten.dropout, aten.dropout_, aten.alpha_dropout, aten.feature_dropout)
def dropout(walk: Walk, node: fx.Node) -> Lifted:
    """A dropout module of the same probability: nothing in eval mode, and dropout again in training."""
    value: Lifted = walk.value(node.args[0])
    if (
        value.affine is not None
    ):  # it would act before the scale and shift that wait for the next linear layer
        return value
    kind = (
        nn.Dropout2d
        if "feature" in str(node.target)
        else nn.AlphaDropout
        if "alpha" in str(node.target)
        else nn.Dropout
    )
    name = _free_name(walk, module_path(node), node)
    walk.modules[name] = kind(float(node.args[1]))  # type: ignore[arg-type]
    handle = walk.proxy(walk.graph.call_module(name, (value.handle.node,)))
    return replace(value, handle=handle)


def _free_name(walk: Walk, path: str, node: fx.Node) -> str:
    taken = {name.rpartition(".")[0] for name in walk.traced.tensors} | set(walk.modules)
    if path and path not in taken and not any(t.startswith(path + ".") for t in taken):
        return path
    return f"{path}.{node.name}" if path else node.name


@register(*BINARY)
def binary(walk: Walk, node: fx.Node) -> Lifted:
    """Two values that meet element by element, or one and a constant."""
    target, extra, kwargs = functional(node.target), node.args[2:], node.kwargs

    def act(a: Any, b: Any) -> Any:
        return walk.call(target, a, b, *extra, **kwargs)

    return combine(walk, node, walk.value(node.args[0]), walk.value(node.args[1]), act, _shape(node))


@register(aten.glu.default)
def glu(walk: Walk, node: fx.Node) -> Lifted:
    """One half times the sigmoid of the other."""
    value = walk.lifted(node.args[0])
    axis = int(node.args[1] if len(node.args) > 1 else -1) % (len(value.shape) + 1) - 1  # type: ignore[arg-type]
    if axis < 0:
        raise Cannot("halves of the batch")
    first, second = (walk.compact(with_index(value, i)) for i in np.split(value.indices(), 2, axis))
    gate = replace(second, handle=torch.sigmoid(second.handle))
    return combine(walk, node, first, gate, lambda a, b: torch.mul(a, b), _shape(node))


@register(aten.addcmul.default, aten.addcdiv.default)
def addcmul(walk: Walk, node: fx.Node) -> Lifted:
    """`a + value · b · c`, or `b / c`."""
    a, b, c = (walk.value(v) for v in node.args[:3])
    factor: Any = node.kwargs.get("value", 1)
    both = torch.mul if "mul" in str(node.target) else torch.div
    shape = _shape(node)
    if not isinstance(b, Lifted) and not isinstance(c, Lifted):
        raise Cannot("a product of constants, scaled")
    part = combine(walk, node, b, c, lambda p, q: both(p, q), shape)
    return combine(walk, node, a, part, lambda p, q: torch.add(p, q, alpha=factor), shape)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape[1:])


def combine(
    walk: Walk, node: fx.Node, a: Any, b: Any, act: Callable[[Any, Any], Any], shape: tuple[int, ...]
) -> Lifted:
    """Two operands, at least one of them lifted, element by element; the result has `shape`, by broadcasting."""
    if any(isinstance(v, Lifted) and v.affine is not None for v in (a, b)):
        raise Cannot(BY_POSITION)
    if isinstance(a, Lifted) and isinstance(b, Lifted):
        return _meet(walk, node, a, b, act, shape)
    value, other, turned = (a, b, False) if isinstance(a, Lifted) else (b, a, True)
    if isinstance(other, Const):
        value, other = with_constant(walk, value, other, shape)
    handle = act(other, value.handle) if turned else act(value.handle, other)
    return replace(value, handle=handle)


def with_constant(walk: Walk, value: Lifted, constant: Const, shape: tuple[int, ...]) -> tuple[Lifted, Any]:
    """The value laid out as a map of `shape`'s elements, and the constant as one number a channel of it."""
    ids = _ids(constant.shape, shape)
    if ids.size and (ids == ids.flat[0]).all() and value.shape == shape:
        return value, emit.per_channel(handle_of(constant), ids.ravel()[:1], 0)
    value = _anchor(walk, value, shape)
    laid = ids if value.index is None else in_layout_of(ids, value.index, value.grid)
    laid = laid.reshape(value.grid.channels, -1)
    if not (laid == laid[:, :1]).all():
        raise Cannot(
            "a constant that depends on the position is combined with the map (a position embedding, for one)"
        )
    return value, emit.per_channel(handle_of(constant), laid[:, 0], walk.axes)


def _ids(constant: tuple[int, ...], shape: tuple[int, ...]) -> Integers:
    """Which element of the constant meets each element of a value of `shape`."""
    if len(constant) > len(shape):
        if constant[0] != 1 or len(constant) != len(shape) + 1:
            raise Cannot("a constant made for each sample of the batch (a position encoding, for one)")
        constant = constant[1:]
    numbers = np.arange(int(np.prod(constant)), dtype=np.int64).reshape(constant)
    return np.asarray(np.broadcast_to(numbers, shape))


def _anchor(walk: Walk, value: Lifted, shape: tuple[int, ...]) -> Lifted:
    """The value on a map that holds each element of `shape` exactly once."""
    if value.index is None and value.shape == shape:
        return value
    index = np.broadcast_to(value.indices(), shape)
    return walk.compact(replace(value, index=np.ascontiguousarray(index)))


def _meet(
    walk: Walk, node: fx.Node, a: Lifted, b: Lifted, act: Callable[[Any, Any], Any], shape: tuple[int, ...]
) -> Lifted:
    swapped = a.shape != shape or (b.shape == shape and a.grid.image_wide and not b.grid.image_wide)
    anchor, other = (b, a) if swapped else (a, b)
    if anchor.grid.image_wide and not other.grid.image_wide:
        raise Cannot("a value of the whole image is spread over windows")
    same = anchor.grid.shape == other.grid.shape and anchor.shape == other.shape == shape
    if not (same and _equal(anchor.index, other.index)):
        anchor = _anchor(walk, anchor, shape)
        other = _laid_as(walk, node, other, anchor, shape)
    if other.grid.image_wide and not anchor.grid.image_wide:
        first, second, grid = anchor, other, anchor.grid
    else:
        wide = replace(other, grid=replace(other.grid, nominal=anchor.grid.nominal))
        (first, second), grid = walk.met([anchor, wide])
    pair = (second, first) if swapped else (first, second)
    handle = act(pair[0].handle, pair[1].handle)
    return Lifted(
        handle, replace(grid, channels=anchor.grid.channels), anchor.index, first.pooled | second.pooled
    )


def _equal(a: Integers | None, b: Integers | None) -> bool:
    """Whether two indices of one shape into grids of one shape are the same; None is the identity."""
    if a is None or b is None:
        return a is b  # a written-out index is never the identity
    return np.array_equal(a, b)


def _laid_as(walk: Walk, node: fx.Node, value: Lifted, anchor: Lifted, shape: tuple[int, ...]) -> Lifted:
    """The value's elements laid out as the anchor's map is."""
    index = np.asarray(np.broadcast_to(value.indices(), shape))
    laid = index if anchor.index is None else in_layout_of(index, anchor.index, anchor.grid)
    plan = as_gather(laid, value.grid)
    if isinstance(plan, str):
        raise Cannot(f"two values meet that lie differently in the image: {plan}")
    if (plan.channels == plan.channels[0]).all() and (plan.starts == plan.starts[:, :1]).all():
        plan = replace(plan, channels=plan.channels[:1], starts=plan.starts[:, :1])  # one channel serves all
    if not plan.broadcast:
        return walk.gathered(value, plan)
    return in_context(walk, node, value, plan, anchor.grid.nominal)


@register(aten.prelu, aten._prelu_kernel)
def prelu(walk: Walk, node: fx.Node) -> Lifted:
    """A slope a channel, or one for all."""
    value, weight = walk.lifted(node.args[0]), walk.value(node.args[1])
    if not isinstance(weight, Const):
        raise Cannot("a slope that depends on the image")
    if int(np.prod(weight.shape)) > 1:
        length = (1,) * (len(value.shape) - 1)
        weight = replace(weight, shape=(int(np.prod(weight.shape)), *length))
    value, slope = with_constant(walk, value, weight, value.shape)
    return replace(value, handle=torch.where(value.handle > 0, value.handle, value.handle * slope))
