"""What a verification finds once and uses again: probes of layers of one structure, layers of several conversions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.errors import BadInput
from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.convert import convert_model, prepared
from onebyone.onnx.targets.convert import convert_for_target
from onebyone.targets import find_profile
from onebyone.verification import onnx_models, onnx_outputs
from onebyone.verification.onnx_known import KnownOriginal
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import Array, graph, integers, model

BLOCKS = """a = MatMul(x, u) b = Add(a, p) c = Relu(b) d = MatMul(c, v) e = Add(d, q) f = Relu(e)
            h = MatMul(f, w) y = Add(h, r)"""


def blocks() -> ir.Model:
    weights = {name: integers(6, 6, seed=i) for i, name in enumerate("uvw")}
    biases = {name: integers(6, seed=i) for i, name in enumerate("pqr")}
    return model(graph("2,5,6", "2,5,6", BLOCKS), weights | biases)


def example() -> dict[str, Array]:
    return {"x": integers(2, 5, 6, seed=9)}


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the layers that were probed."""
    paths: list[str] = []
    original = onnx_models.probe

    def counted(*arguments: object) -> object:
        paths.append(arguments[3].path)  # type: ignore[attr-defined]
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_models, "probe", counted)
    return paths


def test_layers_of_one_structure_share_a_probe(probes: list[str]) -> None:
    m = blocks()
    v = verify_onnx(m, convert_model(m), example())
    assert v.equivalent, str(v)
    assert probes == ["a"]
    assert [layer.path for layer in v.layers] == ["a", "d", "h"]
    assert all(layer.bitwise and layer.error_ratio is not None for layer in v.layers)
    assert len({layer.max_error is None for layer in v.layers}) == 1
    assert v.layers[0].faults == v.layers[2].faults != ()


@pytest.mark.parametrize(
    "second",
    [
        "d = MatMul(c, v) e = Add(q, d)",  # operands in another order
        "d = MatMul(c, v) e = Identity(d)",  # no bias
        "k = Reshape(v, s) d = MatMul(c, k) e = Add(d, q)",  # a view of the weight
        "d = Gemm(c, v, q) e = Identity(d)",
        "d = Gemm<transB=1>(c, v, q) e = Identity(d)",
        "d = Gemm<beta=2.0>(c, v, q) e = Identity(d)",
    ],
)
def test_a_layer_of_another_structure_has_a_probe_of_its_own(second: str, probes: list[str]) -> None:
    rows = "5,6" if "Gemm" in second else "2,5,6"
    nodes = f"a = MatMul(x, u) b = Add(a, p) c = Relu(b) {second} y = Relu(e)"
    weights = {"u": integers(6, 6), "p": integers(6), "v": integers(6, 6, seed=1), "q": integers(6, seed=1)}
    m = model(graph(rows, rows, nodes), weights | {"s": np.array([6, 6], np.int64)})
    assert verify_onnx(m, convert_model(m)).equivalent
    assert len(probes) == 2


def test_constants_that_are_not_drawn_tell_layers_apart(probes: list[str]) -> None:
    """The same nodes with other shapes: 6 positions as 2×3 and as 3×2."""
    nodes = "a = Reshape(x, s) b = MatMul(a, u) c = Relu(b) d = Reshape(c, t) y = MatMul(d, v)"
    shapes = {"s": np.array([1, 2, 3, 6], np.int64), "t": np.array([1, 3, 2, 6], np.int64)}
    m = model(graph("1,6,6", "1,3,2,6", nodes), {"u": integers(6, 6), "v": integers(6, 6)} | shapes)
    verify_onnx(m, convert_model(m))
    assert len(probes) == 2


def test_a_wrong_order_in_one_of_equal_layers_is_found() -> None:
    m = blocks()
    c = convert_model(m)
    name = next(n for n, (source, _) in c.entries.items() if source == "v")
    steps = (("reshape", (6, 6, 1, 1)),)  # not transposed
    v = verify_onnx(m, replace(c, entries={**c.entries, name: ("v", steps)}))
    assert [layer.bitwise for layer in v.layers] == [True, False, True]
    assert v.first_difference == "d"


def _with(c: OnnxConversion, name: str) -> OnnxConversion:
    """The conversion with one number of a constant changed."""
    copy = c.model.clone()
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    array = np.array(value.const_value.numpy())
    array.reshape(-1)[0] += np.float32(0.5)
    value.const_value = ir.tensor(array, name=name)
    return replace(c, model=copy)


def test_several_conversions_of_one_original(probes: list[str]) -> None:
    m = blocks()
    known = KnownOriginal(prepared(m), x := example(), keeps_layers=True)
    conversions = [convert_for_target(m, find_profile(name)) for name in ("conv-only", "amd-dpu")]
    verified = [verify_onnx(m, c, x, known=known) for c in conversions]
    assert probes == ["a", "d"]  # the input of the model is stored in another layout than what follows
    alone = [verify_onnx(m, c, x) for c in conversions]
    for shared, single in zip(verified, alone, strict=True):
        assert shared.equivalent
        assert shared.unverified == single.unverified == ()
        assert [replace(a, faults=()) for a in shared.layers] == [
            replace(a, faults=()) for a in single.layers
        ]


@pytest.mark.parametrize("source", ["v", "q"])
def test_a_fault_in_a_later_conversion_is_found(source: str) -> None:
    m = blocks()
    known = KnownOriginal(prepared(m), x := example(), keeps_layers=True)
    c = convert_for_target(m, find_profile("conv-only"))
    assert verify_onnx(m, c, x, known=known).equivalent
    name = next((n for n, (constant, _) in c.entries.items() if constant == source), source)
    wrong = verify_onnx(m, _with(c, name), x, known=known)
    assert not wrong.equivalent
    assert wrong.first_difference == "d"
    assert verify_onnx(m, c, x, known=known).equivalent


def test_equal_layers_of_kept_results_keep_their_own_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers that read the same value with the same numbers differ in nothing but their records."""
    paths: list[str] = []

    def key(after: object, entries: object, layer: RewrittenLayer) -> str:
        paths.append(layer.path)
        return layer.path

    monkeypatch.setattr(onnx_models, "layer_key", key)
    text = "g (float[N,3] x) => (float[N,2] y, float[N,2] z) { y = Gemm(x, w, b) z = Gemm(x, w, b) }"
    m = model(text, {"w": integers(3, 2), "b": integers(2)})
    known = KnownOriginal(prepared(m), None, keeps_layers=True)
    assert [check.path for check in verify_onnx(m, convert_model(m), known=known).layers] == ["y", "z"]
    assert paths == ["y", "z"]


def test_the_original_runs_once_for_several_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    m = blocks()
    runs: list[str] = []
    original = onnx_outputs.original_outputs

    def counted(*arguments: object) -> object:
        runs.append("original")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("onebyone.verification.onnx_known.original_outputs", counted)
    known = KnownOriginal(prepared(m), x := example(), keeps_layers=True)
    for name in ("conv-only", "ane"):
        assert verify_onnx(m, convert_for_target(m, find_profile(name)), x, known=known).equivalent
    assert runs == ["original"]


def test_an_example_without_the_inputs_of_the_model() -> None:
    with pytest.raises(BadInput, match="the model takes"):
        KnownOriginal(prepared(blocks()), {"z": integers(1)})
