"""Products of quantised numbers become convolutions and back with the same integers, in both evaluators."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import run_onnx_runtime, run_reference
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import model, operators
from tests.onnx.quantised_models import (
    BEYOND_ONNX_RUNTIME,
    CONVOLUTIONS,
    PRODUCTS,
    QuantisedCase,
    numbers,
    scales,
)

_PRODUCTS = {"MatMulInteger", "QLinearMatMul", "QGemm"}
_CONVOLUTIONS = {"ConvInteger", "QLinearConv"}
ALL = [
    *((name, "conv", case) for name, case in (PRODUCTS | BEYOND_ONNX_RUNTIME).items()),
    *((name, "linear", case) for name, case in CONVOLUTIONS.items()),
]


@pytest.mark.parametrize(("name", "to", "case"), ALL, ids=[name for name, _, _ in ALL])
def test_the_same_integers(name: str, to: str, case: QuantisedCase) -> None:
    m = case.model
    result = convert_model(m, to)
    assert not result.refused, str(result)
    assert len(result.changes) == 1
    gone, new = (_PRODUCTS, _CONVOLUTIONS) if to == "conv" else (_CONVOLUTIONS, _PRODUCTS)
    names = set(operators(result.model))
    assert names & new
    assert not names & gone
    before, after = ir.serde.serialize_model(m), ir.serde.serialize_model(result.model)
    onnx.checker.check_model(after, full_check=True)
    x = {"x": case.example()}
    evaluators = [run_reference] if name in BEYOND_ONNX_RUNTIME else [run_reference, run_onnx_runtime]
    for run in evaluators:
        expected, found = run(before, x)[0], run(after, x)[0]
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(expected)) > 5, "hardly any number would show a fault"


@pytest.mark.parametrize(("name", "to", "case"), ALL, ids=[name for name, _, _ in ALL])
def test_there_and_back(name: str, to: str, case: QuantisedCase) -> None:
    if "bias" in name or "a batch of weights by channel" in name:
        return
    there = convert_model(case.model, to)
    back = convert_model(there.model, "linear" if to == "conv" else "conv")
    assert len(back.changes) == 1, str(back)
    x = {"x": case.example(2)}
    expected, found = (run_reference(ir.serde.serialize_model(m), x)[0] for m in (case.model, back.model))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("name", "to", "case"), ALL, ids=[name for name, _, _ in ALL])
def test_every_form_is_probed_and_faults_are_seen(name: str, to: str, case: QuantisedCase) -> None:
    m = case.model
    result = convert_model(m, to)
    example = None if name in BEYOND_ONNX_RUNTIME else {"x": case.example()}
    v = verify_onnx(m, result, example)
    assert v.equivalent, str(v)
    assert v.integer_probe is True, str(v)
    (layer,) = v.layers
    assert layer.faults
    assert all(fault.seen_by_integers for fault in layer.faults), layer.faults


def _with_constant(result: OnnxConversion, old: str, array: np.ndarray) -> OnnxConversion:
    copy = result.model.clone()
    (name,) = (n for n in copy.graph.initializers if result.entries.get(str(n), (str(n),))[0] == old)
    copy.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return replace(result, model=copy)


@pytest.mark.parametrize("constant", ["w", "ws", "xz", "ys", "yz"])
def test_a_changed_constant_is_caught_by_integers_compared_exactly(constant: str) -> None:
    case = PRODUCTS["by channel"]
    result = convert_model(case.model)
    names = {result.entries.get(str(n), (str(n),))[0]: n for n in result.model.graph.initializers}
    array = np.array(result.model.graph.initializers[names[constant]].const_value.numpy())  # type: ignore[union-attr]
    array.reshape(-1)[0] = (
        array.reshape(-1)[0] * 2 if array.dtype == np.float32 else array.reshape(-1)[0] ^ 16
    )
    wrong = _with_constant(result, constant, array)
    v = verify_onnx(case.model, wrong, {"x": case.example()})
    assert not v.equivalent
    assert any("differ" in problem for problem in v.problems), v.problems


REFUSED = {
    "zero points by channel in ConvInteger": (
        "g (uint8[N,3] x) => (int32[N,5] y) { y = MatMulInteger(x, w, z, v) }",
        {"w": numbers(np.int8, 3, 5), "z": numbers(np.uint8), "v": numbers(np.int8, 5)},
        "conv", "differ by output channel",
    ),
    "zero points by row of the input": (
        "g (uint8[2,3] x) => (int32[2,5] y) { y = MatMulInteger(x, w, z) }",
        {"w": numbers(np.int8, 3, 5), "z": numbers(np.uint8, 2)}, "conv", "one number for the whole tensor",
    ),
    "int8 by uint8": (
        "g (int8[N,3] x) => (int32[N,5] y) { y = MatMulInteger(x, w) }",
        {"w": numbers(np.uint8, 3, 5)}, "conv", "wrong sums",
    ),
    "two constants": (
        "g (uint8[N,3] x) => (uint8[N,3] z, int32[3,5] y) { z = Identity(x) y = MatMulInteger(u, w) }",
        {"w": numbers(np.uint8, 3, 5), "u": numbers(np.uint8, 3, 3)}, "conv", "both operands are constants",
    ),
    "a weight that is an input": (
        "g (uint8[N,3] x, int8[3,5] w) => (int32[N,5] y) { y = MatMulInteger(x, w) }",
        {"w": numbers(np.int8, 3, 5)}, "conv", "also an input of the graph",
    ),
    "a bias": (
        "g (uint8[N,4,T] x) => (uint8[N,6,T] y) { y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b) }",
        {"xs": scales(), "xz": numbers(np.uint8), "w": numbers(np.int8, 6, 4, 1), "ws": scales(),
         "wz": numbers(np.int8), "ys": scales(around=1), "yz": numbers(np.uint8), "b": np.arange(6, dtype=np.int32)},
        "linear", "QLinearMatMul has no bias",
    ),
    "groups with scales by channel": (
        "g (uint8[N,4,T] x) => (uint8[N,6,T] y) { y = QLinearConv<group=2>(x, xs, xz, w, ws, wz, ys, yz) }",
        {"xs": scales(), "xz": numbers(np.uint8), "w": numbers(np.int8, 6, 2, 1), "ws": scales(6),
         "wz": np.zeros(6, np.int8), "ys": scales(around=1), "yz": numbers(np.uint8)},
        "linear", "2 groups",
    ),
    "alpha of QGemm": (
        "g (uint8[N,3] x) => (uint8[N,5] y) { y = com.microsoft.QGemm<alpha=2.0>(x, xs, xz, w, ws, wz, b, ys, yz) }",
        {"xs": scales(), "xz": numbers(np.uint8), "w": numbers(np.int8, 3, 5), "ws": scales(),
         "wz": numbers(np.int8), "ys": scales(around=1), "yz": numbers(np.uint8), "b": np.arange(5, dtype=np.int32)},
        "conv", "alpha is not 1",
    ),
    "four bits": (
        "g (float[N,32] x) => (float[N,5] y) { y = com.microsoft.MatMulNBits<K=32,N=5,bits=4,block_size=32>(x, w, s) }",
        {"w": numbers(np.uint8, 5, 1, 16), "s": scales(5)}, "conv", "MatMulNBits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_a_reason(name: str) -> None:
    text, constants, to, reason = REFUSED[name]
    result = convert_model(model(text, constants), to)
    assert not result.changes
    assert [reason in refusal.reason for refusal in result.refused] == [True], str(result)


def test_the_dynamic_quantisers_group() -> None:
    """DynamicQuantizeLinear, MatMulInteger, Cast and Mul: the scales and zero point are computed from the input."""
    text = """g (float[N,T,3] x) => (float[N,T,5] y) {
        q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z, v) f = Cast<to=1>(i)
        p = Mul(s, ws) m = Mul(f, p) y = Add(m, b) }"""
    constants = {"w": numbers(np.int8, 3, 5), "v": numbers(np.int8), "ws": scales(5), "b": scales(5)}
    m = model(text, constants)
    result = convert_model(m)
    assert not result.refused
    assert "ConvInteger" in operators(result.model)
    x = {"x": np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)}
    for run in (run_reference, run_onnx_runtime):
        expected, found = (run(ir.serde.serialize_model(each), x)[0] for each in (m, result.model))
        np.testing.assert_array_equal(found, expected)
    v = verify_onnx(m, result, x)
    assert v.equivalent, str(v)
    assert v.integer_probe is True
