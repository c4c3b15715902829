"""Normalisations over the last axes, which keep the fused operator where these axes are stored last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from onebyone.layout.orders import Layout, Order, operand_layout, operand_order
from onebyone.layout.rules import LayoutRule, OperandOrders, write_in_natural_layout
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class NormalisationRule(LayoutRule):
    """Layer and root-mean-square normalisation over the last axes of the operand.

    The fused operator is kept where these axes are stored last. Normalisation over a single axis can also be written
    with elementary operators along the dimension at which the axis is stored. `scale` and `offset` are those of the
    operands that are the parameters.
    """

    over: tuple[int, ...]
    scale: GraphValue | None
    offset: GraphValue | None

    def _stored_last(self, order: Order) -> bool:
        return order[-len(self.over) :] == self.over

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        others = tuple(operand.axes for operand in self.operands[1:])
        return [(order, *others)] if self._stored_last(order) or len(self.over) == 1 else []

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        return [order] if operand == 0 and self.operand_orders(order) else [self.axes]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        is_free = layout is not None and self._stored_last(order) == self._stored_last(layout)
        return (layout if is_free else None, *(None for _ in self.operands[1:]))

    def penalty(self, order: Order, operand_orders: OperandOrders) -> float:
        return 0.0 if self._stored_last(order) else 0.0001

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        x, *others = self.operands
        layout = tensors.layout_with(x, order)
        if self._stored_last(order):
            layout = layout if self._stored_last(layout) else order
            stored = {x: tensors.get(x, layout), **{other: tensors.natural(other) for other in others}}
            return tensors.emitter.repeat(self.result, stored), layout
        scale, offset = (self._parameter(tensors, value, layout) for value in (self.scale, self.offset))
        position = layout.index(self.over[0])
        written = tensors.emitter.normalise(self.result, tensors.get(x, layout), position, scale, offset)
        return written, layout

    def _parameter(self, tensors: StoredTensors[T], parameter: GraphValue | None, layout: Layout) -> T | None:
        if parameter is None:
            return None
        # a parameter of one element, along an axis of any size, has no axis to be moved
        full = operand_layout(layout, parameter.axes, self.over[0])
        return tensors.get(parameter, tensors.nearest(parameter, full))


@dataclass(frozen=True, eq=False)
class SumNormalisationRule(NormalisationRule):
    """Normalisation of a sum over its last axis, as one operator: of the first operand, and of `addends`.

    The fused operator is kept where all values keep their original order. In any other, the sum is written as additions
    and the normalisation with elementary operators.
    """

    addends: tuple[GraphValue, ...]

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        # a parameter is a vector along the last axis, which every order has: it broadcasts as an addend does
        return [tuple(operand_order(order, x.axes, self.result.rank - x.rank) for x in self.operands)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        return [order] if operand == 0 else [self.axes]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        best = self.operands[0].natural_layout if order == self.axes else layout
        return (best, *(None for _ in self.operands[1:]))

    def penalty(self, order: Order, operand_orders: OperandOrders) -> float:
        return 0.0 if order == self.axes else 0.0001

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        if order == self.axes:
            return write_in_natural_layout(self.result, self.operands, tensors)
        x = self.operands[0]
        layout = tensors.layout_with(x, order)
        total = tensors.get(x, layout)
        for addend in self.addends:
            full = operand_layout(layout, addend.axes, self.result.rank - addend.rank)
            total = tensors.emitter.add(total, tensors.get(addend, tensors.nearest(addend, full)))
        scale, offset = (self._parameter(tensors, value, layout) for value in (self.scale, self.offset))
        position = layout.index(self.over[0])
        return tensors.emitter.normalise(self.result, total, position, scale, offset), layout
