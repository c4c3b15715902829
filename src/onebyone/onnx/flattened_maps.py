"""Find the map behind a flattened vector, and the order in which the vector holds it.

The order is not assumed: the graph's own shape operators run on a tensor of indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onebyone.onnx.constant_values import call_argument
from onebyone.onnx.graph_writer import WRITTEN
from onebyone.onnx.linear_products import LinearProduct
from onebyone.onnx.quantised_groups import have_equal_parameters, layer_input

#: Operators that move numbers and do not change them.
_MOVES = {"Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
#: Operators that change numbers, in pairs that are the identity; see `_moves_before`.
_QUANTISERS = {"QuantizeLinear", "DequantizeLinear"}
#: Operators of which exporters compute the shape of a Reshape.
_SHAPE_ARITHMETIC = {
    "Shape", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Cast", "Mul", "Div", "Add", "Sub", "Constant",
    "ConstantOfShape", "ReduceProd", "Identity", "Reshape",
}  # fmt: skip

#: The most values of a map whose order is recovered: 1 GB of indices.
LARGEST_MAP = 2**27


@dataclass(frozen=True)
class FlattenedMap:
    """A map (N, C, *positions) whose samples a vector holds, in the order of the axes `order` of a sample."""

    value: ir.Value
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The extent of the map on each axis of positions."""
        return self.sizes[1:]


def flattened_map(product: LinearProduct) -> FlattenedMap | None:
    """The map that `product.data`, of shape (N, K), is a flattened form of; None where it is none.

    None as well where a sample's numbers are in an order that no permutation of the map's axes gives.
    """
    if len(product.data_labels) != 2 or product.contracted != product.data_labels[1:]:
        return None
    best = None
    moves: list[ir.Node] = []
    read = layer_input(product.data)
    value = read.value
    while (step := _moves_before(value, read.dequantise)) is not None:
        nodes, operand = step
        if any(node.graph is not product.node.graph or WRITTEN in node.meta for node in nodes):
            break
        moves += nodes
        value = operand
        sizes = _sample_sizes(value)
        if sizes is not None and prod(sizes) == product.sizes[product.contracted[0]]:
            order = _order(value, sizes, moves, read.value)
            if order is not None:
                best = FlattenedMap(value, sizes, order)
    return best


def _moves_before(value: ir.Value, dequantise: ir.Node | None) -> tuple[list[ir.Node], ir.Value] | None:
    """The node that moved the numbers of a value, and what it read; None where something else computed them.

    Quantised numbers may also be dequantised, moved and quantised again, all with the parameters of `dequantise`.
    """
    node = value.producer()
    operand = None if node is None or node.domain != "" else node.inputs[0]
    if node is None or operand is None or call_argument(node) is not None:
        return None
    if node.op_type in _MOVES:
        return [node], operand
    if node.op_type != "QuantizeLinear" or dequantise is None or not have_equal_parameters(node, dequantise):
        return None
    nodes = [node]
    while (node := operand.producer()) is not None and node.domain == "" and node.inputs[0] is not None:
        nodes.append(node)
        operand = node.inputs[0]
        if node.op_type == "DequantizeLinear" and have_equal_parameters(node, dequantise):
            return (nodes, operand) if operand.dtype == value.dtype else None
        if node.op_type not in _MOVES or call_argument(node) is not None:
            return None
    return None


def _sample_sizes(value: ir.Value) -> tuple[int, ...] | None:
    """The sizes of a map without its batch axis; None where the value is no map of known size."""
    if value.shape is None or not 3 <= len(value.shape) <= 5:
        return None
    sizes = [size for size in value.shape[1:] if isinstance(size, int)]
    return tuple(sizes) if len(sizes) == len(value.shape) - 1 else None


def _order(
    value: ir.Value, sizes: tuple[int, ...], moves: list[ir.Node], vector: ir.Value
) -> tuple[int, ...] | None:
    """The order of a sample's axes in the vector, from a run of the moves on indices."""
    assert value.shape is not None
    batch = value.shape[0] if isinstance(value.shape[0], int) else 2
    count = prod(sizes)
    if batch * count > LARGEST_MAP:
        return None
    indices = np.arange(batch * count, dtype=np.int64).reshape(batch, *sizes)
    result = _run(value, indices, list(reversed(moves)), vector)
    if result is None or result.shape != (batch, count):
        return None
    if not np.array_equal(result, result[:1] + count * np.arange(batch)[:, None]):
        return None  # it mixes the samples of a batch
    sample = np.arange(count).reshape(sizes)
    for order in permutations(range(len(sizes))):
        if np.array_equal(sample.transpose(order).reshape(-1), result[0]):
            return order
    return None


def _run(value: ir.Value, indices: np.ndarray, moves: list[ir.Node], vector: ir.Value) -> np.ndarray | None:
    """Run the moves, and what their shapes are computed from, on `indices` in place of `value`."""
    nodes: list[ir.Node] = []
    constants: dict[str, ir.TensorProtocol] = {}
    if not all(_collect(node, value, len(indices), nodes, constants) for node in moves):
        return None
    replaced = {
        id(value): ir.Value(name="map", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(indices.shape))
    }
    copies = []
    for node in nodes:
        inputs = [None if v is None else _copied(v, replaced, constants) for v in _moved(node)]
        outputs = [ir.Value(name=f"copy_{v.name}") for v in node.outputs]
        replaced.update({id(old): new for old, new in zip(node.outputs, outputs, strict=True)})
        kind, attributes = node.op_type, list(node.attributes.values())
        if kind in _QUANTISERS:
            kind, attributes = "Identity", []
        copies.append(ir.Node(node.domain, kind, inputs, attributes, outputs=outputs))
    initializers = [v for v in replaced.values() if v.const_value is not None]
    container = nodes[0].graph
    assert container is not None
    version = container.opset_imports.get("", 18)
    graph = ir.Graph(
        [replaced[id(value)]],
        [replaced[id(vector)]],
        nodes=copies,
        initializers=initializers,
        opset_imports={"": version},
        name="order",
    )
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=8))
    try:
        return np.asarray(ReferenceEvaluator(proto).run(None, {"map": indices})[0])
    except Exception:  # a shape that holds for another batch size only, for instance
        return None


def _moved(node: ir.Node) -> Sequence[ir.Value | None]:
    """The operands of a node that moves numbers; scales and zero points move nothing."""
    return node.inputs[:1] if node.op_type in _QUANTISERS else node.inputs


def _copied(
    value: ir.Value, replaced: dict[int, ir.Value], constants: dict[str, ir.TensorProtocol]
) -> ir.Value:
    if id(value) not in replaced:
        tensor = constants[str(value.name)]
        replaced[id(value)] = ir.Value(
            name=f"constant_{value.name}",
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            # a tensor of its own: serialisation names a tensor after its value, in the caller's model too
            const_value=ir.tensor(tensor.numpy()),
        )
    return replaced[id(value)]


def _collect(
    node: ir.Node, stop: ir.Value, batch: int, nodes: list[ir.Node], constants: dict[str, ir.TensorProtocol]
) -> bool:
    """Add a node behind everything that it needs; False where something else than shapes would be needed."""
    if node in nodes:
        return True
    for operand in _moved(node):
        if operand is None or operand is stop:
            continue
        if operand.const_value is not None:
            constants[str(operand.name)] = operand.const_value
            continue
        producer = operand.producer()
        if producer is not None and producer.op_type == "Shape" and producer.inputs[0] is not stop:
            sizes = _sizes_of(producer.inputs[0], batch)
            if sizes is None or producer.attributes:
                return False
            constants[str(operand.name)] = ir.tensor(np.asarray(sizes, dtype=np.int64))
            continue
        if (
            producer is None
            or producer.domain != ""
            or call_argument(producer) is not None
            or producer.op_type not in _MOVES | _SHAPE_ARITHMETIC | _QUANTISERS
        ):
            return False
        if not _collect(producer, stop, batch, nodes, constants):
            return False
    nodes.append(node)
    return True


def _sizes_of(value: ir.Value | None, batch: int) -> list[int] | None:
    """The sizes of a value, an unknown first one taken for the batch; None where another is unknown."""
    if value is None or value.shape is None:
        return None
    sizes = [
        size if isinstance(size, int) else (batch if axis == 0 else -1)
        for axis, size in enumerate(value.shape)
    ]
    return None if -1 in sizes else sizes
