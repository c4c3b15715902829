"""Single layers of ONNX models: the bound on real weights from both sides, and every sentence on what was not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.errors import BadInput, MissingExtra
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import NotRunnable
from onebyone.onnx.layer_models import LayerModel
from onebyone.verification import onnx_known, onnx_models, onnx_probes, onnx_real_weights
from onebyone.verification.onnx_known import KnownOriginal
from onebyone.verification.onnx_models import compare_onnx, verify_onnx
from onebyone.verification.onnx_probes import _faults
from onebyone.verification.onnx_real_weights import (
    _on_recorded_integers,
    check_on_real_weights,
    equal_arrays,
)
from onebyone.verification.result import LayerCheck
from tests.onnx.models import integers, model

Array = np.ndarray[Any, Any]
GEMM = "g (float[N,3] x) => (float[N,2] y) { y = Gemm(x, w, b) }"
WEIGHTS = {
    "w": np.array([[1.0, -2.0], [0.5, 4.0], [3.0, 0.1]], np.float32),
    "b": np.array([0.25, -8.0], np.float32),
}
X = np.array([[1.0, -1.0, 2.0], [0.5, 0.0, -0.3]], np.float32)


def converted(text: str = GEMM, weights: Any = WEIGHTS) -> tuple[ir.Model, OnnxConversion]:
    m = model(text, weights)
    return m, convert_model(m)


def on_real_weights(
    monkeypatch: pytest.MonkeyPatch,
    expected: Array,
    actual: Array,
    *,
    text: str = GEMM,
    weights: Any = WEIGHTS,
    recorded: Any = None,
) -> tuple[LayerCheck, list[str]]:
    """The check of a layer whose two forms give these outputs in ONNX Runtime."""
    m, rewriting = converted(text, weights)
    outputs = iter([expected, actual])
    monkeypatch.setattr(onnx_real_weights, "run_onnx_runtime", lambda *_, **__: [next(outputs)])
    before, after = (LayerModel(m, "x", "y") for m in (m, rewriting.model))
    unverified: list[str] = []
    check = LayerCheck("fc", "Gemm", bitwise=True)
    feeds = {"x": X} if recorded is None else recorded
    (layer,) = rewriting.layers
    return check_on_real_weights(before, after, layer.terms, feeds, check, unverified), unverified


def test_the_bound_on_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """2·γ_{n+1}·(|W||x| + |b|), n the three products, a bias and a factor; 2⁻¹⁴⁹ for each of them may underflow."""
    u = 2.0**-24
    reach = np.abs(X.astype(float)) @ np.abs(WEIGHTS["w"].astype(float)) + np.abs(WEIGHTS["b"].astype(float))
    bound = 2 * (6 * u / (1 - 6 * u)) * reach + 2 * 5 * 2.0**-149
    expected = np.zeros((2, 2))
    for factor in (0.999, 1.001):
        for index in np.ndindex(2, 2):
            actual = np.zeros((2, 2))
            actual[index] = -factor * bound[index]
            check, notes = on_real_weights(monkeypatch, expected, actual)
            assert check.ok == (factor < 1)
            assert check.why == ("" if check.ok else f"|Δ| is {factor:.3g} times its bound")
            assert check.error_ratio == pytest.approx(factor, rel=1e-6)
            assert check.max_error == pytest.approx(factor * bound[index])
            assert check.bound == pytest.approx(bound.max())
            assert (check.compared, check.arithmetic, notes) == (4, "float32 sums", [])


def test_an_example_of_no_samples_has_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    none = np.zeros((0, 2))
    check, notes = on_real_weights(monkeypatch, none, none, recorded={"x": X[:0]})
    assert (check.ok, check.max_error, check.bound, check.error_ratio, check.compared) == (
        True,
        0.0,
        0.0,
        0.0,
        0,
    )
    assert notes == []


@pytest.mark.parametrize("alpha", [-1.0, 1.0, -0.5])
@pytest.mark.parametrize("beta", [-2.0, 1.0])
def test_factors_of_either_sign_leave_the_bound_its_size(alpha: float, beta: float) -> None:
    """|α|·|W||x| + |β|·|b|: terms that cancel in the sum do not cancel in its bound."""
    text = f"g (float[N,64] x) => (float[N,2] y) {{ y = Gemm<alpha={alpha}, beta={beta}>(x, w, b) }}"
    rng = np.random.default_rng(0)
    w = rng.uniform(0.5, 1, (64, 2)).astype(np.float32)
    x = rng.uniform(0.5, 1, (4, 64)).astype(np.float32)
    b = (np.abs(x.astype(float) @ w).mean(0) * abs(alpha / beta)).astype(np.float32)
    m, rewriting = converted(text, {"w": w, "b": b})
    v = verify_onnx(m, rewriting, {"x": x})
    (check,) = v.layers
    assert v.equivalent, str(v)
    if alpha == -0.5:
        assert check.why == "no integer probe: its alpha or beta is not a small integer"
        return
    u = 2.0**-24
    reach = abs(alpha) * (x.astype(float) @ w) + abs(beta) * b.astype(float)
    assert check.bound == pytest.approx(2 * 67 * u / (1 - 67 * u) * reach.max(), rel=1e-6)


def test_outputs_that_cannot_be_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = np.zeros((2, 2))
    check, _ = on_real_weights(monkeypatch, zeros, np.zeros((2, 3)))
    assert (check.ok, check.why) == (False, "outputs (2, 2) and (2, 3), or not finite")
    for bad in (zeros + np.nan, zeros + np.inf):
        for outputs in ((zeros, bad), (bad, zeros), (bad, bad)):
            check, _ = on_real_weights(monkeypatch, *outputs)
            assert (check.ok, check.why) == (False, "outputs (2, 2) and (2, 2), or not finite")
    check, _ = on_real_weights(monkeypatch, zeros, zeros, recorded={"x": np.full_like(X, np.inf)})
    assert (check.ok, check.why) == (False, "its recorded input is not finite")


def test_layers_without_a_bound_on_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = np.zeros((2, 2))
    check, notes = on_real_weights(monkeypatch, zeros, zeros + 1, recorded={})
    assert (check.ok, check.bound) == (True, None)
    assert notes == ["fc: no bound on real weights: its input 'x' was not recorded"]
    double = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    text = GEMM.replace("float[", "double[")
    check, notes = on_real_weights(monkeypatch, zeros, zeros + 1, text=text, weights=double)
    assert (check.ok, check.bound) == (True, None)
    assert notes == ["fc: no bound on real weights: its weight is not plain float32"]


def test_recorded_integers_must_give_the_same_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    form: Any = SimpleNamespace(inputs=("x",), with_constants=lambda *_: None)
    check = LayerCheck("fc", "MatMulInteger", bitwise=True)

    def run(outputs: Sequence[Any]) -> tuple[LayerCheck, list[str]]:
        given, notes = iter(outputs), []  # type: ignore[var-annotated]

        def runtime(*_: Any) -> list[Any]:
            output = next(given)
            if isinstance(output, str):
                raise NotRunnable(output)
            return [output]

        monkeypatch.setattr(onnx_real_weights, "run_onnx_runtime", runtime)
        return _on_recorded_integers(form, form, {"x": X}, check, notes), notes

    right, wrong = np.array([[1, 2]]), np.array([[1, 3]])
    same, notes = run([right, right])
    assert (same.ok, same.max_error, same.compared, same.why, notes) == (True, 0.0, 2, "", [])
    differs, notes = run([right, wrong])
    assert (differs.ok, differs.max_error) == (False, None)
    assert differs.why == "the outputs differ in 1 of 2 values"
    failed, notes = run([right, "no kernel"])
    assert failed is check
    assert notes == ["fc: on its own inputs: no kernel"]


def test_equal_arrays() -> None:
    assert equal_arrays(X, X.copy()) == (True, "")
    assert equal_arrays(X, X.T) == (False, "the outputs have shapes (2, 3) and (3, 2)")
    assert equal_arrays(X, X + (X == 2)) == (False, "the outputs differ in 1 of 6 values")


def test_layers_of_other_structures_have_probes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their seeds follow that of the verification."""
    text = "g (float[N,3] x) => (float[N,2] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    m, rewriting = converted(text, {"w": integers(3, 4), "v": integers(4, 2)})
    seeds: list[int] = []

    def recorded(*arguments: Any) -> tuple[LayerCheck, str]:
        seeds.append(arguments[4])
        return LayerCheck(arguments[3].path, "MatMul", bitwise=True), ""

    monkeypatch.setattr(onnx_models, "probe", recorded)
    for seed in (0, 7):
        seeds.clear()
        assert verify_onnx(m, rewriting, seed=seed).equivalent
        assert seeds == [seed + 1, seed + 2]


# what is listed


def test_layers_that_cannot_be_run_by_themselves_are_listed_with_the_reason() -> None:
    m, rewriting = converted()
    (layer,) = rewriting.layers
    lost = replace(rewriting, layers=(replace(layer, scope="lost"),))
    steps: list[tuple[int, int]] = []
    v = verify_onnx(m, lost, {"x": X}, progress=lambda *step: steps.append(step))
    assert f"{layer.path}: the part 'lost' of the model is not in both models" in v.unverified
    assert (v.layers, v.integer_probe, v.nothing_verified) == ((), None, False)
    assert steps == [(1, 1)], "progress is reported for layers that cannot be run too"
    absent = replace(rewriting, layers=(replace(layer, output="absent"),))
    alone = verify_onnx(m, absent)
    assert f"{layer.path}: the value 'absent' is not in the model" in alone.unverified
    assert alone.nothing_verified
    assert not alone.equivalent
    assert alone.problems == (
        "nothing was verified: no converted layer could be probed and there is no example input",
    )


def test_without_an_example_the_layers_are_probed_and_the_rest_is_listed() -> None:
    m, rewriting = converted()
    v = verify_onnx(m, rewriting)
    assert (v.equivalent, v.integer_probe, v.max_error, v.rounding_ratio) == (True, True, None, None)
    assert v.unverified == ("without an example input: the whole model, and the layers on their own inputs",)
    assert v.layers[0].bound is None
    with_example = verify_onnx(m, rewriting, {"x": X})
    assert with_example.unverified == ()
    assert with_example.layers[0].bound is not None
    assert len(with_example.evaluators) == 3
    none = verify_onnx(*converted("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", {}))
    assert none.problems == ("nothing was verified: no layer was converted",)


@pytest.mark.parametrize(("alpha", "probed"), [(256, True), (-256, True), (257, False), (2.5, False)])
def test_factors_up_to_256_are_probed(alpha: float, probed: bool) -> None:
    text = f"g (float[N,3] x) => (float[N,2] y) {{ y = Gemm<alpha={float(alpha)}>(x, w) }}"
    (check,) = verify_onnx(*converted(text, {"w": integers(3, 2)})).layers
    assert check.bitwise is (True if probed else None)
    assert check.ok
    assert check.why == ("" if probed else "no integer probe: its alpha or beta is not a small integer")


def test_what_the_example_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    m, _ = converted()
    nothing = KnownOriginal(m, None)
    assert (nothing.recorded(["x"]), nothing.unverified) == ({}, ())
    with pytest.raises(BadInput, match=r"x: has the inputs \['x', 'z'\]; the model takes \['x'\]"):
        KnownOriginal(m, {"x": X, "z": X})
    with pytest.raises(BadInput, match="the model fails on x: "):
        KnownOriginal(m, {"x": X[:, :2]}).recorded(["x"])

    def missing(*_: Any, **__: Any) -> Any:
        raise MissingExtra("onnxruntime", "engines", "running an ONNX model")

    monkeypatch.setattr(onnx_known, "run_onnx_runtime", missing)
    known = KnownOriginal(m, {"x": X})
    assert known.recorded(["x"]) == {}
    (note,) = known.unverified
    assert note.startswith("the whole model, and the layers on their own inputs: ")
    assert "onnxruntime" in note


def test_the_inputs_of_inner_layers_are_recorded() -> None:
    text = "g (float[N,3] x) => (float[N,2] y) { a = Relu(x) h = MatMul(a, w) y = Add(h, b) }"
    m, rewriting = converted(text, WEIGHTS)
    known = KnownOriginal(m, {"x": X})
    recorded = known.recorded([layer.data for layer in rewriting.layers])
    assert set(recorded) == {"a", "x"}
    assert np.array_equal(recorded["a"], np.maximum(X, 0))
    assert set(known.recorded(["h", "y"])) == {"a", "h", "x", "y"}, "further conversions read further values"
    assert [str(v.name) for v in m.graph.outputs] == ["y"], "the original is not changed"


# faults


def test_the_faults_that_the_constants_of_a_layer_allow() -> None:
    def faults(named: dict[str, Array], entries: Sequence[str] = ()) -> dict[str, dict[str, Array]]:
        after: Any = SimpleNamespace(constants=named)
        return _faults(named, after, {name: (name, ()) for name in entries})

    weight, bias = np.arange(24.0).reshape(2, 3, 2, 2), np.array([1.0, 2.0])
    both = faults({"w": weight, "b": bias}, ["w", "b"])
    assert list(both) == [
        "weight order shifted by one",
        "kernel order swapped (height and width)",
        "bias dropped",
    ]
    assert np.array_equal(both["weight order shifted by one"]["w"], np.roll(weight, 1, 1))
    assert np.array_equal(both["kernel order swapped (height and width)"]["w"], weight.swapaxes(2, 3))
    assert np.array_equal(both["bias dropped"]["w"], weight)
    assert both["bias dropped"]["b"].tolist() == [0, 0]
    only = {"w": weight}
    for named, entries in (
        (only, ["w"]),
        ({**only, "b": bias}, ["w"]),  # a bias that is not rewritten
        ({**only, "b": bias * 0}, ["w", "b"]),  # dropping zeros changes nothing
        ({**only, "b": bias.astype(int)}, ["w", "b"]),  # indices are no bias
        ({**only, "b": bias, "c": bias}, ["w", "b", "c"]),  # which of two is the bias is not known
    ):
        assert "bias dropped" not in faults(named, entries)
    for flat in (weight[..., :1], weight[:, :, :1], weight[:, 0]):
        assert "kernel order swapped (height and width)" not in faults({"w": flat}, ["w"])
    assert faults({}) == {}
    assert list(faults({"w": weight[:, :, 0, 0], "s": bias})) == ["weight order shifted by one"]


# two models


def test_two_models_are_compared_by_their_outputs() -> None:
    m = model(GEMM, WEIGHTS)
    other = model(GEMM, WEIGHTS | {"b": WEIGHTS["b"] + 1})
    with pytest.raises(BadInput, match="x: is missing; two models can only be compared on an example input"):
        compare_onnx(m, other, None)
    same = compare_onnx(m, m.clone(), {"x": X})
    assert (same.equivalent, same.first_difference, same.max_error) == (True, None, 0.0)
    assert same.unverified == ("the layers one by one: which became which is known of a conversion only",)
    differs = compare_onnx(m, other, {"x": X})
    assert (differs.equivalent, differs.first_difference) == (False, "y")
    assert differs.max_error == pytest.approx(1, rel=1e-5)
    assert not differs.nothing_verified


def test_two_models_of_which_one_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("g (float[N,3] x) => (float[N,3] y) { y = local.Unknown(x) }")
    v = compare_onnx(m, m.clone(), {"x": X})
    assert not v.equivalent
    assert v.nothing_verified
    assert v.problems == ("nothing was verified: the models were not compared",)
    assert any(note.startswith("the whole model: ") for note in v.unverified)


def test_values_are_recorded_optimised_where_the_model_runs_no_other_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "g (float[N,3] x) => (float[N,2] y) { a = Relu(x) y = MatMul(a, w) }"
    m = model(text, {"w": WEIGHTS["w"]})
    run = onnx_known.run_onnx_runtime
    optimised: list[bool] = []

    def runtime(proto: Any, feeds: Any, **settings: Any) -> Any:
        optimised.append(settings.get("optimised", True))
        if not optimised[-1]:
            raise NotRunnable("no kernel")
        return run(proto, feeds, **settings)

    monkeypatch.setattr(onnx_known, "run_onnx_runtime", runtime)
    recorded = KnownOriginal(m, {"x": X}).recorded(["a", "y"])
    assert optimised == [False, True]
    assert np.array_equal(recorded["a"], np.maximum(X, 0))
    assert np.allclose(recorded["y"], np.maximum(X, 0) @ WEIGHTS["w"], rtol=1e-6)


@pytest.mark.parametrize("runs_as_stored", [True, False])
def test_a_model_may_give_one_value_twice(monkeypatch: pytest.MonkeyPatch, runs_as_stored: bool) -> None:
    m = model("g (float[N,3] x) => (float[N,3] y, float[N,3] z) { a = Relu(x) y = Neg(a) z = Neg(x) }")
    m.graph.outputs[1] = m.graph.outputs[0]
    run = onnx_known.run_onnx_runtime

    def runtime(proto: Any, feeds: Any, **settings: Any) -> Any:
        if not settings.get("optimised", True) and not runs_as_stored:
            raise NotRunnable("no kernel")
        return run(proto, feeds, **settings)

    monkeypatch.setattr(onnx_known, "run_onnx_runtime", runtime)
    known = KnownOriginal(m, {"x": X})
    recorded = known.recorded(["a", "y"])
    assert np.array_equal(recorded["a"], np.maximum(X, 0))
    assert np.array_equal(recorded["y"], -np.maximum(X, 0))
    for outputs in (known.outputs.first, known.outputs.plain):
        assert [np.array_equal(output, recorded["y"]) for output in outputs] == [True, True]


def test_a_fault_that_one_draw_shows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later draws are made for the others, and do not take it back."""
    draws: list[int] = []

    def faults(constants: dict[str, Array], *_: Any) -> dict[str, dict[str, Array]]:
        draws.append(len(draws))
        wrong = {name: array + 1 for name, array in constants.items()}
        return {"seen at first": wrong if len(draws) == 1 else constants, "never": constants}

    monkeypatch.setattr(onnx_probes, "_faults", faults)
    (check,) = verify_onnx(*converted()).layers
    assert len(draws) == len(onnx_probes.SPREADS)
    assert {fault.name: fault.seen_by_integers for fault in check.faults} == {
        "seen at first": True,
        "never": False,
    }
    assert check.why == f"{len(draws)} integer probes cannot see: never"
