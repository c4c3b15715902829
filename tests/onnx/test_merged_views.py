"""Chains of Reshape, Squeeze and Unsqueeze become one Reshape, with the same elements in the same order."""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.onnx.layout.merged_views import merge_views
from onebyone.onnx.static_sizes import fill_shapes
from tests.onnx.models import graph, integers, model, operators, run

SIZES = {"s": np.array([6, 4], np.int64), "one": np.array([1], np.int64), "two": np.array([2], np.int64)}


@pytest.mark.parametrize(
    ("inputs", "outputs", "nodes", "expected"),
    [
        ("2,3,4", "6,1,4", "a = Reshape(x, s) b = Unsqueeze(a, one) y = Neg(b)", ["Reshape", "Neg"]),
        ("2,1,3,4", "6,4", "a = Squeeze(x, one) b = Reshape(a, s) y = Neg(b)", ["Reshape", "Neg"]),
        ("2,3,4", "6,1,4", "a = Reshape(x, s) y = Unsqueeze(a, one)", ["Reshape"]),
        ("6,1,4", "6,1,4", "a = Squeeze(x, one) b = Unsqueeze(a, one) y = Neg(b)", ["Neg"]),
        ("6,1,4", "6,1,4", "a = Reshape(x, s) b = Unsqueeze(a, one) y = Neg(b)", ["Neg"]),
        ("6,1,4", "6,4,1", "a = Squeeze(x, one) y = Unsqueeze(a, two)", ["Squeeze", "Unsqueeze"]),
        ("6,1,4", "6,1,4", "a = Squeeze(x, one) y = Unsqueeze(a, one)", ["Squeeze", "Unsqueeze"]),
        ("6,4", "6,4", "a = Reshape(x, s) y = Neg(a)", ["Neg"]),
        ("n,3,4", "6,1,4", "a = Reshape(x, s) b = Unsqueeze(a, one) y = Neg(b)", ["Reshape", "Neg"]),
        ("n,1,3", "n,1,3", "a = Squeeze(x, one) y = Unsqueeze(a, one)", ["Squeeze", "Unsqueeze"]),
    ],
    ids=[
        "unsqueeze-after",
        "squeeze-before",
        "output-keeps-its-name",
        "squeeze-and-back",
        "reshape-and-back",
        "no-reshape",
        "output-is-not-an-input",
        "nothing-changes",
        "known-result",
        "unknown-sizes",
    ],
)
def test_chains_become_one_reshape(inputs: str, outputs: str, nodes: str, expected: list[str]) -> None:
    m = model(graph(inputs, outputs, nodes), SIZES)
    shape = [2 if size == "n" else int(size) for size in inputs.split(",")]
    x = integers(*shape)
    before = run(m, {"x": x})[0]
    fill_shapes(m)
    merge_views(m.graph, "new")
    assert operators(m) == expected
    assert m.graph.outputs[0].name == "y"
    np.testing.assert_array_equal(run(m, {"x": x})[0], before, strict=True)


def test_a_view_that_is_read_twice_is_kept() -> None:
    nodes = "a = Reshape(x, s) b = Unsqueeze(a, one) c = Neg(a) d = Unsqueeze(c, one) y = Add(b, d)"
    m = model(graph("2,3,4", "6,1,4", nodes), SIZES)
    fill_shapes(m)
    assert merge_views(m.graph, "new") == {}
    assert operators(m) == ["Reshape", "Unsqueeze", "Neg", "Unsqueeze", "Add"]


def test_replaced_values_are_named_with_what_stands_in_their_place() -> None:
    m = model(graph("2,3,4", "6,1,4", "a = Reshape(x, s) b = Unsqueeze(a, one) y = Neg(b)"), SIZES)
    fill_shapes(m)
    ((old, new),) = merge_views(m.graph, "new").items()
    assert old.name == new.name == "b"
    assert new.producer() is m.graph[0]
