"""Writes the planned graph in place of the original one."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onebyone.layout.orders import UNIT, Layout
from onebyone.layout.planner import LayoutPlan, best_layouts
from onebyone.layout.rules import LayoutRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from onebyone.onnx.layout.decoder import DecodedModel, TokenProduct
from onebyone.onnx.layout.emitter import LayoutNodeEmitter
from onebyone.onnx.layout.merged_views import merge_views
from onebyone.onnx.stored_values import StoredValue, StoredValues
from onebyone.onnx.weight_rewriting import WeightRewriter


class OnnxGraphBuilder:
    """Replaces the nodes of a graph by those of a plan; inputs, outputs and constants keep their names."""

    def __init__(
        self,
        graph: ir.Graph,
        decoded: DecodedModel,
        rules: Mapping[GraphValue, LayoutRule],
        products: Mapping[GraphValue, TokenProduct],
        weights: WeightRewriter,
        plan: LayoutPlan,
    ) -> None:
        self._graph, self._decoded, self._rules, self._plan = graph, decoded, rules, plan
        self._original = list(graph)
        self._end = ir.Node("", "Identity", [graph.inputs[0]], num_outputs=1)
        graph.append(self._end)
        self._word = _unused_suffix(graph)
        self._emitter = LayoutNodeEmitter(decoded, products, weights, self._end, self._word)
        self._tensors: StoredTensors[ir.Value] = StoredTensors(
            self._emitter, decoded.constants, best_layouts=best_layouts(rules, plan)
        )
        self._emitter.reads_from(self._tensors)

    def build(self) -> StoredValues:
        """Write the graph and remove the original nodes; returns how the new one stores each value of the old."""
        graph, original = self._graph, self._original
        self._put_inputs()
        written: list[GraphValue] = []
        *operators, last = self._rules.items()
        for value, rule in operators:
            order, operand_orders = self._plan.orders[value]
            self._emitter.begin(value)
            tensor, layout = rule.write(self._tensors, order, operand_orders)
            self._tensors.put(value, layout, tensor)
            if isinstance(value.origin, ir.Value) and value.shape is not None:
                self._describe(value, layout, tensor)
                written.append(value)
        self._outputs(last[0])
        graph.remove(self._end)
        kept = set(self._kept_nodes(original))
        graph.remove([node for node in original if node.graph is graph and node not in kept], safe=True)
        _drop_unread(graph)
        replaced = merge_views(graph, self._word)
        _drop_unread(graph)
        return {str(value.name): stored for value in written if (stored := self._stored(value, replaced))}

    def _stored(self, value: GraphValue, replaced: Mapping[ir.Value, ir.Value]) -> tuple[StoredValue, ...]:
        """The tensors of the graph that hold a value, the written one first; none if only merged views did."""
        found: dict[ir.Value, StoredValue] = {}
        for layout, tensor in self._tensors.available(value).items():
            while tensor in replaced:
                tensor = replaced[tensor]
            if tensor.graph is self._graph:
                found.setdefault(tensor, StoredValue(str(tensor.name), layout, value.natural_layout))
        return tuple(found.values())

    def _put_inputs(self) -> None:
        """Inputs and constants are there in their original layout; a bias may be needed as a vector."""
        for origin, value in self._decoded.values.items():
            if isinstance(origin, ir.Node):
                continue
            if value in self._decoded.constants:
                self._tensors.put(value, value.natural_layout, self._emitter.constant(origin))
            elif value not in self._rules:
                self._tensors.put(value, value.natural_layout, origin)
        for bias, vector in self._decoded.vectors.items():
            size = vector.size(0)
            shape = (size if self._count(bias) == size else 1,)
            tensor = self._emitter.broadcast(bias, shape, (size,))
            self._tensors.put(vector, vector.natural_layout, tensor)

    def _count(self, value: ir.Value) -> int:
        count = 1
        for size in self._decoded.value(value).shape or ():
            count *= int(size)
        return count

    def _describe(self, value: GraphValue, layout: Layout, tensor: ir.Value) -> None:
        sizes = [1 if axis == UNIT else value.size(axis) for axis in layout]
        self._emitter.describe(tensor, sizes, value.origin)
        if layout == value.natural_layout and tensor.producer() in self._emitter.writer.nodes:
            tensor.name = value.origin.name

    def _outputs(self, last: GraphValue) -> None:
        """The graph's outputs, under their names; one that is an input, a constant or another output is copied."""
        self._emitter.begin(last)
        used: set[ir.Value] = set()
        for index, output in enumerate(self._graph.outputs):
            value = self._decoded.value(output)
            tensor = self._emitter.use(self._tensors.natural(value))
            producer = tensor.producer()
            if producer is None or producer in self._decoded.constant_nodes or tensor in used:
                tensor = self._emitter.writer.op("Identity", [tensor])
            used.add(tensor)
            tensor.name, tensor.type = output.name, output.type
            tensor.shape = output.shape
            tensor.metadata_props.update(output.metadata_props)
            self._graph.outputs[index] = tensor

    def _kept_nodes(self, original: list[ir.Node]) -> list[ir.Node]:
        """The original nodes that stay: those that compute constants, and those that were moved."""
        constants = self._decoded.constant_nodes
        return [node for node in original if node in constants or node in self._emitter.moved]


def _unused_suffix(graph: ir.Graph) -> str:
    """A word that no name of the graph holds."""
    names = [str(value.name) for node in graph.all_nodes() for value in node.outputs]
    names += [str(name) for name in graph.initializers] + [str(value.name) for value in graph.inputs]
    names += [str(node.name) for node in graph.all_nodes()]
    suffix, number = "stored", 1
    while any(suffix in name for name in names):
        suffix, number = f"stored{number}", number + 1
    return suffix


def _drop_unread(graph: ir.Graph) -> None:
    """Remove the nodes that nothing reads, and the constants that only they read."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs and not value.is_graph_input():
            del graph.initializers[name]
