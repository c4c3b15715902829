"""Recognise 1×1 convolutions of quantised numbers, and those over their whole map: ConvInteger and QLinearConv."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onebyone.onnx.quantisation import (
    BYTES,
    INPUTS,
    Quantisation,
    is_zero,
    operand,
    output_parameters,
    parameters,
)
from onebyone.onnx.to_matrix_product import Reading, linear_convolution

_CONVOLUTIONS = {("", "ConvInteger"), ("", "QLinearConv")}


def read_quantised_convolution(node: ir.Node) -> Reading | None:
    """Read a convolution of quantised numbers as a linear layer; a reason where a 1×1 kernel cannot be; else None."""
    if (node.domain, node.op_type) not in _CONVOLUTIONS:
        return None
    first, second, _, bias = INPUTS[node.domain, node.op_type]
    weight = operand(node, second[0])
    read = linear_convolution(node, operand(node, first[0]), weight, None, BYTES)
    if read is None or isinstance(read, str):
        return read
    if not is_zero(operand(node, bias)):
        return "its int32 bias is added before the result is rounded, and QLinearMatMul has no bias"
    return replace(
        read, quantisation=Quantisation(parameters(node, 0), parameters(node, 1), output_parameters(node))
    )
