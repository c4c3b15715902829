"""Write neighbouring operators that take a batch of one in axes that they share, with few Reshapes around them.

Where a target limits the batch and the number of axes, a tensor of four axes whose batch is larger than one is read by
such an operator with axes merged, behind an axis of size one. One operator by itself takes a Reshape before it and one
after it (`single_nodes`). Here the axes of neighbouring operators are chosen together, by the layout planner: a plan
has as many Reshapes as tensors are read with other axes than those in which they are stored. A Reshape of the original
is a view of the same stored tensor, so that it merges with those that a plan needs. A Softmax and a product with a
constant matrix may join, as they give the same numbers with other axes in front.

The planner's *orders* are here the sizes of a stored tensor without those of size one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import onnx_ir as ir

from onebyone.layout.orders import Order
from onebyone.layout.planner import choose_orders
from onebyone.layout.rules import LayoutRule, OperandOrders
from onebyone.layout.values import GraphValue
from onebyone.onnx.constant_values import is_constant, shape_of, sizes_of
from onebyone.onnx.targets.axis_groups import Sizes, coarser, regrouped, without_ones
from onebyone.onnx.targets.fewer_axes import BROADCASTING, SOFTMAX_OF_ONE_AXIS, TOKEN_WISE
from onebyone.onnx.targets.runs import is_view, joined

#: The cost of other axes for an operator that may keep its own: it is not rewritten unless that saves a Reshape.
_REWRITTEN = 0.01
#: The cost of a merged axis that holds the whole tensor; smaller ones cost less, and are preferred.
_LARGE_AXIS = 0.001


@dataclass(frozen=True, eq=False)
class StoredTensor(GraphValue):
    """A tensor with all views of it. Its order is that of the tensor from which the views are taken."""

    @cached_property
    def axes(self) -> Order:
        return without_ones(self.shape or ())


@dataclass(frozen=True, eq=False)
class CommonAxesRule(LayoutRule):
    """An operator that may have other axes.

    Attributes:
        sizes: those of its result in the original.
        read: the sizes of each operand in the original.
        constants: the sizes of the constants that it broadcasts.
        most: the most axes larger than one, and `largest` the largest size of one, if that is limited.
        is_free: whether it may keep its own axes too.
        kept: the number of last axes that keep their size: one for Softmax and products.
        contracted: the size of the axis that a product sums over.
    """

    sizes: Sizes
    read: tuple[Sizes, ...]
    constants: tuple[Sizes, ...]
    most: int
    largest: int | None
    is_free: bool = False
    kept: int = 0
    contracted: int | None = None

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        if not self._fits(order):
            return []
        if self.contracted is not None:
            return [((*order[:-1], self.contracted),)]
        found = [regrouped(sizes, self.sizes, order) for sizes in self.read]
        return [tuple(without_ones(sizes) for sizes in found if sizes is not None)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        if self.contracted is not None:
            is_same = order[-1:] == (self.contracted,)
            order = (*order[:-1], *without_ones(self.sizes)[-1:]) if is_same else ()
        return [*self._fitting(order), *self.preferred_orders()]

    def preferred_orders(self) -> list[Order]:
        return self._fitting(without_ones(self.sizes))

    def penalty(self, order: Order, operand_orders: OperandOrders) -> float:
        is_rewritten = self.is_free and order != without_ones(self.sizes)
        return _REWRITTEN * is_rewritten + _LARGE_AXIS * max(order) / prod(order)

    def _fitting(self, order: Order) -> list[Order]:
        """The order, and those with its axes merged, as far as the operator can have them."""
        candidates = dict.fromkeys([order, *coarser(order, self.most)])
        return [candidate for candidate in candidates if self._fits(candidate)]

    def _fits(self, order: Order) -> bool:
        own = without_ones(self.sizes)
        if prod(order) != prod(own) or len(order) <= self.kept or (self.kept and order[-1] != own[-1]):
            return False
        if self.is_free and order == own:
            return True
        if len(order) > self.most or (self.largest is not None and max(order) > self.largest):
            return False
        if self.contracted is not None:
            return self.largest is None or self.contracted <= self.largest
        return all(regrouped(sizes, self.sizes, order) is not None for sizes in (*self.read, *self.constants))


@dataclass(frozen=True, eq=False)
class ReaderRule(LayoutRule):
    """Operators that read a tensor with the axes `order`, whatever the plan is."""

    order: Order

    @property
    def axes(self) -> Order:
        return self.order

    def operand_orders(self, order: Order) -> list[OperandOrders]:
        return [(self.order,)]

    def result_orders(self, operand: int, order: Order) -> list[Order]:
        return [self.order]


@dataclass(frozen=True)
class AxisLimits:
    """What a target allows: `most` axes in all, and the `largest` size of one, if that is limited."""

    most: int
    largest: int | None


def common_axes(
    nodes: list[ir.Node], violating: frozenset[ir.Node], limits: AxisLimits, opset: int
) -> dict[ir.Node, Order]:
    """The sizes larger than one with which nodes are written; nodes that are not listed stay as they are.

    Args:
        nodes: those of one graph, in an order in which they can run.
        violating: the nodes that need an axis of size one in front.
        limits: of tensors.
        opset: the version of the default domain.
    """
    if not violating:
        return {}
    graph = _Views(nodes)
    rules = {node: rule for node in nodes if (rule := graph.rule(node, node in violating, limits, opset))}
    # where an axis of size one has room in front, the operator has it by itself, and nobody else sees it
    large = {node for node, rule in rules.items() if node in violating and len(rule.sizes) >= limits.most}
    found: dict[ir.Node, Order] = {}
    # parts that share no stored tensor
    for part in joined((node, (rule.result, *rule.operands)) for node, rule in rules.items()):
        if not large.isdisjoint(part):
            plan = choose_orders(graph.with_readers(rules, part), ())
            chosen = {node: plan.orders[rules[node].result][0] for node in part}
            found |= {n: order for n, order in chosen.items() if n in large or order != rules[n].result.axes}
    return found


class _Views:
    """The stored tensors of a graph, each with all its views."""

    def __init__(self, nodes: list[ir.Node]) -> None:
        self._tensors: dict[ir.Value, StoredTensor] = {}
        self._position = {node: index for index, node in enumerate(nodes)}

    def _known(self, value: ir.Value | None) -> Sizes | None:
        """The sizes of an activation, all of them known and none 0."""
        sizes = None if value is None or is_constant(value) else sizes_of(value)
        return None if sizes is None or not all(sizes) else tuple(size or 0 for size in sizes)

    def tensor(self, value: ir.Value) -> StoredTensor:
        """The tensor that a value is a view of."""
        if value not in self._tensors:
            source = _viewed(value)
            if source is not None and self._known(source) is not None:
                self._tensors[value] = self.tensor(source)
            else:
                self._tensors[value] = StoredTensor(str(value.name), self._known(value), value)
        return self._tensors[value]

    def rule(
        self, node: ir.Node, has_other_axes: bool, limits: AxisLimits, opset: int
    ) -> CommonAxesRule | None:
        """The rule of a node that must have other axes, or may have them, if it has a rule."""
        sizes = self._known(node.outputs[0]) if len(node.outputs) == 1 and node.domain == "" else None
        if sizes is None or prod(sizes) == 1:
            return None
        operands = [v for v in node.inputs if v is not None and not is_constant(v)]
        read = [self._known(v) for v in operands]
        if not operands or None in read:
            return None
        constants: list[Sizes] = []
        kept, contracted = 0, None
        if has_other_axes and node.op_type in TOKEN_WISE:
            operands, read = operands[:1], read[:1]
        elif has_other_axes and node.op_type in BROADCASTING:
            shapes = [shape_of(v) for v in node.inputs if v is not None and is_constant(v)]
            if any(shape is None or None in shape for shape in shapes):
                return None
            constants = [tuple(size or 0 for size in shape or ()) for shape in shapes]
        elif node.op_type == "Softmax":
            axis = node.attributes.get_int("axis", -1) % len(sizes)
            if opset < SOFTMAX_OF_ONE_AXIS or axis != len(sizes) - 1 or 1 in (sizes[-1], prod(sizes[:-1])):
                return None
            kept = 1
        elif node.op_type == "MatMul" and len(operands) == 1 and operands[0] is node.inputs[0]:
            weight, data = shape_of(node.inputs[1]) if node.inputs[1] is not None else None, read[0] or ()
            if weight is None or len(weight) != 2 or 1 in (*weight, prod(sizes[:-1])) or len(data) < 2:
                return None
            kept, contracted = 1, weight[0]
        else:
            return None
        pairs = {(self.tensor(v), s): None for v, s in zip(operands, read, strict=True) if s is not None}
        rule = CommonAxesRule(
            self.tensor(node.outputs[0]),
            tuple(tensor for tensor, _ in pairs),
            sizes,
            tuple(s for _, s in pairs),
            tuple(constants),
            limits.most - has_other_axes,
            limits.largest,
            not has_other_axes,
            kept,
            contracted,
        )
        return rule if rule.preferred_orders() else None

    def with_readers(
        self, rules: Mapping[ir.Node, CommonAxesRule], part: list[ir.Node]
    ) -> dict[GraphValue, LayoutRule]:
        """The rules of a part, and those of the other nodes that read its tensors, in the order of the program."""
        found: list[tuple[int, LayoutRule]] = [(self._position[node], rules[node]) for node in part]
        members = frozenset(part)
        tensors = {tensor for node in part for tensor in (rules[node].result, *rules[node].operands)}
        for tensor in tensors:
            seen: set[Order] = set()
            for position, order in self._reads(tensor, members):
                if order not in seen:
                    seen.add(order)
                    result = StoredTensor(f"{tensor.name}/read", order)
                    found.append((position, ReaderRule(result, (tensor,), order)))
        return {rule.result: rule for _, rule in sorted(found, key=lambda pair: pair[0])}

    def _reads(self, tensor: GraphValue, members: frozenset[ir.Node]) -> list[tuple[int, Order]]:
        """Where nodes that are not members read a tensor or a view of it, and with which axes; the first ones first."""
        waiting: list[ir.Value] = [tensor.origin]
        found: list[tuple[int, Order]] = []
        while waiting:
            value = waiting.pop()
            order = without_ones(self._known(value) or ())
            if value.is_graph_output():
                found.append((len(self._position), order))
            for use in value.uses():
                if is_view(use.node) and self._known(use.node.outputs[0]) is not None and use.idx == 0:
                    waiting.append(use.node.outputs[0])
                elif use.node not in members:
                    found.append((self._position.get(use.node, len(self._position)), order))
        return sorted(found)


def _viewed(value: ir.Value) -> ir.Value | None:
    """The value that another one is a view of; None if it is none."""
    node = value.producer()
    return None if node is None or not is_view(node) or is_constant(node.inputs[0]) else node.inputs[0]
