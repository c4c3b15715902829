"""Products with a constant become convolutions that give the same integers, whichever way they are written."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onebyone.onnx.convert import convert_model
from tests.onnx.models import graph, integers, model, operators, run

W = {"w": integers(3, 5)}
CASES = {
    "matmul of rank 1": (graph("3", "M", "y = MatMul(x, w)"), W, (3,)),
    "matmul of rank 2": (graph("N,3", "N,5", "y = MatMul(x, w)"), W, (4, 3)),
    "matmul of rank 3": (graph("N,T,3", "N,T,5", "y = MatMul(x, w)"), W, (2, 4, 3)),
    "matmul of rank 4": (graph("N,H,V,3", "N,H,V,5", "y = MatMul(x, w)"), W, (2, 4, 6, 3)),
    "matmul of rank 5": (graph("N,A,B,C,3", "N,A,B,C,5", "y = MatMul(x, w)"), W, (2, 4, 6, 2, 3)),
    "constant on the left": (graph("N,5,T", "N,3,T", "y = MatMul(w, x)"), W, (2, 5, 4)),
    "constant on the left of a vector": (graph("5", "3", "y = MatMul(w, x)"), W, (5,)),
    "constant vector on the right": (
        graph("N,T,3", "N,T", "y = MatMul(x, v)"),
        {"v": integers(3)},
        (2, 4, 3),
    ),
    "constant vector on the left": (graph("N,3,T", "N,T", "y = MatMul(v, x)"), {"v": integers(3)}, (2, 3, 4)),
    "batch of weights": (
        graph("N,2,T,3", "N,2,T,5", "y = MatMul(x, w)"),
        {"w": integers(2, 3, 5)},
        (4, 2, 6, 3),
    ),
    "weights with an axis of one": (
        graph("N,T,3", "N,T,5", "y = MatMul(x, w)"),
        {"w": integers(1, 3, 5)},
        (4, 6, 3),
    ),
    "vector times a batch of weights": (
        graph("3", "2,5", "y = MatMul(x, w)"),
        {"w": integers(2, 3, 5)},
        (3,),
    ),
    "bias after": (
        graph("N,T,3", "N,T,5", "z = MatMul(x, w) y = Add(z, b)"),
        W | {"b": integers(5)},
        (2, 4, 3),
    ),
    "bias before the product in the Add": (
        graph("N,T,3", "N,T,5", "z = MatMul(x, w) y = Add(b, z)"),
        W | {"b": integers(1, 5)},
        (2, 4, 3),
    ),
    "scalar bias": (graph("N,3", "N,5", "z = MatMul(x, w) y = Add(b, z)"), W | {"b": integers()}, (2, 3)),
    "bias of a constant on the left": (
        graph("N,5,T", "N,3,T", "z = MatMul(w, x) y = Add(z, b)"),
        W | {"b": integers(3, 1)},
        (2, 5, 4),
    ),
    "an addend that is no bias": (
        graph("N,4,3", "N,4,5", "z = MatMul(x, w) y = Add(z, b)"),
        W | {"b": integers(4, 5)},
        (2, 4, 3),
    ),
    "an addend that makes the output larger": (
        graph("1,3", "4,5", "z = MatMul(x, w) y = Add(z, b)"),
        W | {"b": integers(4, 5)},
        (1, 3),
    ),
    "gemm": (graph("N,3", "N,5", "y = Gemm(x, w, b)"), W | {"b": integers(5)}, (4, 3)),
    "gemm, transB": (
        graph("N,3", "N,5", "y = Gemm<transB=1>(x, w, b)"),
        {"w": integers(5, 3), "b": integers(1, 5)},
        (4, 3),
    ),
    "gemm, transA": (graph("3,N", "N,5", "y = Gemm<transA=1>(x, w, b)"), W | {"b": integers(5)}, (3, 4)),
    "gemm, constant first": (
        graph("3,N", "5,N", "y = Gemm(w, x, b)"),
        {"w": integers(5, 3), "b": integers(5, 1)},
        (3, 4),
    ),
    "gemm, constant first, both transposed": (
        graph("N,3", "5,N", "y = Gemm<transA=1, transB=1>(w, x)"),
        W,
        (4, 3),
    ),
    "gemm, alpha and beta": (
        graph("N,3", "N,5", "y = Gemm<alpha=2.0, beta=3.0>(x, w, b)"),
        W | {"b": integers(5)},
        (4, 3),
    ),
    "gemm, alpha 0": (graph("N,3", "N,5", "y = Gemm<alpha=0.0>(x, w, b)"), W | {"b": integers(5)}, (4, 3)),
    "gemm, beta 0": (graph("N,3", "N,5", "y = Gemm<beta=0.0>(x, w, b)"), W | {"b": integers(5)}, (4, 3)),
    "gemm, scalar C": (graph("N,3", "N,5", "y = Gemm<beta=2.0>(x, w, b)"), W | {"b": integers()}, (4, 3)),
    "gemm, C by rows": (
        graph("4,3", "4,5", "y = Gemm<beta=2.0>(x, w, b)"),
        W | {"b": integers(4, 1)},
        (4, 3),
    ),
    "gemm, full C": (graph("4,3", "4,5", "y = Gemm(x, w, b)"), W | {"b": integers(4, 5)}, (4, 3)),
    "gemm, C depends on the input": (
        graph("N,3", "N,5", "s = ReduceSum<keepdims=1>(x, one) y = Gemm<beta=2.0>(x, w, s)"),
        W | {"one": np.array([1])},
        (4, 3),
    ),
    "einsum": (graph("N,T,3", "N,T,5", 'y = Einsum<equation="ntc,co->nto">(x, w)'), W, (2, 4, 3)),
    "einsum, constant first, output transposed": (
        graph("N,T,3", "5,T,N", 'y = Einsum<equation="co,ntc->otn">(w, x)'),
        W,
        (2, 4, 3),
    ),
    "einsum over two axes": (
        graph("N,2,3", "N,5", 'y = Einsum<equation="nhd,hdo->no">(x, w)'),
        {"w": integers(2, 3, 5)},
        (4, 2, 3),
    ),
    "einsum with two outputs": (
        graph("N,T,3", "N,2,T,5", 'y = Einsum<equation="ntc,chd->nhtd">(x, w)'),
        {"w": integers(3, 2, 5)},
        (4, 6, 3),
    ),
    "einsum by heads": (
        graph("N,T,2,3", "N,T,2,5", 'y = Einsum<equation="nthc,hco->ntho">(x, w)'),
        {"w": integers(2, 3, 5)},
        (4, 6, 2, 3),
    ),
    "an ellipsis": (graph("N,T,3", "N,T,5", 'y = Einsum<equation="...c,co->...o">(x, w)'), W, (2, 4, 3)),
    "an ellipsis, no arrow": (graph("N,T,3", "N,T,5", 'y = Einsum<equation="cz,...c">(w, x)'), W, (2, 4, 3)),
    "einsum without an arrow": (graph("N,3", "N,5", 'y = Einsum<equation="nc,co">(x, w)'), W, (4, 3)),
    "fused matmul": (
        graph("N,3,T", "N,T,5", "y = com.microsoft.FusedMatMul<alpha=2.0, transA=1, transB=1>(x, w)"),
        {"w": integers(5, 3)},
        (2, 3, 4),
    ),
    "transposed weight": (
        graph("N,3", "N,5", "t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)"),
        {"w": integers(5, 3)},
        (4, 3),
    ),
    "weight by identity and reshape": (
        graph("N,3", "N,5", "i = Identity(w) t = Reshape(i, s) y = MatMul(x, t)"),
        {"w": integers(15), "s": np.array([3, 5])},
        (4, 3),
    ),
    "weight in a Constant node": (
        graph("N,2", "N,1", "w = Constant<value = float[2,1] {3, -2}>() y = MatMul(x, w)"),
        {},
        (4, 2),
    ),
    "float16 weight cast to float32": (
        graph("N,3", "N,5", "c = Cast<to=1>(w) y = MatMul(x, c)"),
        {"w": integers(3, 5, dtype=np.float16)},
        (4, 3),
    ),
    "int8 weight by Cast and Mul": (
        graph("N,3", "N,5", "c = Cast<to=1>(w) d = Mul(c, s) y = MatMul(x, d)"),
        {"w": integers(3, 5, dtype=np.int8), "s": np.float32([1, 2, 4, 8, 0.5])},
        (4, 3),
    ),
    "int8 weight by DequantizeLinear": (
        graph("N,3", "N,5", "d = DequantizeLinear<axis=1>(w, s, z) y = MatMul(x, d)"),
        {
            "w": integers(3, 5, dtype=np.int8),
            "s": np.float32([1, 2, 4, 8, 0.5]),
            "z": np.int8([0, 1, -1, 2, 0]),
        },
        (4, 3),
    ),
    "int8 weight with one scale": (
        graph("N,3", "N,5", "d = DequantizeLinear(w, s) y = MatMul(x, d)"),
        {"w": integers(3, 5, dtype=np.int8), "s": np.float32(2)},
        (4, 3),
    ),
    "scales of the input channels": (
        graph("N,3", "N,5", "d = DequantizeLinear<axis=0>(w, s) y = MatMul(x, d)"),
        {"w": integers(3, 5, dtype=np.int8), "s": np.float32([1, 2, 4])},
        (4, 3),
    ),
    "gemm without C, beta 0, and a bias after": (
        graph("N,3", "N,5", "z = Gemm<beta=0.0>(x, w) y = Add(b, z)"),
        W | {"b": integers(5)},
        (4, 3),
    ),
    "einsum with the outputs first": (
        graph("N,3", "5,N", 'y = Einsum<equation="nc,co->on">(x, w)'),
        W,
        (4, 3),
    ),
    "flattened map, outputs first": (
        graph("N,2,3,4", "5,N", 'f = Flatten(x) y = Einsum<equation="nc,co->on">(f, w)'),
        {"w": integers(24, 5)},
        (2, 2, 3, 4),
    ),
    "a bias that is computed further down": (
        graph("N,3", "N,5", "z = MatMul(x, w) i = Cast<to=1>(h) k = Mul(i, i) y = Add(k, z)"),
        W | {"h": integers(5, dtype=np.float16)},
        (4, 3),
    ),
    "a weight of one number by Cast and Mul": (
        graph("N,4,1", "N,4,1", "c = Cast<to=1>(w) d = Mul(c, s) y = MatMul(x, d)"),
        {"w": integers(1, 1, dtype=np.int8), "s": np.float32([2])},
        (2, 4, 1),
    ),
    "flattened map": (
        graph("N,2,3,4", "N,5", "f = Flatten(x) y = Gemm<transB=1>(f, w, b)"),
        {"w": integers(5, 24), "b": integers(5)},
        (2, 2, 3, 4),
    ),
    "flattened map, channels last": (
        graph("N,2,3,4", "N,5", "t = Transpose<perm=[0,2,3,1]>(x) f = Reshape(t, s) y = MatMul(f, w)"),
        {"w": integers(24, 5), "s": np.array([-1, 24])},
        (2, 2, 3, 4),
    ),
    "flattened map, zero and minus one": (
        graph("N,2,3,4", "N,5", "f = Reshape(x, s) y = MatMul(f, w)"),
        {"w": integers(24, 5), "s": np.array([0, -1])},
        (2, 2, 3, 4),
    ),
    "flattened map, computed shape": (
        graph(
            "N,2,3,4",
            "N,5",
            "s = Shape(x) n = Gather(s, zero) r = Concat<axis=0>(n, rest) f = Reshape(x, r) y = MatMul(f, w)",
        ),
        {"w": integers(24, 5), "zero": np.array([0]), "rest": np.array([-1])},
        (2, 2, 3, 4),
    ),
    "flattened signal": (
        graph("N,2,7", "N,5", "f = Flatten(x) y = MatMul(f, w)"),
        {"w": integers(14, 5)},
        (3, 2, 7),
    ),
    "flattened volume": (
        graph("N,2,3,2,4", "N,5", "f = Flatten(x) y = MatMul(f, w)"),
        {"w": integers(48, 5)},
        (3, 2, 3, 2, 4),
    ),
    "pooled map": (
        graph("N,3,4,6", "N,5", "p = ReduceSum<keepdims=1>(x, a) f = Flatten(p) y = MatMul(f, w)"),
        W | {"a": np.array([2, 3])},
        (2, 3, 4, 6),
    ),
    "flattened int8 weight": (
        graph("N,2,3,4", "N,5", "f = Flatten(x) d = DequantizeLinear<axis=0>(w, s) y = Gemm<transB=1>(f, d)"),
        {"w": integers(5, 24, dtype=np.int8), "s": np.float32([1, 2, 4, 8, 0.5])},
        (2, 2, 3, 4),
    ),
    "opset 11": (graph("N,T,3", "N,T,5", "y = MatMul(x, w)"), W, (2, 4, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_integers(name: str) -> None:
    text, weights, shape = CASES[name]
    m = model(text, weights, opset=11 if "11" in name else 20)
    before = ir.serde.serialize_model(m).SerializeToString()
    result = convert_model(m, "conv")
    assert not result.refused
    assert len(result.changes) == 1
    assert ir.serde.serialize_model(m).SerializeToString() == before, "the original was changed"
    names = Counter(operators(result.model))
    assert names["Conv"] == 1
    assert not names.keys() & {"MatMul", "Gemm", "Einsum", "FusedMatMul"}
    onnx.checker.check_model(
        ir.serde.serialize_model(result.model), full_check="FusedMatMul" not in operators(m)
    )
    x = integers(*shape, seed=1)
    if "com.microsoft" in text:
        expected = 2 * np.einsum("nct,oc->nto", x, weights["w"])
    else:
        (expected,) = run(m, {"x": x})
    (found,) = run(result.model, {"x": x})
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_bias_goes_into_the_convolution_and_another_addend_does_not() -> None:
    for name, adds in {"bias after": 0, "gemm": 0, "an addend that is no bias": 1, "gemm, full C": 1}.items():
        text, weights, _ = CASES[name]
        assert operators(convert_model(model(text, weights)).model).count("Add") == adds, name


def test_a_flattened_map_becomes_the_kernel_in_the_order_of_the_graph() -> None:
    for name, kernel in {
        "flattened map": [3, 4], "flattened map, channels last": [3, 4], "flattened signal": [7],
        "flattened volume": [3, 2, 4], "pooled map": [1, 1], "matmul of rank 2": [1, 1],
    }.items():  # fmt: skip
        text, weights, _ = CASES[name]
        converted = convert_model(model(text, weights)).model
        (node,) = [n for n in converted.graph if n.op_type == "Conv"]
        assert list(node.attributes.get_ints("kernel_shape") or []) == kernel, name
        assert not {"Flatten", "Transpose"} & set(operators(converted)), name


def test_a_quantised_weight_stays_quantised() -> None:
    for name in ("int8 weight by Cast and Mul", "int8 weight by DequantizeLinear", "flattened int8 weight"):
        text, weights, _ = CASES[name]
        converted = convert_model(model(text, weights)).model
        large = [
            v
            for v in converted.graph.initializers.values()
            if v.const_value is not None and v.const_value.size >= 15
        ]
        assert [v.dtype for v in large] == [ir.DataType.INT8], name


def test_a_weight_of_many_products_stays_one() -> None:
    text = """g (float[N,T,4] x) => (float[N,T,4] y) {
        a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) y = MatMul(d, w) }"""
    result = convert_model(model(text, {"w": integers(4, 4)}))
    assert len(result.changes) == 3
    weights = [v for v in result.model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert len(weights) == 1
    x = integers(2, 3, 4, seed=2)
    np.testing.assert_array_equal(
        run(result.model, {"x": x})[0], run(model(text, {"w": integers(4, 4)}), {"x": x})[0]
    )


def test_a_weight_that_something_else_reads_is_kept() -> None:
    text = "g (float[N,3] x) => (float[N,5] y, float[3,5] k) { y = MatMul(x, w) k = Relu(w) }"
    result = convert_model(model(text, W))
    assert "w" in result.model.graph.initializers
    x = integers(2, 3, seed=3)
    for found, expected in zip(run(result.model, {"x": x}), run(model(text, W), {"x": x}), strict=True):
        np.testing.assert_array_equal(found, expected)


REFUSED = {
    "g (float[N,3] x, float[3,5] v) => (float[N,5] y) { y = MatMul(x, v) }": None,
    "g (int32[N,3] x) => (int32[N,5] y) { y = MatMul(x, i) }": "int32",
    "g (float[N,3] x) => (float[N,5] y, float[3,3] z) { y = MatMul(x, w) z = MatMul(u, u) }": "both operands",
    "g (float[N,B,T,3] x) => (float[N,B,T,5] y) { y = MatMul(x, q) }": "of unknown size",
    'g (float[N,3] x) => (float[N] y) { y = Einsum<equation="nc,co->n">(x, w) }': "sums over an axis",
    'g (float[N,3] x) => (float[N,5] y) { y = Einsum<equation="...c,...co->...o">(x, w) }': "an ellipsis in both",
    "g (float[N,0] x) => (float[N,3] y) { y = MatMul(x, e) }": "its weight has shape (0, 3): nothing to multiply",
}  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_what_is_refused_has_a_reason(text: str, reason: str | None) -> None:
    weights = W | {"i": integers(3, 5, dtype=np.int32), "u": integers(3, 3), "q": integers(2, 3, 5)}
    weights["e"] = np.zeros((0, 3), np.float32)
    used = {name: array for name, array in weights.items() if f"{name})" in text or f"({name}," in text}
    result = convert_model(model(text, used))
    assert [reason in r.reason for r in result.refused] == ([True] if reason else [])
    assert len(result.changes) == (1 if "(u" in text else 0)


def test_an_initializer_that_a_caller_may_replace_is_refused_by_name() -> None:
    m = model("g (float[N,3] x, float[3,5] w) => (float[N,5] y) { y = MatMul(x, w) }", W)
    result = convert_model(m)
    assert not result.changes
    assert "'w' is also an input" in result.refused[0].reason
    frozen = convert_model(m, freeze_initialisers=True)
    assert len(frozen.changes) == 1
    assert [value.name for value in frozen.model.graph.inputs] == ["x"]
    x = integers(4, 3, seed=6)
    np.testing.assert_array_equal(run(frozen.model, {"x": x})[0], x @ W["w"])


def test_a_weight_that_another_operator_computes() -> None:
    text = graph("N,4", "N,3", "w = Concat<axis=0>(a, b) y = MatMul(x, w)")
    m = model(text, {"a": integers(1, 3), "b": integers(3, 3)})
    result = convert_model(m)
    assert len(result.changes) == 1
    x = integers(2, 4, seed=7)
    np.testing.assert_array_equal(run(result.model, {"x": x})[0], run(m, {"x": x})[0])


def test_products_in_subgraphs_are_converted() -> None:
    text = """g (float[N,3] x, bool c) => (float[N,5] y) {
        y = If (c) <
            then_branch = t () => (float[N,5] a) { a = MatMul(x, w) },
            else_branch = e () => (float[N,5] b) {
                k = Constant<value = float[3] {1, -2, 3}>() s = Mul(x, k) b = MatMul(s, w) }
        > }"""
    m = model(text, W)
    result = convert_model(m)
    assert len(result.changes) == 2
    assert all("branch" in change.path for change in result.changes)
    x = integers(2, 3, seed=4)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        np.testing.assert_array_equal(run(result.model, feeds)[0], run(m, feeds)[0])


def test_names_of_inputs_and_outputs_stay() -> None:
    text, weights, _ = CASES["gemm"]
    m = model(text, weights)
    m.metadata_props["author"] = "someone"
    converted = convert_model(m).model
    assert [v.name for v in converted.graph.outputs] == ["y"]
    assert [v.name for v in converted.graph.inputs] == ["x"]
    assert converted.metadata_props["author"] == "someone"
    assert [str(size) for size in converted.graph.inputs[0].shape or ()] == ["N", "3"]
