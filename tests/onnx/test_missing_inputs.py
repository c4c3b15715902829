"""A converted layer that lacks an input of the original: the original may read the shape of that input only."""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.onnx.convert import prepared
from onebyone.onnx.evaluators import NotRunnable
from onebyone.onnx.layer_models import LayerModel
from onebyone.verification.onnx_outputs import inputs_of, missing_dependence, run64
from tests.onnx.models import Array, integers, model

TEXT = "g (float[2,3] x, float[2,3] v) => (float[2,3] y) {{ {} }}"


def layer(nodes: str, *, fixed_shapes: bool = False) -> LayerModel:
    return LayerModel(prepared(model(TEXT.format(nodes))), "x", "y", fixed_shapes=fixed_shapes)


def dependence(nodes: str, v: Array) -> str:
    """Compare with a converted form that gives `x`; both agree on `v`, and `v` is -9 in the second draw."""
    before, after = layer(nodes), layer("y = Identity(x)")
    feeds = {"x": integers(2, 3).astype(np.float64), "v": v}
    expected = run64(before, {}, feeds)
    assert np.array_equal(expected, run64(after, {}, feeds))
    return missing_dependence(before, after, {}, feeds, {"v": np.full((2, 3), -9.0)}, expected)


def test_the_numbers_of_a_missing_input() -> None:
    v = np.full((2, 3), 9.0)
    assert dependence("y = Min(x, v)", v) == "it depends on v, which the converted form does not read"
    assert dependence("w = Neg(v) s = Shape(w) y = Reshape(x, s)", v) == ""


def test_known_shapes_of_other_tensors_are_constants() -> None:
    nodes = "w = Neg(v) s = Shape<start=-2>(w) y = Reshape(x, s)"
    assert layer(nodes).inputs == ("x", "v")
    cut = layer(nodes, fixed_shapes=True)
    assert cut.inputs == ("x",)
    assert [node.op_type for node in cut.nodes] == ["Reshape"]
    assert cut.constants["s"].numpy().tolist() == [2, 3]
    of_data = layer("w = Neg(x) s = Shape(w) y = Reshape(v, s)", fixed_shapes=True)
    assert [node.op_type for node in of_data.nodes] == ["Neg", "Shape", "Reshape"]


def test_an_input_that_only_one_form_reads() -> None:
    with pytest.raises(NotRunnable, match="it reads 'v', and its other form does not"):
        inputs_of(layer("y = Add(x, v)"), {"x": integers(2, 3)})
