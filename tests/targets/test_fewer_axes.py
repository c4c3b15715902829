"""Runs of tensors with five and more axes are written with four."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onebyone
from onebyone.onnx.constant_values import NotRewritable
from onebyone.onnx.targets.axis_groups import merge_around
from onebyone.onnx.targets.convert import TargetConversion
from tests.onnx.models import Array, graph, integers, model, operators, run


def sizes(values: list[int]) -> Array:
    return np.asarray(values, dtype=np.int64)


def folded(m: ir.Model, feeds: dict[str, Array], *, is_exact: bool = True) -> TargetConversion:
    """Convert for four axes, and compare."""
    conversion = onebyone.convert(m, target="4d")
    assert isinstance(conversion, TargetConversion)
    assert not conversion.left, conversion
    assert onebyone.check(conversion.model, "4d").ok
    assert onebyone.verify(m, conversion, feeds).equivalent
    for expected, actual in zip(run(m, feeds), run(conversion.model, feeds), strict=True):
        assert expected.shape == actual.shape
        assert np.array_equal(expected, actual) if is_exact else np.abs(expected - actual).max() < 2e-6
    return conversion


@pytest.mark.parametrize("seed", range(12))
def test_random_transposes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(5, 8))
    shape = [int(s) for s in rng.integers(1, 4, rank)]
    order = [int(axis) for axis in rng.permutation(rank)]
    total = int(np.prod(shape))
    m = model(
        graph(
            f"1,{total}",
            f"{total},1",
            f"a = Reshape(x, s) b = Transpose<perm={order}>(a) c = Relu(b) y = Reshape(c, t)",
        ),
        {"s": sizes(shape), "t": sizes([total, 1])},
    )
    conversion = folded(m, {"x": integers(1, total, seed=seed)})
    before = operators(m).count("Transpose") + operators(m).count("Reshape")
    after = operators(conversion.model).count("Transpose") + operators(conversion.model).count("Reshape")
    # each exchange of blocks, with a Reshape before it, leaves at least one block less, until four are left
    assert after <= before + 2 * max(sum(size > 1 for size in shape) - 4, 0)


def test_attention_with_one_projection() -> None:
    """(1, 6, 3·2·4) → (3, 1, 2, 6, 4) → q, k, v, as timm writes it."""
    nodes = """
        a = Reshape(x, s) b = Transpose<perm=[2,0,3,1,4]>(a)
        q = Gather<axis=0>(b, zero) k = Gather<axis=0>(b, one) v = Gather<axis=0>(b, two)
        t = Transpose<perm=[0,1,3,2]>(k) w = MatMul(q, t) o = MatMul(w, v) y = Transpose<perm=[0,2,1,3]>(o)
    """
    indices = " ".join(
        f"{name} = Constant<value_int={n}>()" for name, n in (("zero", 0), ("one", 1), ("two", -1))
    )
    m = model(graph("1,6,24", "1,6,2,4", indices + nodes), {"s": sizes([1, 6, 3, 2, 4])})
    conversion = folded(m, {"x": integers(1, 6, 24)})
    assert [change.path for change in conversion.changes] == ["q", "k", "v"]


@pytest.mark.parametrize(
    "select",
    [
        "q, k, v = Split<axis=1, num_outputs=3>(a)",
        "q = Gather<axis=-4>(a, zero) k = Gather<axis=1>(a, one) v = Gather<axis=1>(a, two)",
    ],
)
def test_selected_elements_keep_all_other_axes(select: str) -> None:
    """Channels-first attention (B, 3·2·4, 6) → (B, 3, 2, 4, 6) → q, k, v takes one Reshape, not one for each of them.

    The axis of q, k and v is merged with that of the heads, and the scale of q needs no other axes.
    """
    squeeze = "" if "Gather" in select else "q1 = Squeeze(q2, ax) k1 = Squeeze(k, ax) v1 = Squeeze(v, ax)"
    names = ("q2", "k", "v") if "Gather" in select else ("q1", "k1", "v1")
    q, k, v = names
    indices = " ".join(
        f"{name} = Constant<value_int={n}>()" for name, n in (("zero", 0), ("one", 1), ("two", -1))
    )
    nodes = f"""
        {indices} a = Reshape(x, s) {select} q2 = Mul(q, h) {squeeze}
        t = Transpose<perm=[0,1,3,2]>({q}) w = MatMul(t, {k}) y = MatMul({v}, w)
    """
    constants = {"s": sizes([5, 3, 2, 4, 6]), "h": np.asarray([2], np.float32), "ax": sizes([1])}
    m = model(graph("5,24,6", "5,2,4,6", nodes), constants)
    conversion = folded(m, {"x": integers(5, 24, 6)})
    assert operators(conversion.model).count("Reshape") == 1, operators(conversion.model)


def test_splits_slices_and_joins() -> None:
    nodes = """
        a = Reshape(x, s) b, c = Split<axis=2, num_outputs=2>(a) d = Concat<axis=3>(c, b)
        e = Slice(d, start, end, axis) f = Squeeze(e, drop) y = Reshape(f, t)
    """
    constants = {
        "s": sizes([2, 2, 4, 3, 2]), "start": sizes([1]), "end": sizes([2]), "axis": sizes([1]), "drop": sizes([1]),
        "t": sizes([2, 24]),
    }  # fmt: skip
    folded(model(graph("2,48", "2,24", nodes), constants), {"x": integers(2, 48)})


def test_several_outputs_of_one_split() -> None:
    nodes = "a = Reshape(x, s) b, c = Split<axis=0, num_outputs=2>(a) y = Reshape(b, t) z = Reshape(c, t)"
    text = f"g (float[2,24] x) => (float[2,12] y, float[2,12] z) {{ {nodes} }}"
    m = model(text, {"s": sizes([4, 1, 3, 2, 2]), "t": sizes([2, 12])})
    folded(m, {"x": integers(2, 24)})


def test_windows_with_a_mask_and_a_softmax() -> None:
    """Scores of windows (B, windows, heads, N, N) with a mask (windows, 1, N, N), as Swin adds it."""
    nodes = "a = Reshape(x, s) b = Add(a, m) c = Softmax<axis=-1>(b) d = Mul(c, h) y = Reshape(d, t)"
    constants = {
        "s": sizes([2, 3, 4, 5, 5]),
        "m": integers(3, 1, 5, 5),
        "h": integers(1),
        "t": sizes([24, 5, 5]),
    }
    x = np.random.default_rng(0).standard_normal((24, 25)).astype(np.float32)
    folded(model(graph("24,25", "24,5,5", nodes), constants), {"x": x}, is_exact=False)


def test_products_of_five_axes() -> None:
    nodes = "a = Reshape(x, s) b = Transpose<perm=[0,1,2,4,3]>(a) c = MatMul(a, b) d = MatMul(c, w) y = Reshape(d, t)"
    constants = {"s": sizes([2, 1, 3, 4, 5]), "w": integers(4, 6), "t": sizes([6, 24])}
    folded(model(graph("6,20", "6,24", nodes), constants), {"x": integers(6, 20)})


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            "a = Reshape(x, s) b = CumSum(a, one) y = Reshape(b, t)",
            "CumSum of more than 4 axes has no form of fewer",
        ),
        ("y = Reshape(x, s)", "y is an output of the graph and has 5 axes"),
    ],
)
def test_what_has_no_form_of_fewer_axes(nodes: str, reason: str) -> None:
    shape = "1,2,2,3,2" if nodes.startswith("y") else "24"
    constants = {"s": sizes([1, 2, 2, 3, 2]), "one": np.asarray(1, dtype=np.int64), "t": sizes([24])}
    used = {name: array for name, array in constants.items() if f"{name})" in nodes}
    m = model(graph("24", shape, nodes), used)
    conversion = onebyone.convert(m, target="4d")
    assert not conversion.changes
    assert operators(conversion.model) == operators(m)
    assert all(reason in refusal.reason for refusal in conversion.refused)
    assert len(conversion.refused) == len(list(m.graph))


def test_attention_needs_no_further_layout_operators() -> None:
    """No axis is merged that need not be: each slice of q, k and v has the shape that the products read."""
    nodes = """
        a = Reshape(x, s) b = Transpose<perm=[2,0,3,1,4]>(a) q, k, v = Split<axis=0, num_outputs=3>(b)
        i = Squeeze(q, zero) j = Squeeze(k, zero) l = Squeeze(v, zero) t = Transpose<perm=[0,1,3,2]>(j)
        w = MatMul(i, t) y = MatMul(w, l)
    """
    m = model(graph("1,6,24", "1,2,6,4", nodes), {"s": sizes([1, 6, 3, 2, 4]), "zero": sizes([0])})
    conversion = folded(m, {"x": integers(1, 6, 24)})
    assert conversion.layout_after["Transpose"] == conversion.layout_before["Transpose"] == 2
    assert conversion.layout_after["Reshape"] == conversion.layout_before["Reshape"] == 1


def test_merged_axes_stay_small() -> None:
    assert merge_around((3, 1, 6, 197, 64), 0, 4) == ((3, 6, 197, 64), 0)
    assert merge_around((9, 2, 3, 5, 7, 4), 3, 4) == ((9, 6, 5, 28), 2)
    assert merge_around((9, 2, 3, 5), 0, 2) == ((9, 30), 0)
    with pytest.raises(NotRewritable):
        merge_around((9, 2, 3, 5), 2, 2)


def test_a_shape_that_is_read_of_many_axes() -> None:
    nodes = """
        a = Reshape(x, s) n = Shape<start=1, end=3>(a) b = Transpose<perm=[0,2,1,4,3]>(a) p = ReduceProd<keepdims=1>(n)
        t = Concat<axis=0>(p, rest) y = Reshape(b, t)
    """
    m = model(graph("1,72", "6,12", nodes), {"s": sizes([1, 2, 3, 4, 3]), "rest": sizes([-1])})
    conversion = folded(m, {"x": integers(1, 72)})
    assert "Shape" not in operators(conversion.model)


@pytest.mark.parametrize("pieces", ["split", "gather"])
def test_attention_in_windows_needs_no_further_layout_operators(pieces: str) -> None:
    """(5 windows, 6, 3·2·4) → (3, 5, 2, 6, 4) → q, k, v: each is a part of the merged axis 3·2."""
    select = {
        "split": """c0, c1, c2 = Split<axis=0, num_outputs=3>(b) q = Squeeze(c0, zero) k = Squeeze(c1, zero)
            v = Squeeze(c2, zero)""",
        "gather": "q = Gather<axis=0>(b, none) k = Gather<axis=0>(b, one) v = Gather<axis=0>(b, last)",
    }
    nodes = f"""
        a = Reshape(x, s) b = Transpose<perm=[2,0,3,1,4]>(a)
        {select[pieces]}
        t = Transpose<perm=[0,1,3,2]>(k) w = MatMul(q, t) o = MatMul(w, v) y = Transpose<perm=[0,2,1,3]>(o)
    """
    numbers = {"none": np.array(0), "one": np.array(1), "last": np.array(-1)}
    constants = {"s": sizes([5, 6, 3, 2, 4]), "zero": sizes([0])} | numbers
    m = model(graph("5,6,24", "5,6,2,4", nodes), constants)
    conversion = folded(m, {"x": integers(5, 6, 24)})
    assert conversion.layout_before is not None
    assert conversion.layout_after is not None
    assert conversion.layout_after.total() <= conversion.layout_before.total() == 4


#: A partition into windows whose sizes are computed from the shape of a product upstream, as timm's Swin writes it.
COMPUTED_SIZES = """
    a = MatMul(x, w) c = Relu(a) n = Shape<start=0, end=1>(a)
    s = Concat<axis=0>(n, windows) b = Reshape(c, s) d = Transpose<perm=[0,1,3,2,4,5]>(b)
    t = Concat<axis=0>(n, rows) y = Reshape(d, t)
"""


def windows_of_computed_sizes() -> ir.Model:
    constants = {"w": integers(3, 3), "windows": sizes([2, 2, 2, 2, 3]), "rows": sizes([16, 3])}
    return model(graph("1,4,4,3", "1,16,3", COMPUTED_SIZES), constants)


def test_layers_with_computed_sizes_are_verified_one_by_one() -> None:
    m = windows_of_computed_sizes()
    x = {"x": integers(1, 4, 4, 3)}
    conversion = folded(m, x)
    assert [(layer.data, layer.output) for layer in conversion.layers] == [("c", "y")]
    verification = onebyone.verify(m, conversion, x)
    assert [layer.bitwise for layer in verification.layers] == [True]
    assert verification.unverified == ()


def test_a_wrong_order_of_windows_is_found_in_its_layer() -> None:
    m = windows_of_computed_sizes()
    conversion = onebyone.convert(m, target="4d")
    (transpose,) = (node for node in conversion.model.graph if node.op_type == "Transpose")
    assert transpose.attributes.get_ints("perm") == (0, 2, 1, 3)  # of (2, 2, 2, 6)
    transpose.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])
    verification = onebyone.verify(m, conversion)  # without an example, so that only the layers are compared
    assert not verification.equivalent
    assert verification.first_difference == "y"


def test_views_beside_a_run_merge_with_its_reshapes() -> None:
    """(16, 3) → (1, 4, 4, 3) → windows (4, 2, 2, 3) → (4, 4, 3): the views around the run take no Reshape of their own,
    also where a Shape node reads one of them."""
    nodes = """
        x0 = Relu(x) v = Reshape(x0, image) a = Reshape(v, blocks) b = Transpose<perm=[0,1,3,2,4,5]>(a)
        c = Reshape(b, windows) n = Shape<start=0, end=1>(c) t = Concat<axis=0>(n, rows) y = Reshape(c, t)
    """
    constants = {
        "image": sizes([1, 4, 4, 3]), "blocks": sizes([1, 2, 2, 2, 2, 3]), "windows": sizes([4, 2, 2, 3]),
        "rows": sizes([4, 3]),
    }  # fmt: skip
    conversion = folded(model(graph("16,3", "4,4,3", nodes), constants), {"x": integers(16, 3)})
    assert operators(conversion.model) == ["Relu", "Reshape", "Transpose", "Reshape"]
    assert [(layer.data, layer.output) for layer in conversion.layers] == [("x0", "y")]


def test_a_result_that_nothing_reads_is_removed() -> None:
    nodes = """
        a = Reshape(x, s) b = Transpose<perm=[2,0,3,1,4]>(a) q, k = Split<axis=0, num_outputs=2>(b) y = Squeeze(q, z)
    """
    m = model(graph("5,6,16", "5,2,6,4", nodes), {"s": sizes([5, 6, 2, 2, 4]), "z": sizes([0])})
    conversion = folded(m, {"x": integers(5, 6, 16)})
    assert operators(conversion.model) == ["Reshape", "Transpose", "Slice"]
