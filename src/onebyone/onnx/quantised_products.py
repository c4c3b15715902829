"""Recognise products of quantised numbers with a constant weight, and write their convolutions.

MatMulInteger becomes ConvInteger; QLinearMatMul, and QGemm of ONNX Runtime, become QLinearConv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, call_argument, is_constant, shape_of, unknown_rank
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.linear_products import LinearProduct, Reading, bias_shape, read_matrix_product
from onebyone.onnx.quantisation import (
    BYTES,
    INPUTS,
    MICROSOFT,
    Quantisation,
    operand,
    output_parameters,
    output_type,
    parameters,
    per_channel,
    scalar,
    without_trailing_none,
    zero_point_of_sums,
)
from onebyone.onnx.weight_rewriting import Step, WeightRewriter

_PRODUCTS = {("", "MatMulInteger"), ("", "QLinearMatMul"), (MICROSOFT, "QGemm")}


def read_quantised_product(node: ir.Node) -> Reading | None:
    """Read a node as a product of quantised numbers with a constant; a reason where it cannot be; None for others."""
    if (node.domain, node.op_type) not in _PRODUCTS:
        return None
    first, second, _, bias = INPUTS[node.domain, node.op_type]
    left, right = operand(node, first[0]), operand(node, second[0])
    weight_first = is_constant(left)
    if left is None or right is None or weight_first == is_constant(right):
        return None  # `read_product` has the reason
    argument = call_argument(node)
    if argument is not None:
        return f"it {argument}"
    data, weight = (right, left) if weight_first else (left, right)
    reason = _operand_reason(data, "input") or _operand_reason(weight, "weight")
    if reason is not None:
        return reason
    transposed = (False, False)
    if node.op_type == "QGemm":
        transposed = bool(node.attributes.get_int("transA", 0)), bool(node.attributes.get_int("transB", 0))
        if node.attributes.get_float("alpha", 1.0) != 1.0:
            return "its alpha is not 1, and QLinearConv has no such factor"
        if operand(node, 7) is None:
            return "its result is not quantised, and QLinearConv gives quantised numbers only"
    read = read_matrix_product(node, data, weight, weight_first, transposed, 1.0)
    if isinstance(read, str):
        return read
    of_data, of_weight = parameters(node, int(weight_first)), parameters(node, int(not weight_first))
    quantisation = Quantisation(of_data, of_weight, output_parameters(node))
    product = replace(read, quantisation=quantisation, bias=operand(node, bias))
    return _reason(product) or product


def _operand_reason(value: ir.Value, what: str) -> str | None:
    """Why an operand is not one of a product of bytes; None where it is one."""
    if value.dtype not in BYTES:
        kind = "unknown" if value.dtype is None else value.dtype.name.lower()
        return f"the element type of its {what} {value.name!r} is {kind}; int8 or uint8 was expected"
    if what == "input" and value.shape is None:
        return unknown_rank(value)
    if what == "weight" and shape_of(value) is None:
        return f"the shape of its weight {value.name!r} is not known"
    return None


def _reason(product: LinearProduct) -> str | None:
    """Why a product of quantised numbers has no convolution that gives the same integers; None where it has one."""
    if product.bias is not None and bias_shape(product) is None:
        return f"its bias {product.bias.name!r} varies by row, and QLinearConv adds one by output channel"
    signed, unsigned = BYTES
    if product.node.op_type == "MatMulInteger" and (product.data.dtype, product.weight.dtype) == (
        signed,
        unsigned,
    ):
        return "its input is int8 and its weight uint8, for which ONNX Runtime's ConvInteger gives wrong sums"
    return None


def quantised_convolution(
    product: LinearProduct,
    data: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    outputs: int,
    writer: GraphWriter,
    rewriter: WeightRewriter,
) -> tuple[str, list[ir.Value | None], ir.DataType | None]:
    """Operator, operands and element type of the result, for a convolution of quantised numbers.

    Raises:
        NotRewritable: a scale or zero point cannot take the form that the operator expects.
    """
    quantisation = product.quantisation
    assert quantisation is not None
    given = quantisation.data
    kind = output_type(quantisation, data)
    x_scale, x_zero_point = (
        None if value is None else scalar(writer, rewriter, value, f"its input's {what}")
        for value, what in ((given.scale, "scale"), (given.zero_point, "zero point"))
    )
    if quantisation.output is None:
        zero_point = zero_point_of_sums(writer, rewriter, quantisation.weight.zero_point)
        return "ConvInteger", without_trailing_none([data, weight, x_zero_point, zero_point]), kind
    w_scale, w_zero_point = (
        per_channel(writer, rewriter, value, _vector_steps(product, value, outputs))
        for value in (quantisation.weight.scale, quantisation.weight.zero_point)
    )
    y_scale, y_zero_point = (
        None if value is None else scalar(writer, rewriter, value, "its output's parameter")
        for value in (quantisation.output.scale, quantisation.output.zero_point)
    )
    operands = [data, x_scale, x_zero_point, weight, w_scale, w_zero_point, y_scale, y_zero_point, bias]
    return "QLinearConv", without_trailing_none(operands), kind


def _vector_steps(product: LinearProduct, value: ir.Value | None, outputs: int) -> Sequence[Step]:
    """Bring a parameter of the weight into a vector with one number for each output channel.

    A vector belongs to the features; a parameter of more axes has those of the weight, some of size one.
    """
    shape = () if value is None else shape_of(value)
    if value is None or shape == () or (shape is not None and prod(shape) == 1):
        return ()
    if shape is None:
        raise NotRewritable(f"the shape of its weight's parameter {value.name!r} is not known")
    if not is_constant(value):
        raise NotRewritable(f"its weight's parameter {value.name!r} is not a constant")
    channels = (*product.grouped, *product.features)
    axes = product.features[-1:] if len(shape) == 1 else product.weight_axes
    if len(axes) != len(shape):
        raise NotRewritable(f"its weight's parameter {value.name!r} of shape {shape} has no axis of its own")
    for label, size in zip(axes, shape, strict=True):
        if size != 1 and (label not in channels or size != product.sizes[label or ""]):
            raise NotRewritable(
                f"its weight's parameter {value.name!r} of shape {shape} varies along an axis that is summed"
            )
    sizes = {label: size for label, size in zip(axes, shape, strict=True) if label in channels}
    kept = [label for label in axes if label in sizes]
    steps: list[Step] = [
        ("reshape", tuple(sizes[label] for label in kept)),
        ("transpose", tuple(kept.index(label) for label in channels if label in sizes)),
    ]
    present = tuple(sizes.get(label, 1) for label in channels)
    full = tuple(product.sizes[label] or 1 for label in channels)
    steps.append(("reshape", present))
    if present != full:
        steps.append(("broadcast", full))
    return [*steps, ("reshape", (outputs,))]
