"""ONNX models as callables: layouts, batches and types of their own, and their copies in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onebyone.errors import MissingExtra
from onebyone.verification import onnx_network
from onebyone.verification.onnx_network import CallableOnnx, _rows, in_double
from tests.onnx.models import model

#: Adds ten times the number of the channel, so that layouts cannot be mistaken.
PLAIN = "g (float[N,2,3,4] x) => (float[N,2,3,4] y) { y = Add(x, c) }"
TENS = np.array([10.0, 20.0], np.float32)


def images(count: int) -> torch.Tensor:
    return torch.arange(count * 24.0).reshape(count, 2, 3, 4)


def test_images_are_given_in_the_layout_of_the_model() -> None:
    image = images(2)
    plain = CallableOnnx(model(PLAIN, {"c": TENS[:, None, None]}))
    expected = image + torch.from_numpy(TENS)[:, None, None]
    assert torch.equal(plain(image), expected)  # type: ignore[arg-type]
    last = model("g (float[N,3,4,2] x) => (float[N,3,4,2] y) { y = Add(x, c) }", {"c": TENS})
    moved = CallableOnnx(last, channels_last=True)
    assert torch.equal(moved(image), expected.movedim(1, -1))  # type: ignore[arg-type]
    assert moved.own_layout(image.numpy()).flags.c_contiguous
    bare = CallableOnnx(model("g (float[N,3,4] x) => (float[N,3,4] y) { y = Neg(x) }"), bare=True)
    assert torch.equal(bare(image[:, :1]), -image[:, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_fixed_batch_is_filled_up_and_cut(count: int) -> None:
    text = PLAIN.replace("N", "2")
    network = CallableOnnx(model(text, {"c": TENS[:, None, None]}), batch=2)
    expected = images(count) + torch.from_numpy(TENS)[:, None, None]
    assert torch.equal(network(images(count)), expected)  # type: ignore[arg-type]
    assert torch.equal(network(images(count).double()), expected.double())  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_last_images_are_repeated_until_the_batch_is_full(count: int) -> None:
    """Not more often: the model takes three images and no other number."""
    network = CallableOnnx(model(PLAIN.replace("N", "3"), {"c": TENS[:, None, None]}), batch=3)
    expected = images(count) + torch.from_numpy(TENS)[:, None, None]
    assert torch.equal(network(images(count)), expected)  # type: ignore[arg-type]


def test_outputs_have_the_batch_first() -> None:
    """A model of one sample may drop it."""
    assert _rows(np.arange(6).reshape(2, 3), 2).shape == (2, 3)
    assert _rows(np.arange(6).reshape(2, 3), 1).shape == (1, 6)
    assert _rows(np.arange(6), 2).shape == (2, 3)
    assert _rows(np.array(1.0), 1).shape == (1, 1)
    text = "g (float[1,2,3,4] x) => (float[2] y) { m = ReduceMean<axes=[2,3],keepdims=0>(x) y = Squeeze(m) }"
    network = CallableOnnx(model(text, opset=11), batch=1)
    means = network(images(3))
    assert torch.allclose(means, images(3).mean((2, 3)))  # type: ignore[arg-type]


def test_several_outputs_are_a_tuple() -> None:
    text = "g (float[N,2,3,4] x) => (float[N,2,3,4] y, float[N,2,3,4] z) { y = Neg(x) z = Abs(x) }"
    y, z = CallableOnnx(model(text))(-images(2))
    assert torch.equal(y, images(2))
    assert torch.equal(z, images(2))


def test_images_in_float64_are_computed_in_float64() -> None:
    """And all others in the type of the model."""
    third = np.array([1 / 3], np.float32)
    network = CallableOnnx(
        model("g (float[N,1,1,1] x) => (float[N,1,1,1] y) { y = Mul(x, c) }", {"c": third})
    )
    x = torch.full((1, 1, 1, 1), 1 + 2.0**-40, dtype=torch.float64)
    assert network(x).item() == (1 + 2.0**-40) * float(third[0])  # type: ignore[union-attr]
    assert network(x).dtype == torch.float64  # type: ignore[union-attr]
    assert network(x.float()).dtype == torch.float32  # type: ignore[union-attr]
    assert network(x.float()).item() == float(third[0])  # type: ignore[union-attr]
    for name, dtype in (("double", np.float64), ("float16", np.float16), ("float", np.float32)):
        typed = CallableOnnx(model(f"g ({name}[N,1] x) => ({name}[N,1] y) {{ y = Identity(x) }}"))
        assert typed.dtype == dtype
        assert typed(torch.ones(1, 1)).numpy().dtype == dtype  # type: ignore[union-attr]


def test_copies_are_the_network_itself() -> None:
    network = CallableOnnx(model(PLAIN, {"c": TENS[:, None, None]}))
    assert copy.deepcopy(network) is network
    assert list(network.parameters()) == []


def test_copies_in_float64_reach_branches_and_functions() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    f (float[N,2] x, bool c) => (float16[N,2] y) {
        z = If (c) <
            then_branch = a () => (float[N,2] t) { k = Constant <value = float[1] {0.5}> () t = Add (x, k) },
            else_branch = b () => (float[N,2] e) { e = Identity (x) }
        >
        i = Cast <to = 7> (z)
        h = local.half (i)
        y = Cast <to = 10> (h)
    }
    <domain: "local", opset_import: ["" : 18]>
    half (v) => (w) { l = Constant <value_float = 0.5> () u = Cast <to = 1> (v) w = Mul (u, l) }"""
    original = onnx.parser.parse_model(text)
    original.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2]))
    original.graph.initializer.append(numpy_helper.from_array(np.array([0.1], np.float32), "w1"))
    original.graph.initializer.append(numpy_helper.from_array(np.array([3]), "w2"))
    before = original.SerializeToString()
    wide = in_double(original)
    assert original.SerializeToString() == before
    assert len(wide.graph.value_info) == 0
    types = [v.type.tensor_type.elem_type for v in (*wide.graph.input, *wide.graph.output)]
    assert types == [TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.DOUBLE]
    assert [t.data_type for t in wide.graph.initializer] == [TensorProto.DOUBLE, TensorProto.INT64]
    assert [t.name for t in wide.graph.initializer] == ["w1", "w2"]
    assert numpy_helper.to_array(wide.graph.initializer[0]).tolist() == [float(np.float32(0.1))]
    branches: dict[str, Any] = {a.name: a.g for a in wide.graph.node[0].attribute}
    assert branches["then_branch"].output[0].type.tensor_type.elem_type == TensorProto.DOUBLE
    assert branches["then_branch"].node[0].attribute[0].t.data_type == TensorProto.DOUBLE
    assert [n.attribute[0].i for n in wide.graph.node if n.op_type == "Cast"] == [
        TensorProto.INT64,
        TensorProto.DOUBLE,
    ]
    literal, cast, _ = wide.functions[0].node
    assert literal.attribute[0].t.data_type == TensorProto.DOUBLE
    assert cast.attribute[0].i == TensorProto.DOUBLE


def test_literals_of_several_numbers_are_computed_in_float64() -> None:
    nodes = [
        helper.make_node("Constant", [], ["l"], value_floats=[0.1, 2.0]),
        helper.make_node("Constant", [], ["k"], value_ints=[1, 0]),
        helper.make_node("Softmax", ["x"], ["s"], axis=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 2])], []
    )
    wide = in_double(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    literal, integer, softmax = wide.graph.node
    (attribute,) = literal.attribute
    assert (attribute.name, attribute.t.data_type) == ("value", TensorProto.DOUBLE)
    assert np.array_equal(
        np.frombuffer(attribute.t.raw_data), np.array([0.1, 2], np.float32).astype(np.float64)
    )
    assert list(integer.attribute[0].ints) == [1, 0]
    assert softmax.attribute[0].i == 1, "the number of an axis is not a type"
    assert wide.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE


def test_what_onnx_runtime_is_needed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, purpose: str = "anything") -> Any:
        raise MissingExtra("onnxruntime", "engines", purpose)

    monkeypatch.setattr(onnx_network, "RuntimeSession", missing)
    with pytest.raises(MissingExtra, match="verifying an ONNX model"):
        CallableOnnx(model(PLAIN, {"c": TENS[:, None, None]}))
