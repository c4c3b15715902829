"""The verifier passes right conversions and catches planted faults, layer by layer and in the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.errors import BadInput
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import convert_model
from onebyone.onnx.model_file import open_model
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx import test_to_convolution, test_to_matrix_product
from tests.onnx.models import integers, model

TWO = """g (float[N,2,3,4] x) => (float[N,6] y) {
    a = Relu(x) f = Flatten(a) h = Gemm<transB=1>(f, w, b) r = Relu(h) m = MatMul(r, v) y = Add(m, c) }"""


def network(seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    shapes = {"w": (5, 24), "b": (5,), "v": (5, 6), "c": (6,)}
    return model(TWO, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def example(seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(3, 2, 3, 4)).astype(np.float32)}


def test_a_right_conversion_is_equivalent() -> None:
    m = network()
    v = verify_onnx(m, convert_model(m), example())
    assert v.equivalent, str(v)
    assert v.integer_probe is True
    assert v.rounding_ratio is not None
    assert v.rounding_ratio < 10
    assert [check.path for check in v.layers] == [
        check.path for check in v.layers if check.error_ratio is not None
    ]
    faults = {fault.name for check in v.layers for fault in check.faults}
    assert faults == {
        "weight order shifted by one",
        "kernel order swapped (height and width)",
        "bias dropped",
    }
    assert not v.unverified


@pytest.mark.parametrize("name", test_to_convolution.CASES)
def test_every_way_of_writing_a_product_is_probed(name: str) -> None:
    text, weights, _ = test_to_convolution.CASES[name]
    m = model(text, weights, opset=11 if "11" in name else 20)
    v = verify_onnx(m, convert_model(m))
    assert v.equivalent, str(v)
    assert v.integer_probe is True, str(v)


@pytest.mark.parametrize("name", test_to_matrix_product.CASES)
def test_every_convolution_is_probed(name: str) -> None:
    text, weights, _ = test_to_matrix_product.CASES[name]
    m = model(text, weights, opset=11 if "11" in name else 20)
    v = verify_onnx(m, convert_model(m, "linear"))
    assert v.equivalent, str(v)
    assert v.integer_probe is True, str(v)


def _with(rewriting: OnnxConversion, name: str, change: object) -> OnnxConversion:
    """The same conversion with the numbers of one constant changed in the file."""
    copy = rewriting.model.clone()
    value = copy.graph.initializers[name]
    array = np.array(value.const_value.numpy())  # type: ignore[union-attr]
    value.const_value = ir.tensor(change(array), name=name)  # type: ignore[operator]
    return replace(rewriting, model=copy)


FAULTS = {
    "one weight by a thousandth": lambda a: a + 1e-3 * (np.arange(a.size).reshape(a.shape) == 0),
    "two channels swapped": lambda a: a[[1, 0, *range(2, len(a))]],
    "scaled": lambda a: a * np.float32(1.01),
    "zero": np.zeros_like,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("which", range(4))
def test_a_changed_constant_is_caught_on_real_weights(fault: str, which: int) -> None:
    m = network()
    rewriting = convert_model(m)
    name = sorted(rewriting.entries)[which]
    change = FAULTS[fault]
    wrong = _with(rewriting, name, lambda a: np.asarray(change(a), dtype=np.float32))
    v = verify_onnx(m, wrong, example())
    assert not v.equivalent
    assert v.first_difference in {layer.path for layer in rewriting.layers}


def test_a_wrong_order_in_the_record_is_caught_by_integers() -> None:
    """What the entries say of a weight must be what the graph does with it."""
    m = network()
    rewriting = convert_model(m)
    name = next(n for n, (source, _) in rewriting.entries.items() if source == "v")
    source, _ = rewriting.entries[name]
    wrong = replace(rewriting, entries=rewriting.entries | {name: (source, (("reshape", (6, 5, 1, 1)),))})
    v = verify_onnx(m, wrong)
    assert v.integer_probe is False
    assert not v.equivalent


def test_nothing_converted_is_nothing_verified() -> None:
    m = model("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    v = verify_onnx(m, convert_model(m))
    assert v.nothing_verified
    assert not v.equivalent


def test_the_example_must_fit() -> None:
    m = network()
    with pytest.raises(BadInput, match="the model takes"):
        verify_onnx(m, convert_model(m), {"z": np.zeros(3)})
    with pytest.raises(BadInput, match="fails on x"):
        verify_onnx(m, convert_model(m), {"x": np.zeros((3, 2, 3, 5), np.float32)})


def test_a_factor_that_is_no_integer_is_said() -> None:
    text = "g (float[N,3] x) => (float[N,5] y) { y = Gemm<alpha=0.3>(x, w) }"
    m = model(text, {"w": integers(3, 5)})
    v = verify_onnx(m, convert_model(m), {"x": integers(4, 3)})
    assert v.integer_probe is None
    assert "not a small integer" in v.layers[0].why
    assert v.equivalent


def test_a_factor_of_one_layer_does_not_stop_the_probes_of_others() -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { a = Gemm<alpha=0.3>(x, w) r = Relu(a) y = MatMul(r, v) }"
    m = model(text, {"w": integers(3, 5), "v": integers(5, 3)})
    probed = [layer.bitwise for layer in verify_onnx(m, convert_model(m)).layers]
    assert probed == [None, True]


def test_a_model_with_external_data_runs_as_a_whole(tmp_path: Path) -> None:
    """As dynamo exports: the weights are in a file beside the model."""
    ir.save(network(), tmp_path / "net.onnx", external_data="net.data", size_threshold_bytes=0)
    m = open_model(tmp_path / "net.onnx")
    v = verify_onnx(m, convert_model(m), example())
    assert v.equivalent, str(v)
    assert v.max_error is not None
    assert not v.unverified
