"""Groups of DequantizeLinear, layer and QuantizeLinear, which runtimes fuse into one operator on integers.

Nothing may stand inside of a group. Quantisation by tensor acts on each number by itself, so that layout operators move
out of it: in front of the DequantizeLinear and behind the QuantizeLinear, where they move integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import (
    NotRewritable,
    array_of,
    call_argument,
    is_constant,
    is_one_number,
)
from onebyone.onnx.graph_writer import GraphWriter

#: Operators of one input that act on each number by itself, and may stand between a layer and its QuantizeLinear.
_ACTIVATIONS = {
    "Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus",
    "Softsign", "Gelu", "Mish", "ThresholdedRelu",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What a layer reads: a value, and the DequantizeLinear between it and the layer, if there is one."""

    value: ir.Value
    dequantise: ir.Node | None = None

    def dequantised(self, writer: GraphWriter, value: ir.Value) -> ir.Value:
        """The numbers of a rearranged `value`, as the layer reads them."""
        return value if self.dequantise is None else _repeated(writer, self.dequantise, value)


def layer_input(value: ir.Value) -> LayerInput:
    """The quantised tensor in front of a layer's DequantizeLinear by tensor; elsewhere the value itself."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or not _is_by_tensor(node):
        return LayerInput(value)
    quantised = node.inputs[0]
    assert quantised is not None
    if is_constant(quantised) or quantised.shape is None:
        return LayerInput(value)
    return LayerInput(quantised, node)


def quantising_nodes(output: ir.Value) -> tuple[ir.Node, ...]:
    """The QuantizeLinear by tensor behind a layer's output, with the activations before it; empty if there is none.

    Every node but the last is read by the next alone.
    """
    found: list[ir.Node] = []
    container = output.producer().graph if output.producer() is not None else None  # type: ignore[union-attr]
    while True:
        users = list(output.uses())
        if len(users) != 1 or users[0].idx != 0 or output.is_graph_output():
            return ()
        node = users[0].node
        if node.graph is not container or not _is_by_tensor(node):
            return ()
        found.append(node)
        if node.op_type == "QuantizeLinear":
            return tuple(found)
        if node.op_type not in _ACTIVATIONS:
            return ()
        output = node.outputs[0]


def quantised(writer: GraphWriter, nodes: Sequence[ir.Node], value: ir.Value) -> ir.Value:
    """The same activations and QuantizeLinear on another value."""
    for node in nodes:
        value = _repeated(writer, node, value)
    return value


def have_equal_parameters(first: ir.Node, second: ir.Node) -> bool:
    """Whether scales and zero points of two nodes by tensor are the same numbers of the same types."""
    left, right = (list(node.inputs[1:]) + [None] * (3 - len(node.inputs)) for node in (first, second))
    return _is_by_tensor(first) and _is_by_tensor(second) and all(map(_are_equal, left, right))


def _is_by_tensor(node: ir.Node) -> bool:
    return node.domain == "" and call_argument(node) is None and all(map(_is_one_number, node.inputs[1:]))


def _is_one_number(value: ir.Value | None) -> bool:
    return value is None or (is_constant(value) and is_one_number(value))


def _are_equal(first: ir.Value | None, second: ir.Value | None) -> bool:
    if first is second or first is None or second is None:
        return first is second
    try:
        left, right = array_of(first), array_of(second)
    except NotRewritable:
        return False
    return left.dtype == right.dtype and bool(np.array_equal(left.reshape(-1), right.reshape(-1)))


def _repeated(writer: GraphWriter, node: ir.Node, value: ir.Value) -> ir.Value:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    shape = None if value.shape is None else [s if isinstance(s, int) else None for s in value.shape]
    operands = [value, *node.inputs[1:]]
    return writer.op(node.op_type, operands, attributes, shape=shape, dtype=node.outputs[0].dtype)
