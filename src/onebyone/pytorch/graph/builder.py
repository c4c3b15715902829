"""Writes the planned graph: every node in its chosen order, parameters in the layouts that they are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from onebyone.layout.operators import renamed_constants
from onebyone.layout.orders import Layout, order_of
from onebyone.layout.planner import LayoutPlan
from onebyone.layout.products import CHANNEL, image_layout
from onebyone.layout.rules import LayoutRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from onebyone.pytorch.graph.emitter import FxEmitter, aten
from onebyone.pytorch.graph.memory_format import MEMORY_FORMATS
from onebyone.pytorch.graph.nodes import operator_name
from onebyone.pytorch.graph.stored_layout import to_stored

KEPT_META = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "custom", "from_node")


@dataclass(frozen=True)
class DecodedGraph:
    """A graph as the planner sees it.

    `constants` are the placeholders that may be stored in any order, and the values that rename their axes.
    """

    graph: Graph
    values: Mapping[Node, GraphValue]
    rules: Mapping[GraphValue, LayoutRule]
    constants: set[GraphValue]


@dataclass(frozen=True)
class Storage:
    """How values are stored, besides their order.

    `constants` gives the layout of each constant that is not stored as in the original. `channels_last` gives the
    channel axis of each image that is to be put into channels-last memory.
    """

    constants: Mapping[GraphValue, Layout] = field(default_factory=dict)
    channels_last: Mapping[GraphValue, int] = field(default_factory=dict)


class GraphBuilder:
    """Builds the new graph node by node.

    After `build`, `tensors.demands` counts the layouts in which each constant was used; the storage for the next
    build can be chosen from it.
    """

    def __init__(self, decoded: DecodedGraph, plan: LayoutPlan, storage: Storage) -> None:
        self._decoded, self._plan, self._storage = decoded, plan, storage
        self._values = decoded.values
        self._graph = Graph()
        inputs = [n.meta.get("val") for n in decoded.graph.nodes if n.op == "placeholder"]
        self._emitter = FxEmitter(self._graph, inputs)
        self._renamed = renamed_constants(decoded.rules, decoded.constants)
        self.tensors = StoredTensors(self._emitter, decoded.constants, self._renamed)

    def build(self) -> Graph:
        """The new graph, without dead nodes."""
        root = _root_meta(self._decoded.graph)  # for nodes of no module, such as a permute of the output
        for node in self._decoded.graph.nodes:
            self._emitter.meta = root | {k: node.meta[k] for k in KEPT_META if node.meta.get(k)}
            self._write(node)
        _drop_dead_nodes(self._graph)
        self._graph.lint()
        return self._graph

    def _write(self, node: Node) -> None:
        value = self._values.get(node)
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "output":
            returned = map_arg(node.args[0], self._substitute)
            self._graph.output(returned, type_expr=node.type).meta.update(self._emitter.meta)
        elif node.op == "get_attr":
            self._emitter.plain[node] = self._same_node(node)
        elif value is None:
            self._emitter.plain[node] = self._number(node)
        elif value in self._decoded.rules and value not in self._renamed:
            self._operator(value)

    def _placeholder(self, node: Node) -> None:
        new, value = self._same_node(node), self._values.get(node)
        if value is None:
            self._emitter.plain[node] = new
            return
        layout = self._storage.constants.get(value, value.natural_layout)
        if layout != value.natural_layout:
            with torch.no_grad(), self._emitter.fake_mode:
                new.meta["val"] = to_stored(new.meta["val"], value.axes, layout)
        self.tensors.put(value, layout, new)

    def _same_node(self, node: Node) -> Node:
        new = self._graph.create_node(node.op, node.target, (), {}, node.name, node.type)
        new.name = node.name  # the signature knows placeholders by name, even where Python reserves that name
        new.meta.update(node.meta)
        return new

    def _operator(self, value: GraphValue) -> None:
        order, operand_orders = self._plan.orders[value]
        new, layout = self._decoded.rules[value].write(self.tensors, order, operand_orders)
        if value in self._storage.channels_last:
            new, layout = self._in_channels_last(new, layout, self._storage.channels_last[value])
        self.tensors.put(value, layout, new)

    def _in_channels_last(self, new: Node, layout: Layout, channel: int) -> tuple[Node, Layout]:
        """An image copied into channels-last memory, unless it is there or is not stored as an image."""
        order = order_of(layout)
        if channel not in order or order.index(channel) > 1 or order[-1] == channel:
            return new, layout
        if new.meta["val"].stride(layout.index(channel)) == 1:
            return new, layout
        joint = image_layout(tuple(CHANNEL if axis == channel else axis for axis in order))
        image = tuple(channel if axis == CHANNEL else axis for axis in joint)
        if len(image) not in MEMORY_FORMATS:
            return new, layout
        new = self._emitter.change_units(new, layout, image)
        memory_format = MEMORY_FORMATS[len(image)]
        return self._emitter.call(aten.contiguous.default, (new,), {"memory_format": memory_format}), image

    def _number(self, node: Node) -> Any:
        """A size, or arithmetic on sizes."""
        if operator_name(node) == "sym_size" and isinstance(node.args[0], Node):
            return self.tensors.size(self._values[node.args[0]], int(node.args[1]))  # type: ignore[arg-type]
        return self._emitter.copy(node, self._substitute)

    def _substitute(self, node: Node) -> Any:
        """The new node of an old one: tensors in their original layout, numbers as they are."""
        if node in self._emitter.plain:
            return self._emitter.plain[node]
        return self.tensors.natural(self._values[node])


def _root_meta(graph: Graph) -> dict[str, Any]:
    """The module stack of the network itself."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            return {"nn_module_stack": dict([next(iter(stack.items()))])}
    return {}


def _drop_dead_nodes(graph: Graph) -> None:
    """Remove calls that nothing uses, unless they check or change something."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph.erase_node(node)
