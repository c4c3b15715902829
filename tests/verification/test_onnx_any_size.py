"""`verify` of any-size ONNX models: every window against the crop through the original file, and injected faults."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import onebyone
from onebyone.errors import BadInput
from onebyone.onnx.evaluators import run_reference
from onebyone.onnx.lift.dense_file import ConvolutionalizedOnnx
from onebyone.records import LEAST_AGREEMENT
from onebyone.verification import onnx_any_size
from onebyone.verification.onnx_any_size import verify_onnx_any_size
from onebyone.verification.onnx_network import CallableOnnx, in_double
from onebyone.verification.onnx_running_error import AnalysedOnnx, OnnxRunningError
from onebyone.verification.result import Verification, WeightCheck
from tests.onnx.lift_networks import random_network
from tests.onnx.models import model as parsed


def lenet(opset: int = 17, pad: int = 0, probabilities: bool = True) -> onnx.ModelProto:
    """A small classifier of 20×16 pixels, written by hand, with real numbers."""
    rng = np.random.default_rng(0)
    arrays = {
        "k1": rng.standard_normal((4, 2, 3, 3)), "b1": rng.standard_normal(4), "k2": rng.standard_normal((5, 4, 3, 3)),
        "w1": rng.standard_normal((6, 5 * 3 * 2)), "b2": rng.standard_normal(6), "w2": rng.standard_normal((6, 3)),
        "b3": rng.standard_normal(3), "mean": rng.standard_normal(5), "var": rng.random(5) + 0.5,
        "scale": rng.standard_normal(5), "shift": rng.standard_normal(5),
    }  # fmt: skip
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "k1", "b1"], ["a"], "first", pads=[pad] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], **pool),
        helper.make_node("Conv", ["c", "k2"], ["d"], "second"),
        helper.make_node("BatchNormalization", ["d", "scale", "shift", "mean", "var"], ["e"]),
        helper.make_node("AveragePool", ["e"], ["f"], **pool),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w1", "b2"], ["h"], "hidden", transB=1),
        helper.make_node("Tanh", ["h"], ["i"]),
        helper.make_node("MatMul", ["i", "w2"], ["j"], "head"),
        helper.make_node("Add", ["j", "b3"], ["logits"]),
    ]
    if probabilities:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"]))
    constants = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(
        nodes,
        "lenet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2, 20, 16])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["n", 3])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [11, 13, 18, 22])
def test_an_exact_model_equals_its_crops_within_the_derived_bound(opset: int) -> None:
    model = lenet(opset)
    d = onebyone.convolutionalize(model)
    v = onebyone.verify(model, d, np.random.default_rng(1).standard_normal((1, 2, 31, 30)).astype("f"))
    assert v.equivalent, v
    assert v.target == "dense = crops"
    assert v.dense is not None
    assert v.dense.windows == 3 * 4
    assert v.dense.bound_ratio is not None
    assert v.dense.bound_ratio <= 1
    assert v.dense.bound_missing == ""
    # the float64 comparison is about nine digits finer, and a shift by one position is far outside of it
    assert v.dense.float64_difference <= v.dense.float64_limit < 1e-9 < v.dense.planted_shift
    assert not v.unverified


def test_a_padded_model_is_measured() -> None:
    model = lenet(pad=1)
    with pytest.raises(onebyone.errors.BadInput, match="window"):
        onebyone.convolutionalize(model, window=(20, 17))
    model.graph.initializer[3].CopyFrom(
        numpy_helper.from_array(np.random.default_rng(2).standard_normal((6, 80)).astype("f"), "w1")
    )
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 22
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 20
    d = onebyone.convolutionalize(model)
    v = onebyone.verify(model, d, min_agreement=0)
    assert not d.geometry.exact
    assert v.equivalent
    assert v.target == "dense ≈ crops (padded)"
    assert v.dense.max_abs_difference > 1e-3


def faulty(d: ConvolutionalizedOnnx, fault: str) -> ConvolutionalizedOnnx:
    """A result with one fault in its model."""
    proto = ir.to_proto(d.model)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in proto.graph.initializer}
    kernel = next(name for name, a in arrays.items() if a.shape == (6, 5, 3, 2))
    one_off = 1 + 1e-3 * (np.arange(180) == 7)
    changed = {
        "rolled kernel": (kernel, np.roll(arrays[kernel], 1, 2)),
        "another order of the flattened features": (kernel, arrays[kernel].reshape(6, -1)[:, ::-1].reshape(6, 5, 3, 2)),
        "a bias that is missing": ("b2", 0 * arrays["b2"]),
        "one weight a thousandth off": (kernel, arrays[kernel] * one_off.reshape(6, 5, 3, 2)),
    }  # fmt: skip
    name, array = changed[fault]
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))
    return ConvolutionalizedOnnx(**{**vars(d), "model": ir.from_proto(proto)})


@pytest.mark.parametrize(
    "fault",
    [
        "rolled kernel", "another order of the flattened features", "a bias that is missing",
        "one weight a thousandth off",
    ],
)  # fmt: skip
def test_an_injected_fault_is_found(fault: str) -> None:
    model = lenet()
    d = onebyone.convolutionalize(model)
    assert not onebyone.verify(model, faulty(d, fault)).equivalent


def test_a_wrong_geometry_is_found() -> None:
    model = lenet()
    d = onebyone.convolutionalize(model)
    data = d.geometry.to_dict() | {"stride": [4, 2]}
    wrong = ConvolutionalizedOnnx(**{**vars(d), "geometry": type(d.geometry).from_dict(data)})
    assert not onebyone.verify(model, wrong).equivalent


def test_the_bounds_of_random_models_hold_around_the_reference() -> None:
    """The analysis computes each value by PyTorch's operators; ONNX's reference must agree within the bound."""
    for seed in range(12):
        graph, window = random_network(seed, pads=seed % 2 == 1)
        model = graph.model()
        network = CallableOnnx(ir.from_proto(model), channels_last=graph.channels_last)
        x = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, graph.input_shape[0], *window)))
        try:
            ((value, bound),) = OnnxRunningError(network)(x)
        except onebyone.verification.error_rules.NoRuleError as reason:
            assert str(reason) in {"Max", "Where", "PRelu", "Less"}  # noqa: PT017 (no other operator lacks a rule)
            continue
        (exact,) = run_reference(in_double(model), {"image": network.own_layout(x.numpy())})
        assert np.all(np.abs(value.numpy() - exact) <= 2 * bound.numpy())
        assert float(bound.max()) < 1e-9


def test_a_fixed_batch_and_channels_last_are_fed_as_the_original_takes_them() -> None:
    for seed in range(40):
        graph, _ = random_network(seed)
        if not graph.channels_last:
            continue
        model = graph.model(batch=1)
        d = onebyone.convolutionalize(model)
        assert d.channels_last
        assert d.batch == 1
        assert onebyone.verify(model, d, max_windows=6).equivalent
        return
    raise AssertionError("no random model has its channels last")


def test_what_the_verification_of_an_any_size_model_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def verify_any_size(*arguments: Any) -> Verification:
        given[:] = arguments
        return Verification(True, "t", max_error=0.5, weights=WeightCheck(1, 2))

    monkeypatch.setattr(onnx_any_size, "verify_any_size", verify_any_size)
    m = parsed("g (float[2,3,4] x) => (float[2,3,4] y) { y = Neg(x) }")
    other = parsed("g (float[N,1,H,W] x) => (float[N,1,H,W] y) { y = Neg(x) }")
    dense: Any = SimpleNamespace(
        model=other,
        channels_last=False,
        bare=True,
        batch=2,
        geometry="g",
        nominal=(3, 4),
        channels=1,
        class_map="c",
    )
    v = verify_onnx_any_size(m, dense)
    assert v == Verification(True, "t", max_error=0.5), "what weights became is not compared"
    original, result, x, seed, gradients, most, least, report = given
    assert isinstance(original, AnalysedOnnx)
    assert (original.model, original.bare, original.channels_last, original.batch) == (m, True, False, 2)
    assert not original.training
    assert isinstance(result.model, AnalysedOnnx)
    assert result.model.model is other
    assert (result.model.bare, result.model.channels_last, result.model.batch) == (False, False, None)
    assert not result.model.training
    assert result.original is original
    assert (result.geometry, result.nominal, result.channels, result.class_map) == ("g", (3, 4), 1, "c")
    assert (result.bare, result.pairs) == (False, ())
    assert result.runnable(m) is m
    assert (x, seed, gradients, most, least) == (None, 0, False, 4096, LEAST_AGREEMENT)
    assert report(1, 2) is None

    def progress(done: int, total: int) -> None:
        raise AssertionError

    last = SimpleNamespace(**{**vars(dense), "bare": False, "channels_last": True})
    image = np.full((2, 1, 3, 4), 0.1)
    settings: Any = {"seed": 3, "max_windows": 9, "min_agreement": 0.25, "progress": progress}
    verify_onnx_any_size(m, last, image, **settings)  # type: ignore[arg-type]
    assert given[0].channels_last
    assert given[2].dtype == torch.float32
    assert torch.equal(given[2], torch.full((2, 1, 3, 4), 0.1))
    assert given[3:] == [3, False, 9, 0.25, progress]


def test_an_any_size_model_that_does_not_load() -> None:
    m = parsed("g (float[N,1,3,4] x) => (float[N,1,3,4] y) { y = local.Unknown(x) }")
    dense: Any = SimpleNamespace(model=m, channels_last=False, bare=False, batch=None)
    with pytest.raises(BadInput, match="model: ONNX Runtime cannot load it"):
        verify_onnx_any_size(m, dense)
