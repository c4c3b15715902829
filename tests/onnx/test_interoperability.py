"""Converted models in other tools: ONNX's checker, ONNX Runtime, OpenVINO, and the simplifiers onnxsim and onnxslim.

The limit is 64 times the error that ONNX Runtime itself shows on the original: the difference between its optimised and
its plain run, or half a unit in the last place of the largest value. Other orders of sums stay within it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onebyone.onnx.convert import convert_model
from onebyone.onnx.evaluators import proto_of, run_onnx_runtime
from tests.onnx.exported import exported
from tests.onnx.models import graph, integers
from tests.onnx.models import model as small_model

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

#: Convolutions that are matrix products: the sizes of input and output, the nodes, and the shape of the weight.
CONVOLUTIONS: dict[str, tuple[str, str, str, tuple[int, ...]]] = {
    "Conv1d": ("2,4,7", "2,6,7", "y = Conv(x, w, b)", (6, 4, 1)),
    "Conv2d": ("2,4,5,6", "2,6,5,6", "c = Conv(x, w, b) y = Relu(c)", (6, 4, 1, 1)),
    "Conv3d": ("2,4,3,5,6", "2,6,3,5,6", "y = Conv(x, w, b)", (6, 4, 1, 1, 1)),
    "groups": ("2,4,5,6", "2,6,5,6", "y = Conv<group=2>(x, w, b)", (6, 2, 1, 1)),
    "strides": ("2,4,5,6", "2,6,3,2", "y = Conv<strides=[2,3]>(x, w, b)", (6, 4, 1, 1)),
    "full extent": ("2,4,5,6", "2,6,1,1", "y = Conv(x, w, b)", (6, 4, 5, 6)),
    "quantised": (
        "2,4,5,6",
        "2,6,5,6",
        "u = QuantizeLinear(x, s, z) c = ConvInteger(u, q, z) y = Cast<to=1>(c)",
        (6, 4, 1, 1),
    ),
}
CASES = [
    ("Classifier", "conv"),
    ("ChannelsLast", "conv"),
    ("Encoder", "conv"),
    ("Mixer", "conv"),
    ("Recurrent", "conv"),
    ("Bottleneck", "conv"),
    ("Bottleneck", "linear"),
    *((name, "linear") for name in CONVOLUTIONS),
]


def in_openvino(proto: onnx.ModelProto, feeds: Feeds) -> list[Array]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return [np.asarray(value) for value in compiled(feeds).values()]


def by_onnxsim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(proto)[0]


def by_onnxslim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(proto)


SIMPLIFIERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxsim": by_onnxsim,
    "onnxslim": by_onnxslim,
}


TOOLS: dict[str, Callable[[onnx.ModelProto, Feeds], list[Array]]] = {
    "onnxruntime": run_onnx_runtime,
    "openvino": in_openvino,
    "onnxsim": lambda proto, feeds: run_onnx_runtime(by_onnxsim(proto), feeds),
    "onnxslim": lambda proto, feeds: run_onnx_runtime(by_onnxslim(proto), feeds),
}


def allowed(original: onnx.ModelProto, feeds: Feeds, y: Array) -> float:
    plain = run_onnx_runtime(original, feeds, optimised=False)[0]
    own = max(float(np.abs(plain - y).max()), 2.0**-24 * float(np.abs(y).max()))
    return 64 * own


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} to {case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, onnx.ModelProto, Feeds]:
    """The original, the converted model, and an input."""
    name, to = request.param
    if name in CONVOLUTIONS:
        return convolution(name)
    model, x = exported(name, "torchscript", free_batch=name in ("Classifier", "Encoder"))
    conversion = convert_model(model, to)
    assert conversion.changes
    feeds = {str(model.graph.inputs[0].name): x.numpy()}
    return ir.serde.serialize_model(model), proto_of(conversion.model), feeds


def convolution(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, Feeds]:
    """One of `CONVOLUTIONS`, converted to linear layers."""
    x, y, nodes, shape = CONVOLUTIONS[name]
    weights: dict[str, Any] = {"w": integers(*shape), "b": integers(shape[0])}
    if name == "quantised":
        weights = {"q": integers(*shape, dtype=np.int8), "s": np.float32(1), "z": np.uint8(8)}
    model = small_model(graph(x, y, nodes), weights)
    conversion = convert_model(model, "linear")
    assert (len(conversion.changes), len(conversion.refused)) == (1, 0)
    feeds = {"x": integers(*map(int, x.split(",")))}
    return ir.serde.serialize_model(model), proto_of(conversion.model), feeds


@pytest.mark.parametrize("tool", TOOLS)
def test_the_meaning_is_kept(case: tuple[onnx.ModelProto, onnx.ModelProto, Feeds], tool: str) -> None:
    original, converted, feeds = case
    expected = run_onnx_runtime(original, feeds)[0]
    (found,) = TOOLS[tool](converted, feeds)
    limit = allowed(original, feeds, expected)
    error = float(np.abs(found - expected).max())
    assert found.shape == expected.shape
    assert error <= limit, f"{tool}: differs by {error:.3g}, limit {limit:.3g}"


def test_the_checker_passes_and_the_interface_is_kept(
    case: tuple[onnx.ModelProto, onnx.ModelProto, Feeds],
) -> None:
    original, converted, _ = case
    onnx.checker.check_model(converted, full_check=True)
    assert list(converted.graph.input) == list(original.graph.input)
    assert [v.name for v in converted.graph.output] == [v.name for v in original.graph.output]
    assert converted.opset_import == original.opset_import


@pytest.mark.parametrize("tool", SIMPLIFIERS)
def test_a_simplified_model_converts_as_well(tool: str) -> None:
    """Simplifiers run before the conversion too: what they write is converted completely."""
    model, x = exported("Classifier", "torchscript")
    proto = ir.serde.serialize_model(model)
    simplified = SIMPLIFIERS[tool](proto)
    conversion = convert_model(ir.serde.deserialize_model(simplified))
    assert (len(conversion.changes), len(conversion.refused)) == (2, 0)
    feeds = {str(model.graph.inputs[0].name): x.numpy()}
    expected = run_onnx_runtime(proto, feeds)[0]
    (found,) = run_onnx_runtime(proto_of(conversion.model), feeds)
    assert float(np.abs(found - expected).max()) <= allowed(proto, feeds, expected)


def test_a_wrong_kernel_is_beyond_the_limit() -> None:
    """The limit of these tests sees a kernel whose rows are exchanged."""
    model, x = exported("Classifier", "torchscript")
    converted = proto_of(convert_model(model).model)
    kernel = next(t for t in converted.graph.initializer if list(t.dims) == [16, 6, 4, 5])
    array = onnx.numpy_helper.to_array(kernel)
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[:, :, ::-1]), kernel.name))
    feeds = {str(model.graph.inputs[0].name): x.numpy()}
    original = ir.serde.serialize_model(model)
    expected = run_onnx_runtime(original, feeds)[0]
    error = float(np.abs(run_onnx_runtime(converted, feeds)[0] - expected).max())
    assert error > 100 * allowed(original, feeds, expected)
