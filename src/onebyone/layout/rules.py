"""What each kind of operator says about the orders of its operands and its result.

A rule relates orders in both directions: `operand_orders(order)` lists the orders that the operands may have where
the result is to be stored in `order`, and `result_orders(i, order)` the orders of the result that suit operand `i`
stored in `order`. The planner chooses one order for each value; `write` then writes the operator on tensors stored in
these orders, with the operators that a front end supplies (`layout.emitter`).

`FixedRule` keeps the original order of all operands and results. It is correct for every operator, and is what an
operator has of which nothing is known. The functions of `layout.operators` choose and check the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

from onebyone.layout.orders import (
    UNIT,
    Layout,
    Order,
    insertions,
    operand_layout,
    operand_order,
    order_of,
    renamed,
)
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue

T = TypeVar("T")
OperandOrders = tuple[Order, ...]


@dataclass(frozen=True, eq=False)
class LayoutRule:
    """The base of all rules: one operator, with its result and its tensor operands (each once)."""

    result: GraphValue
    operands: tuple[GraphValue, ...]

    @property
    def axes(self) -> Order:
        """The significant axes of the result, or of each piece where the result is a list."""
        return self.result.axes

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        """Alternative orders of the operands, where the result is to be stored in `order`; empty if impossible."""
        raise NotImplementedError

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        """Orders of the result that suit one operand stored in `order`."""
        raise NotImplementedError

    def preferred_orders(self) -> list[Order]:
        """Orders of the result that the operator itself prefers, for example the channels in second position."""
        return []

    def penalty(self, order: Order, operand_orders: OperandOrders) -> float:
        """A cost far below that of one layout operator, by which one form is preferred over another."""
        del order, operand_orders
        return 0.0

    def layout_operators(self, order: Order, operand_orders: OperandOrders) -> int:
        """How many layout operators the rule itself writes."""
        del order, operand_orders
        return 0

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        """The layout in which the operator best reads each operand; None where any unit dimensions serve.

        `layout` is that of the result, stored in `order`, which the operators after it read best.
        """
        del order, operand_orders, layout
        return (None,) * len(self.operands)

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        """Write the operator; returns the tensor of the result and its layout, whose order is `order`."""
        raise NotImplementedError


class FixedRule(LayoutRule):
    """The original order for all operands and the result."""

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        return [tuple(operand.axes for operand in self.operands)] if order == self.axes else []

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        del operand, order
        return [self.axes]

    def preferred_orders(self) -> list[Order]:
        return [self.axes]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        return tuple(operand.natural_layout for operand in self.operands)

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        del order, operand_orders
        return write_in_natural_layout(self.result, self.operands, tensors)


def write_in_natural_layout(
    result: GraphValue, operands: tuple[GraphValue, ...], tensors: StoredTensors[T]
) -> tuple[T, Layout]:
    """The operator as it was, on operands in their original layouts."""
    written = tensors.emitter.repeat(result, {operand: tensors.natural(operand) for operand in operands})
    return written, result.natural_layout


class PointwiseRule(LayoutRule):
    """An elementwise operator with broadcasting: all operands and the result share one order."""

    def _shift(self, operand: GraphValue) -> int:
        return self.result.rank - operand.rank

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        return [tuple(operand_order(order, x.axes, self._shift(x)) for x in self.operands)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        shift = self._shift(self.operands[operand])
        shifted = tuple(axis + shift for axis in order)
        return [tuple(axis for axis in self.axes if axis not in shifted) + shifted]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        return tuple(
            operand_layout(layout, x.axes, self._shift(x)) if layout and len(x_order) == len(order) else None
            for x, x_order in zip(self.operands, operand_orders, strict=True)
        )

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        layout, model = self._layout(tensors, order, operand_orders)
        stored = {}
        for operand in self.operands:
            full = operand_layout(layout, operand.axes, self._shift(operand))
            # one operand of full rank is enough for the result to have all dimensions of the layout
            may_be_shorter = operand is not model and (model is not None or operand.rank == 0)
            layout_there = tensors.nearest(operand, full) if may_be_shorter else full
            stored[operand] = tensors.get(operand, layout_there)
        return tensors.emitter.repeat(self.result, stored), layout

    def _layout(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[Layout, GraphValue | None]:
        """A layout in which most operands that have all significant axes are available, and one of these operands.

        Of several, the one with the most dimensions: the other operands are then available in it too, so that a
        residual stream becomes an image once instead of in each of its branches.
        """
        models: dict[Layout, GraphValue] = {}
        counts: Counter[Layout] = Counter()
        for operand, x_order in zip(self.operands, operand_orders, strict=True):
            if len(x_order) == len(order):
                names = {axis: axis + self._shift(operand) for axis in x_order}
                available = [have for have in tensors.available(operand) if order_of(have) == x_order]
                for have in available or [tensors.layout_with(operand, x_order)]:
                    layout = renamed(have, names)
                    counts[layout] += 1
                    models.setdefault(layout, operand)
        if not models:
            return order, None
        chosen = max(models, key=lambda layout: (counts[layout], len(layout)))
        return chosen, models[chosen]


@dataclass(frozen=True, eq=False)
class RelabelRule(LayoutRule):
    """An operator that only renames axes: permute, squeeze, unsqueeze, copy.

    The stored tensor stays as it is, so a permute disappears where both of its sides agree on an order. `names` maps
    the significant axes of the operand to those of the result.
    """

    names: dict[int, int]

    def back(self) -> dict[int, int]:
        """The axes of the operand, by those of the result."""
        return {after: before for before, after in self.names.items()}

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        return [(renamed(order, self.back()),)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        return [renamed(order, self.names)]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        return (None if layout is None else renamed(layout, self.back()),)

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        layout = tensors.layout_with(self.operands[0], operand_orders[0])
        return tensors.get(self.operands[0], layout), renamed(layout, self.names)


@dataclass(frozen=True, eq=False)
class AxisRule(LayoutRule):
    """An operator that works along some axes and does not touch the others: softmax, mean, slice, select, split …

    `along` are the axes of the first operand along which it works; in the written operator its axis argument is the
    positions at which they are stored. `names` maps the significant axes of the first operand to those of the result;
    axes without a name are selected or reduced to size 1, and with `drops` the result has no dimension there. Other
    operands, such as the indices of `index_select`, keep their original order.
    """

    names: dict[int, int]
    along: tuple[int, ...]
    drops: bool

    @property
    def axes(self) -> Order:
        """The significant axes of the result, or of each piece."""
        return tuple(sorted(self.names.values()))

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        back = {after: before for before, after in self.names.items()}
        ended = tuple(axis for axis in self.operands[0].axes if axis not in self.names)
        others = tuple(operand.axes for operand in self.operands[1:])
        return [(first, *others) for first in insertions(renamed(order, back), ended)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        if operand != 0:
            return []
        return [tuple(self.names[axis] for axis in order if axis in self.names)]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        back = {after: before for before, after in self.names.items()}
        keeps_all = layout is not None and len(self.names) == len(self.operands[0].axes)
        first = renamed(layout, back) if layout is not None and keeps_all else None
        return (first, *(operand.natural_layout for operand in self.operands[1:]))

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        x, *others = self.operands
        layout = tensors.layout_with(x, operand_orders[0])
        positions = [layout.index(axis) for axis in self.along]
        stored = {x: tensors.get(x, layout), **{other: tensors.natural(other) for other in others}}
        written = tensors.emitter.repeat(self.result, stored, positions)
        kept = [axis for p, axis in enumerate(layout) if not (self.drops and p in positions)]
        return written, tuple(self.names.get(axis, UNIT) for axis in kept)


@dataclass(frozen=True, eq=False)
class ElementRule(LayoutRule):
    """One tensor of a list, which is stored as all of the list are; `list_axes` are the significant axes of those."""

    list_axes: Order

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        missing = tuple(axis for axis in self.list_axes if axis not in self.axes)
        return [(list_order,) for list_order in insertions(order, missing)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        return [operand_order(order, self.axes)]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        return (layout if len(order) == len(self.list_axes) else None,)

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        pieces = self.operands[0]
        layout = tensors.layout_with(pieces, operand_orders[0])
        written = tensors.emitter.repeat(self.result, {pieces: tensors.get(pieces, layout)})
        return written, operand_layout(layout, self.axes)


@dataclass(frozen=True, eq=False)
class ConcatenateRule(LayoutRule):
    """Concatenation along one axis, on which an operand may have size 1."""

    along: int

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        return [tuple(operand_order(order, x.axes) for x in self.operands)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        missing = tuple(axis for axis in self.axes if axis not in order)
        position = next((i for i, axis in enumerate(order) if axis > self.along), len(order))
        return [order[:position] + missing + order[position:]]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        return tuple(None if layout is None else operand_layout(layout, x.axes) for x in self.operands)

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        layout: Layout = order
        for operand, x_order in zip(self.operands, operand_orders, strict=True):
            if len(x_order) == len(order):
                layout = tensors.layout_with(operand, x_order)
                break
        stored = {x: tensors.get(x, operand_layout(layout, x.axes)) for x in self.operands}
        return tensors.emitter.repeat(self.result, stored, [layout.index(self.along)]), layout


class ChannelsSecondRule(LayoutRule):
    """Batch, group and instance normalisation, PReLU: batch first, channels second, the rest in any order."""

    def _fits(self, order: Order) -> bool:
        first = operand_order(order, (0, 1))
        return first == tuple(sorted(first)) and order[: len(first)] == first

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        others = tuple(operand.axes for operand in self.operands[1:])
        return [(order, *others)] if self._fits(order) else []

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        return [order] if operand == 0 and self._fits(order) else [self.axes]

    def operand_layouts(
        self, order: Order, operand_orders: OperandOrders, layout: Layout | None
    ) -> tuple[Layout | None, ...]:
        return (layout, *(operand.natural_layout for operand in self.operands[1:]))

    def write(
        self, tensors: StoredTensors[T], order: Order, operand_orders: OperandOrders
    ) -> tuple[T, Layout]:
        x, *others = self.operands
        head = tuple(axis if axis in order else UNIT for axis in (0, 1))
        layout = tensors.layout_with(x, operand_orders[0])
        if layout[:2] != head:
            layout = head + tuple(axis for axis in order if axis > 1)
        stored = {x: tensors.get(x, layout), **{other: tensors.natural(other) for other in others}}
        return tensors.emitter.repeat(self.result, stored), layout
