"""Integer probes of ONNX layers: how many numbers are drawn and which, what tells layers apart, and injected faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.convert import convert_model, prepared
from onebyone.onnx.layer_models import LayerModel
from onebyone.onnx.probe_values import SPREADS
from onebyone.verification import onnx_probes
from onebyone.verification.onnx_known import layer_key
from onebyone.verification.onnx_models import verify_onnx
from onebyone.verification.onnx_probes import FREE_SIZES, Entries, _faults, digest, probe, probe_key
from onebyone.verification.result import LayerCheck
from tests.onnx.models import integers, model
from tests.onnx.quantised_models import PRODUCTS

Array = np.ndarray[Any, Any]
GEMM = "g (float[N,3] x) => (float[N,2] y) { y = Gemm(x, w, b) }"
WEIGHTS = {"w": integers(3, 2), "b": integers(2)}
#: What a probe of GEMM draws: the bound m with 3·m² + m ≤ 2⁴⁵.
MAGNITUDE = 3424634


class Draws:
    """What a probe drew: the arguments and results for constants and for inputs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        constants, inputs = onnx_probes.integer_constants, onnx_probes.integer_inputs
        self.settings: list[tuple[Any, ...]] = []
        self.constants: list[dict[str, Array]] = []
        self.inputs: list[dict[str, Array]] = []

        def draw(layer: LayerModel, *settings: Any) -> dict[str, Array]:
            self.settings.append((*settings[:3], settings[4]))
            self.constants.append(constants(layer, *settings))
            return self.constants[-1]

        def draw_inputs(*settings: Any) -> dict[str, Array]:
            self.inputs.append(inputs(*settings))
            return self.inputs[-1]

        monkeypatch.setattr(onnx_probes, "integer_constants", draw)
        monkeypatch.setattr(onnx_probes, "integer_inputs", draw_inputs)


def forms(
    text: str = GEMM, weights: dict[str, Array] | None = None
) -> tuple[LayerModel, LayerModel, OnnxConversion, RewrittenLayer]:
    """Both forms of the only layer of a model, its conversion, and the record of the layer."""
    m = model(text, WEIGHTS if weights is None else weights)
    conversion = convert_model(m)
    (layer,) = conversion.layers
    original = prepared(m)
    before, after = (LayerModel(form, layer.data, layer.output) for form in (original, conversion.model))
    return before, after, conversion, layer


def probed(
    before: LayerModel, after: LayerModel, conversion: OnnxConversion, layer: RewrittenLayer, seed: int = 0
) -> tuple[LayerCheck, str]:
    return probe(before, after, conversion.entries, layer, seed)


def by_hand(before: str, after: str) -> tuple[LayerModel, LayerModel, RewrittenLayer]:
    """Two forms of a layer without weights, which reads `x` and perhaps `v`."""
    text = "g (float[2,3] x, float[2,3] v) => (float[2,3] y) {{ {} }}"
    layer = RewrittenLayer("block/act", "Act", "pointwise", "x", "y", 1, (2, 3))
    first, second = (LayerModel(prepared(model(text.format(body))), "x", "y") for body in (before, after))
    return first, second, layer


# the numbers


def test_the_numbers_of_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 3 * MAGNITUDE**2 + MAGNITUDE <= 2**45 < 3 * (MAGNITUDE + 1) ** 2 + MAGNITUDE + 1
    draws = Draws(monkeypatch)
    before, after, conversion, layer = forms()
    named = replace(layer, path="fc", kind="Gemm of 3×2", law="pointwise")
    check, hidden = probed(before, after, conversion, named, seed=5)
    assert (check.path, check.kind, check.law) == ("fc", "Gemm of 3×2", "pointwise")
    assert (check.bitwise, check.ok, check.why, hidden) == (True, True, "", "")
    assert {fault.name: fault.seen_by_integers for fault in check.faults} == {
        "weight order shifted by one": True,
        "bias dropped": True,
    }
    ((replaced, *settings),) = draws.settings
    assert replaced >= {"w", "b"}, "the axes of the converted form are its own"
    assert settings == [3, MAGNITUDE, 32]
    (constants,), (feeds,) = draws.constants, draws.inputs
    assert {name: array.shape for name, array in (constants | feeds).items()} == {
        "w": (3, 2), "b": (2,), "x": (2, 3)
    }  # fmt: skip
    for seed, equal in ((5, True), (6, False)):
        probed(*forms(), seed=seed)
        assert np.array_equal(draws.constants[-1]["w"], constants["w"]) == equal
        assert np.array_equal(draws.inputs[-1]["x"], feeds["x"]) == equal


def test_unknown_sizes_are_two_samples_and_three_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FREE_SIZES == (2, 3)
    draws = Draws(monkeypatch)
    probed(*forms("g (float[N,T,3] x) => (float[N,T,2] y) { y = MatMul(x, w) }", {"w": integers(3, 2)}))
    assert draws.inputs[0]["x"].shape == (2, 3, 3)


def test_sizes_that_the_record_knows_are_those_of_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    before, after, conversion, layer = forms()
    probed(before, after, conversion, replace(layer, data_sizes=(5, 3)))
    assert draws.inputs[0]["x"].shape == (5, 3)


def test_a_layer_that_rounds_its_result_has_three_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    m = PRODUCTS["by channel"].model
    v = verify_onnx(m, convert_model(m))
    assert v.equivalent, str(v)
    assert [settings[3] for settings in draws.settings] == list(SPREADS[:3])


def test_a_product_with_a_factor_of_zero_needs_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    text = "g (float[N,3] x) => (float[N,2] y) { y = Gemm<alpha=0.0>(x, w, b) }"
    check, hidden = probed(*forms(text))
    assert len(draws.settings) == 1
    assert (check.bitwise, check.ok, check.why, hidden) == (
        True,
        True,
        "its weight has no effect: alpha is 0",
        "",
    )
    assert {fault.name: fault.seen_by_integers for fault in check.faults} == {
        "weight order shifted by one": False,
        "bias dropped": True,
    }


def test_a_factor_that_is_not_probed_leaves_no_note() -> None:
    check, hidden = probed(*forms("g (float[N,3] x) => (float[N,2] y) { y = Gemm<alpha=0.5>(x, w, b) }"))
    assert (check.bitwise, check.ok, check.faults, hidden) == (None, True, (), "")
    assert check.why == "no integer probe: its alpha or beta is not a small integer"


# inputs that one form lacks


def test_forms_that_differ_are_wrong_whatever_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    before, after, layer = by_hand("y = Add(x, v)", "y = Identity(x)")
    check, hidden = probe(before, after, {}, layer, 0)
    assert (check.bitwise, check.ok, hidden) == (False, False, "")
    assert check.why == "integer probe: the outputs differ in 6 of 6 values"
    assert (check.path, check.kind, check.law) == ("block/act", "Act", "pointwise")
    assert len(draws.inputs) == 1


def test_the_numbers_of_an_input_that_one_form_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn again: here v is large at first, so that Min(x, v) is x, and then small."""
    given = iter([{"x": np.ones((2, 3)), "v": np.full((2, 3), v)} for v in (9.0, -9.0)])
    monkeypatch.setattr(onnx_probes, "integer_inputs", lambda *_: next(given))
    before, after, layer = by_hand("y = Min(x, v)", "y = Identity(x)")
    check, hidden = probe(before, after, {}, layer, 0)
    assert (check.bitwise, check.ok, hidden) == (False, False, "")
    assert check.why == "integer probe: it depends on v, which the converted form does not read"
    monkeypatch.undo()
    before, after, layer = by_hand("d = Sub(v, v) y = Add(x, d)", "y = Identity(x)")
    check, hidden = probe(before, after, {}, layer, 0)
    assert (check.bitwise, check.ok, check.why, hidden, check.faults) == (True, True, "", "", ())


def test_an_input_without_effect_is_compared_with_the_numbers_that_were_drawn() -> None:
    """Not with the weights of the model, which give other results."""
    text = "g (float[2,3] x, float[2,3] v) => (float[2,3] y) {{ p = Mul(x, w) {} }}"
    bodies = ("d = Sub(v, v) y = Add(p, d)", "y = Identity(p)")
    before, after = (
        LayerModel(prepared(model(text.format(body), {"w": np.full(3, 7, np.float32)})), "x", "y")
        for body in bodies
    )
    layer = RewrittenLayer("block/act", "Act", "pointwise", "x", "y", 1, (2, 3))
    check, hidden = probe(before, after, {}, layer, 0)
    assert (check.bitwise, check.ok, check.why, hidden) == (True, True, "", "")


# keys


def key_of(text: str = GEMM, weights: dict[str, Array] | None = None, **changes: Any) -> Any:
    before, after, conversion, layer = forms(text, weights)
    return probe_key(before, after, conversion.entries, replace(layer, **changes))


OTHER_STRUCTURES: dict[str, tuple[str, dict[str, Array]]] = {
    "more outputs": (GEMM.replace("[N,2]", "[N,4]"), {"w": integers(3, 4), "b": integers(4)}),
    "no bias": (GEMM.replace(", b", ""), {"w": integers(3, 2)}),
    "a bias of one number": (GEMM, {"w": integers(3, 2), "b": integers(1)}),
    "another type": (GEMM.replace("float[", "double["), {n: a.astype(np.float64) for n, a in WEIGHTS.items()}),
    "another attribute": (GEMM.replace("Gemm", "Gemm<transB=1>"), {"w": integers(2, 3), "b": integers(2)}),
    "another factor": (GEMM.replace("Gemm", "Gemm<beta=2.0>"), WEIGHTS),
    "known samples": (GEMM.replace("N", "5"), WEIGHTS),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_STRUCTURES)
def test_layers_of_other_structures_have_other_keys(name: str) -> None:
    assert key_of(*OTHER_STRUCTURES[name]) != key_of()


def test_what_makes_the_key_of_a_probe() -> None:
    key = key_of()
    assert key is not None
    assert key == key_of(weights={"w": integers(3, 2, seed=1), "b": integers(2, seed=1)}), "weights are drawn"
    renamed = GEMM.replace("w, b", "kernel, shift").replace("x", "data")
    assert key == key_of(renamed, {"kernel": WEIGHTS["w"], "shift": WEIGHTS["b"]}), "names tell nothing"
    assert key != key_of(terms=4)
    assert key != key_of(data_sizes=(5, 3))
    assert key == key_of(path="p", kind="k", law="l")


def test_the_record_of_the_constants_is_in_the_key() -> None:
    before, after, conversion, layer = forms()
    entries: Entries = dict(conversion.entries)
    key = probe_key(before, after, entries, layer)
    weight = next(name for name, (source, _) in entries.items() if source == "w")
    source, steps = entries[weight]
    for changed in (
        {**entries, weight: (source, (*steps, ("reshape", (2, 3, 1, 1))))},
        {**entries, weight: ("b", steps)},
        {name: entry for name, entry in entries.items() if name != weight},
    ):
        assert probe_key(before, after, changed, layer) != key


def test_constants_that_are_not_drawn_are_in_the_key_with_their_numbers() -> None:
    text = "g (float[6,3] x) => (float[A,B,C] y) { m = MatMul(x, w) y = Reshape(m, s) }"
    layer = RewrittenLayer("p", "MatMul", "", "x", "y", 3, (6, 3))
    weights = {"w": integers(3, 2)}

    def key(before: Sequence[int], after: Sequence[int]) -> Any:
        cut = (
            LayerModel(prepared(model(text, {**weights, "s": np.array(s, np.int64)})), "x", "y")
            for s in (before, after)
        )
        return probe_key(*cut, {}, layer)

    assert key([2, 3, 2], [2, 3, 2]) == key([2, 3, 2], [2, 3, 2])
    assert key([2, 3, 2], [2, 3, 2]) != key([3, 2, 2], [2, 3, 2])
    assert key([2, 3, 2], [2, 3, 2]) != key([2, 3, 2], [3, 2, 2])


def test_quantised_layers_have_no_key() -> None:
    """What is drawn for them depends on what the constants hold."""
    plain, after, conversion, layer = forms()
    m = prepared(PRODUCTS["by channel"].model)
    data, output = m.graph.inputs[0].name, m.graph.outputs[0].name
    quantised = LayerModel(m, str(data), str(output))
    for pair in ((quantised, after), (plain, quantised), (quantised, quantised)):
        assert probe_key(*pair, conversion.entries, layer) is None


def test_what_makes_the_key_of_a_layer_in_several_conversions() -> None:
    _, after, conversion, layer = forms()
    key = layer_key(after, conversion.entries, layer)
    _, again, other, same = forms()
    assert layer_key(again, other.entries, same) == key
    assert layer_key(after, conversion.entries, replace(layer, output="z")) != key
    assert layer_key(after, {}, layer) != key
    _, changed, other, same = forms(weights={"w": WEIGHTS["w"] + 1, "b": WEIGHTS["b"]})
    assert layer_key(changed, other.entries, same) != key, "the numbers count"
    renamed = "g (float[N,3] x) => (float[N,2] y) { y = Mul(x, c) }"
    first, second = (
        LayerModel(model(renamed.replace("c)", f"{name})"), {name: np.float32(2)}), "x", "y") for name in "cd"
    )
    assert layer_key(first, {}, layer) != layer_key(second, {}, layer), "constants that are not rewritten"


def test_hashes_of_tensors() -> None:
    def of(array: Any) -> str:
        return digest(SimpleNamespace(numpy=lambda: array))  # type: ignore[arg-type]

    square = np.arange(6.0).reshape(2, 3)
    assert of(square) == of(square.copy())
    assert of(square.T) == of(np.ascontiguousarray(square.T))
    assert of(square) != of(square + 1)
    assert of(np.float32(2)) == of(np.full((), 2, np.float32))
    assert of(np.array(["a", "b"], object)) == of(np.array(["a", "b"], object))
    assert of(np.array(["a", "b"], object)) != of(np.array(["a", "c"], object))
    assert digest(ir.tensor(square)) == of(square)
    empty = np.zeros((2, 0), np.float32)
    assert of(empty) == of(np.zeros((2, 0), np.float32))
    assert of(np.arange(24.0).reshape(2, 3, 4)[:, ::2]) == of(np.arange(24.0).reshape(2, 3, 4)[:, ::2].copy())


# faults


def faults_of(named: dict[str, Array], entries: Sequence[str] | None = None) -> dict[str, dict[str, Array]]:
    after: Any = SimpleNamespace(constants=named)
    return _faults(named, after, {name: (name, ()) for name in (named if entries is None else entries)})


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 3), 1), ((4, 1), 0), ((4,), 0), ((1, 1, 3), 2), ((1, 1, 1, 2), 3), ((2, 1, 3), 0), ((1, 1), None)],
)
def test_the_axis_along_which_a_weight_is_shifted(shape: tuple[int, ...], axis: int | None) -> None:
    """The input features if there are several, else the outputs, else a position of the kernel."""
    weight = np.arange(float(np.prod(shape))).reshape(shape)
    faults = faults_of({"w": weight})
    assert ("weight order shifted by one" in faults) == (axis is not None)
    if axis is not None:
        assert np.array_equal(faults["weight order shifted by one"]["w"], np.roll(weight, 1, axis))


def test_the_weight_is_the_largest_constant() -> None:
    bias, weight, scale = np.ones(2), np.arange(6.0).reshape(2, 3), np.ones(1)
    for of_weight, of_bias in (("w", "b"), ("b", "w")):
        named = {"s": scale, of_bias: bias, of_weight: weight}
        changed = faults_of(named, ["b", "w"])["weight order shifted by one"]
        assert changed[of_bias] is bias
        assert changed["s"] is scale
        assert np.array_equal(changed[of_weight], np.roll(weight, 1, 1))


@pytest.mark.parametrize(
    ("shape", "swaps"),
    [
        ((1, 1, 2, 3), True),
        ((2, 3, 2, 1), False),
        ((2, 3, 1, 2), False),
        ((1, 1, 1, 2, 2), True),
        ((1, 2, 4, 2, 3), True),
        ((2, 2, 2), False),
    ],
)
def test_kernels_whose_height_and_width_can_be_swapped(shape: tuple[int, ...], swaps: bool) -> None:
    weight = np.arange(float(np.prod(shape))).reshape(shape)
    faults = faults_of({"w": weight})
    name = "kernel order swapped (height and width)"
    assert (name in faults) == swaps
    if swaps:
        assert np.array_equal(faults[name]["w"], np.swapaxes(weight, -1, -2).reshape(shape))
