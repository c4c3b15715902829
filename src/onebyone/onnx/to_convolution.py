"""Write a product with a constant weight as a convolution of kernel 1×1, or h×w behind a flattened map.

The data (batch, positions, channels in any order) becomes a map (N, C, H, W): the first free axis is the batch, the
others are the positions, and two of them keep an axis each. Source: the identities of `onebyone.laws.pointwise`,
`onebyone.laws.grouped` and `onebyone.laws.flatten`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from onebyone.onnx import axes
from onebyone.onnx.constant_values import NotRewritable, sizes_of
from onebyone.onnx.flattened_maps import FlattenedMap, flattened_map
from onebyone.onnx.graph_writer import GraphWriter, WrittenLayer
from onebyone.onnx.linear_products import LinearProduct, bias_shape
from onebyone.onnx.quantised_groups import layer_input, quantised, quantising_nodes
from onebyone.onnx.quantised_products import quantised_convolution
from onebyone.onnx.weight_rewriting import Step, WeightRewriter

POINTWISE, GROUPED, FLATTEN = (
    "linear = pointwise convolution",
    "batched product = grouped convolution",
    "flatten, then linear = convolution",
)


def write_convolution(
    product: LinearProduct, writer: GraphWriter, rewriter: WeightRewriter
) -> tuple[WrittenLayer, tuple[ir.Node, ...]]:
    """Insert the convolution, with its result in the product's shape; returns it with the nodes that it replaces.

    Raises:
        NotRewritable: the weight cannot take the convolution's shape.
    """
    product, bias = _with_bias_vector(product, writer, rewriter)
    product = _with_quantising_nodes(product)
    source = None if product.grouped else flattened_map(product)
    if source is not None:
        value, description = _on_the_map(product, source, bias, writer, rewriter)
        law = FLATTEN if prod(source.kernel) > 1 else POINTWISE
        return WrittenLayer(source.value, value, law, description, (None, *source.sizes)), product.nodes
    value, description = _pointwise(product, bias, writer, rewriter)
    law = GROUPED if product.grouped else POINTWISE
    sizes = tuple(product.sizes[label] for label in product.data_labels)
    read = layer_input(product.data).value
    return WrittenLayer(read, value, law, description, sizes), product.nodes


def _would_be_rounded(product: LinearProduct, bias: ir.Value) -> bool:
    """Whether ONNX Runtime, fusing a quantised group, would round a Conv's floating bias to multiples of its scales."""
    node = bias.producer()
    in_a_group = bool(product.quantise) and layer_input(product.data).dequantise is not None
    return in_a_group and (node is None or node.op_type != "DequantizeLinear")


def _with_quantising_nodes(product: LinearProduct) -> LinearProduct:
    """Take in the activations and the QuantizeLinear behind a product, which then stay behind the convolution."""
    if product.activation is not None or (product.bias is not None and product.bias_scale != 0):
        return product
    nodes = quantising_nodes(product.nodes[-1].outputs[0])
    return replace(product, quantise=nodes, nodes=(*product.nodes, *nodes))


def _pointwise(
    product: LinearProduct, bias: ir.Value | None, writer: GraphWriter, rewriter: WeightRewriter
) -> tuple[ir.Value, str]:
    free = product.free
    batch, rest = free[:1], free[1:]
    positions = (rest[:1], rest[1:]) if len(rest) == 2 else ((), rest)
    channels = (*product.grouped, *product.contracted)
    read = layer_input(product.data)
    data = axes.merged(writer, read.value, product.data_labels, [batch, channels, *positions], product.sizes)
    data = read.dequantised(writer, data)
    value, description = _convolution(product, data, bias, (), (1, 1), writer, rewriter)
    value = quantised(writer, product.quantise, value)
    outputs = (*product.grouped, *product.features)
    sources = {label: (read.value, axis) for axis, label in enumerate(product.data_labels)}
    groups: list[axes.Group] = [batch, outputs, *positions]
    value = axes.split(writer, value, groups, product.output_labels, product.sizes, sources)
    return _finished(product, value, writer), description


def _on_the_map(
    product: LinearProduct,
    source: FlattenedMap,
    bias: ir.Value | None,
    writer: GraphWriter,
    rewriter: WeightRewriter,
) -> tuple[ir.Value, str]:
    steps: list[Step] = [
        ("reshape", (_features(product), *(source.sizes[axis] for axis in source.order))),
        ("transpose", (0, *(1 + source.order.index(axis) for axis in range(len(source.order))))),
    ]
    data = layer_input(product.data).dequantised(writer, source.value)
    value, description = _convolution(product, data, bias, steps, source.kernel, writer, rewriter)
    value = quantised(writer, product.quantise, value)
    groups: list[axes.Group] = [product.free, product.features, *(() for _ in source.kernel)]
    value = axes.split(writer, value, groups, product.output_labels, product.sizes, {})
    return _finished(product, value, writer), description


def _convolution(
    product: LinearProduct,
    data: ir.Value,
    bias: ir.Value | None,
    kernel_steps: Sequence[Step],
    kernel: tuple[int, ...],
    writer: GraphWriter,
    rewriter: WeightRewriter,
) -> tuple[ir.Value, str]:
    groups = prod(product.sizes[label] or 1 for label in product.grouped)
    outputs, inputs = (
        groups * _features(product),
        prod(product.sizes[label] or 1 for label in product.contracted),
    )
    steps = weight_steps(product, (*product.grouped, *product.features, *product.contracted))
    if kernel_steps:
        steps += [("reshape", (outputs, inputs)), *kernel_steps]
    else:
        steps.append(("reshape", (outputs, inputs, *kernel)))
    weight, scale = _scaled(product, steps, writer, rewriter)
    addend = None
    if bias is not None and (scale != 1.0 or _would_be_rounded(product, bias)):
        ones = [1] * len(kernel)
        addend = writer.unsqueeze(bias, [1 + axis for axis in range(len(kernel))], [outputs, *ones])
        bias = None
    attributes = {
        "kernel_shape": list(kernel),
        "group": groups,
        "strides": [1] * len(kernel),
        "dilations": [1] * len(kernel),
        "pads": [0] * (2 * len(kernel)),
    }
    sizes = sizes_of(data)
    assert sizes is not None
    shape = [sizes[0], outputs, *([1] * len(kernel) if kernel_steps else sizes[2:])]
    operands: list[ir.Value | None] = [data, weight] if bias is None else [data, weight, bias]
    op_type, kind = "Conv", data.dtype
    if product.quantisation is not None:
        op_type, operands, kind = quantised_convolution(
            product, data, weight, bias, outputs, writer, rewriter
        )
    value = writer.op(op_type, operands, attributes, shape=shape, dtype=kind)
    if scale != 1.0:
        factor = writer.constant(
            np.asarray(scale, dtype=data.dtype.numpy() if data.dtype else np.float32), "alpha"
        )
        value = writer.op("Mul", [value, factor], shape=shape)
    if addend is not None:
        value = writer.op("Add", [value, addend], shape=shape)
    described = "×".join(map(str, kernel))
    return (
        value,
        f"{described} convolution {outputs}×{inputs // max(prod(kernel), 1) if kernel_steps else inputs}",
    )


def weight_steps(product: LinearProduct, order: Sequence[str]) -> list[Step]:
    """Bring the weight's axes into an order of labels, without the axes of size one that broadcast."""
    labels = product.weight_labels
    steps: list[Step] = []
    if len(labels) != len(product.weight_axes):
        steps.append(("reshape", tuple(product.sizes[label] or 1 for label in labels)))
    steps.append(("transpose", tuple(labels.index(label) for label in order)))
    return steps


def _scaled(
    product: LinearProduct, steps: list[Step], writer: GraphWriter, rewriter: WeightRewriter
) -> tuple[ir.Value, float]:
    """The weight in its new shape, and the factor that is left to be applied after the convolution.

    A factor other than one goes into the weight, except where the weight is an expression (quantised, cast).
    """
    if product.scale != 1.0:
        try:
            return rewriter.rewrite(writer, product.weight, [*steps, ("scale", (product.scale,))]), 1.0
        except NotRewritable:
            pass
    return rewriter.rewrite(writer, product.weight, steps), product.scale


def _with_bias_vector(
    product: LinearProduct, writer: GraphWriter, rewriter: WeightRewriter
) -> tuple[LinearProduct, ir.Value | None]:
    """The bias of the convolution, None where there is none; a product without a bias that is the vector already.

    A bias that cannot become a vector with its factor stays in the product, and is added to the result.
    """
    shape = bias_shape(product)
    if product.bias is None or shape is None or product.bias_scale == 0:
        return product, None
    labels = [*product.grouped, *product.features]
    sizes = tuple(product.sizes[label] or 1 for label in labels)
    order = [product.output_labels.index(label) for label in labels]
    full = (*order, *(axis for axis in range(len(shape)) if axis not in order))
    steps: list[Step] = [("reshape", shape), ("transpose", full)]
    if prod(shape) != prod(sizes):
        steps += [("reshape", tuple(shape[axis] for axis in order)), ("broadcast", sizes)]
    steps.append(("reshape", (prod(sizes),)))
    if product.bias_scale != 1:
        steps.append(("scale", (product.bias_scale,)))
    try:
        vector = rewriter.rewrite(writer, product.bias, steps)
    except NotRewritable:
        if product.quantisation is not None:
            raise
        return product, None
    return replace(product, bias=None), vector


def _finished(product: LinearProduct, value: ir.Value, writer: GraphWriter) -> ir.Value:
    """Add what is not the bias of the convolution, and apply the activation of a fused operator."""
    shape = sizes_of(value)
    if product.bias is not None and product.bias_scale != 0:
        addend = product.bias
        if product.bias_scale != 1:
            dtype = addend.dtype.numpy() if addend.dtype else np.float32
            factor = writer.constant(np.asarray(product.bias_scale, dtype=dtype), "beta")
            addend = writer.op("Mul", [addend, factor])
        value = writer.op("Add", [value, addend])
    if product.activation is not None:
        name, attributes = product.activation
        value = writer.op(name, [value], attributes, shape=shape)
    return value


def _features(product: LinearProduct) -> int:
    return prod(product.sizes[label] or 1 for label in product.features)
