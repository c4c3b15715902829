"""Sums and products of two values, or of one and a constant: part of a step before them where that can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onebyone.native.attention import biased, scaled
from onebyone.native.kernels.program import Kind, Map, Meeting, Step
from onebyone.native.layout import Scores, Value, aten, in_memory, in_order, laid, size
from onebyone.native.lowering import Planning
from onebyone.native.unserved import UnservedError

_PRODUCTS = (Kind.CONVOLUTION, Kind.DEPTHWISE, Kind.LINEAR)


def sum_(plan: Planning, node: Any) -> None:
    """Part of the product that one of the two comes from, where nothing else reads that."""
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
        raise UnservedError("a sum with a factor")
    if _with_constant(plan, node, Meeting.ADDED):
        return
    first, second = node.args[:2]
    pair = [plan.value(first), plan.value(second)]
    shape = _shape(node, pair, "sum")
    for mine, other in (pair[::-1], pair):
        if first is not second and mine.shape == other.shape and _taken(plan, mine, other):
            plan.values[node] = mine
            return
    plan.values[node] = _met(plan, pair, shape, Meeting.ADDED)


def _taken(plan: Planning, mine: Value, other: Value) -> bool:
    """Whether the product that one value comes from adds the other."""
    step = plan.open_product(mine, Kind.CONVOLUTION, Kind.LINEAR)
    if step is None or other.memory.memory is step.y.memory or not _same(mine, other):
        return False
    if plan.written(other.memory) > plan.steps.index(step):
        if step.kind != Kind.LINEAR:
            return False
        plan.steps.remove(step)  # nothing has read it: it can be later
        plan.steps.append(step)
    step.add = other.memory
    return True


def product(plan: Planning, node: Any) -> None:
    """Place by place, by a number for each channel (squeeze-and-excitation), or by a constant."""
    if _with_constant(plan, node, Meeting.MULTIPLIED):
        return
    pair = [plan.value(v) for v in node.args[:2]]
    shape = _shape(node, pair, "product")
    a, b = pair
    if a.shape[2:] == (1, 1) and a.shape != b.shape:
        a, b = b, a
    if len(shape) == 4 and b.shape == (*shape[:2], 1, 1) and a.shape != b.shape:
        x, by = plan.image_of(a), plan.image_of(b)
        step = Step(Kind.ELEMENTWISE, x, Map(x.shape), add=by, pool=Meeting.MULTIPLIED_BY_CHANNEL)
        plan.values[node] = Value(plan.add(step))
        return
    plan.values[node] = _met(plan, pair, shape, Meeting.MULTIPLIED)


def quotient(plan: Planning, node: Any) -> None:
    """By a constant."""
    by = plan.constant(node.args[1])
    if by is None or len(node.args) != 2 or node.kwargs:
        raise UnservedError(f"{node.target} by what is no constant")
    _constant(plan, node, node.args[0], 1.0 / by.double(), Meeting.MULTIPLIED)


def difference(plan: Planning, node: Any) -> None:
    """With a constant taken away."""
    less = plan.constant(node.args[1])
    if less is None or node.kwargs.get("alpha", 1) != 1:
        raise UnservedError(f"{node.target} of what is no constant")
    _constant(plan, node, node.args[0], -less.double(), Meeting.ADDED)


def _shape(node: Any, pair: list[Value], what: str) -> tuple[int, ...]:
    """What comes out; refused where that is larger than both."""
    shape = tuple(node.meta["val"].shape)
    if shape not in (pair[0].shape, pair[1].shape):
        raise UnservedError(f"a {what} of maps of different shapes")
    return shape


def _same(mine: Value, other: Value) -> bool:
    """Whether both lie in the same order, each in all of its memory."""
    if size(mine.memory) != size(other.memory):
        return False
    if mine.moved is None and other.moved is None:
        return mine.memory.shape == other.memory.shape
    where = in_memory(mine, other.at)
    return where is not None and in_order(where)


def _met(plan: Planning, pair: list[Value], shape: tuple[int, ...], meeting: Meeting) -> Value:
    """A step for it: one value as it lies, of the other the rows that meet it, wherever they are."""
    choices = [(x, o) for x, o in (pair, pair[::-1]) if x.shape == shape]
    if len(choices) == 2 and _same(pair[0], pair[1]):
        return _step(plan, pair[0], pair[1], None, meeting)
    choices.sort(key=lambda c: not in_order(c[0].at.reshape(-1)))  # what comes out should lie in order
    for x, other in choices:
        where = in_memory(x, other.at.expand(shape))
        index = None if where is None else _starts(where, x.memory.shape[1])
        if index is not None:
            return _step(plan, x, other, index, meeting)
    x, other = choices[0]
    if in_memory(x, x.at) is None:
        x = laid(shape, plan.dense(x))
    where = in_memory(x, other.at.expand(shape))
    assert where is not None
    index = _starts(where, x.memory.shape[1])
    if index is None:
        n, c, h, w = x.memory.shape
        other, index = Value(plan.copied(where, (n, h, w, c), other.memory)), None
    return _step(plan, x, other, index, meeting)


def _starts(where: Tensor, length: int) -> Tensor | None:
    """Where each row begins; None where it is no run of numbers."""
    rows = where.view(-1, length)
    return rows[:, 0].contiguous() if torch.equal(rows, rows[:, :1] + torch.arange(length)) else None


def _step(plan: Planning, x: Value, other: Value, index: Tensor | None, meeting: Meeting) -> Value:
    length = x.memory.shape[1]
    if index is not None and in_order(index // length) and not bool((index % length).any()):
        index = None
    step = Step(Kind.ELEMENTWISE, x.memory, Map(x.memory.shape), add=other.memory, index=index, pool=meeting)
    return Value(plan.add(step), x.moved)


def _with_constant(plan: Planning, node: Any, meeting: Meeting) -> bool:
    """Whether one of the two is a constant; it is planned then."""
    for given, other in (node.args[:2], node.args[1::-1]):
        constant = plan.constant(given)
        if constant is not None:
            _constant(plan, node, other, constant, meeting)
            return True
    return False


def _constant(plan: Planning, node: Any, given: Any, constant: Tensor, meeting: Meeting) -> None:
    shape, found = tuple(node.meta["val"].shape), plan.any_value(given)
    constant = constant if constant.is_floating_point() else constant.double()
    single = meeting == Meeting.MULTIPLIED and constant.numel() == 1
    if isinstance(found, Scores):
        if meeting == Meeting.MULTIPLIED and not single:
            raise UnservedError("a product of scores and more than one number")
        plan.values[node] = scaled(found, float(constant)) if single else biased(found, constant, shape)
        return
    value = plan.value(given, scaled=single)
    if shape != value.shape:
        raise UnservedError(f"a {'product' if single else 'sum'} of maps of different shapes")
    plan.values[node] = _with_numbers(plan, value, constant, meeting, single)


def _with_numbers(plan: Planning, value: Value, constant: Tensor, meeting: Meeting, single: bool) -> Value:
    """A constant for each place, or for each channel, where it can be part of the product before."""
    step = plan.open_product(value, *_PRODUCTS) if value.scale == 1.0 else None
    numbers = in_memory(value, constant) if step is not None or not single else None
    if step is not None and numbers is not None and _folded(step, numbers, meeting):
        return value
    if single:  # attention takes it
        return replace(value, scale=value.scale * float(constant))
    if numbers is None:
        value = laid(value.shape, plan.dense(value))
        numbers = constant.expand(value.shape)
    x = value.memory
    rows = numbers.reshape(-1, x.shape[1])
    levels = _period(rows, x.shape[0])
    made = Step(
        Kind.ELEMENTWISE, x, Map(x.shape), rows[:levels].contiguous(), pool=meeting, sizes={"levels": levels}
    )
    return Value(plan.add(made), value.moved)


def _folded(step: Step, numbers: Tensor, meeting: Meeting) -> bool:
    """Whether there is one number for each output of a product; the product has them in it then."""
    rows = numbers.view(-1, step.y.shape[1]).double()
    if _period(rows, 1) != 1:
        return False
    row, weight = rows[0], step.weight
    assert weight is not None
    bias = None if step.bias is None else step.bias.double()
    if meeting == Meeting.ADDED:
        step.bias = row.clone() if bias is None else bias + row
    else:
        step.weight = weight.double() * row.view(-1, *[1] * (weight.dim() - 1))
        step.bias = None if bias is None else bias * row
    return True


def _period(rows: Tensor, samples: int) -> int:
    """After how many rows they repeat: one, a sample's, or all of them."""
    for n in (1, len(rows) // samples):
        if torch.equal(rows.view(-1, n, rows.shape[1]), rows[:n].expand(len(rows) // n, -1, -1)):
            return n
    return len(rows)


HANDLERS: dict[Any, Callable[[Planning, Any], None]] = {
    aten.add.Tensor: sum_,
    aten.add_.Tensor: sum_,
    aten.mul.Tensor: product,
    aten.mul_.Tensor: product,
    aten.div.Tensor: quotient,
    aten.div_.Tensor: quotient,
    aten.sub.Tensor: difference,
    aten.sub_.Tensor: difference,
}
