"""Values of an original model that a converted model stores in another layout, and how both models are cut at them.

The verifier compares a layer between two values that both models hold. Where the converted model holds such a value in
another layout, `SharedValues` inserts it in its original one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onebyone.layout.orders import Layout, order_of, permutation_between, unit_changes
from onebyone.onnx.constant_values import is_constant
from onebyone.onnx.graph_writer import AXES_ARE_AN_INPUT

#: Operators that compute nothing: their result has the numbers of their first input, all of them.
MOVES = frozenset(["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"])


@dataclass(frozen=True)
class StoredValue:
    """A value of the original graph in a converted one: the name of a tensor that holds it, and in which layout.

    `natural` is the layout of the original tensor (see `onebyone.layout.orders`).
    """

    tensor: str
    layout: Layout
    natural: Layout


#: The tensors that hold each value of the original, by its name, the one that its operator wrote first.
StoredValues: TypeAlias = "Mapping[str, tuple[StoredValue, ...]]"


@dataclass(frozen=True)
class SharedValue:
    """A value that both models hold: its name in the original, and its name in `SharedValues.model`."""

    original: str
    converted: str


class SharedValues:
    """The values of the main graph at which an original model and a converted one can be cut.

    Args:
        original: the original, with its constants as initializers (`convert.prepared`).
        converted: the converted model, which is not changed.
        stored: how it stores the values of the original.
    """

    def __init__(self, original: ir.Model, converted: ir.Model, stored: StoredValues) -> None:
        self._converted, self._stored = converted, stored
        self._values = _values(original.graph)
        self._present = _values(converted.graph)
        self._held: dict[str, tuple[str, StoredValue]] = {}
        for name, places in stored.items():
            for place in places if name in self._values else ():
                if place.tensor in self._present:
                    self._held.setdefault(place.tensor, (name, place))
        self._cuts: dict[str, tuple[str, StoredValue]] = {}

    def before(self, name: str) -> SharedValue:
        """The value of this name in one of the models, or the nearest one that it is a rearrangement of."""
        first = name
        while (shared := self._shared(name)) is None:
            value = self._named(name)
            node = None if value is None else value.producer()
            source = None if node is None or not _only_moves(node) else node.inputs[0]
            if source is None or is_constant(source):
                return SharedValue(first, first)
            name = str(source.name)
        return shared

    def after(self, name: str) -> SharedValue:
        """The value of this name in one of the models, or the nearest one that is a rearrangement of it."""
        first = name
        while (shared := self._shared(name)) is None:
            value = self._named(name)
            uses = [] if value is None else list(value.uses())
            if len(uses) != 1 or uses[0].idx != 0 or not _only_moves(uses[0].node):
                return SharedValue(first, first)
            name = str(uses[0].node.outputs[0].name)
        return shared

    def _named(self, name: str) -> ir.Value | None:
        return self._values.get(name) or self._present.get(name)

    @property
    def model(self) -> ir.Model:
        """The converted model with the values that `before` and `after` gave in their original layouts.

        Each is computed from the tensor that holds it, and that tensor from it again, so that the model computes the
        same and can be cut at these values.
        """
        if not self._cuts:
            return self._converted
        copy = self._converted.clone()
        tensors = _values(copy.graph)
        opset = copy.opset_imports.get("", AXES_ARE_AN_INPUT)
        for alias, (name, place) in self._cuts.items():
            natural = _insert(copy.graph, tensors[place.tensor], place, alias, opset)
            natural.type, natural.shape = self._values[name].type, self._values[name].shape
        return copy

    def _shared(self, name: str) -> SharedValue | None:
        """The value of this name; None if one of the models does not hold it."""
        if name not in self._values:
            return self._cut(*self._held[name]) if name in self._held else None
        if name in self._present:
            return SharedValue(name, name)
        place = next((p for p in self._stored.get(name, ()) if p.tensor in self._present), None)
        return None if place is None else self._cut(name, place)

    def _cut(self, name: str, place: StoredValue) -> SharedValue:
        alias = f"{name}/in/{place.tensor}"
        self._cuts[alias] = name, place
        return SharedValue(name, alias)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """The inputs of a graph and what its nodes compute, by name."""
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    return {str(value.name): value for value in values}


def _only_moves(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in MOVES


def _insert(graph: ir.Graph, tensor: ir.Value, place: StoredValue, alias: str, opset: int) -> ir.Value:
    """Insert a value in its original layout after the tensor that holds it, whose readers read it from there."""
    node, uses = tensor.producer(), list(tensor.uses())
    there, natural = _moved(tensor, place.layout, place.natural, f"{alias}/there", opset)
    natural.name = alias
    back, again = _moved(natural, place.natural, place.layout, f"{alias}/back", opset)
    if node is None:
        graph.insert_before(graph[0], [*there, *back])
    else:
        graph.insert_after(node, [*there, *back])
    for use in uses:
        use.node.replace_input_with(use.idx, again)
    for new in (*there, *back):
        for operand in new.inputs:
            if operand is not None and operand.const_value is not None:
                graph.register_initializer(operand)
    return natural


def _moved(
    value: ir.Value, have: Layout, want: Layout, name: str, opset: int
) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that bring a tensor from one layout to another, and the result; an Identity where they are equal."""
    bare = order_of(have)
    nodes: list[ir.Node] = []
    squeeze, _ = unit_changes(have, bare)
    order = order_of(want)
    _, unsqueeze = unit_changes(order, want)
    permutation = permutation_between(bare, order)
    if squeeze:
        value = _with_axes("Squeeze", value, squeeze, f"{name}/squeeze", opset, nodes)
    if permutation != tuple(range(len(bare))):
        nodes.append(ir.node("Transpose", [value], {"perm": list(permutation)}, name=f"{name}/transpose"))
        value = nodes[-1].outputs[0]
    if unsqueeze:
        value = _with_axes("Unsqueeze", value, unsqueeze, f"{name}/unsqueeze", opset, nodes)
    if not nodes:
        nodes.append(ir.node("Identity", [value], name=f"{name}/identity"))
        value = nodes[-1].outputs[0]
    for node in nodes:
        node.outputs[0].name = str(node.name)
    return nodes, value


def _with_axes(
    op_type: str, value: ir.Value, axes: Sequence[int], name: str, opset: int, nodes: list[ir.Node]
) -> ir.Value:
    if opset < AXES_ARE_AN_INPUT:
        nodes.append(ir.node(op_type, [value], {"axes": list(axes)}, name=name))
    else:
        tensor = ir.tensor(np.asarray(axes, np.int64), name=f"{name}/axes")
        operand = ir.Value(
            name=f"{name}/axes",
            shape=ir.Shape([len(axes)]),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        nodes.append(ir.node(op_type, [value, operand], name=name))
    return nodes[-1].outputs[0]
