"""Products inside the functions of a model."""

from __future__ import annotations

import pytest

from onebyone.onnx.convert import convert_model
from tests.onnx.models import integers, model


def test_a_product_in_a_function_is_not_passed_over() -> None:
    more = """<domain: "local", opset_import: ["" : 20]>
    layer (x) => (y) { w = Constant<value = float[2,1] {3, -2}>() y = MatMul(x, w) }"""
    m = model("g (float[N,2] x) => (float[N,1] y) { y = local.layer(x) }", more=more)
    result = convert_model(m)
    assert "rank of its input 'x' is not known" in result.refused[0].reason


CALLED = """<domain: "local", opset_import: ["" : 20]>
    layer (x, w) => (y) { t = Transpose(w) y = MatMul(x, t) }
    <domain: "local", opset_import: ["" : 20, "local" : 1]>
    outer (x, w) => (y) { y = local.layer(x, w) }
    <domain: "local", opset_import: ["" : 20]>
    pointwise (x, w) => (y) { y = Conv(x, w) }"""


@pytest.mark.parametrize("name", ["layer", "outer"])
def test_a_weight_that_is_an_argument_is_refused_by_name(name: str) -> None:
    m = model(
        f"g (float[N,2] x) => (float[N,3] y) {{ y = local.{name}(x, w) }}", {"w": integers(3, 2)}, more=CALLED
    )
    result = convert_model(m)
    assert not result.changes
    assert [refusal.path for refusal in result.refused] == ["layer/y"]
    assert "'w' is an argument of the function 'layer'" in result.refused[0].reason


def test_a_kernel_that_is_an_argument_is_refused_by_name() -> None:
    weights = {"w": integers(3, 2, 1, 1)}
    m = model(
        "g (float[N,2,4,4] x) => (float[N,3,4,4] y) { y = local.pointwise(x, w) }", weights, more=CALLED
    )
    result = convert_model(m, "linear")
    assert "'w' is an argument of the function 'pointwise'" in result.refused[0].reason


def test_a_function_that_multiplies_two_activations_has_no_layer() -> None:
    m = model("g (float[N,2] x) => (float[N,N] y) { y = local.layer(x, x) }", more=CALLED)
    result = convert_model(m)
    assert not result.changes
    assert not result.refused
