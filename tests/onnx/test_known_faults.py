"""Faults of other converters, each planted in a right conversion, which `verify` must then reject.

Sources: the threads and repositories that each fault names. A fault of a layer must be seen without an example input
too, by integer probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.errors import BadInput
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.convert import convert_model
from onebyone.onnx.model_file import open_model
from onebyone.verification.onnx_models import verify_onnx
from tests.onnx.models import integers, model

Array = np.ndarray[Any, Any]
Plant = Callable[[ir.Model], None]
#: The output of every text below has a free shape.
Y = "(float[A,B] y)"


def node_of(m: ir.Model, op_type: str, index: int = 0) -> ir.Node:
    return [node for node in m.graph.all_nodes() if node.op_type == op_type][index]


def with_attribute(op_type: str, name: str, value: Any) -> Plant:
    def plant(m: ir.Model) -> None:
        node = node_of(m, op_type)
        node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return plant


def with_weight(op_type: str, change: Callable[[Array], Array], operand: int = 1) -> Plant:
    """The numbers of an operand of the converted layer changed in the file."""

    def plant(m: ir.Model) -> None:
        value = node_of(m, op_type).inputs[operand]
        assert value is not None
        assert value.const_value is not None
        array = np.array(value.const_value.numpy())
        value.const_value = ir.tensor(
            np.ascontiguousarray(change(array)).astype(array.dtype), name=value.name
        )

    return plant


def without_operand(op_type: str, index: int) -> Plant:
    return lambda m: node_of(m, op_type).replace_input_with(index, None)


def skipped(op_type: str) -> Plant:
    """The operator left out: its output is its input."""

    def plant(m: ir.Model) -> None:
        node = node_of(m, op_type)
        assert node.inputs[0] is not None
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        m.graph.remove(node, safe=True)

    return plant


def removed(name: str) -> Plant:
    """An initializer removed although something still reads it."""

    def plant(m: ir.Model) -> None:
        value = m.graph.initializers.pop(name)
        value.const_value = None

    return plant


def in_float32(m: ir.Model) -> None:
    """The output cast to float32, and declared so."""
    y = m.graph.outputs[0]
    name, shape = y.name, y.shape
    y.name = "inner"
    new = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    m.graph.append(ir.node("Cast", [y], {"to": int(ir.DataType.FLOAT)}, outputs=[new]))
    m.graph.outputs[0] = new


@dataclass(frozen=True)
class Fault:
    """A fault: where it occurred, the model, what is planted, and whether it lies within a converted layer."""

    text: str
    weights: Mapping[str, Array]
    plant: Plant
    x: tuple[int, ...]
    to: str = "conv"
    opset: int = 20
    in_layer: bool = True
    more: Mapping[str, Array] = field(default_factory=dict)


def transposed_square(a: Array) -> Array:
    return a.reshape(a.shape[0], -1).T.reshape(a.shape)


def read_as_height_width_channels(a: Array) -> Array:
    """A kernel (O, C, H, W) whose numbers were copied flat from a vector in the order (H, W, C)."""
    return a.transpose(0, 2, 3, 1).reshape(a.shape)


GEMM = "g (float[N,5] x) => (float[N,5] y) { y = Gemm<alpha=2.0, beta=2.0, transB=1>(x, w, b) }"
SQUARE = {"w": integers(5, 5), "b": integers(5)}
CONV = "g (float[N,4,H,W] x) => (float[N,6,H,W] y) { y = Conv<kernel_shape=[1,1]>(x, k, b) }"
TABLE = "g (float[N,5] x, int64[M] i) => (float[N,5] y, float[M,5] t) { y = MatMul(x, w) t = Gather(w, i) }"

FAULTS: dict[str, Fault] = {
    "ONNXifier, TIDL: alpha = 0 becomes 1": Fault(
        "g (float[N,5] x) => (float[N,5] y) { y = Gemm<alpha=0.0>(x, w, b) }",
        SQUARE, with_weight("Conv", lambda a: a + integers(*a.shape)), (3, 5), in_layer=False,
    ),
    "beta is forgotten": Fault(GEMM, SQUARE, with_weight("Conv", lambda a: a / 2, 2), (3, 5), in_layer=False),
    "transB is forgotten": Fault(GEMM, SQUARE, with_weight("Conv", transposed_square), (3, 5), in_layer=False),
    "TVM: a transpose is missing": Fault(
        "g (float[N,5] x) => (float[N,5] y) { y = MatMul(x, w) }",
        SQUARE, with_weight("Conv", transposed_square), (3, 5), in_layer=False,
    ),
    "TIDL: a weight that another node reads is reshaped in place": Fault(
        TABLE, {"w": integers(5, 5)}, lambda m: _transpose_in_place(m, "w"), (3, 5),
        in_layer=False, more={"i": np.array([0, 3])},
    ),
    "ONNXifier: a weight that another node reads is removed": Fault(
        TABLE, {"w": integers(5, 5)}, removed("w"), (3, 5), in_layer=False, more={"i": np.array([0, 3])},
    ),
    "litert-torch 674: a bias is left behind": Fault(
        "g (float[N,5] x) => (float[N,6] y) { m = MatMul(x, w) y = Add(m, b) }",
        {"w": integers(5, 6), "b": integers(6)}, without_operand("Conv", 2), (3, 5),
    ),
    "Caffe, keras 356: flattened in another order": Fault(
        "g (float[N,2,3,4] x) => (float[N,5] y) { f = Flatten(x) y = Gemm<transB=1>(f, w) }",
        {"w": integers(5, 24)}, with_weight("Conv", read_as_height_width_channels), (2, 2, 3, 4), in_layer=False,
    ),
    "OpenVINO: a layout error that only positions show": Fault(
        CONV, {"k": integers(6, 4, 1, 1), "b": integers(6)},
        with_attribute("Transpose", "perm", [0, 3, 2, 1]), (2, 4, 1, 1), to="linear",
    ),
    "Arm: tokens and samples are mixed": Fault(
        "g (float[N,T,5] x) => (float[N,T,6] y) { y = MatMul(x, w) }",
        {"w": integers(5, 6)}, lambda m: _permute_last(m), (3, 3, 5),
    ),
    "a stride is forgotten": Fault(
        "g (float[N,4,6,7] x) => (float[N,6,3,4] y) { y = Conv<kernel_shape=[1,1], strides=[2,2]>(x, k) }",
        {"k": integers(6, 4, 1, 1)}, skipped("Slice"), (2, 4, 6, 7), to="linear",
    ),
    "groups in another order": Fault(
        "g (float[N,4,3,2] x) => (float[N,6,3,2] y) { y = Conv<kernel_shape=[1,1], group=2>(x, k) }",
        {"k": integers(6, 2, 1, 1)}, with_weight("MatMul", lambda a: a[::-1]), (2, 4, 3, 2),
        to="linear", in_layer=False,
    ),
    "TIDL: a group of a convolution is one group": Fault(
        "g (float[N,3,4] x) => (float[N,3,5] y) { t = Transpose<perm=[1,0,2]>(x) m = MatMul(t, w) "
        "y = Transpose<perm=[1,0,2]>(m) }",
        {"w": integers(3, 4, 5)}, with_weight("Conv", lambda a: np.roll(a, 1, 0)), (2, 3, 4), in_layer=False,
    ),
    "qonnx: the scales stay on the old axis": Fault(
        "g (float[N,5] x) => (float[N,5] y) { d = DequantizeLinear<axis=1>(q, s) y = MatMul(x, d) }",
        {"q": integers(5, 5, dtype=np.int8), "s": np.float32(2.0 ** np.arange(5))},
        with_attribute("DequantizeLinear", "axis", 1), (3, 5),
    ),
    "onnxsim: Softmax before opset 13 at another rank": Fault(
        "g (float[N,3,5] x) => (float[N,3,5] y) { m = MatMul(x, w) y = Softmax<axis=1>(m) }",
        {"w": integers(5, 5) / np.float32(8)}, with_attribute("Softmax", "axis", 2), (2, 3, 5),
        opset=11, in_layer=False,
    ),
    "a LayerNormalization over another axis": Fault(
        "g (float[N,5,5] x) => (float[N,5,5] y) { m = MatMul(x, w) y = LayerNormalization<axis=-1>(m, s) }",
        {"w": integers(5, 5), "s": integers(5)}, lambda m: _around(m, "LayerNormalization"), (2, 5, 5), in_layer=False,
    ),
    "TIDL: float32 is forced": Fault(
        "g (float16[N,5] x) => (float16[N,6] y) { y = MatMul(x, w) }",
        {"w": integers(5, 6, dtype=np.float16)}, in_float32, (3, 5), in_layer=False,
    ),
}  # fmt: skip


def _transpose_in_place(m: ir.Model, name: str) -> None:
    value = m.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(np.ascontiguousarray(value.const_value.numpy().T), name=name)


def _permute_last(m: ir.Model) -> None:
    """The last node's result with samples and tokens exchanged."""
    _around(m, m.graph[-1].op_type, [1, 0, 2], before=False)


def _around(m: ir.Model, op_type: str, perm: list[int] | None = None, before: bool = True) -> None:
    """A transpose in front of a node and behind it, or behind it only."""
    node, perm = node_of(m, op_type, -1), perm or [0, 2, 1]
    if before:
        value = ir.Value(name="moved")
        m.graph.insert_before(node, [ir.node("Transpose", [node.inputs[0]], {"perm": perm}, outputs=[value])])
        node.replace_input_with(0, value)
    y = node.outputs[0]
    name, shape, kind = y.name, y.shape, y.type
    y.name = "inner"
    new = ir.Value(name=name, type=kind, shape=shape)
    m.graph.append(ir.node("Transpose", [y], {"perm": perm}, outputs=[new]))
    m.graph.outputs[0] = new


def feeds_of(fault: Fault) -> dict[str, Array]:
    kind = np.float16 if "float16" in fault.text else np.float32
    return {"x": integers(*fault.x, seed=7, dtype=kind), **fault.more}


def planted(conversion: OnnxConversion, fault: Fault) -> OnnxConversion:
    copy = conversion.model.clone()
    fault.plant(copy)
    return replace(conversion, model=copy)


@pytest.mark.parametrize("name", FAULTS)
def test_the_right_conversion_passes_and_the_fault_is_caught(name: str) -> None:
    fault = FAULTS[name]
    m = model(fault.text, fault.weights, opset=fault.opset)
    conversion = convert_model(m, fault.to)
    assert conversion.changes
    right = verify_onnx(m, conversion, feeds_of(fault))
    assert right.equivalent, str(right)
    wrong = planted(conversion, fault)
    assert not verify_onnx(m, wrong, feeds_of(fault)).equivalent
    if fault.in_layer:
        probed = verify_onnx(m, wrong)
        assert not probed.equivalent
        assert not probed.nothing_verified


@pytest.mark.parametrize("spatial", [(1, 1), (3, 2)])
def test_weights_of_ones_and_maps_of_one_position_hide_nothing(spatial: tuple[int, int]) -> None:
    """A missing transpose is not seen on such numbers (TVM, OpenVINO): the probes use numbers of their own."""
    m = model(CONV, {"k": np.ones((4, 4, 1, 1), np.float32), "b": np.ones(4, np.float32)})
    conversion = convert_model(m, "linear")
    name = next(name for name, (source, _) in conversion.entries.items() if source == "k")
    steps = (("reshape", (4, 4)),)
    wrong = replace(conversion, entries={**conversion.entries, name: ("k", steps)})
    x = {"x": np.ones((2, 4, *spatial), np.float32)}
    assert verify_onnx(m, conversion, x).equivalent
    assert verify_onnx(m, wrong, x).integer_probe is False
    assert verify_onnx(m, wrong).integer_probe is False


def test_external_data_that_did_not_travel_is_named(tmp_path: Path) -> None:
    """Saved to another folder with a reference to a file that stayed behind."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    m = model(GEMM, SQUARE)
    ir.save(m, source / "net.onnx", external_data="net.data", size_threshold_bytes=0)
    (target / "net.onnx").write_bytes((source / "net.onnx").read_bytes())
    with pytest.raises(BadInput, match=r"is missing: .net\.data. is not a file beside the model"):
        open_model(target / "net.onnx")
    convert_model(open_model(source / "net.onnx")).save(target / "net.onnx")
    (source / "net.data").unlink()
    x = integers(3, 5)
    assert verify_onnx(m, convert_model(open_model(target / "net.onnx")), {"x": x}).nothing_verified is False


def test_quantised_and_shared_weights_do_not_grow() -> None:
    """onnxsim: int8 weights stored as float32 grew a file 3.9 times, shared ones 8.2 times."""
    text = """g (float[N,16] x) => (float[N,16] y) {
        a = MatMul(x, w) b = MatMul(a, w) d = DequantizeLinear<axis=1>(q, s) y = MatMul(b, d) }"""
    m = model(text, {"w": integers(16, 16), "q": integers(16, 16, dtype=np.int8), "s": integers(16)})
    conversion = convert_model(m)
    assert len(conversion.changes) == 3
    before, after = conversion.weight_bytes
    assert after <= before + 3 * 64
