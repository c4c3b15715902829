"""Convolutions on adjacent patches, as they are or as linear layers (`laws.patches`).

A convolution keeps the original order of its input and result. The linear layer takes its input in any order and has
its channels last. Its patches are cut out as a view; making each a row copies the map, which is one layout operator.
So it costs no more where an operator after it needs the channels last anyway, as flatten and transpose do after the
patch embedding of a vision transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from onebyone.layout.orders import UNIT, Layout, Order, insertions
from onebyone.layout.rules import LayoutRule, OperandOrders, write_in_natural_layout
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue

T = TypeVar("T")
KEPT_PENALTY = 0.0005  # for the form that is not converted, where both need as many layout operators


@dataclass(frozen=True, eq=False)
class PatchRule(LayoutRule):
    """A convolution (…, C, *size) → (…, O, *positions) whose kernel is its stride, without padding and groups.

    Attributes
    ----------
    x, weight, bias
        The map; the kernel (O, C, *kernel), which may be any value; one number for each output, or None.
    kernel
        The size of a patch on each spatial axis, of which at least one is above 1.
    weight_copies
        Whether the kernel is stored in an order in which it has to be copied to be a matrix.
    """

    x: GraphValue
    weight: GraphValue
    bias: GraphValue | None
    kernel: tuple[int, ...]
    weight_copies: bool = False

    @property
    def channel(self) -> int:
        """The channel axis of the map and of the result."""
        return self.x.rank - len(self.kernel) - 1

    @property
    def sizes(self) -> dict[int, int]:
        """The extent of a patch on each significant axis of the map that it covers: the channels, then the kernel."""
        size = self.weight.size(1)
        assert isinstance(size, int)
        extents = {self.channel: size} | {self.channel + 1 + i: k for i, k in enumerate(self.kernel)}
        return {axis: extent for axis, extent in extents.items() if extent > 1}

    def is_linear(self, order: Order, operand_orders: OperandOrders) -> bool:
        """Whether the operator is written as a linear layer."""
        if order == self.axes and operand_orders[0] == self.x.axes:  # both forms could have these orders
            return self._is_view(self.x.axes) and self._channels_are_last(order)
        return True

    # -- orders

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        parameters = tuple(operand.axes for operand in self.operands[1:])
        inputs = self._linear_inputs(order)
        if order == self.axes:
            inputs = [self.x.axes, *inputs]
        return [(x_order, *parameters) for x_order in dict.fromkeys(inputs)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        if operand != 0:
            return []
        return [self._linear_result(order), *([self.axes] if order == self.x.axes else [])]

    def preferred_orders(self) -> list[Order]:
        return [self._linear_result(self.x.axes), self.axes]

    def penalty(self, order: Order, operand_orders: OperandOrders) -> float:
        return 0.0 if self.is_linear(order, operand_orders) else KEPT_PENALTY

    def layout_operators(self, order: Order, operand_orders: OperandOrders) -> int:
        if not self.is_linear(order, operand_orders):
            return 0
        return (not self._is_view(operand_orders[0])) + self.weight_copies

    def _linear_result(self, x_order: Order) -> Order:
        positions = tuple(axis for axis in x_order if axis != self.channel and axis in self.axes)
        return (*positions, self.channel) if self.channel in self.axes else positions

    def _channels_are_last(self, order: Order) -> bool:
        return self.channel not in self.axes or order[-1] == self.channel

    def _linear_inputs(self, order: Order) -> list[Order]:
        """The orders of the map from which the linear layer gives `order`."""
        positions = tuple(axis for axis in self.x.axes if axis != self.channel)
        channel = (self.channel,) if self.channel in self.x.axes else ()
        inputs = [self.x.axes, (*positions, *channel)]
        if len(positions) == len([axis for axis in self.axes if axis != self.channel]):
            inputs += insertions(tuple(axis for axis in order if axis != self.channel), channel)
        return [x_order for x_order in inputs if self._linear_result(x_order) == order]

    def _is_view(self, x_order: Order) -> bool:
        """Whether the elements of a patch are stored side by side, in the order of the kernel."""
        covered = list(self.sizes)
        first = x_order.index(covered[0])
        complete = all(self.x.size(axis) == self.sizes[axis] for axis in covered[1:])
        return complete and list(x_order[first : first + len(covered)]) == covered

    # -- writing

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        if not self.is_linear(order, operand_orders):
            return write_in_natural_layout(self.result, self.operands, tensors)
        x_order = operand_orders[0]
        cuts = [(x_order.index(axis), size) for axis, size in self.sizes.items()]
        rows = tensors.emitter.patches(tensors.get(self.x, x_order), cuts)
        kept = [axis for axis in x_order if axis in self.axes and axis != self.channel]
        rows = tensors.emitter.squeeze(rows, [i for i, axis in enumerate(x_order) if axis not in kept])
        matrix = tensors.emitter.as_matrix(tensors.natural(self.weight))
        bias = None if self.bias is None else tensors.natural(self.bias)
        written = tensors.emitter.linear(rows, matrix, bias)
        return written, (*kept, self.channel if self.channel in self.axes else UNIT)
