"""Aten operators as rules of the layout planner.

The tables of `aten_operators` say of which kind each operator is and where its settings are found; the functions of
`layout.operators` check the conditions of a kind and make the rule. Other operators keep their original layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from onebyone.layout import operators
from onebyone.layout.rules import FixedRule, LayoutRule
from onebyone.layout.values import GraphValue
from onebyone.pytorch.graph.aten_operators import (
    AXIS_ARGUMENTS,
    CHANNELS_SECOND,
    DROPOUT,
    KEEPING_AXES,
    MOMENTS,
    NORMALISATIONS,
    POINTWISE,
    RESHAPES,
    SPLITS,
    WITH_SIZES,
    permutation_of,
)
from onebyone.pytorch.graph.nodes import argument, has_unknown_size, operator_name, sizes_of


class Decoder:
    """The rules of the nodes of one graph, given one after another in the graph's order."""

    def __init__(self, values: Mapping[Node, GraphValue]) -> None:
        self.values = values
        self.rules: dict[GraphValue, LayoutRule] = {}

    def rule(self, node: Node) -> LayoutRule:
        """The rule of one node, which is remembered for the nodes that use it."""
        rule = self._rule(node) or FixedRule(self.values[node], self._operands(node))
        self.rules[rule.result] = rule
        return rule

    def _rule(self, node: Node) -> LayoutRule | None:
        name, operands = operator_name(node), self._operands(node)
        if node.op != "call_function":
            return None
        if name == "getitem":
            return self._element(node)
        involved = [self.values[node], *operands]
        if any(has_unknown_size(value.origin) or 0 in (value.shape or ()) for value in involved):
            return None
        if self._is_pointwise(node, name):
            return operators.pointwise(self.values[node], operands)
        if name == "cat":
            axis = int(argument(node, 1, "dim", 0)) % self.values[node].rank
            return operators.concatenate(self.values[node], operands, axis)
        if not operands or operands[0].origin is not _first_input(node) or operands[0].shape is None:
            return None
        return self._with_one_input(node, name, operands)

    def _with_one_input(self, node: Node, name: str, operands: tuple[GraphValue, ...]) -> LayoutRule | None:
        """The rule of an operator whose first argument is the tensor it works on."""
        result, x = self.values[node], operands[0]
        if name in KEEPING_AXES:
            return operators.keep_axes(result, x)
        if name in RESHAPES:
            listed = name not in WITH_SIZES or isinstance(argument(node, 1, "size"), list | tuple)
            return operators.reshape(result, x) if listed else None  # else a view as another dtype
        if name in AXIS_ARGUMENTS:
            return self._along_axes(node, name, operands)
        if name == "expand":
            return operators.expand(result, x)
        if name in NORMALISATIONS:
            return self._normalisation(node, name, x)
        if name in CHANNELS_SECOND:
            return operators.channels_second(result, operands)
        permutation = permutation_of(node, name, x.rank)
        return None if permutation is None else operators.permute(result, x, permutation)

    def _operands(self, node: Node) -> tuple[GraphValue, ...]:
        return tuple(self.values[n] for n in node.all_input_nodes if n in self.values)

    def _is_pointwise(self, node: Node, name: str) -> bool:
        if name in DROPOUT:
            return argument(node, 2, "train") is False
        # a clone that is returned stays: the result must not share storage with another value
        is_returned_copy = name == "clone" and any(user.op == "output" for user in node.users)
        return name in POINTWISE or is_returned_copy

    def _element(self, node: Node) -> LayoutRule | None:
        pieces = node.args[0]
        if not isinstance(pieces, Node) or operator_name(pieces) not in SPLITS | MOMENTS:
            return None
        list_rule = self.rules[self.values[pieces]]
        if isinstance(list_rule, FixedRule):
            return None
        return operators.element(self.values[node], self.values[pieces], list_rule.axes)

    def _along_axes(self, node: Node, name: str, operands: tuple[GraphValue, ...]) -> LayoutRule | None:
        where, x = AXIS_ARGUMENTS[name], operands[0]
        axes = argument(node, where.position, where.name, where.default)
        if axes is None or isinstance(axes, bool):  # `std(x, unbiased)` has no axes
            return None
        along = [int(axis) % x.rank for axis in (axes if isinstance(axes, list | tuple) else [axes])]
        shape = self.values[node].shape
        if name in MOMENTS:
            shape = sizes_of(node.meta["val"][0])
        if name in SPLITS:
            assert x.shape is not None
            shape = tuple(s for i, s in enumerate(x.shape) if not (name == "unbind" and i in along))
        assert shape is not None
        drops = len(shape) < x.rank
        return operators.along_axes(self.values[node], operands, along, drops=drops, shape=shape)

    def _normalisation(self, node: Node, name: str, x: GraphValue) -> LayoutRule | None:
        count = len(argument(node, 1, "normalized_shape"))
        scale = self._optional(argument(node, 2, "weight"))
        offset = self._optional(argument(node, 3, "bias")) if name == "layer_norm" else None
        return operators.normalise(self.values[node], x, count, scale, offset)

    def _optional(self, node: Any) -> GraphValue | None:
        return self.values[node] if isinstance(node, Node) else None


def _first_input(node: Node) -> Node | None:
    first = node.args[0] if node.args else None
    return first if isinstance(first, Node) else None
