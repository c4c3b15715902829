"""How the parts of the verification of ONNX models are put together: what each part is given, and what it returns."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.convert import convert_model, prepared
from onebyone.onnx.layer_models import LayerModel, NotSeparable
from onebyone.verification import onnx_known, onnx_models
from onebyone.verification.onnx_known import KnownOriginal
from onebyone.verification.onnx_models import _cut, _first_difference, _Layers, compare_onnx, verify_onnx
from onebyone.verification.onnx_outputs import REFERENCE, WholeModel
from onebyone.verification.result import SAME_FUNCTION, LayerCheck
from tests.onnx.models import integers, model

GEMM = "g (float[N,3] x) => (float[N,2] y) { y = Gemm(x, w, b) }"
NO_LAYER = "g (float[N,3] x) => (float[N,2] y) { r = Relu(x) y = Slice(r, s, e, a) }"
SLICE = {name: np.array([n], np.int64) for name, n in (("s", 0), ("e", 2), ("a", 1))}
WEIGHTS = {"w": integers(3, 2), "b": integers(2)}
X = np.array([[1.0, -1.0, 2.0], [0.5, 0.0, -0.25]], np.float32)


def converted(text: str = GEMM, weights: Any = WEIGHTS) -> tuple[ir.Model, OnnxConversion]:
    m = model(text, weights)
    return m, convert_model(m)


class Outputs:
    """In place of the comparison of whole models: records what it is given."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        max_error: float | None = 0.5,
        problem: str = "",
        note: str = "a note",
    ) -> None:
        self.whole, self.problem, self.note = WholeModel(), problem, note
        self.whole.max_error, self.whole.rounding_ratio, self.whole.evaluators = (
            max_error,
            2.0,
            ("an engine",),
        )
        self.given: tuple[Any, ...] = ()
        monkeypatch.setattr(onnx_models, "compare_outputs", self)

    def __call__(self, *given: Any) -> WholeModel:
        self.given = given
        given[3].extend([self.problem] if self.problem else [])
        given[4].extend([self.note, self.note])
        return self.whole


def test_what_becomes_of_the_comparison_of_whole_models(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = Outputs(monkeypatch)
    m, conversion = converted()
    known = KnownOriginal(prepared(m), {"x": X})
    v = verify_onnx(m, conversion, {"x": X}, known=known)
    original, new, feeds, _, _, terms, of_original = outputs.given
    assert original is known.original
    assert new is conversion.model
    assert feeds["x"] is X
    assert terms == 3
    assert of_original is known.outputs
    assert (v.equivalent, v.target, v.nothing_verified) == (True, SAME_FUNCTION, False)
    assert (v.max_error, v.rounding_ratio, v.float64_error, v.float64_limit) == (0.5, 2.0, None, None)
    assert (v.problems, v.unverified, v.first_difference) == ((), ("a note",), None)
    assert v.evaluators == (f"integer probes: {REFERENCE}", "an engine")
    assert [check.path for check in v.layers] == ["y"]
    assert (known.keeps_layers, known.layers) == (False, {})


def test_problems_of_the_whole_model_come_before_those_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    Outputs(monkeypatch, problem="a problem")
    m, conversion = converted()
    name = next(n for n, (source, _) in conversion.entries.items() if source == "w")
    wrong = replace(conversion, entries={**conversion.entries, name: ("w", (("reshape", (2, 3, 1, 1)),))})
    v = verify_onnx(m, wrong, {"x": X})
    assert not v.equivalent
    assert v.problems[0] == "a problem"
    assert v.problems[1].startswith("y: integer probe: the outputs differ in ")
    assert len(v.problems) == 2
    assert v.first_difference == "y"


@pytest.mark.parametrize(
    ("layers", "max_error", "problem", "nothing"),
    [
        (False, None, "", True),
        (False, None, "a problem", False),
        (False, 0.0, "", False),
        (True, None, "", False),
    ],
)
def test_when_nothing_was_verified(
    monkeypatch: pytest.MonkeyPatch, layers: bool, max_error: float | None, problem: str, nothing: bool
) -> None:
    outputs = Outputs(monkeypatch, max_error, problem)
    m, conversion = converted() if layers else converted(NO_LAYER, SLICE)
    v = verify_onnx(m, conversion, {"x": X})
    assert outputs.given[5] == (3 if layers else 1), "the terms of the longest sum"
    assert v.nothing_verified == nothing
    assert v.equivalent == (not nothing and not problem)
    assert v.problems == (
        ("nothing was verified: no layer was converted",) if nothing else (problem,) if problem else ()
    )
    assert len(v.evaluators) == 1 + layers
    v = compare_onnx(m, m, {"x": X})
    assert v.nothing_verified == (max_error is None and not problem)


def test_what_becomes_of_the_comparison_of_two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = Outputs(monkeypatch, problem="a problem")
    m, other = model(GEMM, WEIGHTS), model(GEMM, WEIGHTS)
    v = compare_onnx(m, other, {"x": X})
    assert outputs.given[0] is m
    assert outputs.given[1] is other
    assert outputs.given[2]["x"] is X
    assert (v.equivalent, v.target, v.problems) == (False, SAME_FUNCTION, ("a problem",))
    assert (v.max_error, v.rounding_ratio, v.evaluators) == (0.5, 2.0, ("an engine",))
    assert v.unverified == (
        "the layers one by one: which became which is known of a conversion only", "a note", "a note"
    )  # fmt: skip
    assert (v.layers, v.nothing_verified) == ((), False)
    given: list[Any] = []
    monkeypatch.setattr(onnx_models, "_first_difference", lambda *arguments: given.extend(arguments) or "h")
    assert compare_onnx(m, other, {"x": X}).first_difference == "h"
    assert given[:2] == [m, other]
    assert given[2]["x"] is X
    Outputs(monkeypatch)
    assert compare_onnx(m, other, {"x": X}).first_difference is None


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_the_value_that_is_blamed_differs_beyond_the_limit_for_float32(factor: float) -> None:
    """√(2⁻¹¹/2⁻²⁴)·2⁻²⁴ of the largest value, 4; a smaller difference is rounding, and the next value is named."""
    text = "g (float[2] x) => (float[2] y) { a = Max(x, c) y = Sub(a, k) }"
    limit = np.float32(factor * 2.0**-17.5 * 4)
    zero, k = np.zeros(2, np.float32), np.array([0.5, 0.25], np.float32)
    original = model(text, {"c": zero, "k": k})
    other = model(text, {"c": np.array([limit, 0], np.float32), "k": 3 * k})
    feeds = {"x": np.array([-1, 4], np.float32)}
    assert _first_difference(original, other, feeds) == ("y" if factor < 1 else "a")
    assert _first_difference(original, original, feeds) is None
    assert _first_difference(original, other, {"x": np.zeros(3, np.float32)}) is None, "it does not run"


# layers


@pytest.mark.parametrize("keeps_layers", [False, True])
def test_each_layer_is_probed_with_the_next_seed(monkeypatch: pytest.MonkeyPatch, keeps_layers: bool) -> None:
    """So that a probe can be repeated, also where the results of layers are kept for other conversions."""
    seeds: list[int] = []

    def probe(*given: Any) -> tuple[LayerCheck, str]:
        seeds.append(given[4])
        return LayerCheck(given[3].path, "MatMul", bitwise=True), ""

    monkeypatch.setattr(onnx_models, "probe", probe)
    text = "g (float[N,3] x) => (float[N,2] y) { a = MatMul(x, u) b = Relu(a) y = MatMul(b, v) }"
    m, conversion = converted(text, {"u": integers(3, 4), "v": integers(4, 2)})
    verify_onnx(m, conversion, seed=6, known=KnownOriginal(prepared(m), None, keeps_layers=keeps_layers))
    assert seeds == [7, 8]


def test_the_seed_of_the_first_layer_is_one_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def probe(*given: Any) -> tuple[LayerCheck, str]:
        seeds.append(given[4])
        return LayerCheck("y", "Gemm", bitwise=True), ""

    monkeypatch.setattr(onnx_models, "probe", probe)
    verify_onnx(*converted())
    assert seeds == [1]


def test_layers_that_are_written_as_their_parts_are_compared_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []

    def compare(*arguments: Any) -> LayerCheck:
        given.extend(arguments)
        return LayerCheck("y", "Gelu", arithmetic="float64")

    monkeypatch.setattr(onnx_models, "compare_in_float64", compare)
    m, conversion = converted()
    layers = tuple(replace(layer, is_exact=False) for layer in conversion.layers)
    v = verify_onnx(m, replace(conversion, layers=layers), seed=4)
    before, after, layer, seed, sizes = given
    assert ("w" in before.constants, "w" in after.constants) == (True, False)
    assert (layer, seed, sizes) == (layers[0], 5, (2, 3))
    assert [check.arithmetic for check in v.layers] == ["float64"]
    assert (v.integer_probe, v.evaluators) == (None, ())


def test_layers_of_one_structure_keep_their_own_records(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { a = MatMul(x, u) b = Relu(a) y = MatMul(b, v) }"
    m, conversion = converted(text, {"u": integers(3, 3), "v": integers(3, 3, seed=1)})
    named = [replace(layer, kind=f"kind {i}", law=f"law {i}") for i, layer in enumerate(conversion.layers)]
    v = verify_onnx(m, replace(conversion, layers=tuple(named)))
    assert [(c.path, c.kind, c.law) for c in v.layers] == [("a", "kind 0", "law 0"), ("y", "kind 1", "law 1")]


REAL: dict[str, tuple[LayerCheck, bool, bool]] = {
    # the probe's result, whether there is an example, whether real weights are compared
    "right": (LayerCheck("y", "Gemm", bitwise=True), True, True),
    "no example": (LayerCheck("y", "Gemm", bitwise=True), False, False),
    "not probed": (LayerCheck("y", "Gemm", bitwise=None), True, False),
    "wrong": (LayerCheck("y", "Gemm", bitwise=True, ok=False), True, False),
}


@pytest.mark.parametrize("name", REAL)
def test_layers_whose_real_weights_are_compared(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    of_probe, example, compared = REAL[name]
    given: list[Any] = []

    def on_real_weights(*arguments: Any) -> LayerCheck:
        given.extend(arguments)
        arguments[5].append("of real weights")
        return replace(of_probe, bound=0.5)

    monkeypatch.setattr(onnx_models, "probe", lambda *_: (of_probe, "a hidden fault"))
    monkeypatch.setattr(onnx_models, "check_on_real_weights", on_real_weights)
    m, conversion = converted()
    layers = _Layers(KnownOriginal(prepared(m), {"x": X} if example else None), conversion)
    check, notes = layers.check(0, 1)
    assert notes == ("y: a hidden fault", "of real weights")[: 1 + compared]
    assert bool(given) == compared
    assert check == (replace(of_probe, bound=0.5) if compared else of_probe)
    if compared:
        before, after, terms, recorded, checked, _ = given
        assert ("w" in before.constants, "w" in after.constants) == (True, False)
        assert (terms, checked) == (3, of_probe)
        assert np.array_equal(recorded["x"], X)


def test_values_of_a_function_are_not_those_of_the_model_that_have_the_same_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The layer in the function reads the function's `x`, which is Relu(x) of the model."""
    monkeypatch.setattr(onnx_models, "probe", lambda *_: (LayerCheck("y", "MatMul", bitwise=True), ""))
    monkeypatch.setattr(onnx_models, "check_on_real_weights", lambda *_: pytest.fail("compared"))
    body = """<domain: "local", opset_import: ["" : 20]> part (x) => (r) {
        w = Constant <value: tensor = float[3,2] {1,2,3,4,5,6}> () r = MatMul(x, w) }"""
    m = prepared(model("g (float[2,3] x) => (float[2,2] y) { h = Relu(x) y = local.part(h) }", more=body))
    layer = RewrittenLayer("part/r", "MatMul", "", "x", "r", 3, (2, 3), scope="part/")
    conversion = OnnxConversion(m.clone(), (), (), to="conv", level="graph", layers=(layer,))
    check, notes = _Layers(KnownOriginal(m, {"x": X}), conversion).check(0, 1)
    assert (check.bitwise, check.bound, notes) == (True, None, ())


def test_layers_without_floating_weights_are_not_compared_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_models, "probe", lambda *_: (LayerCheck("y", "Mul", bitwise=True), ""))
    monkeypatch.setattr(onnx_models, "check_on_real_weights", lambda *_: pytest.fail("compared"))
    m = prepared(model("g (float[2,3] x) => (float[3,2] y) { y = Reshape(x, s) }", {"s": np.array([3, 2])}))
    layer = RewrittenLayer("y", "Reshape", "", "x", "y", 1, (2, 3))
    conversion = OnnxConversion(m, (), (), to="conv", level="graph", layers=(layer,))
    layers = _Layers(KnownOriginal(m, {"x": X}), conversion)
    assert layers.check(0, 1)[0].bitwise is True


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The inputs of each layer that is probed; the probe itself finds nothing."""
    inputs: list[tuple[str, ...]] = []

    def probe(before: Any, *_: Any) -> tuple[LayerCheck, str]:
        inputs.append(before.inputs)
        return LayerCheck("y", "MatMul"), ""

    monkeypatch.setattr(onnx_models, "probe", probe)
    return inputs


@pytest.mark.parametrize("constant", [True, False])
def test_shapes_of_other_tensors_are_computed_only_where_the_converted_form_does(
    probed: list[tuple[str, ...]], constant: bool
) -> None:
    text = (
        "g (float[2,3] x, float[1,4] v) => (float[1,4] y) { m = MatMul(x, w) s = Shape(v) y = Reshape(m, s) }"
    )
    original = prepared(model(text, {"w": integers(3, 2)}))
    weights = {"w": integers(3, 2), "s": np.array([1, 4])}
    other = prepared(model(text.replace("s = Shape(v) ", ""), weights)) if constant else original.clone()
    layer = RewrittenLayer("y", "MatMul", "", "x", "y", 3, (2, 3))
    conversion = OnnxConversion(other, (), (), to="conv", level="graph", layers=(layer,))
    _Layers(KnownOriginal(original, None), conversion).check(0, 1)
    assert probed == [("x",) if constant else ("x", "v")]


def test_shapes_in_the_body_of_a_function_are_computed_where_the_converted_form_does(
    probed: list[tuple[str, ...]],
) -> None:
    body = """<domain: "local", opset_import: ["" : 20]> part (a, b) => (r) {
        w = Constant <value: tensor = float[3,2] {1,2,3,4,5,6}> () m = MatMul(a, w) s = Shape(b) r = Reshape(m, s) }"""
    original = prepared(
        model("g (float[2,3] x, float[1,4] v) => (float[1,4] y) { y = local.part(x, v) }", more=body)
    )
    layer = RewrittenLayer("part/r", "MatMul", "", "a", "r", 3, (2, 3), scope="part/")
    conversion = OnnxConversion(original.clone(), (), (), to="conv", level="graph", layers=(layer,))
    _Layers(KnownOriginal(original, None), conversion).check(0, 1)
    scope = KnownOriginal(original, None).scopes["part/"]
    assert LayerModel(original, "a", "r", scope, fixed_shapes=True).inputs == ("a",)
    assert probed == [("a", "b")]


def test_a_part_that_only_one_model_has_is_not_checked() -> None:
    m, conversion = converted()
    for lost in ("original", "converted"):
        known = KnownOriginal(prepared(m), None)
        layers = _Layers(known, conversion)
        if lost == "original":
            known.__dict__["scopes"] = {}
        else:
            layers._scopes = {}
        with pytest.raises(NotSeparable, match="the part '' of the model is not in both models"):
            layers.check(0, 1)


def test_where_a_layer_is_cut() -> None:
    """Known sizes are those of the value in the record, and say nothing of one that is stored elsewhere."""

    def shared(data: str) -> Any:
        return SimpleNamespace(
            before=lambda name: SimpleNamespace(original=data, converted=f"{name} before"),
            after=lambda name: SimpleNamespace(original=f"{name} original", converted=f"{name} after"),
        )

    layer = RewrittenLayer("p", "k", "l", "x", "y", 3, (2, 3))
    assert _cut(layer, shared("x")) == (replace(layer, output="y original"), "x before", "y after")
    moved = replace(layer, data="t", output="y original", data_sizes=None)
    assert _cut(layer, shared("t")) == (moved, "x before", "y after")
    inner = replace(layer, scope="f")
    assert _cut(inner, shared("t")) == (inner, "x", "y")


def test_initializers_that_were_inputs_are_constants_of_a_frozen_conversion() -> None:
    m = model(GEMM.replace("x)", "x, float[3,2] w)", 1), WEIGHTS)
    conversion = convert_model(m, freeze_initialisers=True)
    v = verify_onnx(m, conversion, {"x": X})
    assert v.equivalent, str(v)
    assert len(v.layers) == 1


# the original


class Runs:
    """Counts the runs of a model and records the names of the outputs that each is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.names = onnx_known.run_onnx_runtime, list[list[str]]()
        monkeypatch.setattr(onnx_known, "run_onnx_runtime", self)

    def __call__(self, proto: Any, feeds: Any, **settings: Any) -> Any:
        self.names.append(settings["outputs"])
        return self.run(proto, feeds, **settings)


def test_an_original_runs_once_for_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch)
    text = "g (float[N,3] x) => (float[N,2] y) { a = Relu(x) h = MatMul(a, w) y = Add(h, b) }"
    known = KnownOriginal(model(text, WEIGHTS), {"x": X.tolist()})  # type: ignore[dict-item]
    assert set(known.recorded(["w", "no such value"])) == {"x"}, "only what nodes compute"
    assert np.array_equal(known.recorded(["x"])["x"], X), "lists become arrays"
    assert runs.names == [["y"]]
    recorded = known.recorded(["a", "y"])
    assert runs.names[1:] == [["y", "a"]]
    assert np.array_equal(recorded["a"], np.maximum(X, 0))
    assert np.allclose(recorded["y"], np.maximum(X, 0) @ WEIGHTS["w"] + WEIGHTS["b"])
    assert set(known.recorded(["a", "y"])) == {"x", "a", "y"}
    assert len(runs.names) == 2, "what is known is not computed again"


def test_the_outputs_that_were_recorded_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(onnx_known, "original_outputs", lambda *arguments: given.append(arguments))
    m = model(GEMM, WEIGHTS)
    known = KnownOriginal(m, {"x": X})
    recorded = known.recorded(["y"])
    assert known.outputs is known.outputs
    ((original, feeds, plain),) = given
    assert original is m
    assert feeds["x"] is X
    assert [array.tolist() for array in plain] == [recorded["y"].tolist()]
