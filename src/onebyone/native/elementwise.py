"""Lower sums and products of two values, or of a value and a constant: into the step before them where possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onebyone.native.attention import add_bias, scale_scores
from onebyone.native.layout import (
    Scores,
    Value,
    aten,
    contiguous_value,
    counts_up,
    element_count,
    in_memory_order,
)
from onebyone.native.lowering import Lowering, ProductStep
from onebyone.native.maps import Map
from onebyone.native.steps import BinaryOperation, DepthwiseStep, ElementwiseStep, LinearStep
from onebyone.native.unsupported import UnsupportedError


def add(lowering: Lowering, node: Any) -> None:
    """A sum: an addend of the product that computes one operand, if nothing else reads that operand."""
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
        raise UnsupportedError("a sum with a factor")
    if _with_constant(lowering, node, BinaryOperation.SUM):
        return
    first, second = node.args[:2]
    operands = [lowering.value(first), lowering.value(second)]
    shape = _result_shape(node, operands, "sum")
    for value, other in (operands[::-1], operands):
        if first is not second and value.shape == other.shape and _becomes_addend(lowering, value, other):
            lowering.values[node] = value
            return
    lowering.values[node] = _combined(lowering, operands, shape, BinaryOperation.SUM)


def _becomes_addend(lowering: Lowering, value: Value, other: Value) -> bool:
    """Whether the product that computes `value` can add `other`; if so, it does from now on."""
    step = lowering.open_product(value)
    if step is None or isinstance(step, DepthwiseStep):
        return False
    if other.memory.memory is step.output.memory or not _same_order(value, other):
        return False
    if lowering.last_writer(other.memory) > lowering.steps.index(step):
        if not isinstance(step, LinearStep):
            return False
        lowering.steps.remove(step)  # nothing reads its result yet: it can run later
        lowering.steps.append(step)
    step.addend = other.memory
    return True


def multiply(lowering: Lowering, node: Any) -> None:
    """A product: element by element, by a number per channel and sample (squeeze-and-excitation), or by a constant."""
    if _with_constant(lowering, node, BinaryOperation.PRODUCT):
        return
    operands = [lowering.value(v) for v in node.args[:2]]
    shape = _result_shape(node, operands, "product")
    a, b = operands
    if a.shape[2:] == (1, 1) and a.shape != b.shape:
        a, b = b, a
    if len(shape) == 4 and b.shape == (*shape[:2], 1, 1) and a.shape != b.shape:
        x, factors = lowering.image_of(a), lowering.image_of(b)
        positions = x.shape[2] * x.shape[3]
        step = ElementwiseStep(
            input=x,
            output=Map(x.shape),
            other=factors,
            operation=BinaryOperation.PRODUCT,
            positions_per_row=positions,
        )
        lowering.values[node] = Value(lowering.add(step))
        return
    lowering.values[node] = _combined(lowering, operands, shape, BinaryOperation.PRODUCT)


def divide(lowering: Lowering, node: Any) -> None:
    """A quotient by a constant: a product with its reciprocal."""
    divisor = lowering.constant(node.args[1])
    if divisor is None or len(node.args) != 2 or node.kwargs:
        raise UnsupportedError(f"{node.target} by something that is not a constant")
    _combine_with_constant(lowering, node, node.args[0], 1.0 / divisor.double(), BinaryOperation.PRODUCT)


def subtract(lowering: Lowering, node: Any) -> None:
    """A difference with a constant: a sum with its negative."""
    subtrahend = lowering.constant(node.args[1])
    if subtrahend is None or node.kwargs.get("alpha", 1) != 1:
        raise UnsupportedError(f"{node.target} of something that is not a constant")
    _combine_with_constant(lowering, node, node.args[0], -subtrahend.double(), BinaryOperation.SUM)


def _result_shape(node: Any, operands: list[Value], operation: str) -> tuple[int, ...]:
    """The shape of the result, which must be that of an operand."""
    shape = tuple(node.meta["val"].shape)
    if shape not in (operands[0].shape, operands[1].shape):
        raise UnsupportedError(f"a {operation} of maps of different shapes")
    return shape


def _same_order(value: Value, other: Value) -> bool:
    """Whether the elements of both are in the same order, and each fills its memory."""
    if element_count(value.memory) != element_count(other.memory):
        return False
    if value.offsets is None and other.offsets is None:
        return value.memory.shape == other.memory.shape
    ordered = in_memory_order(value, other.element_offsets)
    return ordered is not None and counts_up(ordered)


def _combined(
    lowering: Lowering, operands: list[Value], shape: tuple[int, ...], operation: BinaryOperation
) -> Value:
    """An elementwise step: it reads one operand in the order of its memory, and the rows of the other by an index."""
    choices = [(x, o) for x, o in (operands, operands[::-1]) if x.shape == shape]
    if len(choices) == 2 and _same_order(operands[0], operands[1]):
        return _elementwise(lowering, operands[0], operands[1], None, operation)
    choices.sort(key=lambda c: not counts_up(c[0].element_offsets.reshape(-1)))  # prefer a contiguous result
    for x, other in choices:
        ordered = in_memory_order(x, other.element_offsets.expand(shape))
        index = None if ordered is None else _row_begins(ordered, x.memory.shape[1])
        if index is not None:
            return _elementwise(lowering, x, other, index, operation)
    x, other = choices[0]
    if in_memory_order(x, x.element_offsets) is None:
        x = contiguous_value(shape, lowering.contiguous(x))
    ordered = in_memory_order(x, other.element_offsets.expand(shape))
    assert ordered is not None
    index = _row_begins(ordered, x.memory.shape[1])
    if index is None:
        n, c, h, w = x.memory.shape
        other = Value(lowering.copied(ordered, (n, h, w, c), other.memory))
    return _elementwise(lowering, x, other, index, operation)


def _row_begins(offsets: Tensor, length: int) -> Tensor | None:
    """The offset at which each row of `length` numbers begins; None if a row is not one run of numbers."""
    rows = offsets.view(-1, length)
    return rows[:, 0].contiguous() if torch.equal(rows, rows[:, :1] + torch.arange(length)) else None


def _elementwise(
    lowering: Lowering, x: Value, other: Value, index: Tensor | None, operation: BinaryOperation
) -> Value:
    length = x.memory.shape[1]
    if index is not None and counts_up(index // length) and not bool((index % length).any()):
        index = None
    step = ElementwiseStep(
        input=x.memory, output=Map(x.memory.shape), other=other.memory, index=index, operation=operation
    )
    return Value(lowering.add(step), x.offsets)


def _with_constant(lowering: Lowering, node: Any, operation: BinaryOperation) -> bool:
    """Whether one operand is a constant; if so, the node is lowered."""
    for argument, other in (node.args[:2], node.args[1::-1]):
        constant = lowering.constant(argument)
        if constant is not None:
            _combine_with_constant(lowering, node, other, constant, operation)
            return True
    return False


def _combine_with_constant(
    lowering: Lowering, node: Any, argument: Any, constant: Tensor, operation: BinaryOperation
) -> None:
    shape, operand = tuple(node.meta["val"].shape), lowering.any_value(argument)
    constant = constant if constant.is_floating_point() else constant.double()
    one_factor = operation == BinaryOperation.PRODUCT and constant.numel() == 1
    if isinstance(operand, Scores):
        if operation == BinaryOperation.PRODUCT and not one_factor:
            raise UnsupportedError("a product of scores and more than one number")
        lowering.values[node] = (
            scale_scores(operand, float(constant)) if one_factor else add_bias(operand, constant, shape)
        )
        return
    value = lowering.value(argument, scaled=one_factor)
    if shape != value.shape:
        raise UnsupportedError(f"a {'product' if one_factor else 'sum'} of maps of different shapes")
    lowering.values[node] = _with_numbers(lowering, value, constant, operation, one_factor)


def _with_numbers(
    lowering: Lowering, value: Value, constant: Tensor, operation: BinaryOperation, one_factor: bool
) -> Value:
    """A value combined with a constant: in the weights of the product before it, as a pending scale, or by a step."""
    step = lowering.open_product(value) if value.scale == 1.0 else None
    numbers = in_memory_order(value, constant) if step is not None or not one_factor else None
    if step is not None and numbers is not None and _fold_into(step, numbers, operation):
        return value
    if one_factor:  # attention may apply it
        return replace(value, scale=value.scale * float(constant))
    if numbers is None:
        value = contiguous_value(value.shape, lowering.contiguous(value))
        numbers = constant.expand(value.shape)
    x = value.memory
    rows = numbers.reshape(-1, x.shape[1])
    period = _period(rows, x.shape[0])
    elementwise = ElementwiseStep(
        input=x,
        output=Map(x.shape),
        numbers=rows[:period].contiguous(),
        operation=operation,
        period=period,
    )
    return Value(lowering.add(elementwise), value.offsets)


def _fold_into(step: ProductStep, numbers: Tensor, operation: BinaryOperation) -> bool:
    """Whether the constant has one number for each output of a product; if so, it goes into the weight and bias."""
    rows = numbers.view(-1, step.output.shape[1]).double()
    if _period(rows, 1) != 1:
        return False
    row = rows[0]
    bias = None if step.bias is None else step.bias.double()
    if operation == BinaryOperation.SUM:
        step.bias = row.clone() if bias is None else bias + row
    else:
        step.weight = step.weight.double() * row.view(-1, *[1] * (step.weight.dim() - 1))
        step.bias = None if bias is None else bias * row
    return True


def _period(rows: Tensor, samples: int) -> int:
    """The number of rows after which they repeat: one, those of a sample, or all of them."""
    for n in (1, len(rows) // samples):
        if torch.equal(rows.view(-1, n, rows.shape[1]), rows[:n].expand(len(rows) // n, -1, -1)):
            return n
    return len(rows)


HANDLERS: dict[Any, Callable[[Lowering, Any], None]] = {
    aten.add.Tensor: add,
    aten.add_.Tensor: add,
    aten.mul.Tensor: multiply,
    aten.mul_.Tensor: multiply,
    aten.div.Tensor: divide,
    aten.div_.Tensor: divide,
    aten.sub.Tensor: subtract,
    aten.sub_.Tensor: subtract,
}
