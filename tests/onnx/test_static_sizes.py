"""Sizes that a graph computes from an input of fixed size, compared with those found by running the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.onnx.constant_values import mark_constants, shape_of
from onebyone.onnx.convert import prepared
from onebyone.onnx.evaluators import run_reference
from onebyone.onnx.layout.convert import convert_with_layout
from onebyone.onnx.shapes import infer_shapes
from onebyone.onnx.static_sizes import StaticSizes, fill_shapes
from tests.onnx.exported import NETWORKS, exported
from tests.onnx.models import graph, integers, model, operators, run

#: A window partition as exporters write it: the padding and the numbers of windows are computed from Shape.
PARTITION = """agraph (float[{batch},{rows},7,3] x) => (float[a,b,c,d] y) {{
    shape = Shape(x)
    rows = Gather<axis=0>(shape, one)
    over = Mod(rows, window)
    missing = Sub(window, over)
    padding = Mod(missing, window)
    none = ConstantOfShape<value=int64[1] {{0}}>(length)
    pads = Concat<axis=0>(none, padding, none, none)
    ordered = Gather<axis=0>(pads, order)
    padded = Pad(x, ordered)
    high = Add(rows, padding)
    count = Div(high, window)
    target = Concat<axis=0>(batch, count, window, rest)
    split = Reshape(padded, target)
    moved = Transpose<perm=[0, 1, 3, 2]>(split)
    kept = Relu(moved)
    y = Identity(kept)
}}"""
CONSTANTS = {
    "one": np.array([1]),
    "window": np.array([4]),
    "length": np.array([2]),
    "order": np.array([0, 1, 3, 4, 5, 2, 6, 0]),
    "batch": np.array([-1]),
    "rest": np.array([21]),
}


def partition(batch: str, rows: str) -> ir.Model:
    return model(PARTITION.format(batch=batch, rows=rows), CONSTANTS, opset=17)


def marked(m: ir.Model) -> ir.Model:
    mark_constants(m)
    return m


@pytest.mark.parametrize("rows", [4, 6, 8, 9])
def test_sizes_equal_those_of_a_run(rows: int) -> None:
    m = partition("2", str(rows))
    for value in (value for node in m.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    x = integers(2, rows, 7, 3)
    values = [v for node in m.graph for v in node.outputs if not v.is_graph_output()]
    assert StaticSizes(marked(m)).infer_everything()
    watched = m.clone()
    by_name = {v.name: v for node in watched.graph for v in node.outputs}
    watched.graph.outputs.extend(by_name[v.name] for v in values)
    found = run_reference(ir.serde.serialize_model(watched), {"x": x})[1:]
    for value, array in zip(values, found, strict=True):
        assert shape_of(value) == array.shape, value.name


def test_numbers_become_constants_only_where_the_sizes_are_fixed() -> None:
    free, fixed = partition("n", "6"), partition("2", "6")
    for m in (free, fixed):
        fill_shapes(m).fold()
    pads = [next(node for node in m.graph if node.op_type == "Pad").inputs[1] for m in (free, fixed)]
    assert pads[0] is not None
    assert pads[1] is not None
    assert pads[0].const_value is None
    assert pads[1].const_value is not None
    np.testing.assert_array_equal(pads[1].const_value.numpy(), [0, 0, 0, 0, 0, 2, 0, 0])


def test_a_planned_graph_computes_no_sizes() -> None:
    m = partition("2", "6")
    c = convert_with_layout(m)
    assert not {"Shape", "Gather", "Mod", "Div", "Concat", "ConstantOfShape"} & set(operators(c.model))
    x = integers(2, 6, 7, 3)
    np.testing.assert_array_equal(run(m, {"x": x})[0], run(c.model, {"x": x})[0], strict=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_equal_those_of_the_engines(name: str) -> None:
    """Where the inputs are fixed, the shapes and types of one pass are those on which the engines agree."""
    m, _ = exported(name, "legacy", False)
    for value in (value for node in m.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    alone, by_engines = marked(prepared(m)), m.clone()
    for value in (value for node in alone.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    assert StaticSizes(alone).infer_everything()
    infer_shapes(by_engines)
    expected = {v.name: v for node in by_engines.graph for v in node.outputs}
    compared = 0
    for value in (v for node in alone.graph for v in node.outputs if v.name in expected):
        known = shape_of(expected[value.name])
        if known is not None:
            compared += 1
            assert shape_of(value) == known, value.name
            assert value.dtype == expected[value.name].dtype, value.name
    assert compared


@pytest.mark.parametrize(
    ("nodes", "stated"),
    [
        ("y = Relu(x)", "2,4"),
        ("y = MaxPool<kernel_shape=[2], ceil_mode=1>(x)", "1,2,3"),
        ("a = NonZero(x) y = Cast<to=1>(a)", "3,n"),
    ],
    ids=["the file states another size", "engines differ on it", "known only at run time"],
)
def test_engines_are_asked_where_sizes_are_in_doubt(nodes: str, stated: str) -> None:
    m = marked(model(graph("1,2,5", stated, nodes), {}, opset=17))
    for value in (value for node in m.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    before = [(v.name, v.shape, v.dtype) for node in m.graph for v in node.outputs]
    assert not StaticSizes(m).infer_everything()
    assert [(v.name, v.shape, v.dtype) for node in m.graph for v in node.outputs] == before
