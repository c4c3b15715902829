"""Products inside the functions of a model."""

from __future__ import annotations

from onebyone.onnx.convert import convert_model
from tests.onnx.models import model


def test_a_product_in_a_function_is_not_passed_over() -> None:
    more = """<domain: "local", opset_import: ["" : 20]>
    layer (x) => (y) { w = Constant<value = float[2,1] {3, -2}>() y = MatMul(x, w) }"""
    m = model("g (float[N,2] x) => (float[N,1] y) { y = local.layer(x) }", more=more)
    result = convert_model(m)
    assert "rank of its input 'x' is not known" in result.refused[0].reason
