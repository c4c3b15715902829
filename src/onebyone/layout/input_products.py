"""Matrix products of two values that both depend on the inputs, such as the two of attention.

With C = A B, also Cᵀ = Bᵀ Aᵀ. So the product can be written on transposed operands, without moving any of them, where
the result is wanted transposed.
"""

from __future__ import annotations

from typing import TypeVar

from onebyone.layout.orders import UNIT, Layout, Order, operand_layout, operand_order, order_of, renamed
from onebyone.layout.rules import LayoutRule, OperandOrders
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue

T = TypeVar("T")


def matrix_product(result: GraphValue, first: GraphValue, second: GraphValue) -> LayoutRule | None:
    """The rule of a matrix product over the last two axes, with leading axes that broadcast.

    None where an operand has fewer than two axes, or where both are one value.
    """
    operands = (first, second)
    if first is second or any(x.shape is None or x.rank < 2 for x in operands) or result.shape is None:
        return None
    return MatrixProductRule(result, operands) if result.rank == max(x.rank for x in operands) else None


class MatrixProductRule(LayoutRule):
    """(…, M, K) times (…, K, N): the leading axes in any order, then rows and columns, or columns and rows."""

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        return [self._operands(order, transposed) for transposed in self._forms(order)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        x = self.operands[operand]
        shift = self.result.rank - x.rank
        stored = [axis + shift for axis in order if axis < x.rank - 2]
        batch = tuple(axis for axis in self._batch() if axis not in stored) + tuple(stored)
        matrix = tuple(axis for axis in self.axes if axis >= self.result.rank - 2)
        return list(dict.fromkeys([batch + matrix, batch + matrix[::-1]]))

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        transposed = self._transposed(order, operand_orders)
        if layout is None or layout[-2:] != self._matrix(self.result, transposed):
            return (None, None)
        return tuple(self._layout(x, layout[:-2], transposed) for x in self.operands)

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        transposed = self._transposed(order, operand_orders)
        batch = self._batch_layout(tensors, order, transposed)
        factors = []
        for x in self.operands:
            # a factor whose leading dimensions these are is available with them, so that the result has all of them
            full = self._layout(x, batch, transposed)
            factors.append(tensors.get(x, tensors.nearest(x, full, last=2)))
        written = tensors.emitter.matmul(*(reversed(factors) if transposed else factors))
        return written, batch + self._matrix(self.result, transposed)

    def _batch_layout(self, tensors: StoredTensors[T], order: Order, transposed: bool) -> Layout:
        """The leading dimensions of the result: those that an operand is available with, where there is one.

        Unit dimensions are kept, as far as the result does not get more dimensions than it has axes.
        """
        batch = tuple(axis for axis in order if axis < self.result.rank - 2)
        for x in self.operands:
            names = {axis: axis + self.result.rank - x.rank for axis in x.axes}
            for have in tensors.available(x):
                leading = renamed(have[:-2], names)
                is_matrix = have[-2:] == self._matrix(x, transposed) and len(have) <= self.result.rank
                if is_matrix and order_of(leading) == batch:
                    return leading
        return batch

    def _batch(self) -> Order:
        return tuple(axis for axis in self.axes if axis < self.result.rank - 2)

    def _forms(self, order: Order) -> list[bool]:
        """Whether the written product can be the transposed one; both where rows or columns have size 1."""
        ends = self.result.rank - 2
        matrix = tuple(axis for axis in order if axis >= ends)
        if order[len(order) - len(matrix) :] != matrix:
            return []
        if len(matrix) < 2:
            return [False, True]
        return [matrix[0] > matrix[1]]

    def _operands(self, order: Order, transposed: bool) -> OperandOrders:
        batch = tuple(axis for axis in order if axis < self.result.rank - 2)
        orders = []
        for x in self.operands:
            matrix = order_of(self._matrix(x, transposed))
            orders.append(operand_order(batch, x.axes, self.result.rank - x.rank) + matrix)
        return tuple(orders)

    def _transposed(self, order: Order, operand_orders: OperandOrders) -> bool:
        """Whether the product is written as the transposed one."""
        return next(form for form in self._forms(order) if self._operands(order, form) == operand_orders)

    def _layout(self, x: GraphValue, batch: Layout, transposed: bool) -> Layout:
        """The layout of an operand whose leading dimensions broadcast against those of the result."""
        return operand_layout(batch, x.axes, self.result.rank - x.rank) + self._matrix(x, transposed)

    def _matrix(self, x: GraphValue, transposed: bool) -> Layout:
        """The last two dimensions of a value, as they are stored."""
        rows, columns = (axis if axis in x.axes else UNIT for axis in (x.rank - 2, x.rank - 1))
        return (columns, rows) if transposed else (rows, columns)
