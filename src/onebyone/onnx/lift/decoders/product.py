"""Linear layers and other sums of products: Gemm, MatMul, Einsum."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.lifting.operators import Einsum, Linear
from onebyone.lifting.rules.einsum import einsum_terms, matmul_terms
from onebyone.lifting.rules.product import ATTENTION
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.onnx.lift.graph_lifter import Decoder, OnnxGraphLifter


def gemm(lifter: OnnxGraphLifter, node: ir.Node) -> Linear:
    """`alpha · x W + beta · b`, with `b` broadcast along the rows."""
    value, weight, bias = (lifter.operand(node, number) for number in range(3))
    if node.attributes.get_int("transA", 0):
        raise Cannot("transA: the batch axis is moved")
    if not isinstance(weight, Const):
        raise Cannot(ATTENTION)
    transposed = not node.attributes.get_int("transB", 0)
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    width = weight.shape[1 if transposed else 0]
    return Linear(value, _scaled(weight, alpha), _vector(_scaled(bias, beta), width), transposed)


def _scaled(constant: Any, factor: float) -> Any:
    if constant is None or factor == 1:
        return constant
    if not isinstance(constant, Const):
        raise Cannot("a bias that depends on the image")
    weight = constant.handle
    return Const(weight.derived(("scaled", factor), "scaled", lambda: weight.wide * factor), constant.shape)


def _vector(bias: Any, width: int) -> Const | None:
    """A bias of one row, or of one number, as a vector."""
    if bias is None or bias.shape == (width,):
        return bias  # type: ignore[no-any-return]
    if not isinstance(bias, Const) or (len(bias.shape) == 2 and bias.shape[0] != 1):
        raise Cannot("a bias for each sample of the batch, or one that depends on the image")
    weight = bias.handle
    row = weight.derived(
        ("row", width), "row", lambda: np.broadcast_to(weight.array.reshape(-1), (width,)).copy()
    )
    return Const(row, (width,))


def matmul(lifter: OnnxGraphLifter, node: ir.Node) -> Einsum:
    operands = [lifter.operand(node, number) for number in (0, 1)]
    return Einsum(operands, *matmul_terms(*(_rank(v) for v in operands)))


def einsum(lifter: OnnxGraphLifter, node: ir.Node) -> Einsum:
    operands = [lifter.operand(node, number) for number in range(len(node.inputs))]
    equation = node.attributes.get_string("equation", "")
    return Einsum(operands, *einsum_terms(equation, [_rank(v) for v in operands]))


def _rank(value: Any) -> int:
    return len(value.shape) + isinstance(value, Lifted)


DECODERS: dict[str, Decoder] = {"Gemm": gemm, "MatMul": matmul, "Einsum": einsum}

REFUSED = {ATTENTION: ("Attention",)}
