"""Fused operators of ONNX Runtime follow into channels-first form, and compute what their formulas say."""

from __future__ import annotations

from math import erf, sqrt
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import onebyone
from onebyone.onnx.layout.convert import convert_with_layout
from tests.onnx.models import graph, integers, model, operators

Array = np.ndarray[Any, Any]
EPSILON = np.finfo(np.float32).eps
CONSTANTS = {
    "v": integers(4, 6), "w": integers(6, 3, seed=1), "b": integers(6, seed=2), "gamma": integers(6, seed=3),
    "beta": integers(6, seed=4), "u": integers(4, 6, seed=5),
}  # fmt: skip


def in_runtime(m: ir.Model, x: Array) -> Array:
    """The output in ONNX Runtime without its optimisations, which would fuse the parts again."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(m).SerializeToString(), options)
    return np.asarray(session.run(None, {"x": x})[0])


def gelu(x: Array) -> Array:
    return np.vectorize(lambda t: 0.5 * t * (1 + erf(t / sqrt(2))))(x)


def fast_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normalised(x: Array, is_centred: bool) -> Array:
    x = x - x.mean(-1, keepdims=True) * is_centred
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * CONSTANTS["gamma"]


@pytest.mark.parametrize(
    ("nodes", "formula"),
    [
        ("h = com.microsoft.BiasGelu(a, b)", lambda a, c: gelu(a + CONSTANTS["b"])),
        ("h = com.microsoft.FastGelu(a, b)", lambda a, c: fast_gelu(a + CONSTANTS["b"])),
        ("h = com.microsoft.FastGelu(a)", lambda a, c: fast_gelu(a)),
        (
            "h = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(a, c, gamma, beta, b)",
            lambda a, c: normalised(a + c + CONSTANTS["b"], True) + CONSTANTS["beta"],
        ),
        (
            "h = com.microsoft.SkipLayerNormalization<epsilon = 0.001>(a, c, gamma)",
            lambda a, c: normalised(a + c, True),
        ),
        (
            "h = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.001>(a, c, gamma, b)",
            lambda a, c: normalised(a + c + CONSTANTS["b"], False),
        ),
    ],
    ids=["BiasGelu", "FastGelu-bias", "FastGelu", "SkipLayerNormalization", "without-bias", "Simplified"],
)
def test_they_follow_between_convolutions(nodes: str, formula: Any) -> None:
    text = graph("1,5,4", "1,5,3", f"a = MatMul(x, v) c = MatMul(x, u) {nodes} y = MatMul(h, w)")
    m = model(text, CONSTANTS)
    c = convert_with_layout(m, forced=True)
    kinds = operators(c.model)
    read = 3 if "c," in nodes else 2
    assert kinds.count("Conv") == read
    assert kinds.count("Transpose") == 2, "only at the input and at the output"
    x = integers(1, 5, 4, seed=6)
    a, other = (x.astype(np.float64) @ CONSTANTS[name] for name in "vu")
    hidden = formula(a, other)
    expected = hidden @ CONSTANTS["w"]
    # a sum of 6 terms of at most |h|·4, each of h with at most 24 roundings of values below 200 beside its own
    bound = 6 * 4 * (24 + 6) * EPSILON * max(200.0, float(np.abs(hidden).max()))
    for candidate in (m, c.model):
        np.testing.assert_allclose(in_runtime(candidate, x), expected, rtol=0, atol=bound)
    v = onebyone.verify(m, c, x)
    assert v.equivalent, v.problems


def test_a_bias_of_a_wrong_order_is_found() -> None:
    text = graph("1,6,4", "1,6,3", "a = MatMul(x, v) h = com.microsoft.BiasGelu(a, b) y = MatMul(h, w)")
    m = model(text, CONSTANTS)
    c = convert_with_layout(m, forced=True)
    add = next(node for node in c.model.graph if node.op_type == "Add")
    assert add.inputs[1] is not None
    add.inputs[1].const_value = ir.tensor(add.inputs[1].const_value.numpy()[::-1].copy())  # type: ignore[union-attr]
    assert not onebyone.verify(m, c, integers(1, 6, 4, seed=6)).equivalent


@pytest.mark.parametrize(
    "nodes", ["com.microsoft.BiasGelu(x, d)", "com.microsoft.SkipLayerNormalization(x, x, g)"]
)
def test_they_stay_fused_in_their_own_layout(nodes: str) -> None:
    m = model(graph("1,5,4", "1,5,4", f"y = {nodes}"), {"d": integers(4), "g": integers(4)})
    c = convert_with_layout(m, forced=True)
    assert operators(c.model) == operators(m)


@pytest.mark.parametrize("scale", [(1,), (6,)], ids=["one-element", "vector"])
@pytest.mark.parametrize("offset", [(1,), (6,)], ids=["one-element", "vector"])
def test_parameters_of_one_element_broadcast_along_the_normalised_axis(
    scale: tuple[int, ...], offset: tuple[int, ...]
) -> None:
    """The normalised axis is stored in the second place, where a parameter of one element has no axis to be moved."""
    text = graph("1,5,4", "1,5,3", "a = MatMul(x, v) h = LayerNormalization(a, s, o) y = MatMul(h, w)")
    constants = CONSTANTS | {"s": 2 + integers(*scale, seed=7), "o": integers(*offset, seed=8)}
    m = model(text, constants, opset=17)
    c = convert_with_layout(m, forced=True)
    kinds = operators(c.model)
    assert (kinds.count("Conv"), kinds.count("LayerNormalization")) == (2, 0)
    x = integers(1, 5, 4, seed=2)
    expected, actual = (in_runtime(each, x) for each in (m, c.model))
    # a mean, a variance and two products: 40 roundings at most, then sums of 6 terms up to |w| ≤ 3
    largest = np.abs(expected).max() + 6 * 3 * (
        np.abs(constants["s"]).max() * 3 + np.abs(constants["o"]).max()
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=46 * EPSILON * largest)
