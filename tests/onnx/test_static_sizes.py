"""Sizes that a graph computes from an input of fixed size, compared with those found by running the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onebyone.onnx.constant_values import mark_constants, shape_of
from onebyone.onnx.evaluators import run_reference
from onebyone.onnx.layout.convert import convert_with_layout
from onebyone.onnx.static_sizes import fill_static_sizes, fold_static_numbers
from tests.onnx.models import integers, model, operators, run

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


@pytest.mark.parametrize("rows", [4, 6, 8, 9])
def test_sizes_equal_those_of_a_run(rows: int) -> None:
    m = partition("2", str(rows))
    for value in (value for node in m.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = None
    mark_constants(m)
    x = integers(2, rows, 7, 3)
    values = [v for node in m.graph for v in node.outputs if not v.is_graph_output()]
    fill_static_sizes(m)
    watched = m.clone()
    by_name = {v.name: v for node in watched.graph for v in node.outputs}
    watched.graph.outputs.extend(by_name[v.name] for v in values)
    found = run_reference(ir.serde.serialize_model(watched), {"x": x})[1:]
    for value, array in zip(values, found, strict=True):
        assert shape_of(value) == array.shape, value.name


def test_numbers_become_constants_only_where_the_sizes_are_fixed() -> None:
    free, fixed = partition("n", "6"), partition("2", "6")
    for m in (free, fixed):
        mark_constants(m)
        fold_static_numbers(m)
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
