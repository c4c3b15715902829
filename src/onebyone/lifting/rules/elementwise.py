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
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.exported_graph import module_path
from onebyone.pytorch.lift.lifter import (
    BY_POSITION,
    Cannot,
    Const,
    Lifted,
    Walk,
    functional,
    handle_of,
    op_name,
)
from onebyone.pytorch.lift.rules import register
from onebyone.pytorch.lift.rules_context import in_context
from onebyone.pytorch.lift.rules_shape import with_index

aten = torch.ops.aten

#: Element-wise operators that do not bear PyTorch's own mark for them (`torch.Tag.pointwise`).
UNMARKED = (
    aten.relu6_, aten.gelu_, aten.mish_, aten.hardswish, aten.hardswish_, aten.log_sigmoid, aten.threshold_,
    aten.rrelu_, aten._to_copy, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.fix, aten.isreal,
    aten.rsub, aten.subtract, aten.multiply, aten.divide, aten.true_divide, aten.floor_divide, aten.negative,
    aten.absolute, aten.greater, aten.greater_equal, aten.less, aten.less_equal, aten.not_equal, aten.arctan,
    aten.arctan2, aten.arccos, aten.arcsin, aten.arcsinh, aten.arccosh, aten.arctanh, aten.special_expit,
    aten.special_logit, aten.special_erf, aten.where, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_,
    aten.__and__, aten.__or__,
)  # fmt: skip


@register(*UNMARKED)
def each_element(walk: Walk, node: fx.Node) -> Lifted:
    """An operator on each element by itself: on one value, on a value and constants, on values that meet."""
    if not isinstance(node.meta["val"], torch.Tensor):
        raise Cannot("it gives no tensor of its operands' elements")
    sources = node.all_input_nodes

    def act(*handles: Any) -> Any:
        by_node = dict(zip(sources, handles, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: by_node[n])
        return walk.call(functional(node.target), *args, **kwargs)

    return combine(walk, node, [walk.value(source) for source in sources], act, _shape(node))


@register(aten.type_as, aten.to.other)
def cast(walk: Walk, node: fx.Node) -> Lifted:
    """The value in the type of another, whose shape does not matter."""
    value, other = walk.lifted(node.args[0]), walk.value(node.args[1])
    return replace(value, handle=walk.call(node.target, value.handle, other, *node.args[2:], **node.kwargs))  # type: ignore[arg-type]


@register(
    aten.dropout,
    aten.dropout_,
    aten.alpha_dropout,
    aten.alpha_dropout_,
    aten.feature_dropout,
    aten.feature_dropout_,
    aten.feature_alpha_dropout,
    aten.feature_alpha_dropout_,
)
def dropout(walk: Walk, node: fx.Node) -> Lifted:
    """A dropout module of the same probability: nothing in eval mode, and dropout again in training."""
    value: Lifted = walk.value(node.args[0])
    if (
        value.affine is not None
    ):  # it would act before the scale and shift that wait for the next linear layer
        return value
    whole_channels = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[walk.axes - 1]
    kinds = {
        "dropout": nn.Dropout,
        "alpha_dropout": nn.AlphaDropout,
        "feature_dropout": whole_channels,
        "feature_alpha_dropout": nn.FeatureAlphaDropout,
    }
    kind = kinds[op_name(node.target).removeprefix("aten.").rstrip("_")]
    name = _free_name(walk, module_path(node), node)
    walk.modules[name] = kind(float(node.args[1]))  # type: ignore[arg-type]
    handle = walk.proxy(walk.graph.call_module(name, (value.handle.node,)))
    return replace(value, handle=handle)


def _free_name(walk: Walk, path: str, node: fx.Node) -> str:
    taken = {name.rpartition(".")[0] for name in walk.traced.tensors} | set(walk.modules)
    if path and path not in taken and not any(t.startswith(path + ".") for t in taken):
        return path
    return f"{path}.{node.name}" if path else node.name


@register(aten.glu.default)
def glu(walk: Walk, node: fx.Node) -> Lifted:
    """One half times the sigmoid of the other."""
    value = walk.lifted(node.args[0])
    axis = int(node.args[1] if len(node.args) > 1 else -1) % (len(value.shape) + 1) - 1  # type: ignore[arg-type]
    if axis < 0:
        raise Cannot("halves of the batch")
    first, second = (walk.compact(with_index(value, i)) for i in np.split(value.indices(), 2, axis))
    gate = replace(second, handle=torch.sigmoid(second.handle))
    return combine(walk, node, [first, gate], lambda a, b: torch.mul(a, b), _shape(node))


@register(aten.addcmul.default, aten.addcdiv.default)
def addcmul(walk: Walk, node: fx.Node) -> Lifted:
    """`a + value · b · c`, or `b / c`."""
    a, b, c = (walk.value(v) for v in node.args[:3])
    factor: Any = node.kwargs.get("value", 1)
    both = torch.mul if "mul" in str(node.target) else torch.div
    shape = _shape(node)
    if not isinstance(b, Lifted) and not isinstance(c, Lifted):
        raise Cannot("a product of constants, scaled")
    part = combine(walk, node, [b, c], lambda p, q: both(p, q), shape)
    return combine(walk, node, [a, part], lambda p, q: torch.add(p, q, alpha=factor), shape)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape[1:])


def combine(
    walk: Walk, node: fx.Node, operands: list[Any], act: Callable[..., Any], shape: tuple[int, ...]
) -> Lifted:
    """Operands, at least one of them lifted, element by element; the result has `shape`, by broadcasting."""
    values = [v for v in operands if isinstance(v, Lifted)]
    if any(v.affine is not None for v in values):
        raise Cannot(BY_POSITION)
    if not values:
        raise Cannot("constants alone")
    anchor = _first_of_shape(values, shape)
    if anchor.grid.image_wide and not all(v.grid.image_wide for v in values):
        raise Cannot("a value of the whole image is spread over windows")
    fields = [_ids(v, shape) if isinstance(v, Const) else None for v in operands]
    alike = all(
        v.grid.shape == anchor.grid.shape and v.shape == shape and _equal(v.index, anchor.index)
        for v in values
    )
    if not alike or any(ids is not None and not _one_number(ids) for ids in fields):
        laid = _anchor(walk, anchor, shape)
        values = [laid if v is anchor else _laid_as(walk, node, v, laid, shape) for v in values]
        anchor = laid
    near = [i for i, v in enumerate(values) if v.grid.image_wide == anchor.grid.image_wide]
    met, grid = walk.met(
        [replace(values[i], grid=replace(values[i].grid, nominal=anchor.grid.nominal)) for i in near]
    )
    for i, value in zip(near, met, strict=True):
        values[i] = value
    handles = iter([v.handle for v in values])
    given = [
        next(handles) if ids is None else _constant(walk, v, ids, anchor)
        for v, ids in zip(operands, fields, strict=True)
    ]
    pooled: frozenset[str] = frozenset().union(*(v.pooled for v in values))
    return Lifted(act(*given), replace(grid, channels=anchor.grid.channels), anchor.index, pooled)


def _first_of_shape(values: list[Lifted], shape: tuple[int, ...]) -> Lifted:
    """The operand that the others are laid out like: one of the result's shape and of windows, where there is one."""
    local = [v for v in values if not v.grid.image_wide]
    for some in (local, values):
        for value in some:
            if value.shape == shape:
                return value
    return (local or values)[-1]


def _one_number(ids: Integers) -> bool:
    return bool(ids.size and (ids == ids.flat[0]).all())


def _constant(walk: Walk, constant: Const, ids: Integers, anchor: Lifted) -> Any:
    """The constant as one number for all, or as one a channel of the anchor's map."""
    if not constant.shape:
        return handle_of(constant)
    if _one_number(ids):
        return emitter.per_channel(handle_of(constant), ids.ravel()[:1], 0)
    return per_channel(walk, constant, ids, anchor)


def per_channel(walk: Walk, constant: Const, ids: Integers, value: Lifted) -> Any:
    """The constant's elements `ids`, of the value's shape, as one number a channel of the value's map."""
    laid = ids if value.index is None else in_layout_of(ids, value.index, value.grid)
    laid = laid.reshape(value.grid.channels, -1)
    if not (laid == laid[:, :1]).all():
        raise Cannot(
            "a constant that depends on the position is combined with the map (a position embedding, for one)"
        )
    return emitter.per_channel(handle_of(constant), laid[:, 0], walk.axes)


def _ids(constant: Const, shape: tuple[int, ...]) -> Integers:
    """Which element of the constant meets each element of a value of `shape`."""
    own = constant.shape
    if constant.single is not None:
        return np.zeros(shape, dtype=np.int64)
    if len(own) > len(shape):
        if own[0] != 1 or len(own) != len(shape) + 1:
            raise Cannot("a constant made for each sample of the batch (a position encoding, for one)")
        own = own[1:]
    numbers = np.arange(int(np.prod(own)), dtype=np.int64).reshape(own)
    return np.asarray(np.broadcast_to(numbers, shape))


def _anchor(walk: Walk, value: Lifted, shape: tuple[int, ...]) -> Lifted:
    """The value on a map that holds each element of `shape` exactly once."""
    if value.index is None and value.shape == shape:
        return value
    index = np.broadcast_to(value.indices(), shape)
    return walk.compact(replace(value, index=np.ascontiguousarray(index)))


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
    count = int(np.prod(weight.shape))
    slopes = replace(weight, shape=(count, *(1,) * (len(value.shape) - 1)) if count > 1 else (1,))

    def act(x: Any, slope: Any) -> Any:
        return torch.where(x > 0, x, x * slope)

    return combine(walk, node, [value, slopes], act, value.shape)
