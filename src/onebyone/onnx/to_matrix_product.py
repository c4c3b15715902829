"""Write a 1×1 convolution as a matrix product, and a convolution over the whole map as one behind a flatten.

Source: the identities of `onebyone.laws.pointwise`, `onebyone.laws.strided`, `onebyone.laws.grouped` and
`onebyone.laws.flatten`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onebyone.onnx import axes
from onebyone.onnx.constant_values import (
    NotRewritable,
    call_argument,
    is_constant,
    replaceable,
    shape_of,
    sizes_of,
    unknown_rank,
)
from onebyone.onnx.graph_writer import GraphWriter, WrittenLayer
from onebyone.onnx.linear_products import FLOATS
from onebyone.onnx.quantisation import Quantisation, quantised_matrix_product
from onebyone.onnx.quantised_groups import LayerInput, layer_input, quantised, quantising_nodes
from onebyone.onnx.weight_rewriting import Step, WeightRewriter
from onebyone.onnx.window_settings import runtimes_disagree

#: The opset from which Slice takes steps.
OPSET_OF_STEPS = 10

POINTWISE = "pointwise convolution = linear"
STRIDED = "strided pointwise convolution = subsample, then linear"
GROUPED = "grouped pointwise convolution = batched product"
WHOLE_MAP = "convolution over the whole map = flatten, then linear"


@dataclass(frozen=True, eq=False)
class LinearConvolution:
    """A convolution that is a linear layer at each position, or one linear layer over its whole map."""

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    #: Scales and zero points, where the operator multiplies quantised numbers.
    quantisation: Quantisation | None = None
    #: The value to rearrange, in front of a DequantizeLinear; see `quantised_groups`.
    read: LayerInput | None = None
    #: Activations and a QuantizeLinear that stay directly behind the product.
    quantise: tuple[ir.Node, ...] = ()

    @property
    def source(self) -> LayerInput:
        """What is rearranged before the product."""
        return self.read or LayerInput(self.data)

    @property
    def covers_the_map(self) -> bool:
        """Whether it has one position, which sees the whole map."""
        return prod(self.kernel) > 1


Reading: TypeAlias = "LinearConvolution | str"


def read_convolution(node: ir.Node) -> Reading | None:
    """Read a Conv as a linear layer; a reason where a 1×1 Conv cannot be; None for other nodes and other kernels."""
    if (node.domain, node.op_type) in _OTHER_CONVOLUTIONS:
        return _other(node)
    if node.op_type != "Conv" or node.domain != "" or len(node.inputs) < 2:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return linear_convolution(node, node.inputs[0], node.inputs[1], bias, FLOATS)


def linear_convolution(
    node: ir.Node,
    data: ir.Value | None,
    weight: ir.Value | None,
    bias: ir.Value | None,
    kinds: Sequence[ir.DataType],
) -> Reading | None:
    """Read a convolution of the given operands, whose element type is one of `kinds`; see `read_convolution`."""
    if data is None or weight is None:
        return None
    shape = shape_of(weight)
    pointwise = shape is not None and prod(shape[2:]) == 1
    if not is_constant(weight):
        behind = replaceable(weight)
        return f"its weight {behind}" if behind is not None and (pointwise or shape is None) else None
    if shape is None:
        return None
    argument = call_argument(node)
    if argument is not None:
        return f"it {argument}" if pointwise else None
    spatial = len(shape) - 2
    strides = tuple(node.attributes.get_ints("strides") or [1] * spatial)
    padded = any(node.attributes.get_ints("pads") or [])
    sizes = [] if data.shape is None else list(data.shape[2:])
    whole = not pointwise and sizes == list(shape[2:]) and not padded
    if not pointwise and not whole:
        return None
    if 0 in shape:
        return f"its weight has shape {shape}: nothing to multiply"
    groups = node.attributes.get_int("group", 1)
    reason = _padding_reason(node, padded, strides if pointwise else ())
    if reason is not None:
        return reason
    if data.shape is None:
        return unknown_rank(data)
    if len(data.shape) != len(shape):
        return f"the rank of its input {data.name!r} is {len(data.shape)}, that of its weight {len(shape)}"
    if whole and (groups > 1 or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")):
        return None
    if data.dtype is not None and data.dtype not in kinds:
        expected = " or ".join(kind.name.lower() for kind in kinds)
        return f"its element type is {data.dtype.name.lower()}; {expected} was expected"
    return LinearConvolution(node, data, weight, bias, groups, tuple(shape[2:]), strides)


def _padding_reason(node: ir.Node, padded: bool, strides: Sequence[int]) -> str | None:
    """Why the padding of a convolution prevents a linear layer; None if it does not."""
    if padded:
        return "it pads its input: the border positions have no linear layer"
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER") and any(runtimes_disagree(1 - stride) for stride in strides):
        return f"auto_pad={mode} with strides {tuple(strides)} leaves elements out: runtimes differ in which"
    return None


#: Convolutions that are not written as products, and the index of their weight.
_OTHER_CONVOLUTIONS = {("", "QLinearConv"): 3, ("", "ConvInteger"): 1, ("com.microsoft", "FusedConv"): 1}


def _other(node: ir.Node) -> str | None:
    """A reason for a 1×1 convolution of another kind; None where its kernel is larger or not known."""
    index = _OTHER_CONVOLUTIONS[node.domain, node.op_type]
    weight = node.inputs[index] if index < len(node.inputs) else None
    shape = None if weight is None else shape_of(weight)
    if shape is None or prod(shape[2:]) != 1:
        return None
    return f"no operator of ONNX is the same matrix product as {node.op_type}"


def write_matrix_product(
    convolution: LinearConvolution, writer: GraphWriter, rewriter: WeightRewriter
) -> tuple[WrittenLayer, tuple[ir.Node, ...]]:
    """Insert the matrix product, with its result in the convolution's shape; returns it with the replaced nodes.

    Raises:
        NotRewritable: the weight cannot take the matrix's shape.
    """
    weight = shape_of(convolution.weight)
    assert weight is not None
    quantise = quantising_nodes(convolution.node.outputs[0])
    convolution = replace(convolution, read=layer_input(convolution.data), quantise=quantise)
    source = convolution.source.value
    outputs, inputs = weight[0], prod(weight[1:])
    known = sizes_of(convolution.data) or []
    sizes = (known[0], weight[1] * convolution.groups, *known[2:])
    nodes = (convolution.node, *quantise)
    if convolution.covers_the_map:
        value = _whole_map(convolution, writer, rewriter)
        return WrittenLayer(source, value, WHOLE_MAP, f"linear {outputs}×{inputs}", sizes), nodes
    data = _subsampled(convolution, writer)
    if convolution.groups == 1:
        value = _pointwise(convolution, data, writer, rewriter)
        law = STRIDED if data is not source else POINTWISE
        return WrittenLayer(source, value, law, f"linear {outputs}×{inputs}", sizes), nodes
    value = _grouped(convolution, data, writer, rewriter)
    description = f"{convolution.groups} products {outputs // convolution.groups}×{inputs}"
    return WrittenLayer(source, value, GROUPED, description, sizes), nodes


def _subsampled(convolution: LinearConvolution, writer: GraphWriter) -> ir.Value:
    """The positions that the convolution's strides visit."""
    data, strides = convolution.source.value, convolution.strides
    moved = [axis for axis, stride in enumerate(strides) if stride > 1]
    if not moved:
        return data
    if writer.opset < OPSET_OF_STEPS:
        raise NotRewritable(
            f"its stride needs Slice with steps, from opset {OPSET_OF_STEPS} on; the model has {writer.opset}"
        )
    assert data.shape is not None
    shape = [size if isinstance(size, int) else None for size in data.shape]
    for axis in moved:
        size = shape[2 + axis]
        shape[2 + axis] = None if size is None else -(-size // strides[axis])
    operands = [
        data,
        writer.integers([0] * len(moved), "starts"),
        writer.integers([np.iinfo(np.int64).max] * len(moved), "ends"),
        writer.integers([2 + axis for axis in moved], "axes"),
        writer.integers([strides[axis] for axis in moved], "steps"),
    ]
    return writer.op("Slice", operands, shape=shape)


def _labels(data: ir.Value) -> tuple[list[str], dict[str, int | None]]:
    assert data.shape is not None
    labels = ["n", "c", *(f"s{axis}" for axis in range(len(data.shape) - 2))]
    sizes = {
        label: size if isinstance(size, int) else None for label, size in zip(labels, data.shape, strict=True)
    }
    return labels, sizes


def _pointwise(
    convolution: LinearConvolution, data: ir.Value, writer: GraphWriter, rewriter: WeightRewriter
) -> ir.Value:
    weight = shape_of(convolution.weight)
    assert weight is not None
    labels, sizes = _labels(data)
    sizes = sizes | {"c": weight[1]}
    last: list[axes.Group] = [(label,) for label in ("n", *labels[2:], "c")]
    if convolution.bias is not None and convolution.quantise:
        last = [
            ("n", *labels[2:]),
            ("c",),
        ]  # the rows of a Gemm: with its bias it is one operator of a quantised group
    rows = convolution.source.dequantised(writer, axes.merged(writer, data, labels, last, sizes))
    steps: list[Step] = [("reshape", weight[:2]), ("transpose", (1, 0))]
    matrix = rewriter.rewrite(writer, convolution.weight, steps)
    sizes = sizes | {"c": weight[0]}
    shape = [axes.group_size(group, sizes) for group in last]
    if convolution.bias is not None and convolution.quantise:
        value = writer.op("Gemm", [rows, matrix, convolution.bias], shape=shape)
    else:
        value = _multiplied(convolution, rows, matrix, shape, writer, rewriter)
        if convolution.bias is not None:
            value = writer.op("Add", [value, convolution.bias], shape=shape)
    value = quantised(writer, convolution.quantise, value)
    sources = {label: (data, axis) for axis, label in enumerate(labels)}
    return axes.split(writer, value, last, labels, sizes, sources)


def _grouped(
    convolution: LinearConvolution, data: ir.Value, writer: GraphWriter, rewriter: WeightRewriter
) -> ir.Value:
    weight = shape_of(convolution.weight)
    assert weight is not None
    labels, sizes = _labels(data)
    groups, outputs, inputs = convolution.groups, weight[0] // convolution.groups, weight[1]
    sizes = sizes | {"g": groups, "k": inputs, "o": outputs}
    sources = {label: (data, axis) for axis, label in enumerate(labels)}
    positions = tuple(labels[2:])
    channels = ("g", "k")
    apart = axes.split(
        writer,
        data,
        [("n",), channels, *((p,) for p in positions)],
        ["n", *channels, *positions],
        sizes,
        sources,
    )
    rows = axes.merged(
        writer, apart, ["n", *channels, *positions], [("n",), ("g",), positions, ("k",)], sizes
    )
    rows = convolution.source.dequantised(writer, rows)
    steps: list[Step] = [("reshape", (groups, outputs, inputs)), ("transpose", (0, 2, 1))]
    matrices = rewriter.rewrite(writer, convolution.weight, steps)
    shape = [sizes["n"], groups, axes.group_size(positions, sizes), outputs]
    value = _multiplied(convolution, rows, matrices, shape, writer, rewriter)
    if convolution.bias is not None:
        bias = rewriter.rewrite(writer, convolution.bias, [("reshape", (groups, 1, outputs))])
        value = writer.op("Add", [value, bias], shape=shape)
    value = quantised(writer, convolution.quantise, value)
    split = axes.split(
        writer, value, [("n",), ("g",), positions, ("o",)], ["n", "g", "o", *positions], sizes, sources
    )
    return axes.merged(
        writer, split, ["n", "g", "o", *positions], [("n",), ("g", "o"), *((p,) for p in positions)], sizes
    )


def _multiplied(
    convolution: LinearConvolution,
    rows: ir.Value,
    matrix: ir.Value,
    shape: Sequence[int | None],
    writer: GraphWriter,
    rewriter: WeightRewriter,
) -> ir.Value:
    if convolution.quantisation is None:
        return writer.op("MatMul", [rows, matrix], shape=shape)
    op_type, operands, kind = quantised_matrix_product(
        convolution.quantisation, rows, matrix, convolution.groups, writer, rewriter
    )
    return writer.op(op_type, operands, shape=shape, dtype=kind)


def _whole_map(convolution: LinearConvolution, writer: GraphWriter, rewriter: WeightRewriter) -> ir.Value:
    weight = shape_of(convolution.weight)
    assert weight is not None
    assert convolution.data.shape is not None
    outputs, inputs = weight[0], prod(weight[1:])
    first = convolution.data.shape[0]
    batch = first if isinstance(first, int) else None
    vector = writer.op("Flatten", [convolution.source.value], {"axis": 1}, shape=[batch, inputs])
    vector = convolution.source.dequantised(writer, vector)
    steps: list[Step] = [("reshape", (outputs, inputs))]
    if convolution.quantisation is not None:
        matrix = rewriter.rewrite(writer, convolution.weight, [*steps, ("transpose", (1, 0))])
        value = _multiplied(convolution, vector, matrix, [batch, outputs], writer, rewriter)
    else:
        matrix = rewriter.rewrite(writer, convolution.weight, steps)
        operands = [vector, matrix] + ([convolution.bias] if convolution.bias is not None else [])
        value = writer.op("Gemm", operands, {"transB": 1}, shape=[batch, outputs])
    value = quantised(writer, convolution.quantise, value)
    ones = list(range(2, 2 + len(convolution.kernel)))
    return writer.unsqueeze(value, ones, [batch, outputs, *(1 for _ in ones)])
