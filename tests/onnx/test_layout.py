"""Whole ONNX graphs with a planned layout: the same numbers, no more layout operators, verified layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onebyone
from onebyone.errors import BadInput
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.layout.convert import convert_with_layout
from onebyone.onnx.shapes import infer_shapes
from tests.onnx.exported import NETWORKS, exported
from tests.onnx.layout_fuzz import GUARDED, MOVES, compare
from tests.onnx.models import graph, integers, model, operators, run

Array = np.ndarray[Any, Any]


def converted(m: ir.Model, feeds: Mapping[str, Array], **options: Any) -> OnnxConversion:
    """A conversion whose outputs equal those of the original bit for bit."""
    c = convert_with_layout(m, forced=True, **options)
    for expected, actual in zip(run(m, feeds), run(c.model, feeds), strict=True):
        np.testing.assert_array_equal(expected, actual, strict=True)
    assert c.layout_before is not None
    assert c.layout_after is not None
    return c


@pytest.mark.parametrize(("exporter", "free"), [("dynamo", True), ("legacy", False)])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks_are_equivalent(name: str, exporter: str, free: bool) -> None:
    m, x = exported(name, exporter, free)
    c = convert_with_layout(m, forced=True)
    v = onebyone.verify(m, c, x.numpy())
    assert v.equivalent, v.problems
    assert not v.unverified
    assert all(check.bitwise for check in v.layers)
    assert len(v.layers) == len(c.changes) > 0


def test_a_reshape_inserts_the_axes_of_the_convolutions_after_it() -> None:
    """The operators between pass on what a convolution reads: an Add, a Concat and a residual need no Unsqueeze."""
    m = model(
        graph(
            "1,3,4,4",
            "1,17,6",
            """k = Conv(x, u) a = Reshape(k, s) b = Transpose<perm=[0,2,1]>(a) c = Concat<axis=1>(t, b) d = Add(c, p)
            e = MatMul(d, v) f = Relu(e) g0 = MatMul(f, w) y = Add(g0, d)""",
        ),
        {
            "u": integers(6, 3, 1, 1), "s": np.asarray([1, 6, 16], np.int64), "t": integers(1, 1, 6, seed=3),
            "p": integers(1, 17, 6, seed=4), "v": integers(6, 9), "w": integers(9, 6),
        },
    )  # fmt: skip
    c = converted(m, {"x": integers(1, 3, 4, 4, seed=2)})
    kinds = operators(c.model)
    assert kinds.count("Unsqueeze") == 0, kinds
    assert kinds.count("Squeeze") == 1, "the output of three axes"
    assert (kinds.count("Transpose"), kinds.count("Reshape")) == (1, 1)


def test_a_run_of_operators_on_tokens_has_no_layout_operator_inside() -> None:
    m = model(
        graph(
            "2,5,4",
            "2,5,3",
            "a = MatMul(x, v) b = Add(a, p) c = Relu(b) d = MatMul(c, w) e = Clip(d) y = Add(e, q)",
        ),
        {"v": integers(4, 6), "p": integers(6), "w": integers(6, 3), "q": integers(2, 5, 3, seed=1)},
    )
    c = converted(m, {"x": integers(2, 5, 4, seed=2)})
    kinds = operators(c.model)
    assert kinds.count("Transpose") == 2
    assert "Reshape" not in kinds
    assert kinds.index("Conv") > kinds.index("Transpose")
    assert [k for k in kinds if k not in ("Squeeze", "Unsqueeze")][-1] == "Transpose"


@pytest.mark.parametrize(
    ("shape", "nodes", "image", "transposes"),
    [
        ("2,3,6", "a = Gemm(x, w) b = Reshape(a, s) y = Transpose<perm = [1, 2, 0]>(b)", [1, 4, 1, 6], 1),
        ("6,5", "a = Gemm(x, w) b = Relu(a) y = Gemm(b, v)", [6, 4, 1, 1], 0),
    ],
    ids=["positions", "batch"],
)
def test_rows_are_positions_where_that_needs_no_further_layout_operator(
    shape: str, nodes: str, image: list[int], transposes: int
) -> None:
    constants = {"w": integers(4, 6), "v": integers(6, 5), "s": np.array([6, 2, 3], np.int64)}
    c = converted(model(graph("6,4", shape, nodes), constants), {"x": integers(6, 4, seed=1)})
    infer_shapes(c.model)
    first = next(node for node in c.model.graph if node.op_type == "Conv")
    assert first.inputs[0] is not None
    assert list(first.inputs[0].shape or ()) == image
    assert operators(c.model).count("Transpose") == transposes


@pytest.mark.parametrize("tokens", ["last", "height", "batch"])
def test_random_graphs_give_the_same_integers(tokens: str) -> None:
    converted_layers = 0
    for seed in range(40):
        problem, conversion = compare(seed, tokens=tokens, forced=True)
        assert problem is None
        assert conversion is not None
        converted_layers += len(conversion.changes)
    assert converted_layers > 20


@pytest.mark.slow
def test_many_random_graphs_give_the_same_integers() -> None:
    problems = [compare(seed, tokens=("last", "height", "batch")[seed % 3])[0] for seed in range(1000, 3000)]
    assert [problem for problem in problems if problem] == []


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 18, 21])
def test_softmax_and_gelu_follow_into_channels_first_form(opset: int) -> None:
    """Softmax of opset 12 and older over the channels, which are then not the last dimension."""
    text = graph(
        "1,5,4",
        "1,5,3",
        "a = MatMul(x, v) b = Softmax<axis=2>(a) c = Erf(b) d = Mul(b, c) y = MatMul(d, w)",
    )
    m = model(text, {"v": integers(4, 6), "w": integers(6, 3)}, opset=opset)
    c = convert_with_layout(m, forced=True)
    assert operators(c.model).count("Conv") == 2
    assert operators(c.model).count("Transpose") == 2
    x = integers(1, 5, 4, seed=2)
    expected, actual = run(m, {"x": x})[0], run(c.model, {"x": x})[0]
    # two sums of 6 terms of at most 4·|w|, and 12 roundings of softmax, erf and product
    np.testing.assert_allclose(actual, expected, rtol=0, atol=6 * 4 * (6 + 12) * np.finfo(np.float32).eps)


def test_a_fault_in_the_layout_is_found() -> None:
    """A Transpose that swaps two axes of equal size is wrong in numbers only, and the whole model shows it."""
    m = model(graph("1,4,4", "1,4,4", "a = MatMul(x, v) y = Relu(a)"), {"v": integers(4, 4)})
    c = convert_with_layout(m, forced=True)
    transpose = next(node for node in c.model.graph if node.op_type == "Transpose")
    identity = ir.node("Identity", [transpose.inputs[0]])
    c.model.graph.insert_before(transpose, [identity])
    transpose.outputs[0].replace_all_uses_with(identity.outputs[0])
    v = onebyone.verify(m, c, integers(1, 4, 4, seed=3))
    assert not v.equivalent


def test_a_weight_of_the_wrong_order_is_found_layer_by_layer() -> None:
    m = model(graph("1,5,4", "1,5,4", "a = MatMul(x, v) y = Relu(a)"), {"v": integers(4, 4)})
    c = convert_with_layout(m, forced=True)
    name = next(name for name in c.entries if name in c.model.graph.initializers)
    source, steps = c.entries[name]
    faulty = replace(c, entries={name: (source, (*steps, ("transpose", (1, 0, 2, 3))))})
    v = onebyone.verify(m, faulty)
    assert not v.equivalent
    assert "integer probe" in v.problems[0]


def test_a_product_is_kept_where_it_would_add_layout_operators() -> None:
    m = model(graph("2,5,4", "2,5,6", "y = MatMul(x, v)"), {"v": integers(4, 6)})
    kept = convert_with_layout(m)
    assert operators(kept.model) == ["MatMul"]
    assert not kept.changes
    assert "more layout operators" in kept.refused[0].reason
    assert len(convert_with_layout(m, forced=True).changes) == 1


def test_products_are_kept_only_as_far_as_needed() -> None:
    """Attention's Transposes pay for the convolutions inside a run; the product behind a sum over all axes does not."""
    nodes = (
        "a = Transpose<perm = [0, 2, 1]>(x) b = MatMul(a, v) c = Relu(b) d = MatMul(c, w)"
        "e = Transpose<perm = [0, 2, 1]>(d) f = Softmax<axis = 2>(e) g = Transpose<perm = [2, 0, 1]>(f)"
        "h = CumSum(g, zero) y = MatMul(h, u)"
    )
    constants = {"v": integers(4, 6), "w": integers(6, 4), "u": integers(4, 3), "zero": np.array(2)}
    c = convert_with_layout(model(graph("2,4,5", "5,2,3", nodes), constants))
    assert c.layout_before is not None
    assert c.layout_after is not None
    assert c.layout_after.total() <= c.layout_before.total() == 3
    assert len(c.changes) >= 2


TURNED = "{b} = Transpose<perm = [0, 2, 1]>({a}) {c} = MatMul({b}, v) {d} = Transpose<perm = [0, 2, 1]>({c})"


@pytest.mark.parametrize("pairs", [0, 1, 3])
def test_a_product_that_adds_layout_operators_is_converted_where_the_plan_saves_as_many(pairs: int) -> None:
    """A product with one matrix for each sample, behind pairs of Transposes that the plan removes."""
    names = ["x", *(f"{letter}{i}" for i in range(pairs) for letter in "bcd")]
    runs = [TURNED.format(**dict(zip("abcd", names[3 * i : 3 * i + 4], strict=True))) for i in range(pairs)]
    m = model(
        graph("2,4,5", "2,4,3", " ".join([*runs, f"y = MatMul({names[-1]}, w)"])),
        {"v": integers(4, 4), "w": integers(2, 5, 3, seed=1)},
    )
    c = convert_with_layout(m)
    assert c.layout_before is not None
    assert c.layout_after is not None
    assert c.layout_after.total() <= c.layout_before.total() == 2 * pairs
    is_converted = any(
        node.op_type == "Conv" and node.attributes.get_int("group", 1) == 2 for node in c.model.graph
    )
    assert is_converted == (pairs == 3)
    assert [refusal.path.endswith("y") for refusal in c.refused] == [True] * (not is_converted)
    x = {"x": integers(2, 4, 5, seed=2)}
    np.testing.assert_array_equal(run(c.model, x)[0], run(m, x)[0], strict=True)


def test_layout_operators_of_subgraphs_leave_the_main_graph_no_room() -> None:
    """What is inside a branch is never saved, so it does not pay for a conversion outside."""
    branches = (
        "then_branch = t () => (float[2,5,4] p) "
        "{ a = Transpose<perm = [0, 2, 1]>(x) p = Transpose<perm = [0, 2, 1]>(a) },"
        "else_branch = e () => (float[2,5,4] q) { q = Neg(x) }"
    )
    nodes = f"c = If<{branches}>(condition) y = MatMul(c, v)"
    m = model(graph("2,5,4", "2,5,6", nodes), {"v": integers(4, 6), "condition": np.array(True)})
    c = convert_with_layout(m)
    assert c.layout_before is not None
    assert c.layout_after is not None
    assert c.layout_after.total() <= c.layout_before.total()


def require_no_more_layout_operators(seed: int, moves: list[Any], to: str, tokens: str) -> None:
    """The conversion of a random graph is right, and has at most as many layout operators as the graph."""
    problem, c = compare(seed, moves, to=to, tokens=tokens)
    assert problem is None
    assert c is not None
    assert c.layout_before is not None
    assert c.layout_after is not None
    assert c.layout_after.total() <= c.layout_before.total()


def conversions_of(moves: list[Any]) -> Any:
    """Random graphs of these operators, and every way to convert them."""
    return given(
        st.integers(0, 2**20),
        st.lists(st.sampled_from(moves), max_size=9),
        st.sampled_from(["conv", "linear"]),
        st.sampled_from(["last", "height", "batch"]),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@conversions_of(GUARDED)
def test_layout_operators_are_never_more_than_before(
    seed: int, moves: list[Any], to: str, tokens: str
) -> None:
    require_no_more_layout_operators(seed, moves, to, tokens)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@conversions_of(MOVES)
def test_layout_operators_are_never_more_with_any_operator(
    seed: int, moves: list[Any], to: str, tokens: str
) -> None:
    require_no_more_layout_operators(seed, moves, to, tokens)


def test_an_unknown_place_of_tokens_is_refused() -> None:
    m = model(graph("2,4", "2,3", "y = MatMul(x, v)"), {"v": integers(4, 3)})
    with pytest.raises(BadInput, match="tokens='middle': expected 'last', 'height' or 'batch'"):
        convert_with_layout(m, tokens="middle")


@pytest.mark.parametrize(
    "bias", [(), (1,), (1, 1), (1, 4), (4,)], ids=["scalar", "one", "one by one", "a row", "vector"]
)
@pytest.mark.parametrize("to", ["conv", "linear"])
def test_a_product_that_keeps_its_form_keeps_its_bias(bias: tuple[int, ...], to: str) -> None:
    """The planner reads a bias as a vector; the original product and the original Add read the constant itself."""
    weights = {"w": integers(3, 4), "b": integers(*bias, seed=1)}
    texts = ["y = Gemm(x, w, b)", "y = Gemm<beta=0.0>(x, w, b)", "a = MatMul(x, w) y = Add(a, b)"]
    for text in texts:
        m = model(graph("2,3", "2,4", text), weights)
        for forced in (True, False):
            c = convert_with_layout(m, to, forced=forced)
            for expected, actual in zip(
                run(m, {"x": integers(2, 3)}), run(c.model, {"x": integers(2, 3)}), strict=True
            ):
                np.testing.assert_array_equal(expected, actual, strict=True)


def test_layers_without_a_kernel_are_named_at_level_graph_too() -> None:
    m = model(
        "g (double[1,5,3] x) => (double[1,5,4] y) { y = MatMul(x, w) }",
        {"w": integers(3, 4, dtype=np.float64)},
    )
    assert "ONNX Runtime has no kernel on CPUs" in convert_with_layout(m, "conv", forced=True).warnings[0]
