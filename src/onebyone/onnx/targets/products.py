"""Matrix products in the form that a target takes: the constant as one matrix in the second place, without factors."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.onnx import axes, linear_products
from onebyone.onnx.constant_values import NotRewritable, is_constant, shape_of, sizes_of
from onebyone.onnx.graph_writer import GraphWriter, WrittenLayer
from onebyone.onnx.model_rewriting import Rewriting
from onebyone.onnx.to_convolution import weight_steps
from onebyone.onnx.weight_rewriting import Step, WeightRewriter
from onebyone.records import by

PLAIN = "product with a constant = MatMul with the constant second"
EINSUM = "einsum = batched matrix product"


def write_plain_product(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter
) -> Rewriting | str | None:
    """A product with a constant as a MatMul whose second operand is one matrix, and an Add of the bias.

    Factors (alpha, beta) go into the constants.
    """
    read = linear_products.read_product(node)
    if read is None or isinstance(read, str):
        return read
    if read.grouped:
        return "its weight is a batch of matrices; no MatMul with one matrix computes it"
    free, inputs, outputs = read.free, read.contracted, read.features
    rows = axes.merged(
        writer, read.data, read.data_labels, [*((label,) for label in free), inputs], read.sizes
    )
    matrix = (axes.group_size(inputs, read.sizes) or 1, axes.group_size(outputs, read.sizes) or 1)
    steps: list[Step] = [*weight_steps(read, (*inputs, *outputs)), ("reshape", matrix)]
    value, scale = None, read.scale
    shape = [*(read.sizes[label] for label in free), matrix[1]]
    if scale != 1.0:
        try:
            weight = weights.rewrite(writer, read.weight, [*steps, ("scale", (scale,))])
            value, scale = writer.op("MatMul", [rows, weight], shape=shape), 1.0
        except NotRewritable:
            pass
    if value is None:
        value = writer.op("MatMul", [rows, weights.rewrite(writer, read.weight, steps)], shape=shape)
    sources = {label: (read.data, axis) for axis, label in enumerate(read.data_labels)}
    groups: list[axes.Group] = [*((label,) for label in free), outputs]
    value = axes.split(writer, value, groups, read.output_labels, read.sizes, sources)
    if scale != 1.0:
        factor = writer.constant(np.asarray(scale, dtype=_numpy_type(value)), "alpha")
        value = writer.op("Mul", [value, factor], shape=sizes_of(value))
    value = _with_addend(read, value, writer, weights)
    if read.activation is not None:
        name, attributes = read.activation
        value = writer.op(name, [value], attributes, shape=sizes_of(value))
    sizes = tuple(read.sizes[label] for label in read.data_labels)
    before = f"{node.op_type} {by(shape_of(read.weight) or ())}"
    layer = WrittenLayer(read.data, value, PLAIN, f"MatMul {by(matrix)}", sizes)
    return Rewriting(layer, read.nodes, before, matrix[0])


def _with_addend(
    read: linear_products.LinearProduct, value: ir.Value, writer: GraphWriter, weights: WeightRewriter
) -> ir.Value:
    addend, factor = read.bias, read.bias_scale
    if addend is None or factor == 0:
        return value
    if factor != 1:
        if is_constant(addend):
            addend = weights.rewrite(writer, addend, [("scale", (factor,))])
        else:
            beta = writer.constant(np.asarray(factor, dtype=_numpy_type(value)), "beta")
            addend = writer.op("Mul", [addend, beta], shape=sizes_of(addend))
    return writer.op("Add", [value, addend], shape=sizes_of(value))


def write_batched_product(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter
) -> Rewriting | str | None:
    """An Einsum of two values that depend on the input, as transposes, reshapes and one MatMul."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    parts = terms.split(",")
    if node.op_type != "Einsum" or len(parts) != 2 or not arrow or "." in equation:
        return f"its equation {equation!r} has no two operands with one label for each axis"
    left, right = parts
    first, second = node.inputs
    if first is None or second is None or first.shape is None or second.shape is None:
        return "the rank of an operand is not known"
    repeated = any(len(set(term)) != len(term) for term in (left, right, result))
    single = [x for x in left + right if (x in left) != (x in right) and x not in result]
    if repeated or single or (len(left), len(right)) != (len(first.shape), len(second.shape)):
        return f"its equation {equation!r} takes a diagonal or sums over an axis of one operand"
    sizes: dict[str, int | None] = {}
    for labels, value in ((left, first), (right, second)):
        for label, size in zip(labels, sizes_of(value) or (), strict=True):
            known = sizes.get(label)
            if known is not None and size is not None and known != size:
                return f"its equation {equation!r} broadcasts the axis {label!r}"
            sizes[label] = size if known is None else known
    batch = tuple(x for x in left if x in right and x in result)
    inner = tuple(x for x in left if x in right and x not in result)
    rows, columns = (tuple(x for x in term if x not in (*batch, *inner)) for term in (left, right))
    outer: list[axes.Group] = [batch] if batch else []
    a = axes.merged(writer, first, tuple(left), [*outer, rows, inner], sizes)
    b = axes.merged(writer, second, tuple(right), [*outer, inner, columns], sizes)
    groups: list[axes.Group] = [*outer, rows, columns]
    shape = [axes.group_size(group, sizes) for group in groups]
    value = writer.op("MatMul", [a, b], shape=shape)
    sources = {label: (first, axis) for axis, label in enumerate(left)}
    sources |= {label: (second, axis) for axis, label in enumerate(right) if label not in sources}
    value = axes.split(writer, value, groups, tuple(result), sizes, sources)
    data_sizes = tuple(sizes[label] for label in left)
    layer = WrittenLayer(first, value, EINSUM, f"MatMul for {equation}", data_sizes)
    return Rewriting(layer, (node,), f"Einsum {equation}", prod(sizes[x] or 1 for x in inner))


def _numpy_type(value: ir.Value) -> np.dtype[Any]:
    return np.dtype(value.dtype.numpy() if value.dtype else np.float32)
