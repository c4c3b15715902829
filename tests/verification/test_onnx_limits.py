"""Limits of the verification of ONNX models in every type, from both sides, and where everything is tiny or empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.errors import MissingExtra
from onebyone.onnx.convert import prepared
from onebyone.onnx.evaluators import NotRunnable
from onebyone.onnx.layer_models import LayerModel
from onebyone.verification import onnx_decompositions, onnx_outputs, onnx_real_weights
from onebyone.verification.onnx_decompositions import _floats
from onebyone.verification.onnx_models import compare_onnx
from onebyone.verification.onnx_outputs import (
    REFERENCE,
    WholeModel,
    _compare_output,
    _difference_beyond,
    original_outputs,
)
from onebyone.verification.onnx_real_weights import _reach, _subtracts, check_on_real_weights
from onebyone.verification.result import LayerCheck
from tests.onnx.models import integers, model
from tests.verification.test_onnx_decompositions import LAYER, compared, form

Array = np.ndarray[Any, Any]
PLAIN = "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"
FEEDS = {"x": np.array([[-1.0, 2.0]], np.float32)}
#: Unit roundoff of each type, and that of the next shorter one.
UNITS = {"float64": (2.0**-53, 2.0**-24), "float32": (2.0**-24, 2.0**-11), "float16": (2.0**-11, 2.0**-3)}


# outputs


@pytest.mark.parametrize("scale", [1.0, 2.0**-4])
@pytest.mark.parametrize("dtype", UNITS)
def test_the_rounding_error_that_an_output_may_have(dtype: str, scale: float) -> None:
    """√(u′/u) times that of the original, which is u of its largest value, or its distance from the reference."""
    unit, shorter = UNITS[dtype]
    allowed = (shorter / unit) ** 0.5
    y = np.array([scale, 0], dtype)
    for factor in (0.99, 1.01):
        z = np.array([scale, factor * allowed * unit * scale], dtype)
        for reference in (None, y.astype(np.float64)):
            whole = WholeModel()
            difference, problem = _compare_output(whole, "y", y, z, reference, [])
            assert difference == whole.max_error == float(z[1])
            assert whole.rounding_ratio == pytest.approx(factor * allowed, rel=2e-3)
            assert (problem == "") == (factor < 1)
    far = y.astype(np.float64) + np.array([0, 8 * unit * scale])
    z = np.array([scale, 8 * allowed * unit * scale * 0.9], dtype)
    assert _compare_output(WholeModel(), "y", y, z, far, [])[1] == "", (
        "the original is as far from the reference"
    )


def test_the_limit_itself_is_allowed() -> None:
    """In float16 it is a number: √(2⁻³/2⁻¹¹) = 16."""
    y, whole = np.array([1, 0], np.float16), WholeModel()
    assert _compare_output(whole, "y", y, np.array([1, 2.0**-7], np.float16), None, []) == (2.0**-7, "")
    assert whole.rounding_ratio == 16
    beyond = np.array([1, 2.0**-7 * (1 + 2.0**-10)], np.float16)
    assert _compare_output(whole, "y", y, beyond, None, [])[1] == (
        "output y has 16 times the original's rounding error, limit 16"
    )


@pytest.mark.parametrize("scale", [1.0, 2.0**-4])
@pytest.mark.parametrize("dtype", UNITS)
def test_how_far_a_reference_may_be_from_onnx_runtime(dtype: str, scale: float) -> None:
    """The next shorter type's roundoff of the largest value."""
    y, shorter = np.array([scale, 4 * scale], dtype), UNITS[dtype][1]
    off = 4 * scale * shorter
    assert _difference_beyond(y, y.astype(np.float64) + np.array([off, 0])) is None
    assert _difference_beyond(y, y.astype(np.float64) + np.array([off * (1 + 2.0**-20), 0])) == pytest.approx(
        off
    )


def test_outputs_that_are_empty_are_equal_to_their_reference() -> None:
    none = np.zeros((0, 2), np.float32)
    whole = WholeModel()
    assert _compare_output(whole, "y", none, none, none.astype(np.float64), []) == (0.0, "")
    assert whole.max_error == 0
    assert _difference_beyond(none, none.astype(np.float64)) is None


def test_the_later_of_two_equal_differences_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both runs are off by 1, the second one from an original that is four times as large."""

    def row(*values: float) -> Array:
        return np.array([values], np.float32)

    runs = {True: [row(1, 2)], False: [row(1, 5)]}
    monkeypatch.setattr(onnx_outputs, "_run", lambda *_, optimised: runs[optimised])
    before = onnx_outputs.OriginalOutputs(("y",), [row(1, 1)], [row(1, 4)], [None], [None], ())
    problems: list[str] = []
    m = model(PLAIN)
    onnx_outputs.compare_outputs(m, m, FEEDS, problems, [], 1, before)
    assert problems == [f"output y has {2.0**22:.3g} times the original's rounding error, limit 90.5"]


def test_two_models_that_quantise_may_move_as_far_as_one_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which sums the layers compute is not known: γ₁ = u/(1 − u) for each weight."""
    text = """g (float[N,2] x) => (float[N,2] y) { s = Constant <value_float: float = 1.0> ()
        q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) y = Add(d, c) }"""
    given: list[Any] = []
    monkeypatch.setattr(onnx_outputs, "sensitivity", lambda *arguments: given.append(arguments) or [8.0])
    m, other = (model(text, {"c": np.float32(c)}) for c in (0.0, 1.0))
    v = compare_onnx(m, other, FEEDS)
    ((original, feeds, relative),) = given
    assert original is m
    assert feeds is FEEDS
    assert relative == 2.0**-24 / (1 - 2.0**-24)
    assert v.equivalent
    assert v.unverified[-1].startswith("output y beyond 1: it quantises values inside")


def test_the_original_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise MissingExtra("onnxruntime", "engines", "running an ONNX model")

    monkeypatch.setattr(onnx_outputs, "run_onnx_runtime", missing)
    monkeypatch.setattr(onnx_outputs, "onnx_runtime_version", lambda: "")
    m = model(PLAIN)
    outputs = original_outputs(m, FEEDS)
    note = (
        "the whole model in ONNX Runtime, which is not installed: the ONNX reference implementation ran both"
    )
    assert outputs.unverified == (note,)
    assert outputs.first[0].tolist() == outputs.plain[0].tolist() == [[0.0, 2.0]]
    unverified: list[str] = []
    whole = onnx_outputs.compare_outputs(m, m, FEEDS, [], unverified)
    assert whole.evaluators == (f"own types: {REFERENCE}", f"float64: {REFERENCE}")
    assert unverified == [note]


def test_how_the_original_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run(_: Any, feeds: Mapping[str, Array], **settings: Any) -> list[Array]:
        assert feeds is FEEDS
        given.append(settings)
        if "fails" in modes:
            raise NotRunnable("no kernel")
        return [np.array([[0, 2]], np.float32)]

    modes: list[str] = []
    monkeypatch.setattr(onnx_outputs, "run_onnx_runtime", run)
    m = model(PLAIN)
    outputs = original_outputs(m, FEEDS)
    assert given == [{"optimised": True}, {"optimised": False}]
    assert outputs.exact == outputs.references
    known = [np.array([[0, 2]], np.float32)]
    assert original_outputs(m, FEEDS, known).plain is known
    assert given[2:] == [{"optimised": True}], "the other one is known"
    modes.append("fails")
    nothing = original_outputs(m, FEEDS)
    assert (nothing.names, nothing.first, nothing.plain) == (("y",), (), ())
    assert (nothing.references, nothing.exact) == ((), ())


def test_calls_of_functions_are_replaced_for_the_reference() -> None:
    body = '<domain: "local", opset_import: ["" : 20]> twice (v) => (w) { c = Constant <value_int = 2> () '
    body += "f = CastLike(c, v) w = Mul(v, f) }"
    m = model("g (float[N,2] x) => (float[N,2] y) { h = local.twice(x) y = Neg(h) }", more=body)
    outputs = original_outputs(m, FEEDS)
    assert outputs.unverified == ()
    (exact,) = outputs.exact
    assert exact is not None
    assert exact.tolist() == [[2.0, -4.0]]
    assert len(m.functions) == 1, "the model itself is not changed"


# layers on real weights

GEMM = "g (float[N,3] x) => (float[N,2] y) { y = Gemm(x, w, b) }"
ZEROS = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}


def on_real_weights(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    weights: Mapping[str, Array],
    recorded: Mapping[str, Array],
    outputs: Sequence[Array],
) -> tuple[LayerCheck, list[str]]:
    """The check of a layer of three products whose two forms give these outputs in ONNX Runtime."""
    given = iter(outputs)
    monkeypatch.setattr(onnx_real_weights, "run_onnx_runtime", lambda *_: [next(given)])
    layer = LayerModel(prepared(model(text, weights)), "x", "y")
    notes: list[str] = []
    check = LayerCheck("fc", "Gemm", bitwise=True, why="seen before")
    return check_on_real_weights(layer, layer, 3, recorded, check, notes), notes


def test_where_all_terms_are_zero_each_may_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice 2⁻¹⁴⁹ for each of the three products, the bias and a factor: the limit itself is allowed."""
    zeros = {"x": np.zeros((1, 3), np.float32)}
    for steps in (10, 11):
        outputs = [np.zeros((1, 2), np.float32), np.array([[0, steps * 2.0**-149]], np.float32)]
        check, notes = on_real_weights(monkeypatch, GEMM, ZEROS, zeros, outputs)
        assert (check.ok, check.bound, check.error_ratio) == (steps == 10, 10 * 2.0**-149, steps / 10)
        assert check.why == ("" if check.ok else "|Δ| is 1.1 times its bound")
        assert (check.max_error, check.compared, notes) == (steps * 2.0**-149, 2, [])


def test_the_first_input_that_was_not_recorded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[1,3] x, float[1,2] u, float[1,2] v) => (float[1,2] y) {
        m = MatMul(x, w) p = Add(m, u) y = Mul(p, v) }"""
    x = {"x": np.ones((1, 3), np.float32)}
    check, notes = on_real_weights(monkeypatch, text, {"w": ZEROS["w"]}, x, [])
    inputs = LayerModel(prepared(model(text, {"w": ZEROS["w"]})), "x", "y").inputs
    assert notes == [f"fc: no bound on real weights: its input {inputs[1]!r} was not recorded"]
    assert check == LayerCheck("fc", "Gemm", bitwise=True, why="seen before")


@pytest.mark.parametrize(("kind", "plain"), [(np.int64, True), (np.int32, False)])
def test_constants_beside_the_weights(monkeypatch: pytest.MonkeyPatch, kind: Any, plain: bool) -> None:
    """Shapes and axes are int64; any other integers may be numbers of the layer."""
    text = "g (float[1,3] x) => (float[1,2] y) { m = MatMul(x, w) f = Cast<to=1>(n) y = Mul(m, f) }"
    weights = {"w": integers(3, 2), "n": np.array([1, 2], kind)}
    x, same = {"x": np.ones((1, 3), np.float32)}, np.zeros((1, 2), np.float32)
    check, notes = on_real_weights(monkeypatch, text, weights, x, [same, same])
    assert (check.bound is not None) == plain
    assert notes == ([] if plain else ["fc: no bound on real weights: its weight is not plain float32"])


def test_integers_that_were_not_recorded_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (uint8[1,3] x) => (int32[1,2] y) { y = MatMulInteger(x, w) }"
    weights = {"w": np.ones((3, 2), np.int8)}
    _, notes = on_real_weights(monkeypatch, text, weights, {}, [])
    assert notes == ["fc: no bound on real weights: its input 'x' was not recorded"]
    right = np.array([[3, 3]], np.int32)
    check, notes = on_real_weights(
        monkeypatch, text, weights, {"x": np.ones((1, 3), np.uint8)}, [right, right + 1]
    )
    assert (check.ok, check.why, notes) == (False, "the outputs differ in 2 of 2 values", [])


@pytest.mark.parametrize("right", [True, False])
def test_layers_of_integers_run_on_what_was_recorded(right: bool) -> None:
    text = "g (uint8[1,3] x) => (int32[1,2] y) { y = MatMulInteger(x, w) }"
    w = np.array([[1, 2], [3, -4], [5, 6]], np.int8)
    forms = [prepared(model(text, {"w": array})) for array in (w, w if right else w + np.int8([[0, 1]]))]
    before, after = (LayerModel(form, "x", "y") for form in forms)
    check, notes = LayerCheck("fc", "MatMulInteger", bitwise=True), ["a note"]
    x = np.array([[7, 0, 9]], np.uint8)
    result = check_on_real_weights(before, after, 3, {"x": x, "y": x}, check, notes)
    assert (result.ok, result.compared, notes) == (right, 2, ["a note"])
    assert result.why == ("" if right else "the outputs differ in 1 of 2 values")
    result = check_on_real_weights(before, after, 3, {"x": x[:, :2]}, check, notes)
    assert result is check
    assert notes[1].startswith("fc: on its own inputs: ONNX Runtime cannot run it: ")


@pytest.mark.parametrize(
    ("node", "subtracts"),
    [
        ("y = Sub(x, b)", True),
        ("y = Neg(x)", True),
        ("y = Add(x, b)", False),
        ("y = Gemm<alpha=-0.5>(x, b)", True),
        ("y = Gemm<beta=-0.5>(x, b)", True),
        ("y = Gemm<alpha=0.5, beta=0.5>(x, b)", False),
        ("y = Gemm<alpha=0.0>(x, b)", False),
        ("y = LeakyRelu<alpha=0.5>(x)", False),
    ],
)
def test_layers_in_which_terms_cancel(node: str, subtracts: bool) -> None:
    parsed = model(f"g (float[2,2] x) => (float[2,2] y) {{ {node} }}", {"b": np.ones((2, 2), np.float32)})
    assert _subtracts(SimpleNamespace(nodes=tuple(parsed.graph))) == subtracts  # type: ignore[arg-type]


def test_the_sum_of_the_sizes_of_all_terms() -> None:
    """|W||x| + |v| + |b|, also where the layer subtracts."""
    text = (
        "g (float[1,3] x, float[1,2] v) => (float[1,2] y) {{ m = MatMul(x, w) p = {}(m, v) y = Sub(p, b) }}"
    )
    weights = {"w": integers(3, 2), "b": integers(2)}
    feeds = {"x": np.abs(integers(1, 3)).astype(np.float64), "v": np.abs(integers(1, 2)).astype(np.float64)}
    sizes = {name: np.abs(array).astype(np.float64) for name, array in weights.items()}
    for operator in ("Add", "Sub"):
        layer = LayerModel(prepared(model(text.format(operator), weights)), "x", "y")
        assert np.array_equal(_reach(layer, sizes, feeds), feeds["x"] @ sizes["w"] + feeds["v"] + sizes["b"])


# layers that are written as their parts


@pytest.mark.parametrize("factor", [0.9999, 1.0001])
def test_the_injected_fault_is_a_change_by_two_to_the_minus_twelve(factor: float) -> None:
    """It must exceed √(u64·u32)·max|y|, and is visible exactly if the constant is large enough."""
    x = 4.0 * np.random.default_rng(0).standard_normal((2, 3))
    limit = 2.0 ** -((53 + 24) / 2) * np.abs(x).max()
    both = form(f"<double w = {{{float(factor * limit * 2.0**12)!r}}}> {{ y = Add (x, w) }}")
    check = compared(both, both)
    assert [fault.seen_by_integers for fault in check.faults] == [factor > 1]
    assert check.why == ("" if factor > 1 else "the comparison in float64 cannot see: w changed by 2⁻¹²")


def test_limits_of_small_and_of_empty_outputs() -> None:
    largest = 4.0 * np.abs(np.random.default_rng(0).standard_normal((2, 3))).max()
    small = form("<double w = {0.001}> { y = Mul (x, w) }")
    assert compared(small, small).bound == pytest.approx(2.0**-38.5 * 0.001 * largest, rel=1e-9)
    zero = form("<double w = {0.5}> { d = Sub (x, x) y = Mul (d, w) }")
    check = compared(zero, zero)
    assert (check.ok, check.bound, check.error_ratio) == (False, 0.0, 0.0)
    assert check.why == "the comparison in float64 cannot see: w changed by 2⁻¹²"
    none = form("<int64[1] s = {0}, int64[1] e = {0}> { y = Slice (x, s, e) }", "float[0,3]")
    check = compared(none, none)
    assert (check.ok, check.max_error, check.bound, check.error_ratio, check.compared) == (
        True,
        0.0,
        0.0,
        0.0,
        0,
    )


@pytest.mark.parametrize("inside", [True, False])
def test_the_limit_in_float64_itself_is_allowed(monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    limit = float(np.sqrt(2.0**-77))
    error = limit if inside else float(np.nextafter(limit, 1))
    outputs = iter([np.array([1.0, 0.0]), np.array([1.0, error])])
    monkeypatch.setattr(onnx_decompositions, "run64", lambda *_: next(outputs))
    both = form("{ y = Identity (x) }")
    check = compared(both, both)
    assert (check.ok, check.why == "") == (inside, inside)
    assert (check.max_error, check.bound) == (error, limit)


def test_a_difference_is_told_before_a_fault_that_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = np.array([1.0, 0.5])
    outputs = iter([np.array([1.0, 0.0]), wrong, np.array([1.0, 0.0])])
    monkeypatch.setattr(onnx_decompositions, "run64", lambda *_: next(outputs))
    both = form("<double w = {2.0}> { y = Mul (x, w) }")
    check = compared(both, both)
    assert [fault.seen_by_integers for fault in check.faults] == [False]
    assert check.why.startswith("|Δ| in float64 is ")


def test_the_numbers_of_an_input_that_only_the_original_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        onnx_decompositions,
        "missing_dependence",
        lambda *arguments: given.extend(arguments) or "it depends on v",
    )
    text = "g (float[2,3] x, float[2,3] v) => (float[2,3] y) {{ {} }}"
    bodies = ("d = Sub(v, v) y = Add(x, d)", "y = Identity(x)")
    forms = [LayerModel(prepared(model(text.format(body))), "x", "y") for body in bodies]
    check = compared(*forms)
    assert (check.ok, check.why) == (False, "it depends on v")
    before, after, constants, feeds, others, expected = given
    assert ([before, after], constants) == (forms, {})
    assert feeds.keys() == others.keys() == {"x", "v"}
    assert not any(np.array_equal(feeds[name], others[name]) for name in feeds)
    assert np.array_equal(expected, feeds["x"])


def test_sizes_that_are_not_known_and_those_of_the_record() -> None:
    text = "g (float[A,B] x) => (float[A,B] y) { y = Neg(x) }"
    both = LayerModel(prepared(model(text)), "x", "y")
    for sizes, count in (((None, None), 2 * 3), ((5, None), 5 * 3), ((5, 4), 5 * 4), (None, 2 * 3)):
        layer = replace(LAYER, data_sizes=sizes)
        check = onnx_decompositions.compare_in_float64(both, both, layer, 0, (2, 3))
        assert check.compared == count


def test_constants_of_eight_bits_are_known_as_those_of_sixteen() -> None:
    kind = ir.DataType.FLOAT8E4M3FN
    constants = {"s": ir.tensor(np.ones(2).astype(kind.numpy()), dtype=kind)}
    ((array, unit),) = _floats(SimpleNamespace(constants=constants)).values()  # type: ignore[arg-type]
    assert (array.tolist(), unit) == ([1.0, 1.0], 2.0**-11)
