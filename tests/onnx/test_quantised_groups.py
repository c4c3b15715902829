"""Groups of DequantizeLinear, layer and QuantizeLinear stay together, as ONNX Runtime's quantiser writes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from onebyone.onnx import quantised_groups
from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import run_reference
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import graph, model, operators
from tests.onnx.quantised_models import numbers, scales

SHAPES = {
    "convolutional": (2, 3, 6, 6),
    "rows": (2, 7, 16),
}
TEXTS = {
    "convolutional": graph(
        "2,3,6,6",
        "2,7",
        """a = Conv<kernel_shape=[3,3]>(x, w1, b1) r = Relu(a) c = Conv(r, w2, b2) d = Relu(c) f = Flatten(d)
           h = Gemm<transB=1>(f, w3, b3) k = Relu(h) m = MatMul(k, w4) y = Add(m, b4)""",
    ),
    "rows": graph(
        "2,7,16", "2,7,5", "a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) d = MatMul(c, w2) y = Relu(d)"
    ),
}
WEIGHTS = {
    "convolutional": {
        "w1": (8, 3, 3, 3), "b1": (8,), "w2": (6, 8, 1, 1), "b2": (6,), "w3": (10, 96), "b3": (10,), "w4": (10, 7),
        "b4": (7,),
    },
    "rows": {"w1": (16, 12), "b1": (12,), "w2": (12, 5)},
}  # fmt: skip


class _Examples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.examples = iter([{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.examples, None)


def quantised_network(name: str, form: str, per_channel: bool, folder: Path) -> ir.Model:
    """A network that ONNX Runtime quantised: with weights of 7 bits, since 8 overflow 16 bits on some processors."""
    rng = np.random.default_rng(0)
    weights = {n: (rng.normal(size=s) * 0.3).astype(np.float32) for n, s in WEIGHTS[name].items()}
    source, target = folder / "float.onnx", folder / "quantised.onnx"
    proto = ir.serde.serialize_model(model(TEXTS[name], weights, opset=17))
    del proto.opset_import[1:], proto.graph.value_info[:]
    onnx.save(proto if form == "dynamic" else onnx.shape_inference.infer_shapes(proto), source)
    if form == "dynamic":
        quantize_dynamic(source, target, per_channel=per_channel, reduce_range=True)
    else:
        quantize_static(
            source,
            target,
            _Examples(SHAPES[name]),
            quant_format=QuantFormat[form],
            per_channel=per_channel,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return ir.serde.deserialize_model(onnx.load(target))


def fused(m: ir.Model, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    source = ir.serde.serialize_model(m).SerializeToString()
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


#: How many layers each direction converts.
LAYERS = {
    ("convolutional", "conv"): 2,
    ("convolutional", "linear"): 1,
    ("rows", "conv"): 2,
    ("rows", "linear"): 0,
}


@pytest.mark.parametrize("per_channel", [False, True], ids=["by tensor", "by channel"])
@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_network_of_onnx_runtimes_quantiser(
    name: str, form: str, per_channel: bool, tmp_path: Path
) -> None:
    m = quantised_network(name, form, per_channel, tmp_path)
    x = {"x": np.random.default_rng(1).normal(size=SHAPES[name]).astype(np.float32)}
    for to in ("conv", "linear"):
        result = convert_model(m, to)
        assert len(result.changes) + len(result.refused) == LAYERS[name, to], str(result)
        if form != "QOperator":
            assert not result.refused, str(result)
        v = verify_onnx(m, result, x)
        assert v.equivalent, str(v)
        if not result.changes:
            continue
        assert v.integer_probe is True
        assert v.max_error == 0
        before, after = fused(m, tmp_path), fused(result.model, tmp_path)
        if form == "QDQ":
            floats = {"Conv", "MatMul", "Gemm", "FusedConv", "FusedMatMul"}
            assert not after.keys() & floats, after
            assert not before.keys() & floats, before
            assert after["QuantizeLinear"] <= before["QuantizeLinear"]
            assert after["DequantizeLinear"] <= before["DequantizeLinear"]


def _group(product: str, after: str = "") -> str:
    quantise = f"q = QuantizeLinear({'a' if after else 'p'}, ys, yz)"
    dequantise = "d = DequantizeLinear(x, xs, xz) v = DequantizeLinear<axis=1>(w, ws)"
    return f"{dequantise} {product} {after} {quantise} y = Identity(q)"


CONSTANTS = {
    "xs": scales(), "xz": numbers(np.uint8), "w": numbers(np.int8, 3, 5), "ws": scales(5), "ys": scales(around=0.1),
    "yz": numbers(np.uint8, seed=1),
}  # fmt: skip
GROUPS = {
    "product": _group("p = MatMul(d, v)"),
    "product and bias": _group("o = MatMul(d, v) p = Add(o, b)"),
    "product, bias and activation": _group("o = MatMul(d, v) p = Add(o, b)", "a = Relu(p)"),
}


@pytest.mark.parametrize("name", GROUPS)
def test_layout_operators_stand_outside_of_the_group(name: str) -> None:
    text = f"g (uint8[N,T,3] x) => (uint8[N,T,5] y) {{ {GROUPS[name]} }}"
    m = model(text, CONSTANTS | ({"b": scales(5)} if "(o, b)" in text else {}))
    result = convert_model(m)
    names = operators(result.model)
    first = names.index("DequantizeLinear")
    group = [name for name in names[first : names.index("QuantizeLinear") + 1] if name != "Unsqueeze"]
    assert group == [
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
        *(["Add"] if "bias" in name else []),  # ONNX Runtime would round a floating bias of the Conv
        *(["Relu"] if "activation" in name else []),
        "QuantizeLinear",
    ]
    x = {"x": numbers(np.uint8, 2, 4, 3, seed=2)}
    expected, found = (run_reference(ir.serde.serialize_model(each), x)[0] for each in (m, result.model))
    np.testing.assert_array_equal(found, expected)
    v = verify_onnx(m, result, x)
    assert v.equivalent, str(v)
    assert v.integer_probe is True
    assert all(fault.seen_by_integers for layer in v.layers for fault in layer.faults)


def test_a_dequantised_value_that_others_read_is_kept() -> None:
    text = """g (uint8[N,T,3] x) => (uint8[N,T,5] y, float[N,T,3] r, float[N,T,5] k) {
        d = DequantizeLinear(x, xs, xz) v = DequantizeLinear<axis=1>(w, ws) p = MatMul(d, v)
        y = QuantizeLinear(p, ys, yz) r = Relu(d) k = Relu(p) }"""
    m = model(text, CONSTANTS)
    result = convert_model(m)
    assert len(result.changes) == 1
    x = {"x": numbers(np.uint8, 2, 4, 3, seed=2)}
    for expected, found in zip(
        *(run_reference(ir.serde.serialize_model(each), x) for each in (m, result.model)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


FLATTENED = """g (uint8[N,2,3,4] x) => (uint8[N,5] y) {
    d = DequantizeLinear(x, xs, xz) t = Transpose<perm=[0,2,3,1]>(d) f = Flatten(t) q = QuantizeLinear(f, s2, z2)
    e = DequantizeLinear(q, s2, z2) v = DequantizeLinear<axis=1>(w, ws) p = MatMul(e, v)
    y = QuantizeLinear(p, ys, yz) }"""


@pytest.mark.parametrize("same", [True, False])
def test_a_map_flattened_between_quantisers_is_crossed_only_with_equal_parameters(same: bool) -> None:
    constants = CONSTANTS | {
        "w": numbers(np.int8, 24, 5),
        "s2": CONSTANTS["xs"] * np.float32(1 if same else 1.5),
        "z2": CONSTANTS["xz"],
    }
    m = model(FLATTENED, constants)
    result = convert_model(m)
    (convolution,) = [n for n in result.model.graph if n.op_type == "Conv"]
    assert list(convolution.attributes.get_ints("kernel_shape") or []) == ([3, 4] if same else [1, 1])
    x = {"x": numbers(np.uint8, 2, 2, 3, 4, seed=2)}
    expected, found = (run_reference(ir.serde.serialize_model(each), x)[0] for each in (m, result.model))
    np.testing.assert_array_equal(found, expected)
    v = verify_onnx(m, result, x)
    assert v.equivalent, str(v)


def test_crossing_unequal_quantisers_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone.onnx import flattened_maps

    monkeypatch.setattr(flattened_maps, "have_equal_parameters", lambda first, second: True)
    constants = CONSTANTS | {
        "w": numbers(np.int8, 24, 5),
        "s2": CONSTANTS["xs"] * np.float32(1.5),
        "z2": CONSTANTS["xz"],
    }
    m = model(FLATTENED, constants)
    v = verify_onnx(m, convert_model(m))
    assert not v.equivalent


def test_two_dequantisers_are_equal_by_their_numbers() -> None:
    text = """g (uint8[4] x) => (float[4] a, float[4] b, float[4] c) {
        a = DequantizeLinear(x, s, z) b = DequantizeLinear(x, t, z) c = DequantizeLinear(x, u, z) }"""
    m = model(text, {"s": np.float32(2), "t": np.float32(2), "u": np.float32(3), "z": np.uint8(1)})
    first, second, third = m.graph
    assert quantised_groups.have_equal_parameters(first, second)
    assert not quantised_groups.have_equal_parameters(first, third)


def test_a_convolution_becomes_a_gemm_inside_of_its_group() -> None:
    text = """g (uint8[N,4,H,V] x) => (uint8[N,6,H,V] y) {
        d = DequantizeLinear(x, xs, xz) v = DequantizeLinear<axis=0>(w, ws) b = DequantizeLinear<axis=0>(c, bs)
        p = Conv(d, v, b) y = QuantizeLinear(p, ys, yz) }"""
    constants = CONSTANTS | {
        "w": numbers(np.int8, 6, 4, 1, 1), "ws": scales(6), "bs": CONSTANTS["xs"] * scales(6),
        "c": np.arange(-3, 3, dtype=np.int32) * 500,
    }  # fmt: skip
    m = model(text, constants)
    result = convert_model(m, "linear")
    names = operators(result.model)
    assert names[names.index("Gemm") + 1] == "QuantizeLinear"
    x = {"x": numbers(np.uint8, 2, 4, 3, 2, seed=2)}
    expected, found = (run_reference(ir.serde.serialize_model(each), x)[0] for each in (m, result.model))
    np.testing.assert_array_equal(found, expected)
    v = verify_onnx(m, result, x)
    assert v.equivalent, str(v)
    assert v.integer_probe is True
