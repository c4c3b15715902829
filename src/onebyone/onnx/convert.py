"""Convert the fully connected layers of an ONNX model to convolutions, or its 1×1 convolutions to matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import TypeAlias

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveInitializersFromInputsPass

from onebyone.errors import BadInput
from onebyone.onnx import linear_products, to_matrix_product
from onebyone.onnx.constant_values import NotRewritable, mark_constants, shape_of
from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.graph_writer import GraphWriter, WrittenLayer
from onebyone.onnx.model_file import bytes_of_weights
from onebyone.onnx.shapes import infer_shapes
from onebyone.onnx.to_convolution import write_convolution
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.records import Change, Refusal, by

#: The first opset in which arithmetic broadcasts its operands.
OLDEST_OPSET = 7
Only: TypeAlias = "str | Sequence[str] | Callable[..., bool] | None"
Container: TypeAlias = ir.Graph | ir.Function


def convert_model(
    model: ir.Model, to: str = "conv", only: Only = None, freeze_initialisers: bool = False
) -> OnnxConversion:
    """Return a converted copy of a model; the model itself is not changed, and large constants are shared.

    Args:
        model: any model of onnx-ir.
        to: "conv" (products with a constant to convolutions) or "linear" (1×1 convolutions to matrix products).
        only: patterns of paths, as `fnmatch` reads them, or a function of a path; everything where None.
        freeze_initialisers: remove initializers from the graph's inputs first, so that they are constants. Old files
            (IR version 3) list every weight as an input.

    Raises:
        BadInput: `to` has another value, or the model's opset is older than 7, where operands do not broadcast.
    """
    if to not in ("conv", "linear"):
        raise BadInput(f"to={to!r}: expected 'conv' or 'linear'")
    opset = model.opset_imports.get("", OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise BadInput(
            f"model: has opset {opset}; expected {OLDEST_OPSET} or newer (see onnx.version_converter)"
        )
    copy = prepared(model, freeze_initialisers)
    bytes_before = bytes_of_weights(copy)
    rewriter = WeightRewriter()
    changes: list[Change] = []
    refused: list[Refusal] = []
    layers: list[RewrittenLayer] = []
    for path, node, opset in list(_nodes(copy)):
        if not _wanted(path, only):
            continue
        if node.graph is None:
            continue  # an earlier conversion took it in, as the Add of a bias
        writer = GraphWriter(node, f"{path}/{to}", opset)
        try:
            result = (
                _to_convolution(node, writer, rewriter)
                if to == "conv"
                else _to_linear(node, writer, rewriter)
            )
        except NotRewritable as error:
            result = str(error)
            _discard(writer.nodes)
        if result is None:
            continue
        if isinstance(result, str):
            refused.append(Refusal(path, node.op_type, result))
            continue
        written, replaced, weight, terms = result
        names = str(written.data.name), str(replaced[-1].outputs[0].name)
        layers.append(RewrittenLayer(path, node.op_type, written.law, *names, terms, written.data_sizes))
        _replace(replaced, written.result)
        before = f"{node.op_type} {by(shape_of(weight) or ())}"
        changes.append(Change(path, node.op_type, written.law, before, written.description))
    _sort_where_needed(copy)
    _restore_value_infos(copy, model)
    return OnnxConversion(
        copy,
        tuple(changes),
        tuple(refused),
        to=to,
        level="graph",
        layers=tuple(layers),
        entries=dict(rewriter.entries),
        weight_bytes=(bytes_before, bytes_of_weights(copy)),
        frozen=freeze_initialisers,
    )


def _wanted(path: str, only: Only) -> bool:
    if only is None:
        return True
    if callable(only):
        return bool(only(path))
    patterns = [only] if isinstance(only, str) else only
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def prepared(model: ir.Model, freeze_initialisers: bool = False) -> ir.Model:
    """A copy with its constants as initializers, and with shapes and types as far as they can be inferred."""
    copy = model.clone()
    if freeze_initialisers:
        copy.ir_version = max(
            copy.ir_version or 0, 4
        )  # the first version whose initializers need not be inputs
        RemoveInitializersFromInputsPass()(copy)
    _lift_constants(copy)
    infer_shapes(copy)
    mark_constants(copy)
    return copy


def _lift_constants(model: ir.Model) -> None:
    """Turn Constant nodes into initializers, so that a weight is found in one place whoever exported it.

    A clone shares its tensors with the original, and lifting names them: so each is wrapped first.
    """
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and node.domain == "" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            shape = ir.Shape(tensor.shape.numpy())
            wrapped = ir.LazyTensor(partial(_itself, tensor), tensor.dtype, shape, name=tensor.name)
            node.attributes["value"] = ir.AttrTensor("value", wrapped)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


#: A new form, the nodes that it replaces, the weight, and the number of terms of one sum.
Written: TypeAlias = "tuple[WrittenLayer, tuple[ir.Node, ...], ir.Value, int]"


def _to_convolution(node: ir.Node, writer: GraphWriter, rewriter: WeightRewriter) -> Written | str | None:
    read = linear_products.read_product(node)
    if read is None or isinstance(read, str):
        return read
    terms = prod(read.sizes[label] or 1 for label in read.contracted)
    return write_convolution(read, writer, rewriter), read.nodes, read.weight, terms


def _to_linear(node: ir.Node, writer: GraphWriter, rewriter: WeightRewriter) -> Written | str | None:
    read = to_matrix_product.read_convolution(node)
    if read is None or isinstance(read, str):
        return read
    terms = prod((shape_of(read.weight) or (1,))[1:])
    return to_matrix_product.write_matrix_product(read, writer, rewriter), (node,), read.weight, terms


def _itself(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor


def _nodes(model: ir.Model) -> Iterator[tuple[str, ir.Node, int]]:
    """Every node, subgraphs and functions included, with its path and the version of the default domain."""
    opset = model.opset_imports.get("", 1)
    yield from _nodes_of(model.graph, "", opset)
    for function in model.functions.values():
        version = function.opset_imports.get("", opset)
        yield from _nodes_of(function, f"{function.name}/", version)


def _nodes_of(container: Container, prefix: str, opset: int) -> Iterator[tuple[str, ir.Node, int]]:
    for node in container:
        name = node.name or next((output.name for output in node.outputs if output.name), node.op_type)
        path = f"{prefix}{name}"
        yield path, node, opset
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _nodes_of(attribute.as_graph(), f"{path}/{attribute.name}/", opset)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for index, graph in enumerate(attribute.as_graphs()):
                    yield from _nodes_of(graph, f"{path}/{attribute.name}_{index}/", opset)


def _replace(nodes: Sequence[ir.Node], value: ir.Value) -> None:
    """Put `value` in the place of the last node's output, under its name, and remove what nothing reads any more."""
    old = nodes[-1].outputs[0]
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    value.name = name
    value.type = kind or value.type
    if shape is not None:
        value.shape = shape
    value.metadata_props.update(old.metadata_props)
    _discard(list(reversed(nodes)))


def _sort_where_needed(model: ir.Model) -> None:
    """Sort a graph whose new nodes read a constant expression that stands further down; others keep their order."""
    containers: list[Container] = [*model.graphs(), *model.functions.values()]
    for container in containers:
        known: set[ir.Node] = set()
        for node in container:
            producers = (operand.producer() for operand in node.inputs if operand is not None)
            if any(p is not None and p.graph is container and p not in known for p in producers):
                container.sort()
                break
            known.add(node)


def _restore_value_infos(converted: ir.Model, original: ir.Model) -> None:
    """Drop the shapes that only inference added: a file carries those that the original carried.

    Inputs, outputs and initializers keep theirs.
    """
    named = {
        str(value.name)
        for node in original.graph.all_nodes()
        for value in node.outputs
        if value.type is not None or value.shape is not None
    }
    for node in converted.graph.all_nodes():
        for value in node.outputs:
            if str(value.name) not in named and not value.is_graph_output():
                value.type, value.shape = None, None


def _discard(nodes: Sequence[ir.Node]) -> None:
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
