"""Biases that a graph computes from constants, with factors, become the convolution's or keep an Add of their own."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onebyone.onnx.convert import convert_model
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import graph, integers, model, operators, run

W = integers(3, 5)
BYTES = integers(5, dtype=np.int8)
SCALES = {"s": np.float32(0.5), "t": 2.0 ** integers(5, seed=2), "q": integers(3, 5, dtype=np.int8)}
#: The nodes, the constant b, and how many Add nodes the converted model has.
CASES = {
    "with a factor": ("k = Mul(b, b) y = Gemm<beta=2.0, alpha=3.0>(x, w, k)", integers(5), 1),
    "of one number": ("k = Mul(b, b) y = Gemm<beta=3.0>(x, w, k)", integers(1), 1),
    "as it is": ("k = Mul(b, b) y = Gemm(x, w, k)", integers(5), 0),
    "by row": ("k = Mul(b, b) y = Gemm<beta=2.0>(x, w, k)", integers(4, 1), 1),
    "dequantised": ("k = DequantizeLinear(b, s) y = Gemm<beta=2.0>(x, w, k)", BYTES, 1),
    "dequantised, by channel": ("k = DequantizeLinear<axis=0>(b, t) y = Gemm<beta=-3.0>(x, w, k)", BYTES, 1),
    "dequantised as it is": ("k = DequantizeLinear(b, s) y = Gemm(x, w, k)", BYTES, 0),
    "cast and multiplied": ("f = Cast<to=1>(b) k = Mul(f, s) y = Gemm<beta=2.0>(x, w, k)", BYTES, 1),
    "dequantised beside a dequantised weight": (
        "v = DequantizeLinear(q, s) k = DequantizeLinear(b, s) y = Gemm<alpha=2.0, beta=3.0>(x, v, k)",
        BYTES,
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_integers(name: str) -> None:
    nodes, b, adds = CASES[name]
    m = model(graph("4,3", "4,5", nodes), {"w": W, "b": b, **SCALES})
    result = convert_model(m)
    assert not result.refused, str(result)
    assert operators(result.model).count("Add") == adds
    onnx.checker.check_model(ir.serde.serialize_model(result.model), full_check=True)
    x = {"x": integers(4, 3, seed=1)}
    np.testing.assert_array_equal(run(result.model, x)[0], run(m, x)[0])
    v = verify_onnx(m, result, x)
    assert v.equivalent, str(v)
    assert v.integer_probe is True


def test_nothing_is_left_of_a_bias_that_was_given_up() -> None:
    """The first operand of the sum has its own axis of features, the second none that a vector could keep."""
    m = model(graph("4,3", "4,5", "k = Add(b, c) y = Gemm<beta=2.0>(x, w, k)"), {
        "w": W, "b": integers(1, 5), "c": integers(1, 1),
    })  # fmt: skip
    result = convert_model(m)
    read = {str(v.name) for node in result.model.graph for v in node.inputs if v is not None}
    assert set(map(str, result.model.graph.initializers)) <= read
