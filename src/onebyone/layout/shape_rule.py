"""An operator whose result is the shape of a value: it needs no particular order of that value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from onebyone.layout.orders import Layout, Order
from onebyone.layout.rules import LayoutRule, OperandOrders
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ShapeRule(LayoutRule):
    """The sizes of `source`, in the order of its logical axes, read from the stored tensor.

    `source` is not among the operands, because any layout of it serves.
    """

    source: GraphValue

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        del order  # the sizes are a vector, which has one order
        return [()]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        del operand, order
        return [self.axes]

    def preferred_orders(self) -> list[Order]:
        return [self.axes]

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        del order, operand_orders
        layout, stored = tensors.any_layout(self.source)
        written = tensors.emitter.shape_of(self.result, self.source, stored, layout)
        return written, self.result.natural_layout
