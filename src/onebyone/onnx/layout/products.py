"""Products with a constant weight as the planner's: those that keep all axes but the channels where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from onebyone.layout.products import ProductRule
from onebyone.layout.token_axis import TokenAxis
from onebyone.layout.values import GraphValue
from onebyone.layout.weight_products import WeightProduct
from onebyone.onnx.constant_values import is_constant, shape_of
from onebyone.onnx.flattened_maps import flattened_map
from onebyone.onnx.layout.decoder import DecodedModel, TokenProduct
from onebyone.onnx.linear_products import LinearProduct, bias_shape, read_product
from onebyone.onnx.to_matrix_product import LinearConvolution, read_convolution


def read_token_wise(node: ir.Node) -> LinearProduct | None:
    """A matrix product with a constant that maps the channels of every position alike; None for any other node.

    Its result has the axes of its data, with the channels replaced, and what is added to it is one number a channel.
    A product behind a flattened map is none: it becomes a convolution over that map.
    """
    read = read_product(node)
    if not isinstance(read, LinearProduct) or read.grouped or read.activation is not None or read.scale != 1:
        return None
    if len(read.contracted) != 1 or len(read.features) != 1:
        return None
    renamed = tuple(read.features[0] if x == read.contracted[0] else x for x in read.data_labels)
    if renamed != read.output_labels or flattened_map(read) is not None:
        return None
    if read.bias is not None and read.bias_scale != 0 and not _is_plain(read):
        return replace(read, bias=None, nodes=read.nodes[:1]) if len(read.nodes) > 1 else None
    return read if read.bias_scale != 0 else replace(read, bias=None)


def read_pointwise(node: ir.Node) -> LinearConvolution | None:
    """A 1×1 convolution with a constant weight, without padding and groups; None for any other node."""
    read = read_convolution(node)
    if not isinstance(read, LinearConvolution) or read.covers_the_map or read.groups > 1:
        return None
    automatic = read.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return None if automatic and any(step > 1 for step in read.strides) else read


#: What reads the products that the planner writes, by the form that they are converted to.
READERS: Mapping[str, Callable[[ir.Node], LinearProduct | LinearConvolution | None]] = {
    "conv": read_token_wise,
    "linear": read_pointwise,
}


def _is_plain(read: LinearProduct) -> bool:
    shape = bias_shape(read)
    return shape is not None and read.bias_scale == 1 and prod(shape) in (1, read.sizes[read.features[0]])


@dataclass(frozen=True)
class ProductDecoder:
    """Decodes the token-wise products of a graph.

    Args:
        decoded: the graph.
        to: the form to write them in.
        selected: whether the product of a node is to be converted.
        tokens: where positions are stored in convolutions.
    """

    decoded: DecodedModel
    to: str
    selected: Callable[[ir.Node], bool]
    tokens: TokenAxis

    def read(
        self, node: ir.Node, penalty: float, row_penalty: float, keep_cost: float | None = None
    ) -> TokenProduct | None:
        """The product that begins at a node, in the form in which it is to be written; None where there is none."""
        linear = read_token_wise(node)
        convolution = None if linear is not None else read_pointwise(node)
        if linear is not None:
            product, nodes, form = self._linear(linear), linear.nodes, "linear"
        elif convolution is not None:
            product, nodes, form = self._convolution(convolution), (node,), "conv"
        else:
            return None
        if product.x.shape is None or 0 in product.x.shape or product.result.shape is None:
            return None
        for constant in (v for n in nodes for v in n.inputs if v is not None and is_constant(v)):
            self.decoded.value(constant)  # a product that is written as it was reads its own operands
        convert = form != self.to and self.selected(node)
        if not convert and any(step != 1 for step in product.stride):
            return None
        rows = row_penalty if product.x.rank == 2 else 0.0
        to = self.to if convert else form
        rule = ProductRule(
            product.result, product.operands, product, to, convert, penalty, self.tokens, rows, keep_cost
        )
        return TokenProduct(rule, nodes)

    def _linear(self, read: LinearProduct) -> WeightProduct:
        channel = read.data_labels.index(read.contracted[0])
        result, x = self._result(read.nodes[-1].outputs[0], read.data, channel, read.sizes[read.features[0]])
        weight = self.decoded.value(read.weight)
        places = read.weight_axes.index(read.features[0]), read.weight_axes.index(read.contracted[0])
        outputs = read.sizes[read.features[0]]
        assert outputs is not None
        bias = None if read.bias is None else self._bias(read.bias, outputs)
        return WeightProduct(result, x, channel, channel, weight, *places, bias)

    def _convolution(self, read: LinearConvolution) -> WeightProduct:
        outputs = (shape_of(read.weight) or (0,))[0]
        result, x = self._result(read.node.outputs[0], read.data, 1, outputs)
        if any(step != 1 for step in read.strides):
            result = self.decoded.value(read.node.outputs[0])
        bias = None if read.bias is None else self._bias(read.bias, outputs)
        weight = self.decoded.value(read.weight)
        return WeightProduct(result, x, 1, 1, weight, 0, 1, bias, stride=read.strides)

    def _result(
        self, value: ir.Value, data: ir.Value, channel: int, outputs: int | None
    ) -> tuple[GraphValue, GraphValue]:
        x = self.decoded.value(data)
        if x.shape is not None:
            self.decoded.sizes.refine(value, [*x.shape[:channel], outputs, *x.shape[channel + 1 :]])
        return self.decoded.value(value), x

    def _bias(self, bias: ir.Value, outputs: int) -> GraphValue:
        """The bias as one number for each output: itself, or a constant made from it."""
        shape = shape_of(bias)
        if shape == (outputs,):
            return self.decoded.value(bias)
        vector = self.decoded.vectors.get(bias)
        if vector is None:
            vector = GraphValue(f"{bias.name} (vector)", (outputs,), bias)
            self.decoded.vectors[bias] = vector
            self.decoded.constants.add(vector)
        return vector
