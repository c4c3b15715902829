"""Which nodes of an exported program multiply by a constant weight, and which of those cannot be converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from onebyone.layout.values import GraphValue
from onebyone.layout.weight_products import WeightProduct, product_of_factors
from onebyone.pytorch.graph.constants import constant_nodes, input_independent_nodes, trained_nodes
from onebyone.pytorch.graph.nodes import argument, operator_name, tensor_value

PRODUCTS = frozenset(["linear", "mm", "matmul", "bmm", "addmm", "mv", "baddbmm"])
CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d", "convolution"])
UNSUPPORTED = {
    "einsum": "an einsum is not read as a product with a weight",
    "tensordot": "a tensordot is not read as a product with a weight",
    "bilinear": "a bilinear form has two inputs",
    "_trilinear": "a bilinear form has two inputs",
    "lstm": "a recurrent operator holds its products inside",
    "gru": "a recurrent operator holds its products inside",
    "rnn_tanh": "a recurrent operator holds its products inside",
    "rnn_relu": "a recurrent operator holds its products inside",
    "addbmm": "a product summed over the batch is not a layer",
    "addmv": "a matrix times a vector with a sum is not read",
    "_native_multi_head_attention": "a fused attention operator holds its products inside",
    "_transformer_encoder_layer_fwd": "a fused transformer operator holds its products inside",
}
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


@dataclass(frozen=True)
class ProductMatcher:
    """Reads the nodes of one program as products with a constant weight."""

    values: Mapping[Node, GraphValue]
    constant: set[Node]  # depends only on parameters, buffers and constants
    trained: set[Node]  # constant, and depends on a parameter
    independent: set[Node]  # does not depend on the inputs

    @classmethod
    def of(cls, program: ExportedProgram, values: Mapping[Node, GraphValue]) -> ProductMatcher:
        """The matcher for a program, whose graph has these values."""
        constant = constant_nodes(program)
        return cls(values, constant, trained_nodes(program, constant), input_independent_nodes(program))

    def linear(self, node: Node) -> WeightProduct | str | None:
        """A matrix product with one constant factor; the reason why it cannot be converted; None for other nodes."""
        name = operator_name(node)
        if name not in PRODUCTS:
            return None
        if name == "linear":
            return self._linear_layer(node)
        if name in ("addmm", "baddbmm"):
            bias, first, second = node.args[:3]
            scales = {"alpha": node.kwargs.get("alpha", 1), "beta": node.kwargs.get("beta", 1)}
        else:
            bias, (first, second), scales = None, node.args[:2], {}
        assert isinstance(first, Node)
        assert isinstance(second, Node)
        return self._two_factors(node, first, second, self._value(bias), scales)

    def convolution(self, node: Node) -> WeightProduct | str | None:
        """A convolution with a constant kernel of size 1; the reason why it cannot be converted; None for others."""
        name = operator_name(node)
        if name not in CONVOLUTIONS:
            return None
        x, weight = node.args[:2]
        if not isinstance(x, Node) or not isinstance(weight, Node) or weight not in self.constant:
            return None
        kernel = self._sizes(weight)[2:]
        if any(size != 1 for size in kernel):
            return None
        if name == "convolution" and node.args[6]:
            return "a transposed convolution"
        padding = argument(node, 4, "padding", 0)
        amounts = padding if isinstance(padding, list | tuple) else [padding]
        if any(amount != 0 for amount in amounts if not isinstance(amount, str)):
            return f"padding {padding}: the border positions have no input"
        stride = argument(node, 3, "stride", 1)
        steps = tuple(stride) if isinstance(stride, list | tuple) else (stride,)
        groups: Any = node.args[8] if name == "convolution" else argument(node, 6, "groups", 1)
        channel = self.values[x].rank - len(kernel) - 1
        return self._unfit(node, weight) or WeightProduct(
            self.values[node],
            self.values[x],
            channel,
            channel,
            self.values[weight],
            0,
            1,
            self._value(argument(node, 2, "bias")),
            groups=int(groups),
            stride=steps * len(kernel) if len(steps) == 1 else steps,
        )

    def weight_of(self, node: Node) -> Node | None:
        """The operand that a product is named after: its weight argument, else its only or first constant."""
        if operator_name(node) == "linear" or operator_name(node) in CONVOLUTIONS:
            return node.args[1] if isinstance(node.args[1], Node) else None
        constant = [n for n in node.all_input_nodes if n in self.constant]
        recurrent = operator_name(node) in UNSUPPORTED and len(constant) > 1
        return None if recurrent or not constant else constant[0]

    def unsupported(self, node: Node) -> str | None:
        """Why an operator that multiplies by a constant is not supported; None for all other nodes."""
        reason = UNSUPPORTED.get(operator_name(node))
        tensors = [n for n in node.all_input_nodes if tensor_value(n) is not None]
        mixed = any(n in self.constant for n in tensors) and any(n not in self.constant for n in tensors)
        return reason if reason and mixed else None

    def changing_weight(self, node: Node) -> str | None:
        """Why a layer is not converted whose weight is neither constant nor made from the inputs; None for others."""
        name = operator_name(node)
        if name != "linear" and name not in CONVOLUTIONS:
            return None
        weight = node.args[1]
        if not isinstance(weight, Node) or weight in self.constant or weight not in self.independent:
            return None
        if name in CONVOLUTIONS and any(size != 1 for size in self._sizes(weight)[2:]):
            return None
        return "its weight changes from call to call: it is made at random, or from a buffer that the program writes to"

    def _linear_layer(self, node: Node) -> WeightProduct | str | None:
        x, weight = node.args[:2]
        if not isinstance(x, Node) or not isinstance(weight, Node) or weight not in self.constant:
            return None
        if len(self._sizes(weight)) == 1:
            return "a vector weight"
        last, bias = self.values[x].rank - 1, self._value(argument(node, 2, "bias"))
        return self._unfit(node, weight) or WeightProduct(
            self.values[node], self.values[x], last, last, self.values[weight], 0, 1, bias
        )

    def _two_factors(
        self, node: Node, first: Node, second: Node, bias: GraphValue | None, scales: dict[str, Any]
    ) -> WeightProduct | str | None:
        """A product with one constant factor, or with two of which one is trained."""
        weights = self.constant if (first in self.constant) != (second in self.constant) else self.trained
        if (first in weights) == (second in weights):
            return None
        x, weight = (first, second) if second in weights else (second, first)
        matrix = self._shared_matrix(weight)
        if isinstance(matrix, str):
            return matrix
        product = product_of_factors(
            self.values[node], self.values[x], self.values[matrix], weight is first, bias, **scales
        )
        return product if isinstance(product, str) else self._unfit(node, matrix) or product

    def _shared_matrix(self, weight: Node) -> Node | str:
        """The matrix that all entries of the batch share, looked for behind `expand`; or why there is none."""
        if len(self._sizes(weight)) < 2:
            return weight
        while operator_name(weight) == "expand":
            source = weight.all_input_nodes[0]
            if len(self._sizes(source)) < 2 or self._sizes(source)[-2:] != self._sizes(weight)[-2:]:
                return "the weight is broadcast along its own axes"
            weight = source
        if any(size != 1 for size in self._sizes(weight)[:-2]):
            return "the weight has a batch axis: one matrix for each entry of the batch, not one layer"
        return weight

    def _unfit(self, node: Node, weight: Node) -> str | None:
        """Why no product with these numbers is converted; None if it can be."""
        sizes = self._sizes(weight)
        return f"its weight has shape {sizes}: nothing to multiply" if 0 in sizes else dtype_reason(node)

    def _value(self, node: Any) -> GraphValue | None:
        return self.values[node] if isinstance(node, Node) else None

    def _sizes(self, node: Node) -> tuple[Any, ...]:
        shape = self.values[node].shape
        assert shape is not None, node
        return shape


def dtype_reason(node: Node) -> str | None:
    """Why a product is not converted whose numbers are not real or complex; None if it can be."""
    value = tensor_value(node)
    if value is None or value.dtype in FLOATING:
        return None
    return f"dtype {str(value.dtype).removeprefix('torch.')} has no convolution kernel"


def products_inside(program: ExportedProgram, node: Node, to: str) -> int:
    """The number of products in the graphs that a node runs, as `no_grad`, autocast and `cond` blocks do."""
    names = PRODUCTS if to == "conv" else CONVOLUTIONS
    blocks = (
        [n.target for n in node.all_input_nodes if n.op == "get_attr"] if node.op == "call_function" else []
    )
    inner = [getattr(program.graph_module, str(name), None) for name in blocks]
    return sum(operator_name(n) in names for b in inner if isinstance(b, GraphModule) for n in b.graph.nodes)
