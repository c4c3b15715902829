"""Integer probes of quantised layers: right conversions pass, planted faults show, and what cannot show is said."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import convert_model
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import model
from tests.onnx.quantised_models import CONVOLUTIONS, PRODUCTS, numbers, scales

_GROUP = {
    "xs": scales(), "xz": numbers(np.uint8), "w": numbers(np.int8, 3, 5), "ws": scales(5), "ys": scales(around=0.1),
    "yz": numbers(np.uint8, seed=1), "f": np.arange(15, dtype=np.float32).reshape(3, 5), "b": scales(5),
    "zs": np.float32(0.125), "lo": np.float32(1), "hi": np.float32(1),
}  # fmt: skip


def _qdq(product: str, activation: str, data: str = "uint8") -> ir.Model:
    """A group of a product, an activation from p to a, and a QuantizeLinear; floating data have no DequantizeLinear."""
    read = "d = DequantizeLinear(x, xs, xz)" if data == "uint8" else "d = Identity(x)"
    text = f"""g ({data}[N,T,3] x) => (uint8[N,T,5] y) {{
        {read} v = DequantizeLinear<axis=1>(w, ws) {product} {activation} y = QuantizeLinear(a, ys, yz) }}"""
    return model(text, {name: array for name, array in _GROUP.items() if _is_read(name, text)})


def _is_read(name: str, text: str) -> bool:
    return f" {name}," in text or f" {name})" in text or f"({name}," in text


GROUPS = {
    f"{product}, {activation.split('(')[0].split()[-1]}": (product, activation)
    for product in ("p = MatMul(d, v)", "p = MatMul(d, f)", "o = MatMul(d, v) p = Add(o, b)")
    for activation in (
        "a = Identity(p)", "a = Relu(p)", "a = Clip(p, lo, hi)", "a = Sigmoid(p)", "a = Tanh(p)", "a = HardSigmoid(p)",
    )
}  # fmt: skip
MODELS: dict[str, tuple[ir.Model, str]] = {
    **{name: (_qdq(*group), "conv") for name, group in GROUPS.items() if "Identity" not in name},
    "QDQ": (_qdq("p = MatMul(d, v)", "a = Relu(p)"), "conv"),
    "weight quantised in the graph": (
        _qdq("i = QuantizeLinear(f, zs) u = DequantizeLinear(i, zs) p = MatMul(d, u)", "a = Relu(p)"), "conv"
    ),
    "floating data": (_qdq("p = MatMul(d, v)", "a = Clip(p, lo, hi)", "float"), "conv"),
    "floating data and weight": (_qdq("p = MatMul(d, f)", "a = Clip(p, lo, hi)", "float"), "conv"),
    "MatMulInteger": (PRODUCTS["sums, unsigned"].model, "conv"),
    "MatMulInteger of a flattened map": (PRODUCTS["sums behind a flattened map"].model, "conv"),
    "QLinearMatMul": (PRODUCTS["by channel"].model, "conv"),
    "QGemm": (PRODUCTS["ONNX Runtime's Gemm with a bias"].model, "conv"),
    "ConvInteger": (CONVOLUTIONS["sums in two dimensions"].model, "linear"),
    "QLinearConv": (CONVOLUTIONS["by channel in two dimensions"].model, "linear"),
    "QLinearConv over the whole map": (CONVOLUTIONS["by channel over the whole map"].model, "linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_right_conversion_is_equivalent_and_every_injected_fault_is_seen(name: str) -> None:
    m, to = MODELS[name]
    result = convert_model(m, to)
    assert len(result.changes) == 1, str(result)
    for seed in range(3):
        v = verify_onnx(m, result, seed=seed)
        assert v.equivalent, str(v)
        assert v.integer_probe is True
        (layer,) = v.layers
        assert layer.faults
        assert all(fault.seen_by_integers for fault in layer.faults), layer.faults
        assert not any("probe" in reason for reason in v.unverified), v.unverified


@pytest.mark.parametrize("name", [name for name in MODELS if "in the graph" not in name])
def test_a_weight_in_a_wrong_order_is_caught_by_integers(name: str) -> None:
    """The record then says that the weight has another order than the graph of the converted layer expects."""
    m, to = MODELS[name]
    result = convert_model(m, to)
    weight = max(result.entries, key=lambda n: _size(result, n))
    source, steps = result.entries[weight]
    sizes = m.graph.initializers[source].const_value.shape.numpy()  # type: ignore[union-attr]
    backwards = [("transpose", tuple(reversed(range(len(sizes))))), ("reshape", tuple(int(n) for n in sizes))]
    wrong = replace(result, entries=result.entries | {weight: (source, (*backwards, *steps))})
    v = verify_onnx(m, wrong)
    assert not v.equivalent
    assert v.integer_probe is False
    assert "integer probe: the outputs differ" in v.layers[0].why


def _size(result: OnnxConversion, name: str) -> int:
    tensor = result.model.graph.initializers[name].const_value
    return prod(tensor.shape.numpy()) if tensor is not None else 0


def test_what_no_number_can_show_is_listed_as_unverified() -> None:
    """A Clip between equal bounds gives one number, whatever the weight is."""
    m = _qdq("p = MatMul(d, v)", "a = Clip(p, lo, lo)")
    result = convert_model(m)
    v = verify_onnx(m, result)
    assert v.equivalent, str(v)
    assert [fault.seen_by_integers for layer in v.layers for fault in layer.faults] == [False]
    assert any("cannot see: weight order shifted by one" in reason for reason in v.unverified), v.unverified


def test_a_layer_that_shows_no_fault_still_has_to_agree() -> None:
    """Without its upper bound, the Clip of the converted layer gives other numbers."""
    m = _qdq("p = MatMul(d, v)", "a = Clip(p, lo, lo)")
    result = convert_model(m)
    copy = result.model.clone()
    for node in copy.graph:
        if node.op_type == "Clip":
            node.replace_input_with(2, None)
    v = verify_onnx(m, replace(result, model=copy))
    assert not v.equivalent
    assert v.integer_probe is False
