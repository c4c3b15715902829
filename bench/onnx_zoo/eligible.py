"""The layers of an ONNX file that must be converted or refused, counted without any part of the package.

To convolutions: every product of which exactly one operand is computed from constants alone. To linear layers: every
convolution with a constant kernel of size one. Graphs inside nodes, and functions, count too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import onnx

#: Products and convolutions by domain and operator: which of the inputs are the operands (data or weight).
PRODUCTS = {
    ("", "MatMul"): (0, 1),
    ("", "Gemm"): (0, 1),
    ("", "Einsum"): (0, 1),
    ("", "QLinearMatMul"): (0, 3),
    ("", "MatMulInteger"): (0, 1),
    ("com.microsoft", "FusedMatMul"): (0, 1),
    ("com.microsoft", "FusedGemm"): (0, 1),
    ("com.microsoft", "QGemm"): (0, 3),
    ("com.microsoft", "MatMulIntegerToFloat"): (0, 1),
    ("com.microsoft", "DynamicQuantizeMatMul"): (0, 1),
    ("com.microsoft", "MatMulNBits"): (0, 1),
}
CONVOLUTIONS = {
    ("", "Conv"): (0, 1),
    ("", "QLinearConv"): (0, 3),
    ("", "ConvInteger"): (0, 1),
    ("com.microsoft", "FusedConv"): (0, 1),
}
#: Operators that only rearrange numbers.
LAYOUT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")

Shapes: TypeAlias = "dict[str, tuple[int, ...]]"


@dataclass(frozen=True)
class Layer:
    """One eligible layer: its path as conversions name it (its name, or that of its output), and its operator."""

    path: str
    kind: str


def eligible_layers(model: onnx.ModelProto, to: str) -> list[Layer]:
    """Every layer that a conversion to `conv` or `linear` must convert or refuse."""
    inferred = _inferred(model)
    layers = list(_in_graph(inferred.graph, to, "", {}))
    for function in inferred.functions:
        layers += _in_nodes(function.node, to, f"{function.name}/", {})
    return layers


def layout_operators(model: onnx.ModelProto) -> int:
    """The number of operators that rearrange a value which depends on the inputs."""
    return sum(
        node.op_type in LAYOUT and node.input[0] not in constants
        for nodes, constants in _all_nodes(model)
        for node in nodes
    )


def constant_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all constants, wherever they are stored."""
    return sum(_bytes(tensor) for tensor in _tensors(model))


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred shapes, for kernels that are computed from other constants."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    try:
        return onnx.shape_inference.infer_shapes(small, data_prop=True)
    except Exception:  # over 2 GB, or an operator that it does not know
        return small


def _in_graph(graph: onnx.GraphProto, to: str, prefix: str, outer: Shapes) -> Iterator[Layer]:
    inputs = {value.name for value in graph.input}
    constants = dict(outer)
    constants |= {
        tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.name not in inputs
    }
    known = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    yield from _in_nodes(graph.node, to, prefix, constants, known)


def _in_nodes(
    nodes: Sequence[onnx.NodeProto],
    to: str,
    prefix: str,
    constants: Shapes,
    known: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[Layer]:
    table = PRODUCTS if to == "conv" else CONVOLUTIONS
    for node in nodes:
        path = prefix + (node.name or node.output[0])
        domain = "" if node.domain == "ai.onnx" else node.domain
        operands = [node.input[i] for i in table.get((domain, node.op_type), ()) if i < len(node.input)]
        constant = [name in constants for name in operands]
        if to == "conv" and sum(constant) == 1:
            yield Layer(path, node.op_type)
        elif len(constant) == 2 and to == "linear" and constant[1] and not constant[0]:
            shape = constants[operands[1]]
            if len(shape) > 2 and prod(shape[2:]) == 1:
                yield Layer(path, node.op_type)
        _note_constants(node, constants, known or {})
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _in_graph(attribute.g, to, f"{path}/{attribute.name}/", constants)


def _note_constants(node: onnx.NodeProto, constants: Shapes, known: Mapping[str, tuple[int, ...]]) -> None:
    """Add the outputs of a node to the constants if all that it reads is constant."""
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        return
    if node.op_type == "Constant":
        for attribute in node.attribute:
            constants[node.output[0]] = tuple(attribute.t.dims) if attribute.name == "value" else ()
    elif node.input and all(name in constants for name in node.input if name):
        first = constants[node.input[0]] if node.input[0] else ()
        for output in node.output:
            constants[output] = known.get(output) or first


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _all_nodes(model: onnx.ModelProto) -> Iterator[tuple[Sequence[onnx.NodeProto], set[str]]]:
    """The nodes of every graph and function, with the names of what is constant there."""
    waiting: list[tuple[onnx.GraphProto, Shapes]] = [(model.graph, {})]
    for graph, outer in waiting:
        constants = outer | {tensor.name: () for tensor in graph.initializer}
        for node in graph.node:
            _note_constants(node, constants, {})
            waiting += [(a.g, constants) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        yield graph.node, set(constants)
    for function in model.functions:
        yield function.node, set()


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    waiting = [model.graph]
    for graph in waiting:
        yield from graph.initializer
        waiting += [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    for nodes, _ in _all_nodes(model):
        for node in nodes:
            yield from (a.t for a in node.attribute if a.HasField("t"))


def _bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's numbers, from its shape and type."""
    bits = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}.get(tensor.data_type)
    if bits is None:
        bits = 8 * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return -(-prod(tensor.dims) * bits // 8)
