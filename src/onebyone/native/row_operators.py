"""Steps on rows of numbers: linear layers, norms of rows, activations, concatenations and means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onebyone.native.kernels.program import Activation, Kind, Map, Step, on_axes
from onebyone.native.layout import Value, aten, in_order, laid, rows_map, runs, size, turned
from onebyone.native.lowering import SHORT, Planning, preferred
from onebyone.native.unserved import UnservedError

ACTIVATIONS = {
    aten.relu.default: Activation.RELU,
    aten.relu_.default: Activation.RELU,
    aten.hardtanh.default: Activation.RELU6,
    aten.hardtanh_.default: Activation.RELU6,
    aten.relu6.default: Activation.RELU6,
    aten.hardswish.default: Activation.HARDSWISH,
    aten.hardswish_.default: Activation.HARDSWISH,
    aten.hardsigmoid.default: Activation.HARDSIGMOID,
    aten.hardsigmoid_.default: Activation.HARDSIGMOID,
    aten.silu.default: Activation.SILU,
    aten.silu_.default: Activation.SILU,
    aten.sigmoid.default: Activation.SIGMOID,
    aten.sigmoid_.default: Activation.SIGMOID,
    aten.gelu.default: Activation.GELU,
    aten.gelu_.default: Activation.GELU,
}
_TAKES = (Kind.CONVOLUTION, Kind.DEPTHWISE, Kind.ELEMENTWISE, Kind.LINEAR)


def linear(plan: Planning, node: Any) -> None:
    """A linear layer on the last axis."""
    source, *given = [*node.args, None][:3]
    weight, bias = (plan.constant(g) for g in given)
    if weight is None or (bias is None and given[1] is not None):
        raise UnservedError("a linear layer whose weight is no parameter")
    plan.values[node] = product_of_rows(plan, node, plan.value(source), weight, bias)


def product_of_rows(plan: Planning, node: Any, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """x·Wᵀ + bias. One row a sample goes by the products of convolutions: the weights are then read once."""
    shape, k = tuple(node.meta["val"].shape), weight.shape[1]
    if len(shape) < 2 or weight.dim() != 2:
        raise UnservedError(f"{node.target} of a single row")
    rows = math.prod(shape[:-1])
    source, order = _rows(plan, x)
    if order is not None:
        placed = torch.empty_like(weight)
        placed[:, order] = weight  # as the row lies
        weight = placed
    if len(shape) == 2 and rows == plan.samples:
        source = source if source.shape[0] == rows else Map((rows, k, 1, 1), base=source)
        sizes = on_axes((1, 1), (1, 1), (0, 0), (1, 1)) | {"height": 1, "width": 1, "channels": k}
        y = Map((rows, len(weight), 1, 1))
        step = Step(Kind.CONVOLUTION, source, y, weight[:, :, None, None], bias, sizes=sizes)
    else:
        sizes = {"samples": rows, "channels": k, "outputs": len(weight)}
        step = Step(Kind.LINEAR, source, rows_map(shape), weight, bias, sizes=sizes)
    return laid(shape, plan.add(step))


def _rows(plan: Planning, x: Value) -> tuple[Map, Tensor | None]:
    """A map that holds rows one after another, and in which order, the same for all, each one's numbers lie."""
    at = x.at.reshape(-1, x.shape[-1])
    rows, length = at.shape
    first = at[0]
    if rows * length == size(x.memory) and not in_order(first) and in_order(first.sort().values):
        apart = length * torch.arange(rows)[:, None]
        if torch.equal(at, first + apart):
            return x.memory, first
    return plan.dense(x), None


def layer_norm(plan: Planning, node: Any) -> None:
    """Over the last axis."""
    source, shape, *given = [*node.args, *[None] * 3][:5]
    x = plan.value(source)
    if tuple(shape) != x.shape[-1:]:
        raise UnservedError(f"a norm over more than the last axis {tuple(shape)}")
    weight, bias = (plan.constant(g) for g in given[:2])
    if any(c is None and g is not None for c, g in zip((weight, bias), given[:2], strict=True)):
        raise UnservedError("a norm whose weight is no parameter")
    rows, length = x.at.reshape(-1, x.shape[-1]), x.shape[-1]
    memory, index = x.memory, rows[:, 0].contiguous()
    if not torch.equal(rows, index[:, None] + torch.arange(length)):
        memory, index = plan.dense(x), torch.arange(len(rows)) * length
    dense = torch.equal(index, torch.arange(len(rows)) * length)
    sizes = {"samples": len(rows), "channels": length, "outputs": length}
    step = Step(
        Kind.LAYER_NORM, memory, rows_map(x.shape), weight, bias, index=None if dense else index,
        sizes=sizes, number=1e-5 if given[2] is None else float(given[2]),
    )  # fmt: skip
    plan.values[node] = laid(x.shape, plan.add(step))


def activation(plan: Planning, node: Any) -> None:
    """Part of the step before it where nothing else reads that."""
    kind = ACTIVATIONS[node.target]
    if kind == Activation.RELU6 and tuple(node.args[1:]) not in ((0, 6), (0.0, 6.0), ()):
        raise UnservedError(f"hardtanh between {node.args[1:]}")
    if kind == Activation.GELU and node.kwargs.get("approximate", "none") == "tanh":
        kind = Activation.GELU_TANH
    value = plan.value(node.args[0])
    last = plan.producer(value)
    if last is not None and last.kind in _TAKES and last.activation == Activation.NONE:
        last.activation = kind
        plan.values[node] = value
        return
    if value.moved is not None and len(value.moved.reshape(-1)) != size(value.memory):
        value = laid(value.shape, plan.dense(value))
    x = value.memory
    y = plan.add(Step(Kind.ELEMENTWISE, x, Map(x.shape), activation=kind, add=x))
    plan.values[node] = Value(y, value.moved)


def joined(plan: Planning, node: Any) -> None:
    """Parts put together along an axis, constants among them."""
    parts, axis = node.args[0], [*node.args, 0][1]
    shape = tuple(node.meta["val"].shape)
    axis %= len(shape)
    stacked = node.target is aten.stack.default
    found = [(part, _part(plan, part)) for part in parts]
    y, begin = rows_map(shape), 0
    within = math.prod(shape[axis + 1 :])
    outer = math.prod(shape[:axis])
    for _, (source, weight, at) in found:
        block = at.unsqueeze(axis) if stacked else at
        flat, each = block.reshape(-1), block.shape[axis] * within
        if not each:
            continue
        if source is not None and runs(flat) < SHORT and turned(flat) is not None:
            source, flat = plan.copied(flat, tuple(block.shape), source), torch.arange(len(flat))
        length = preferred(math.gcd(runs(flat), each), block.shape[-1])
        sizes = {"pad_h": begin, "high": each // length, "wide": shape[axis] * within if outer > 1 else 0}
        plan.gather(flat, y, source, weight, length, **sizes)
        begin += each
    plan.values[node] = laid(shape, y)


def _part(plan: Planning, part: Any) -> tuple[Map | None, Tensor | None, Tensor]:
    """A map or a constant, and where in it the part is."""
    constant = plan.constant(part)
    if constant is None:
        value = plan.value(part)
        return value.memory, None, value.at
    for axis, step in enumerate(constant.stride()):
        constant = constant.narrow(axis, 0, 1) if step == 0 and constant.shape[axis] > 1 else constant
    at = torch.arange(constant.numel()).view(constant.shape)
    return None, constant.contiguous(), at.expand(plan.constant(part).shape)  # type: ignore[union-attr]


def mean(plan: Planning, node: Any) -> None:
    """Over all axes but the first and one other."""
    given, axes = node.args[:2]
    x = plan.value(given)
    dims = len(x.shape)
    axes = range(dims) if axes is None or axes == [] else axes
    over = sorted({a % dims for a in ([axes] if isinstance(axes, int) else axes)})
    kept = [a for a in range(dims) if a not in over]
    if len(kept) != 2 or kept[0] != 0 or node.kwargs.get("dtype") not in (None, torch.float32):
        raise UnservedError(f"a mean over the axes {over}")
    n, c = x.shape[0], x.shape[kept[1]]
    if x.moved is None and kept[1] == 1:
        source = x.memory
    else:
        source = plan.dense(Value(x.memory, x.at.permute(0, *over, kept[1])))
        places = math.prod(x.shape[a] for a in over)
        if source.shape[:2] != (n, c):
            source = Map((n, c, 1, places), base=source)
    y = plan.add(Step(Kind.MEAN, source, Map((n, c, 1, 1))))
    plan.values[node] = Value(y, torch.arange(n * c).view(node.meta["val"].shape))


HANDLERS: dict[Any, Callable[[Planning, Any], None]] = {
    **dict.fromkeys(ACTIVATIONS, activation),
    aten.linear.default: linear,
    aten.layer_norm.default: layer_norm,
    aten.cat.default: joined,
    aten.stack.default: joined,
    aten.mean.dim: mean,
}
