"""Ranks of computed shapes: what one engine misses another finds, and a contradiction is not trusted."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.errors import MissingExtra
from onebyone.onnx import shapes
from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import run_onnx_runtime
from tests.onnx.exported import exported
from tests.onnx.models import integers, model, run

#: A network as tf2onnx writes it: NHWC outside, and a Reshape whose shape is computed in int32.
KERAS = """g (float[N,H,W,3] x) => (float[N,7] y) {
    t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, k) r = Relu(c)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) b = Transpose<perm=[0,2,3,1]>(p)
    s = Shape(b) s32 = Cast<to=6>(s) n = Slice(s32, zero, one, zero) m = Mul(n, factor)
    q = Concat<axis=0>(m, rest) q64 = Cast<to=7>(q) f = Reshape(b, q64)
    h = MatMul(f, w) ha = Add(h, bias) g1 = Relu(ha) y = MatMul(g1, v) }"""
KERAS_WEIGHTS = {
    "k": integers(4, 3, 3, 3),
    "zero": np.array([0]),
    "one": np.array([1]),
    "factor": np.array([1], np.int32),
    "rest": np.array([-1], np.int32),
    "w": integers(36, 5),
    "bias": integers(5),
    "v": integers(5, 7),
}
#: The head of a text recogniser: columns of the map are steps, and the shapes are computed with a constant expression.
TEXT = """g (float[N,1,32,W] x) => (float[N,T,9] y) {
    c = Conv<pads=[1,1,1,1], strides=[16,1]>(x, k) r = Relu(c)
    p = MaxPool<kernel_shape=[2,1], strides=[2,1]>(r) s = Squeeze(p, two) u = Transpose<perm=[0,2,1]>(s)
    sh = Shape(u) last = Mod(two, three) head = Slice(sh, zero, last)
    q = Concat<axis=0>(head, halves) f = Reshape(u, q) t = Transpose<perm=[0,1,3,2]>(f)
    q3 = Concat<axis=0>(head, minus) o = Reshape(t, q3) y = MatMul(o, w) }"""
TEXT_WEIGHTS = {
    "k": integers(4, 1, 3, 3),
    "zero": np.array([0]),
    "two": np.array([2]),
    "three": np.array([3]),
    "halves": np.array([2, 2]),
    "minus": np.array([-1]),
    "w": integers(4, 9),
}
MODELS = {
    "keras": (KERAS, KERAS_WEIGHTS, (2, 8, 8, 3), 2),
    "text": (TEXT, TEXT_WEIGHTS, (2, 1, 32, 12), 1),
}


def missed(found: shapes.Inferred) -> list[shapes.Key]:
    return [name for name, (shape, _) in found.items() if shape is None]


@pytest.mark.parametrize("name", MODELS)
def test_products_behind_computed_shapes_are_converted(name: str) -> None:
    text, weights, shape, products = MODELS[name]
    m = model(text, weights, opset=17)
    before = ir.serde.serialize_model(m).SerializeToString()
    result = convert_model(m)
    assert len(result.changes) == products
    assert not result.refused
    x = {"x": integers(*shape)}
    np.testing.assert_array_equal(run(result.model, x)[0], run(m, x)[0])
    assert ir.serde.serialize_model(m).SerializeToString() == before


def test_an_export_whose_ranks_onnx_misses() -> None:
    m, _ = exported("Encoder", "torchscript", free_batch=True)
    assert len(missed(shapes._by_onnx(m.clone()))) >= 7
    copy = m.clone()
    shapes.infer_shapes(copy)
    assert not [key for key, value in shapes.outputs_of(copy.graph) if value.shape is None]


def test_contradictions_are_not_trusted() -> None:
    a, b = ir.Shape(["N", 3, None]), ir.Shape([4, 3, 5])
    assert shapes._agreed([a, b], "x") == ir.Shape([4, 3, 5])
    assert shapes._agreed([ir.Shape([2, 3]), ir.Shape([2, 4])], "x") == ir.Shape([2, None])
    assert shapes._agreed([ir.Shape([2, 3]), ir.Shape([2, 3, 1])], "x") is None
    assert shapes._agreed([], "x") is None


def test_a_contradictory_rank_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine is made wrong: the rank of the product's operand is then not known, and this is said."""
    m = model(KERAS, KERAS_WEIGHTS, opset=17)

    def wrong(copy: ir.Model) -> shapes.Inferred:
        return right(copy) | {("f",): (ir.Shape([2, 3, 36]), ir.DataType.FLOAT)}

    right = shapes._by_symbols
    monkeypatch.setattr(shapes, "_by_symbols", wrong)
    result = convert_model(m)
    assert [refusal.path for refusal in result.refused] == ["h"]
    assert "rank" in result.refused[0].reason


def test_a_wrong_declaration_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(KERAS, KERAS_WEIGHTS, opset=17)
    value = next(v for _, v in shapes.outputs_of(m.graph) if v.name == "f")
    value.shape = ir.Shape([1, 2, 3, 36])
    shapes.infer_shapes(m)
    assert value.shape is None or len(value.shape) == 2


def test_without_the_other_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(TEXT, TEXT_WEIGHTS, opset=17)
    monkeypatch.setitem(sys.modules, "onnxruntime.tools.symbolic_shape_infer", None)
    assert len(convert_model(m).changes) == 1
    monkeypatch.setitem(sys.modules, "onnx_shape_inference", None)
    with pytest.raises(MissingExtra, match=r"needs onnx-shape-inference.*onebyone\[onnx\]"):
        convert_model(m)


def test_large_tensors_are_not_serialised(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(KERAS, KERAS_WEIGHTS, opset=17)
    value = m.graph.initializers["w"]

    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(shapes, "_shapes", lambda found, key: [])  # every engine is asked
    value.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([3600, 500]), name="w")
    shapes.infer_shapes(m)


def test_branches_that_use_one_name_keep_their_own_ranks() -> None:
    text = """g (float[2,3,4] x, bool b) => (float[N] y) {
        y = If (b) <
            then_branch = t () => (float[M] p) { z = Relu(x) p = Reshape(z, flat) },
            else_branch = e () => (float[M] q) { z = Reshape(x, flat) q = Neg(z) }> }"""
    m = model(text, {"flat": np.array([-1])}, opset=17)
    shapes.infer_shapes(m)
    ranks = [len(v.shape or ()) for _, v in shapes.outputs_of(m.graph) if v.name == "z"]
    assert ranks == [3, 1]


def test_ranks_behind_operators_of_onnx_runtime() -> None:
    """What ONNX Runtime's optimiser writes: FusedConv, FusedGemm and BiasGelu are no operators of ONNX."""
    text = """g (float[N,2,6,6] x) => (float[N,3] y) {
        c = com.microsoft.FusedConv<activation="Relu">(x, k, kb) f = Flatten(c)
        h = com.microsoft.FusedGemm<activation="Relu">(f, w, b) g = com.microsoft.BiasGelu(h, b)
        y = MatMul(g, v) }"""
    weights = {
        "k": integers(4, 2, 1, 1),
        "kb": integers(4),
        "w": integers(144, 5),
        "b": integers(5),
        "v": integers(5, 3),
    }
    m = model(text, weights, opset=17)
    m.graph.opset_imports["com.microsoft"] = 1
    assert missed(shapes._by_symbols(m.clone()))
    result = convert_model(m)
    assert [change.path for change in result.changes] == ["h", "y"]
    assert not result.refused
    x = {"x": integers(3, 2, 6, 6)}
    first, second = (run_onnx_runtime(ir.serde.serialize_model(form), x)[0] for form in (m, result.model))
    np.testing.assert_array_equal(first, second)
