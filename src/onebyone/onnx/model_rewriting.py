"""Rewrite nodes of a copy of a model one by one, and record what became which, for the report and for verification.

A node that a rewriting inserted may be rewritten again: the layer's record then still names the original's values, and
the steps of its constants add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from typing import TypeAlias

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable
from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.graph_writer import GraphWriter, WrittenLayer
from onebyone.onnx.stored_values import StoredValues
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.records import Change

#: Key in the `meta` of a new node: the index of its layer's record.
_LAYER = "onebyone layer"


@dataclass(frozen=True, eq=False)
class Rewriting:
    """A new form of one layer.

    Attributes:
        written: what was inserted.
        replaced: the nodes that it replaces, the last one computes the layer's output.
        before: a short description of the original form.
        terms: the number of products that are summed for one number of the output.
        is_exact: whether both forms agree bit for bit where no sum rounds. Others, such as a normalization written as
            its parts, agree within the rounding of float64.
    """

    written: WrittenLayer
    replaced: tuple[ir.Node, ...]
    before: str
    terms: int
    is_exact: bool = True


#: Inserts a new form before a node: None if the node is not of its kind, a text if it is refused for this reason.
Write: TypeAlias = "Callable[[ir.Node, GraphWriter, WeightRewriter], Rewriting | str | None]"


class ModelRewriter:
    """The state of a conversion: the records of every change.

    Attributes:
        model: the copy that is rewritten.
        changes, layers: what was done, in the order in which it was done.
        origins: for the path of each new node, the path of the node of the original that it stems from.
        stored: the tensors that hold the values of the original, where the layout was planned.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.weights = WeightRewriter()
        self.changes: list[Change] = []
        self.layers: list[RewrittenLayer] = []
        self.origins: dict[str, str] = {}
        self.stored: StoredValues = {}

    def origin(self, path: str) -> str:
        """The path of the original's node; a node that was not rewritten stems from itself."""
        return self.origins.get(path, path)

    def attempt(self, path: str, node: ir.Node, opset: int, suffix: str, write: Write) -> str | None:
        """Rewrite one node. Returns the reason where it is refused, and None where it was rewritten or is not meant.

        What was inserted before a refusal is removed again.
        """
        writer = GraphWriter(node, f"{path}/{suffix}", opset)
        try:
            result = write(node, writer, self.weights)
        except NotRewritable as error:
            result = str(error)
            discard(writer.nodes)
        except RecursionError:
            result = "its weight is computed by a longer chain of operators than Python can follow"
            discard(writer.nodes)
        writer.drop_unused_constants()
        if result is None or isinstance(result, str):
            return result
        written, last = result.written, result.replaced[-1]
        origin = self.origin(path)
        prefix = path.removesuffix(_name_of(node))
        self.origins |= {f"{prefix}{new.name}": origin for new in writer.nodes}
        index = node.meta.get(_LAYER, len(self.layers))
        layer = RewrittenLayer(
            origin,
            node.op_type,
            written.law,
            str(written.data.name),
            str(last.outputs[0].name),
            result.terms,
            written.data_sizes,
            result.is_exact,
            prefix,
        )
        for new in writer.nodes:
            new.meta[_LAYER] = index
        if index == len(self.layers):
            self.layers.append(layer)
        else:
            self.layers[index] = _merged(self.layers[index], layer)
        replace(result.replaced, written.result)
        discard([new for new in writer.nodes if written.result not in new.outputs])
        self.changes.append(Change(origin, node.op_type, written.law, result.before, written.description))
        return None

    def record_run(self, written: Mapping[str, Sequence[ir.Node]], layers: Sequence[RewrittenLayer]) -> None:
        """Record nodes that were rewritten together: the new nodes by the path of the old one, and their outputs."""
        for path, nodes in written.items():
            for node in nodes:
                self.origins[str(node.name)] = self.origin(path)
                node.meta[_LAYER] = len(self.layers)
        self.layers += layers


def _merged(known: RewrittenLayer, layer: RewrittenLayer) -> RewrittenLayer:
    """The record of a layer that was rewritten before keeps the values that the original has."""
    law = " → ".join(dict.fromkeys([*known.law.split(" → "), layer.law]))
    is_exact = known.is_exact and layer.is_exact
    return dataclass_replace(known, law=law, terms=max(known.terms, layer.terms), is_exact=is_exact)


def nodes_of(model: ir.Model) -> Iterator[tuple[str, ir.Node, int]]:
    """Every node, subgraphs and functions included, with its path and the version of the default domain."""
    opset = model.opset_imports.get("", 1)
    yield from _nodes_in(model.graph, "", opset)
    for prefix, function in functions_of(model):
        version = function.opset_imports.get("", opset)
        yield from _nodes_in(function.graph, prefix, version)


def functions_of(model: ir.Model) -> Iterator[tuple[str, ir.Function]]:
    """Every function, with the prefix of its nodes' paths: its name, or its identifier if others share the name."""
    names = Counter(function.name for function in model.functions.values())
    for identifier, function in model.functions.items():
        is_unique = names[function.name] == 1
        yield f"{function.name if is_unique else '.'.join(filter(None, identifier))}/", function


def _nodes_in(container: ir.Graph, prefix: str, opset: int) -> Iterator[tuple[str, ir.Node, int]]:
    for node in container:
        yield f"{prefix}{_name_of(node)}", node, opset
        for inner, graph in subgraphs_of(node, prefix):
            yield from _nodes_in(graph, inner, opset)


def subgraphs_of(node: ir.Node, prefix: str) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs in a node's attributes, each with the prefix of the paths of its nodes."""
    path = f"{prefix}{_name_of(node)}"
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield f"{path}/{attribute.name}/", attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for index, graph in enumerate(attribute.as_graphs()):
                yield f"{path}/{attribute.name}_{index}/", graph


def _name_of(node: ir.Node) -> str:
    return node.name or next((output.name for output in node.outputs if output.name), node.op_type)


def replace(nodes: Sequence[ir.Node], value: ir.Value) -> None:
    """Put `value` in the place of the last node's output, under its name, and remove what nothing reads any more."""
    replace_value(nodes[-1].outputs[0], value)
    discard(list(reversed(nodes)))


def replace_value(old: ir.Value, value: ir.Value) -> None:
    """Put `value` in the place of another, under its name."""
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    value.name = name
    value.type = kind or value.type
    if shape is not None:
        value.shape = shape
    value.metadata_props.update(old.metadata_props)


def discard(nodes: Sequence[ir.Node]) -> None:
    """Remove nodes that nothing reads, and whatever only they read."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        container = node.graph
        if container is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        operands = [operand for operand in node.inputs if operand is not None]
        container.remove(node, safe=True)
        for operand in operands:
            if operand.uses() or operand.is_graph_output():
                continue
            producer = operand.producer()
            if producer is not None:
                waiting.append(producer)
            elif operand.is_initializer() and not operand.is_graph_input() and operand.graph is not None:
                operand.graph.initializers.pop(str(operand.name), None)


def sort_where_needed(model: ir.Model) -> None:
    """Sort a graph whose new nodes read a constant expression that stands further down; others keep their order."""
    bodies = [function.graph for function in model.functions.values()]
    for container in (*model.graphs(), *bodies, *(inner for body in bodies for inner in body.subgraphs())):
        known: set[ir.Node] = set()
        for node in container:
            producers = (operand.producer() for operand in node.inputs if operand is not None)
            if any(p is not None and p.graph is container and p not in known for p in producers):
                container.sort()
                break
            known.add(node)


def restore_value_infos(converted: ir.Model, original: ir.Model) -> None:
    """Drop the shapes that only inference added: a file carries those that the original carried.

    Inputs and initializers keep theirs, and outputs get those of the original again, with the names of its sizes.
    """
    for value, old in zip(converted.graph.outputs, original.graph.outputs, strict=True):
        if old.shape is not None:
            value.shape = old.shape.copy()
    _restore(converted.graph, original.graph, ())
    for key, function in converted.functions.items():
        _restore(function.graph, original.functions[key].graph, (*function.inputs, *function.outputs))


def _restore(converted: ir.Graph, original: ir.Graph, more: Sequence[ir.Value]) -> None:
    """Drop added shapes in one graph and its subgraphs; `more` are inputs and outputs whose shapes may be dropped."""
    computed = (value for node in original.all_nodes() for value in node.outputs)
    named = {
        str(value.name)
        for value in (*computed, *original.inputs)
        if value.type is not None or value.shape is not None
    }
    inner = [value for node in converted.all_nodes() for value in node.outputs if not value.is_graph_output()]
    for value in (*inner, *more):
        if str(value.name) not in named:
            value.type, value.shape = None, None
