"""Operators that change the sizes of a tensor and can write axes of size 1 anywhere: reshape and expand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from onebyone.layout.orders import UNIT, Layout, Order, operand_layout, operand_order, without_leading_units
from onebyone.layout.reshape_groups import Groups, order_after_reshape
from onebyone.layout.rules import LayoutRule, OperandOrders
from onebyone.layout.stored_tensors import StoredTensors

T = TypeVar("T")


class ExpandRule(LayoutRule):
    """`expand`: axes of size 1 are repeated, and leading axes are added."""

    def _shift(self) -> int:
        return self.result.rank - self.operands[0].rank

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        return [(operand_order(order, self.operands[0].axes, self._shift()),)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        shifted = tuple(axis + self._shift() for axis in order)
        return [tuple(axis for axis in self.axes if axis not in shifted) + shifted]

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        x, shift = self.operands[0], self._shift()
        layout = tensors.best_layout(self.result, order)
        stored = tensors.get(x, without_leading_units(operand_layout(layout, x.axes, shift)))
        kept = {axis + shift for axis in x.axes}
        sizes: list[int | T] = []
        for axis in layout:
            size = 1 if axis == UNIT else -1 if axis in kept else self.result.size(axis)
            if not isinstance(size, int):
                size = tensors.emitter.argument_size(self.result, axis)
                assert size is not None, f"{self.result.name}: axis {axis} has no size"
            sizes.append(size)
        return tensors.emitter.expand(stored, sizes), layout


@dataclass(frozen=True, eq=False)
class ReshapeRule(LayoutRule):
    """Reshape, view, flatten: each group's axes must be stored side by side (see `layout.reshape_groups`)."""

    groups: Groups

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        before = order_after_reshape(order, tuple((after, before) for before, after in self.groups))
        return [] if before is None else [(before,)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        after = order_after_reshape(order, self.groups)
        return [self.axes if after is None else after]

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        x = self.operands[0]
        stored = tensors.get(x, tensors.layout_with(x, operand_orders[0]))
        layout = tensors.best_layout(self.result, order)
        sizes: list[int | T] = []
        for axis in layout:
            size = self._size(tensors, axis)
            sizes.append(size)
        return tensors.emitter.reshape(stored, sizes), layout

    def _size(self, tensors: StoredTensors[T], axis: int) -> int | T:
        """A size of the result: 1, known, named by the operator, the product of the operand's sizes, or −1."""
        size = 1 if axis == UNIT else self.result.size(axis)
        if isinstance(size, int):
            return size
        named = tensors.emitter.argument_size(self.result, axis)
        if named is not None:
            return named
        before, after = next(group for group in self.groups if axis in group[1])
        if after == (axis,):
            sizes = [tensors.size(self.operands[0], axis_before) for axis_before in before]
            return tensors.emitter.multiply_sizes(sizes)
        return -1
