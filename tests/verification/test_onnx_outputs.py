"""Outputs of ONNX models, on arrays made by hand: each limit from both sides, and every sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onebyone.onnx.convert import prepared
from onebyone.onnx.evaluators import NotRunnable
from onebyone.onnx.layer_models import LayerModel
from onebyone.verification import onnx_outputs
from onebyone.verification.onnx_outputs import (
    OriginalOutputs,
    WholeModel,
    _compare_output,
    _difference_beyond,
    _reference,
    _trusted,
    compare_outputs,
    inputs_of,
    missing_dependence,
    original_outputs,
    run64,
)
from tests.onnx.models import model

Array = np.ndarray[Any, Any]
PLAIN = "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"
QUANTISED = """g (float[N,2] x) => (float[N,2] y) { s = Constant <value_float: float = 1.0> ()
    q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }"""
INTEGER = """g (uint8[N,2] x) => (float[N,2] y) { w = Constant <value: tensor = uint8[2,2] {1,2,3,4}> ()
    p = MatMulInteger(x, w) y = Cast<to=1>(p) }"""
FEEDS = {"x": np.ones((1, 2), np.float32)}
#: √(2⁻¹¹/2⁻²⁴): how many times the original's rounding error an output in float32 may have.
ALLOWED = 2.0**6.5


def f32(*values: float) -> Array:
    return np.array([values], np.float32)


def known(
    first: Sequence[Array], plain: Sequence[Array] | None = None, exact: Sequence[Array | None] | None = None
) -> OriginalOutputs:
    names = tuple("yz"[: len(first)])
    trusted = list(exact or [None] * len(first))
    return OriginalOutputs(names, list(first), list(plain or first), trusted, trusted, ("a note",))


def compared(
    monkeypatch: pytest.MonkeyPatch,
    optimised: Sequence[Array] | str,
    plain: Sequence[Array] | str,
    before: OriginalOutputs,
    text: str = PLAIN,
    moved: Sequence[float] = (),
) -> tuple[WholeModel, list[str], list[str]]:
    """The comparison, for a converted model whose two runs give these outputs (a text: they fail with it)."""

    def run(_: Any, feeds: Mapping[str, Array], *, optimised: bool) -> Sequence[Array]:
        outputs = both[optimised]
        if isinstance(outputs, str):
            raise NotRunnable(outputs)
        return outputs

    def sensitivity(_: Any, feeds: Any, relative: float) -> list[float]:
        assert relative == pytest.approx(7 * 2.0**-24, rel=1e-5)
        return list(moved)

    both = {True: optimised, False: plain}
    monkeypatch.setattr(onnx_outputs, "_run", run)
    monkeypatch.setattr(onnx_outputs, "sensitivity", sensitivity)
    problems: list[str] = []
    unverified: list[str] = []
    m = model(text)
    whole = compare_outputs(m, m, FEEDS, problems, unverified, 7, before)
    return whole, problems, unverified


def test_equal_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, problems, unverified = compared(monkeypatch, [f32(1, 2)], [f32(1, 2)], known([f32(1, 2)]))
    assert (whole.max_error, whole.rounding_ratio) == (0.0, 0.0)
    assert (problems, unverified) == ([], ["a note"])
    assert len(whole.evaluators) == 1
    assert whole.evaluators[0].startswith("own types: ONNX Runtime ")
    whole, _, _ = compared(monkeypatch, [f32(1, 2)], [f32(1, 2)], known([f32(1, 2)], exact=[f32(1, 2)]))
    assert whole.evaluators[1:] == (f"float64: the ONNX reference implementation {onnx.__version__}",)


@pytest.mark.parametrize("which", ["optimised", "not optimised"])
def test_each_run_is_compared_with_that_of_the_original(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """The original's two runs differ; a converted run that equals the other one of the original is wrong."""
    a, b = f32(1, 2), f32(1, 3)
    both = known([a], [b])
    assert compared(monkeypatch, [a], [b], both)[1] == []
    outputs = ([b], [b]) if which == "optimised" else ([a], [a])
    whole, problems, _ = compared(monkeypatch, *outputs, both)
    assert whole.max_error == 1.0
    (problem,) = problems
    assert problem.startswith("output y has ")
    assert problem.endswith("times the original's rounding error, limit 90.5")


def test_a_run_that_fails_is_a_problem_and_the_other_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    right = known([f32(1, 2)])
    _, problems, _ = compared(monkeypatch, "no kernel", [f32(1, 9)], right)
    assert problems[0] == "the converted model, optimised: no kernel"
    assert problems[1].startswith("output y has ")
    _, problems, _ = compared(monkeypatch, [f32(1, 2)], "no kernel", right)
    assert problems == ["the converted model, not optimised: no kernel"]


def test_the_larger_of_two_differences_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = known([f32(1, 2), f32(4, 1)])
    for first, second in ((3.0, 9.0), (9.0, 3.0)):
        whole, problems, _ = compared(
            monkeypatch, [f32(1, first), f32(4, 1)], [f32(1, second), f32(4, 1)], right
        )
        assert whole.max_error == 7.0
        assert problems == [
            f"output y has {7 / 2.0**-23:.3g} times the original's rounding error, limit 90.5"
        ]
    _, problems, _ = compared(monkeypatch, [f32(1, 3), f32(5, 1)], [f32(1, 2), f32(4, 1)], right)
    assert [problem[:8] for problem in problems] == ["output y", "output z"]
    _, problems, _ = compared(monkeypatch, [f32(1, 2), f32(5, 1)], [f32(1, 2), f32(4, 1)], right)
    assert [problem[:8] for problem in problems] == ["output z"], "also after an output that is right"


def test_an_original_that_does_not_run_is_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = OriginalOutputs(("y",), (), (), (), (), ("the whole model: no kernel",))
    whole, problems, unverified = compared(monkeypatch, [f32(1, 2)], [f32(1, 2)], nothing)
    assert (whole.max_error, whole.evaluators, problems) == (None, (), [])
    assert unverified == ["the whole model: no kernel"]


def test_models_that_quantise_may_move_as_far_as_rounded_weights_move_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice what changes of γ_7 of the weights do; without a measurement, and in other models, nothing."""
    for moved, difference, passes in (([0.5], 1.0, True), ([0.5], 1.25, False), ([], 0.25, False)):
        wrong = [f32(1, 2 + difference)]
        _, problems, unverified = compared(monkeypatch, wrong, wrong, known([f32(1, 2)]), QUANTISED, moved)
        assert (problems == []) == passes
        assert unverified[1:] == (
            ["output y beyond 1: it quantises values inside, so that rounding errors move it by up to 1"]
            if passes
            else []
        )
        _, problems, _ = compared(monkeypatch, wrong, wrong, known([f32(1, 2)]), PLAIN, moved)
        assert problems != []


def test_each_output_has_its_own_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = [f32(1, 2), f32(1, 2)], [f32(1, 3), f32(1, 3)]
    _, problems, unverified = compared(monkeypatch, wrong, wrong, known(right), QUANTISED, [0.25, 0.5])
    assert [p[:8] for p in problems] == ["output y"]
    assert [u[:8] for u in unverified[1:]] == ["output z"]


def test_integer_products_that_saturate_in_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime gave 5 where the definition gives 7: the converted model, which gives 7, is right."""
    before = OriginalOutputs(("y",), [f32(1, 5)], [f32(1, 5)], [np.array([[1.0, 7.0]])], [None], ())
    _, problems, unverified = compared(monkeypatch, [f32(1, 7)], [f32(1, 7)], before, INTEGER)
    assert problems == []
    assert unverified == 2 * [
        "output y of the original: ONNX Runtime's integer products differ from ONNX's definition by 2, as where they "
        "saturate; the converted model's do not"
    ]
    for text, value in ((INTEGER, 8), (PLAIN, 7)):
        _, problems, unverified = compared(monkeypatch, [f32(1, value)], [f32(1, value)], before, text)
        assert len(problems) == 1
        assert unverified == []


# one output


@pytest.mark.parametrize(
    ("y", "z", "problem"),
    [
        (f32(1, 2), f32(1, 2).T, "output y is float32 of shape (2, 1), the original's is float32 (1, 2)"),
        (
            f32(1, 2),
            np.ones((1, 2)),
            "output y is float64 of shape (1, 2), the original's is float32 (1, 2)",
        ),
        (np.array([1, 2]), np.array([1, 3]), "output y (int64) differs"),
        (f32(1, math.nan), f32(1, 2), "output y holds NaN or infinity"),
        (f32(1, 2), f32(1, math.inf), "output y holds NaN or infinity"),
        (f32(1, math.inf), f32(1, math.inf), "output y holds NaN or infinity"),
    ],
)
def test_what_is_wrong_whatever_the_rounding_errors_are(y: Array, z: Array, problem: str) -> None:
    whole, problems = WholeModel(), []
    assert _compare_output(whole, "y", y, z, None, problems) == (0.0, "")
    assert problems == [problem]
    assert (whole.max_error, whole.rounding_ratio) == (None, None)


def test_equal_integers_and_zeros_are_equal() -> None:
    whole, problems = WholeModel(), []
    assert _compare_output(whole, "y", np.array([1, 2]), np.array([1, 2]), None, problems) == (0.0, "")
    assert _compare_output(whole, "y", f32(0, 0), f32(0, 0), None, problems) == (0.0, "")
    assert (problems, whole.max_error, whole.rounding_ratio) == ([], 0.0, 1.0)
    assert _compare_output(whole, "y", f32(0, 0), f32(0, 1e-30), None, problems)[1] != ""
    assert whole.rounding_ratio == math.inf
    none = np.zeros((0, 2), np.float32)
    assert _compare_output(WholeModel(), "y", none, none, None, problems) == (0.0, "")


def test_the_largest_figures_of_all_outputs_are_kept() -> None:
    whole = WholeModel()
    for z in (f32(1, 2 + 2.0**-20), f32(1, 2)):
        _compare_output(whole, "y", f32(1, 2), z, None, [])
    assert (whole.max_error, whole.rounding_ratio) == (2.0**-20, 8.0)


# the reference


def test_a_reference_is_trusted_within_the_next_shorter_type() -> None:
    """2⁻¹¹ of the largest value, 4, for float32."""
    y = f32(1, 4)
    for off, trusted in ((4 * 2.0**-11, True), (4 * 2.0**-11 + 2.0**-40, False)):
        reference = np.array([[1.0 + off, 4.0]])
        assert (_difference_beyond(y, reference) is None) == trusted
        notes: list[str] = []
        assert (_trusted("y", y, reference, notes) is reference) == trusted
        assert notes == (
            []
            if trusted
            else [
                "output y in float64: the ONNX reference implementation and ONNX Runtime differ on the original by "
                f"{off:.3g}"
            ]
        )
    assert _difference_beyond(y, None) == math.inf
    assert _difference_beyond(y, y.T.astype(float)) == math.inf
    assert _difference_beyond(np.array([1]), np.array([1.0])) == math.inf
    notes = []
    assert _trusted("y", y, None, notes) is None
    assert notes == [], "why there is none was said before"
    assert _trusted("y", y, y * math.nan, notes) is None


def test_the_original_runs_optimised_plain_and_in_float64() -> None:
    outputs = original_outputs(model(PLAIN), {"x": f32(-1, 0.1)})
    assert (outputs.names, outputs.unverified) == (("y",), ())
    assert [[a.tolist() for a in run] for run in (outputs.first, outputs.plain)] == 2 * [
        [f32(0, 0.1).tolist()]
    ]
    (exact,) = outputs.exact
    assert exact is not None
    assert (exact.dtype, exact.tolist()) == (np.float64, [[0.0, float(np.float32(0.1))]])


@pytest.mark.parametrize("fails", [True, False], ids=["optimised", "plain"])
def test_an_original_whose_run_fails(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    def run(_: Any, feeds: Any, *, optimised: bool) -> list[Array]:
        if optimised == fails:
            raise NotRunnable("no kernel")
        return [f32(1, 1)]

    monkeypatch.setattr(onnx_outputs, "_run", run)
    outputs = original_outputs(model(PLAIN), FEEDS)
    if fails:
        assert (outputs.first, outputs.exact) == ((), ())
        assert outputs.unverified == ("the whole model: no kernel",)
    else:
        assert outputs.plain is outputs.first
        assert outputs.unverified == ()


def test_the_reference_reads_floats_in_float64_and_integers_as_they_are() -> None:
    text = "g (float[2] x, int64[2] i) => (float[2] y) { f = Cast<to=1>(i) y = Add(x, f) }"
    feeds = {"x": np.float32([0.1, 2]), "i": np.array([2**24 + 1, 3])}
    y = _reference(model(text), "y", feeds, [])
    assert y is not None
    assert y.tolist() == [float(np.float32(0.1)) + 2**24 + 1, 5.0]
    notes: list[str] = []
    assert _reference(model(text), "x", feeds, notes) is None
    assert notes == ["output x in float64: the value 'x' is computed by no node"]


def test_the_reference_reads_integers_that_float64_does_not_hold() -> None:
    text = "g (int64[2] i) => (float[2] y) { d = Sub(i, k) y = Cast<to=1>(d) }"
    y = _reference(model(text, {"k": np.array([2**53])}), "y", {"i": np.array([2**53 + 1, 2**53 - 1])}, [])
    assert y is not None
    assert y.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("trusted", [True, False])
def test_a_reference_widens_what_is_allowed(monkeypatch: pytest.MonkeyPatch, trusted: bool) -> None:
    """The original is off by 10⁻⁴ and so may the converted model be; without a reference only a roundoff is known."""
    y, z = f32(1, 2), f32(1, 2 - 1e-4)
    exact = np.array([[1.0, 2 + 1e-4]])
    _, problems, _ = compared(monkeypatch, [z], [z], known([y], exact=[exact] if trusted else None))
    assert (problems == []) is trusted


def test_what_is_wrong_whatever_the_rounding_errors_are_is_a_problem_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = [f32(1, 2, 3)]
    _, problems, _ = compared(monkeypatch, wrong, wrong, known([f32(1, 2)]))
    assert problems == 2 * ["output y is float32 of shape (1, 3), the original's is float32 (1, 2)"]


def test_an_original_that_is_not_what_onnx_defines_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_outputs, "_run", lambda *_, optimised: [f32(1, 3)])
    outputs = original_outputs(model(PLAIN), {"x": f32(1, 2)})
    assert list(outputs.exact) == [None]
    assert outputs.unverified == (
        "output y in float64: the ONNX reference implementation and ONNX Runtime differ on the original by 1",
    )


def test_an_input_that_only_the_original_reads_is_compared_with_the_constants_in_use() -> None:
    """Not with those of the model, for which nothing was expected."""
    text = "g (float[2,3] x, float[2,3] v) => (float[2,3] y) {{ p = Mul(x, w) {} }}"
    weights = {"w": np.full(3, 7, np.float32)}
    bodies = ("d = Sub(v, v) y = Add(p, d)", "y = Identity(p)", "y = Add(p, v)")
    same, after, depends = (
        LayerModel(prepared(model(text.format(body), weights)), "x", "y") for body in bodies
    )
    feeds, others = ({name: np.full((2, 3), n) for name in "xv"} for n in (3.0, 5.0))
    constants = {"w": np.array([1.0, 2.0, -4.0])}
    for before, why in ((same, ""), (depends, "it depends on v, which the converted form does not read")):
        expected = run64(before, constants, feeds)
        assert missing_dependence(before, after, constants, feeds, others, expected) == why
        assert missing_dependence(after, before, constants, feeds, others, expected) == ""


def test_an_input_that_is_missing_is_named() -> None:
    reads: Any = type("Reads", (), {"inputs": ("x", "s")})()
    assert inputs_of(reads, {"s": f32(1), "x": f32(2), "z": f32(3)}) == {"x": f32(2), "s": f32(1)}
    with pytest.raises(NotRunnable, match="it reads 's', and its other form does not"):
        inputs_of(reads, {"x": f32(2)})
