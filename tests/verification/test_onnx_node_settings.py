"""Settings of ONNX nodes in the error analysis: what holds where an attribute is absent, numbers of axes, old opsets.

The checks are those of `test_onnx_running_error`: against ONNX's reference implementation on perturbed inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onebyone.verification.error_rules import RULES, Approx, NoRuleError
from onebyone.verification.onnx_network import CallableOnnx
from onebyone.verification.onnx_running_error import OnnxRunningError, _padding
from tests.onnx.models import model as parsed
from tests.verification.test_onnx_running_error import (
    IMAGE,
    E,
    Node,
    axes,
    bounded,
    check_function,
    check_linear,
    check_several,
    model_of,
    numbers,
)

LINEAR: dict[str, tuple[Node, tuple[int, ...], int]] = {
    "Conv, three axes": (("Conv", {}, [numbers(2, 2, 2, 2, 2)]), (1, 2, 3, 3, 2), 20),
    "Conv, SAME_UPPER without strides": (
        ("Conv", {"auto_pad": "SAME_UPPER", "dilations": [2, 1]}, [numbers(2, 3, 2, 3)]), IMAGE, 20,
    ),
    "Conv, SAME_UPPER without dilations": (
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [numbers(2, 3, 3, 2)]), IMAGE, 20,
    ),
    "Conv, VALID": (("Conv", {"auto_pad": "VALID", "strides": [1, 2]}, [numbers(2, 3, 2, 3)]), IMAGE, 20),
    "AveragePool, one axis": (("AveragePool", {"kernel_shape": [2], "pads": [1, 1]}, []), (2, 3, 5), 20),
    "AveragePool, even pads are counted": (
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}, []), IMAGE, 20,
    ),
    "AveragePool, three axes": (("AveragePool", {"kernel_shape": [2, 1, 2]}, []), (1, 2, 3, 2, 3), 20),
    "AveragePool, SAME_UPPER": (("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, []), IMAGE, 20),
    "GlobalAveragePool, one axis": (("GlobalAveragePool", {}, []), (2, 3, 5), 20),
    "ReduceMean, axes as an attribute": (("ReduceMean", {"axes": [-1, 1]}, []), IMAGE, 13),
    "ReduceSum, an empty operand": (("ReduceSum", {}, [None]), (2, 3, 2), 20),
    "ReduceSum, no axes by default": (("ReduceSum", {}, [axes()]), (2, 3, 2), 20),
    "Reshape, two sizes kept": (("Reshape", {}, [axes(0, 0, -1)]), IMAGE, 20),
    "Pad, an empty number": (("Pad", {}, [axes(0, 1, 0, 0, 0, 2), None]), (2, 3, 2), 20),
    "Pad, no number": (("Pad", {}, [axes(0, 1, 0, 0, 0, 2)]), (2, 3, 2), 20),
    "Pad before opset 11": (("Pad", {"pads": [0, 1, 0, 0, 0, 2], "value": 1.5}, []), (2, 3, 2), 10),
    "Pad before opset 11, no number": (("Pad", {"pads": [0, 1, 0, 0, 0, 2]}, []), (2, 3, 2), 10),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_node(name: str) -> None:
    check_linear(*LINEAR[name])


def test_epsilon_is_a_hundred_thousandth_by_default() -> None:
    """As ONNX states it, in single precision, which is why more digits are not compared."""
    scale, shift, mean, variance = (abs(numbers(3, seed=seed)) for seed in range(4))
    x = numbers(2, 3, 4)
    output = bounded(model_of(("BatchNormalization", {}, [scale, shift, mean, variance]), x.shape), x, abs(x))
    factor = (scale / np.sqrt(variance + 1e-5))[:, None]
    assert np.allclose(
        output.value.numpy(), (x - mean[:, None]) * factor + shift[:, None], rtol=1e-11, atol=1e-11
    )
    assert np.allclose(output.error.numpy(), abs(x) * factor, rtol=1e-11, atol=1e-11)


CLIPS: dict[str, tuple[Node, int]] = {
    "both limits": (("Clip", {"min": -1.0, "max": 0.5}, []), 10),
    "below": (("Clip", {"min": -0.5}, []), 6),
    "above": (("Clip", {"max": 0.5}, []), 10),
    "above, an empty lower limit": (("Clip", {}, [None, np.array(0.5)]), 12),
    "below, an empty upper limit": (("Clip", {}, [np.array(-0.5), None]), 12),
}


@pytest.mark.parametrize("name", CLIPS)
def test_limits_of_a_clip_are_operands_or_before_opset_11_attributes(name: str) -> None:
    node, opset = CLIPS[name]
    check_function(node, 1.01, opset)


SEVERAL: dict[str, tuple[Node, float, int, tuple[int, ...]]] = {
    "MaxPool, one axis": (("MaxPool", {"kernel_shape": [3], "strides": [2]}, []), 1.01, 20, (2, 3, 7)),
    "MaxPool, three axes": (("MaxPool", {"kernel_shape": [2, 1, 2]}, []), 1.01, 20, (1, 2, 3, 2, 3)),
    "MaxPool, ceil_mode": (
        ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}, []), 1.01, 20, IMAGE,
    ),
    "MaxPool, SAME_LOWER": (
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [1, 1], "auto_pad": "SAME_LOWER"}, []), 1.01, 20, IMAGE,
    ),
    "GlobalMaxPool, one axis": (("GlobalMaxPool", {}, []), 1.01, 20, (2, 3, 5)),
    "Softmax, opset 13": (("Softmax", {}, []), 8, 13, IMAGE),
    "LogSoftmax, opset 13": (("LogSoftmax", {}, []), 2.1, 13, IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_a_function_of_several_values(name: str) -> None:
    check_several(*SEVERAL[name])


PADDINGS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]] = {
    # attributes, sizes, kernel, padding before and after each axis, by hand
    "none": ({}, (5, 4), (2, 2), [(0, 0), (0, 0)]),
    "stated": ({"pads": [0, 1, 2, 3]}, (5, 4), (2, 2), [(0, 2), (1, 3)]),
    "not set": ({"auto_pad": "NOTSET", "pads": [4, 5]}, (5,), (2,), [(4, 5)]),
    "VALID": ({"auto_pad": "VALID"}, (5, 4), (2, 2), [(0, 0), (0, 0)]),
    "an even sum": ({"auto_pad": "SAME_UPPER", "strides": [2]}, (5,), (3,), [(1, 1)]),
    "more after": ({"auto_pad": "SAME_UPPER", "strides": [2]}, (6,), (3,), [(0, 1)]),
    "more before": ({"auto_pad": "SAME_LOWER", "strides": [2]}, (6,), (3,), [(1, 0)]),
    "three, more after": ({"auto_pad": "SAME_UPPER"}, (6,), (4,), [(1, 2)]),
    "three, more before": ({"auto_pad": "SAME_LOWER"}, (6,), (4,), [(2, 1)]),
    "dilated": ({"auto_pad": "SAME_UPPER", "dilations": [2, 3]}, (5, 9), (3, 2), [(2, 2), (1, 2)]),
    "strides beyond the kernel": ({"auto_pad": "SAME_UPPER", "strides": [3]}, (6,), (2,), [(0, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", PADDINGS)
def test_padding(name: str) -> None:
    settings, sizes, kernel, expected = PADDINGS[name]
    assert _padding(ir.node("Conv", [], settings), sizes, kernel) == expected


def test_a_shape_without_start_and_end_is_the_whole_shape() -> None:
    text = "g (double[2,3,4] x) => (double[A,B,C] y) { s = Shape(x) r = Neg(x) y = Reshape(r, s) }"
    x = numbers(2, 3, 4)
    output = bounded(ir.to_proto(parsed(text)), x, abs(x))
    assert np.array_equal(output.value.numpy(), -x)
    assert np.array_equal(output.error.numpy(), abs(x))


@pytest.mark.parametrize("size", [2, 4])
def test_softmax_of_old_models_over_a_middle_axis_of_several_values(size: int) -> None:
    """Before opset 13 it flattens from axis 1 on: no rule where an axis after it has several values."""
    with pytest.raises(NoRuleError, match="Softmax over several axes"):
        bounded(
            model_of(("Softmax", {}, []), (2, 3, size, 1), 11),
            numbers(2, 3, size, 1),
            np.zeros((2, 3, size, 1)),
        )


@pytest.mark.parametrize(("settings", "factor"), [({}, 1), ({"alpha": 1.0}, 1), ({"alpha": 2.0}, 2)])
def test_only_a_factor_other_than_one_adds_a_rounding(settings: dict[str, Any], factor: float) -> None:
    weight, x, e = numbers(3, 2), numbers(4, 3, seed=1), np.full((4, 3), E)
    output = bounded(model_of(("Gemm", settings, [weight]), (4, 3)), x, e)
    of_product = RULES[torch.ops.aten.linear](
        2.0**-53,
        torch.ops.aten.linear.default,
        (Approx(torch.from_numpy(x), torch.from_numpy(e)), torch.from_numpy(weight.T)),
        {},
    ).error
    assert torch.equal(output.error, of_product) is (factor == 1)
    assert bool((output.error >= factor * of_product).all())


def test_a_constant_of_strings_is_no_array() -> None:
    """Whoever reads it: nothing that it decides is known of the image."""
    text = 'g (double[2,3] x) => (double[2,3] y) { s = Constant<value_string: string = "a">() y = Neg(x) }'
    with pytest.raises(NoRuleError, match=r"^Constant: a constant of strings or a sparse one$"):
        bounded(ir.to_proto(parsed(text)), numbers(2, 3), np.zeros((2, 3)))


def test_operators_of_other_domains_have_no_rule() -> None:
    """Whatever their names are."""
    model = model_of(("Relu", {}, []), (2, 3))
    model.graph.node[0].domain = "local"
    with pytest.raises(NoRuleError, match="Relu"):
        bounded(model, numbers(2, 3), np.zeros((2, 3)))


def test_functions_are_inlined_in_a_copy() -> None:
    body = '<domain: "local", opset_import: ["" : 20]> twice (v) => (w) { w = Add(v, v) }'
    m = parsed("g (float[N,3] x) => (float[N,3] y) { h = local.twice(x) y = Neg(h) }", more=body)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    analysis = OnnxRunningError(CallableOnnx(m))
    ((value, bound),) = analysis(x)
    assert torch.equal(value, -2 * x)
    assert bool((bound <= 1e-6).all())
    assert len(m.functions) == 1, "the model itself is not changed"
    assert [node.op_type for node in m.graph] == ["twice", "Neg"]
    assert analysis.opset == 20


def test_the_last_batch_of_several_images_is_filled_up() -> None:
    """Five images through a model of three: two remain, and one is added that is left out again."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Mul", ["a", "c"], ["b"])],
        "two outputs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 2))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (3, 2)) for name in "ab"],
        [numpy_helper.from_array(np.float32(3), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    x = torch.from_numpy(numbers(5, 2)).float()
    network = CallableOnnx(ir.from_proto(model), batch=3)
    (a, _), (b, error) = OnnxRunningError(network)(x)
    assert torch.equal(a, -x)
    assert torch.allclose(b, -3 * x)
    assert error.shape == (5, 2)
    assert float(error.min()) > 0
    first, second = network(x)
    assert torch.equal(first, -x)
    assert second.shape == (5, 2)
