"""Layers between values that the converted model stores in other layouts are verified one by one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onebyone
from onebyone.onnx.convert import prepared
from onebyone.onnx.stored_values import SharedValue, SharedValues, StoredValue
from onebyone.onnx.targets.convert import TargetConversion, convert_for_target
from tests.onnx.models import Array, graph, integers, model, run
from tests.onnx.test_layout_records import convolutions_of_four_axes

#: Attention in windows of 2×2 of an image of 4×4 positions with 6 channels and 2 heads, with a product on both sides.
WINDOWS = """
    a = MatMul(x, w) b = Reshape(a, s) c = Transpose<perm=[0,1,3,2,4,5]>(b) d = Reshape(c, t)
    e = MatMul(d, u) f = Reshape(e, heads) g = Transpose<perm=[2,0,3,1,4]>(f)
    q = Gather<axis=0>(g, none) k = Gather<axis=0>(g, one) v = Gather<axis=0>(g, two)
    kt = Transpose<perm=[0,1,3,2]>(k) qk = MatMul(q, kt) p = Softmax<axis=-1>(qk) o = MatMul(p, v)
    r = Transpose<perm=[0,2,1,3]>(o) h = Reshape(r, t) i = MatMul(h, z)
    j = Reshape(i, s) l = Transpose<perm=[0,1,3,2,4,5]>(j) m = Reshape(l, image) y = Add(m, x)
"""


def windows() -> ir.Model:
    shapes = {"s": [1, 2, 2, 2, 2, 6], "t": [4, 4, 6], "heads": [4, 4, 3, 2, 3], "image": [1, 4, 4, 6]}
    constants: dict[str, Array] = {name: np.array(sizes, np.int64) for name, sizes in shapes.items()}
    constants |= {name: np.array(i, np.int64) for i, name in enumerate(["none", "one", "two"])}
    constants |= {name: integers(6, 6, seed=i) / 8 for i, name in enumerate("wz")}
    return model(graph("1,4,4,6", "1,4,4,6", WINDOWS), constants | {"u": integers(6, 18) / 8})


def converted() -> tuple[ir.Model, TargetConversion]:
    m = windows()
    return m, convert_for_target(m, convolutions_of_four_axes())


def test_every_layer_is_verified_by_itself() -> None:
    m, c = converted()
    assert not c.left
    v = onebyone.verify(m, c, integers(1, 4, 4, 6, seed=5))
    assert v.equivalent, v.problems
    assert v.unverified == ()
    assert len(v.layers) == len(c.layers) == 8
    assert all(layer.ok for layer in v.layers)


def _transposes(m: ir.Model) -> list[ir.Node]:
    """Those in the place of transposes of windows."""
    return [node for node in m.graph if node.op_type == "Transpose" and "/axes/" in str(node.name)]


@pytest.mark.parametrize(
    ("index", "path"), list(enumerate(["d/stored/Reshape_2"] * 2 + ["m/stored/Reshape_2"] * 2))
)
def test_a_wrong_transpose_is_found_by_its_layer(index: int, path: str) -> None:
    """Without an example, so that only the layers are compared."""
    m, c = converted()
    transposes = _transposes(c.model)
    assert len(transposes) == 4
    *first, second, last = transposes[index].attributes.get_ints("perm") or ()
    transposes[index].attributes["perm"] = ir.AttrInt64s("perm", [*first, last, second])
    v = onebyone.verify(m, c)
    assert not v.equivalent
    assert [layer.path for layer in v.layers if not layer.ok] == [v.first_difference] == [path]


@pytest.mark.parametrize("name", ["q/stored/q", "v/stored/v"])
def test_a_wrong_slice_is_found_by_its_layer(name: str) -> None:
    m, c = converted()
    node = next(node for node in c.model.graph if node.outputs[0].name == name)
    assert node.op_type == "Slice"
    ends = c.model.graph.initializers["k/stored/k/axes/ends_1"]
    starts = c.model.graph.initializers["k/stored/k/axes/starts_0"]
    node.replace_input_with(1, starts)
    node.replace_input_with(2, ends)
    v = onebyone.verify(m, c)
    assert v.first_difference == name


def test_views_of_a_stored_value_stand_for_it() -> None:
    m = model(graph("2,3", "2,3", "a = Relu(x) y = Neg(a)"))
    nodes = """s = Relu(x) t = Transpose<perm=[1,0]>(s) u = Reshape(t, k) r = Reshape(u, l) n = Neg(r)
        y = Transpose<perm=[1,0]>(n)"""
    shapes = {"k": np.array([3, 1, 2], np.int64), "l": np.array([3, 2], np.int64)}
    c = model(graph("2,3", "2,3", nodes), shapes)
    shared = SharedValues(prepared(m), prepared(c), {"a": (StoredValue("t", (1, 0), (0, 1)),)})
    assert shared.after("s") == shared.before("u") == shared.before("r") == SharedValue("a", "a/in/t")
    assert shared.after("n") == SharedValue("y", "y")
    assert shared.before("n") == SharedValue("n", "n"), "Neg computes something"
    x = {"x": integers(2, 3)}
    cut = shared.model
    assert "a/in/t" in {value.name for node in cut.graph for value in node.outputs}
    np.testing.assert_array_equal(run(cut, x)[0], run(m, x)[0])
