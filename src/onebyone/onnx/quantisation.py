"""Scales and zero points of the operators that multiply quantised numbers, in the forms that each operator takes.

A quantised number q stands for `scale · (q − zero_point)`. ConvInteger and MatMulInteger have no scales, and give the
sum as int32. QLinearConv and QLinearMatMul multiply the sum by `data scale · weight scale / output scale`, round it,
and add the output's zero point. The sums are integers, so that both forms of a layer agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, array_of, is_constant, is_one_number, shape_of
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.weight_rewriting import Step, WeightRewriter

#: The domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"
#: Element types that these operators multiply.
BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True, eq=False)
class Parameters:
    """Scale and zero point of one operand; None where the operator has none, or the zero point is 0."""

    scale: ir.Value | None
    zero_point: ir.Value | None


@dataclass(frozen=True, eq=False)
class Quantisation:
    """How the operands and the result of a product are quantised; `output` is None where the result is an int32 sum."""

    data: Parameters
    weight: Parameters
    output: Parameters | None


#: For each operator: the inputs of its two operands (number, scale, zero point), of its result, and of its bias.
INPUTS: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int | None]] = {
    ("", "MatMulInteger"): ((0, -1, 2), (1, -1, 3), (), None),
    ("", "ConvInteger"): ((0, -1, 2), (1, -1, 3), (), None),
    ("", "QLinearMatMul"): ((0, 1, 2), (3, 4, 5), (6, 7), None),
    ("", "QLinearConv"): ((0, 1, 2), (3, 4, 5), (6, 7), 8),
    (MICROSOFT, "QGemm"): ((0, 1, 2), (3, 4, 5), (7, 8), 6),
}


def operand(node: ir.Node, index: int | None) -> ir.Value | None:
    """An input of a node; None where it is absent."""
    if index is None or not 0 <= index < len(node.inputs):
        return None
    return node.inputs[index]


def parameters(node: ir.Node, side: int) -> Parameters:
    """Scale and zero point of the first (0) or second (1) operand."""
    first, second, _, _ = INPUTS[node.domain, node.op_type]
    _, scale, zero_point = (first, second)[side]
    return Parameters(operand(node, scale), operand(node, zero_point))


def output_parameters(node: ir.Node) -> Parameters | None:
    """Scale and zero point of the result; None where it is an int32 sum."""
    indices = INPUTS[node.domain, node.op_type][2]
    if not indices:
        return None
    return Parameters(operand(node, indices[0]), operand(node, indices[1]))


def output_type(quantisation: Quantisation, data: ir.Value) -> ir.DataType | None:
    """The element type of the product's result."""
    if quantisation.output is None:
        return ir.DataType.INT32
    zero_point = quantisation.output.zero_point
    return data.dtype if zero_point is None else zero_point.dtype


def scalar(writer: GraphWriter, rewriter: WeightRewriter, value: ir.Value, what: str) -> ir.Value:
    """The one number of a tensor-wise parameter, as a tensor without axes.

    Raises:
        NotRewritable: it holds several numbers, or nobody knows how many.
    """
    shape = shape_of(value)
    if shape is None or prod(shape) != 1:
        known = "of unknown shape" if shape is None else f"of shape {shape}"
        raise NotRewritable(f"{what} {value.name!r} is {known}; one number for the whole tensor was expected")
    if not shape:
        return value
    if not is_constant(value):
        return writer.squeeze(value, list(range(len(shape))), ())
    return rewriter.rewrite(writer, value, [("reshape", ())])


def all_equal(value: ir.Value) -> bool:
    """Whether a constant holds one number only, however often; False where its numbers cannot be read."""
    if not is_constant(value):
        return False
    try:
        array = array_of(value)
    except NotRewritable:
        return False
    return array.size > 0 and bool(np.all(array == array.flat[0]))


def zero_point_of_sums(
    writer: GraphWriter, rewriter: WeightRewriter, value: ir.Value | None
) -> ir.Value | None:
    """The zero point of a ConvInteger's weight, as one number: ONNX Runtime runs no other form.

    Raises:
        NotRewritable: the zero points differ by output channel.
    """
    if value is None or shape_of(value) in ((), (1,)):
        return None if value is None else scalar(writer, rewriter, value, "its weight's zero point")
    if not all_equal(value):
        raise NotRewritable(
            f"its weight's zero points {value.name!r} differ by output channel, "
            "and ONNX Runtime's ConvInteger takes one for the whole weight"
        )
    return writer.constant(np.asarray(array_of(value).flat[0]), "zero_point")


def is_zero(value: ir.Value | None) -> bool:
    """Whether a constant is absent or holds nothing but zeros."""
    return value is None or (all_equal(value) and array_of(value).flat[0] == 0)


def per_channel(
    writer: GraphWriter, rewriter: WeightRewriter, value: ir.Value | None, steps: Sequence[Step]
) -> ir.Value | None:
    """A parameter of one number as a tensor without axes, any other one as a vector by `steps`."""
    if value is None:
        return None
    if is_one_number(value):
        return scalar(writer, rewriter, value, "its weight's parameter")
    return rewriter.rewrite(writer, value, steps)


def quantised_matrix_product(
    quantisation: Quantisation,
    rows: ir.Value,
    matrix: ir.Value,
    groups: int,
    writer: GraphWriter,
    rewriter: WeightRewriter,
) -> tuple[str, list[ir.Value | None], ir.DataType | None]:
    """Operator, operands and element type of the result, for a product of quantised rows with a matrix (K, O).

    Raises:
        NotRewritable: a parameter varies by output channel where there are groups; it would need an axis for them,
            which ONNX Runtime does not take.
    """
    weight = quantisation.weight
    for value in (weight.scale, weight.zero_point):
        if groups > 1 and value is not None and not is_one_number(value):
            raise NotRewritable(
                f"its weight's parameter {value.name!r} varies by output channel, and it has {groups} groups"
            )
    kind = output_type(quantisation, rows)
    w_scale, w_zero_point = (
        per_channel(writer, rewriter, value, ()) for value in (weight.scale, weight.zero_point)
    )
    x_scale, x_zero_point = (
        None if value is None else scalar(writer, rewriter, value, "its input's parameter")
        for value in (quantisation.data.scale, quantisation.data.zero_point)
    )
    if quantisation.output is None:
        return "MatMulInteger", without_trailing_none([rows, matrix, x_zero_point, w_zero_point]), kind
    y = quantisation.output
    operands = [rows, x_scale, x_zero_point, matrix, w_scale, w_zero_point, y.scale, y.zero_point]
    return "QLinearMatMul", operands, kind


def without_trailing_none(operands: list[ir.Value | None]) -> list[ir.Value | None]:
    """Operands without the absent ones at the end."""
    while operands and operands[-1] is None:
        operands = operands[:-1]
    return operands
