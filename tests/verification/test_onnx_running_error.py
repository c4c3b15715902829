"""Error bounds of single ONNX nodes, against ONNX's reference implementation on perturbed inputs.

Every input is off by up to `e`. For a node that is linear with the matrix M, as the reference gives it from unit
vectors, the bound is |M|·e and a rounding error; for any other node it lies between what the perturbed inputs do to the
outputs and a multiple of that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onebyone.onnx.evaluators import run_reference
from onebyone.verification.error_rules import Approx, NoRuleError
from onebyone.verification.onnx_network import CallableOnnx
from onebyone.verification.onnx_running_error import AnalysedOnnx, OnnxRunningError, _Interpreter

E = 2.0**-10
Node = tuple[str, dict[str, Any], list[np.ndarray | None]]


def numbers(*shape: int, seed: int = 7) -> np.ndarray:
    """Real numbers in float64, none of them near 0."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.25, 2, shape) * rng.choice([-1, 1], shape)


def axes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def model_of(node: Node, shape: tuple[int, ...], opset: int = 20, first: bool = False) -> onnx.ModelProto:
    """A model of one node in float64. Its operands follow the image; `first` puts them before it."""
    op, settings, operands = node
    names = ["" if a is None else f"c{i}" for i, a in enumerate(operands)]
    inputs = [*names, "x"] if first else ["x", *names]
    constants = [numpy_helper.from_array(a, f"c{i}") for i, a in enumerate(operands) if a is not None]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], **settings)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape)],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def bounded(model: onnx.ModelProto, x: np.ndarray, e: np.ndarray) -> Approx:
    """The output and its bound, where the input `x` is off by up to `e`."""
    graph = ir.from_proto(model)
    run = _Interpreter(graph.graph, graph.opset_imports[""], torch.from_numpy(x))
    run.values[graph.graph.inputs[0]] = Approx(torch.from_numpy(x), torch.from_numpy(e))
    (output,) = run.outputs()
    return output


IMAGE = (2, 3, 5, 4)
LINEAR: dict[str, tuple[Node, tuple[int, ...]]] = {
    "Conv": (("Conv", {}, [numbers(4, 3, 3, 2), numbers(4)]), IMAGE),
    "Conv, strides and pads": (
        ("Conv", {"strides": [2, 1], "pads": [0, 1, 2, 0]}, [numbers(4, 3, 3, 2)]),
        IMAGE,
    ),
    "Conv, dilations and groups": (
        ("Conv", {"dilations": [2, 1], "group": 3}, [numbers(6, 1, 2, 2), numbers(6)]),
        IMAGE,
    ),
    "Conv, SAME_UPPER": (
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 3], "dilations": [2, 1]}, [numbers(2, 3, 2, 3)]),
        IMAGE,
    ),
    "Conv, SAME_LOWER": (("Conv", {"auto_pad": "SAME_LOWER"}, [numbers(2, 3, 2, 2)]), IMAGE),
    "Conv, SAME_LOWER, and strides that need less": (
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, [numbers(2, 3, 2, 4)]),
        (2, 3, 6, 5),
    ),
    "Conv, one axis": (("Conv", {"pads": [1, 0]}, [numbers(2, 3, 3)]), (2, 3, 6)),
    "AveragePool": (("AveragePool", {"kernel_shape": [2, 3], "strides": [2, 1]}, []), IMAGE),
    "AveragePool, padded": (("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1]}, []), IMAGE),
    "AveragePool, uneven pads are counted": (
        ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1}, []),
        IMAGE,
    ),
    "Gemm": (("Gemm", {}, [numbers(3, 2), numbers(2)]), (4, 3)),
    "Gemm without a bias": (("Gemm", {}, [numbers(3, 2)]), (4, 3)),
    "Gemm with an empty bias": (("Gemm", {"alpha": 2.0}, [numbers(3, 2), None]), (4, 3)),
    "Gemm, transB, alpha and beta": (
        ("Gemm", {"transB": 1, "alpha": 0.5, "beta": -2.0}, [numbers(2, 3), numbers(2)]),
        (4, 3),
    ),
    "MatMul": (("MatMul", {}, [numbers(3, 2)]), (4, 3)),
    "Add": (("Add", {}, [numbers(3, 1, 1)]), IMAGE),
    "Sub": (("Sub", {}, [numbers(3, 1, 1)]), IMAGE),
    "Mul": (("Mul", {}, [numbers(3, 1, 1)]), IMAGE),
    "Div": (("Div", {}, [numbers(3, 1, 1)]), IMAGE),
    "Neg": (("Neg", {}, []), IMAGE),
    "BatchNormalization": (
        ("BatchNormalization", {"epsilon": 0.25}, [numbers(3), numbers(3, seed=1), numbers(3, seed=2),
         abs(numbers(3, seed=3))]),
        IMAGE,
    ),
    "GlobalAveragePool": (("GlobalAveragePool", {}, []), IMAGE),
    "ReduceMean": (("ReduceMean", {"keepdims": 0}, [axes(-1, 2)]), IMAGE),
    "ReduceMean of all": (("ReduceMean", {}, []), IMAGE),
    "ReduceSum": (("ReduceSum", {}, [axes(1)]), IMAGE),
    "ReduceSum, no axes": (("ReduceSum", {"noop_with_empty_axes": 1}, [axes()]), IMAGE),
    "Clip without limits": (("Clip", {}, []), IMAGE),
    "Identity": (("Identity", {}, []), IMAGE),
    "Dropout": (("Dropout", {}, []), IMAGE),
    "Reshape": (("Reshape", {}, [axes(0, -1, 2)]), IMAGE),
    "Flatten": (("Flatten", {}, []), IMAGE),
    "Flatten, axis 3": (("Flatten", {"axis": 3}, []), IMAGE),
    "Flatten, axis -3": (("Flatten", {"axis": -3}, []), IMAGE),
    "Flatten, axis -1": (("Flatten", {"axis": -1}, []), IMAGE),
    "Flatten, axis 0": (("Flatten", {"axis": 0}, []), IMAGE),
    "Flatten, last": (("Flatten", {"axis": 4}, []), IMAGE),
    "Concat": (("Concat", {"axis": 1}, [numbers(2, 1, 5, 4)]), IMAGE),
    "Concat, last axis": (("Concat", {"axis": -1}, [numbers(2, 3, 5, 1)]), IMAGE),
    "Pad": (("Pad", {}, [axes(0, 0, 1, 2, 0, 0, 0, 3), np.array(1.5)]), IMAGE),
    "Transpose": (("Transpose", {"perm": [3, 0, 2, 1]}, []), IMAGE),
    "Unsqueeze": (("Unsqueeze", {}, [axes(2)]), IMAGE),
    "Squeeze": (("Squeeze", {}, [axes(-1)]), (2, 3, 4, 1)),
    "Slice": (("Slice", {}, [axes(-1, 1), axes(-9, 4), axes(2, 3), axes(-2, 2)]), IMAGE),
    "Gather": (("Gather", {"axis": 1}, [axes(2, 0, -1)]), IMAGE),
    "Expand": (("Expand", {}, [axes(2, 3, 2)]), (3, 1)),
    "Tile": (("Tile", {}, [axes(1, 2, 1)]), (2, 3, 2)),
    "DepthToSpace": (("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, []), (1, 8, 2, 3)),
    "SpaceToDepth": (("SpaceToDepth", {"blocksize": 2}, []), (1, 2, 4, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_node(name: str) -> None:
    check_linear(*LINEAR[name])


def check_linear(node: Node, shape: tuple[int, ...], opset: int = 20) -> None:
    """The output is that of the reference implementation, and the bound |M|·e and a rounding error."""
    model, x = model_of(node, shape, opset), numbers(*shape, seed=1)
    e = E * np.random.default_rng(2).uniform(0.5, 1, shape)
    output = bounded(model, x, e)
    (expected,) = run_reference(model, {"x": x})
    assert output.value.shape == output.error.shape == expected.shape
    assert np.allclose(output.value.numpy(), expected, rtol=1e-13, atol=1e-13)
    (zero,) = run_reference(model, {"x": np.zeros(shape)})
    moved = np.zeros(expected.shape)
    for place in np.ndindex(*shape):
        unit = np.zeros(shape)
        unit[place] = 1
        moved += abs(run_reference(model, {"x": unit})[0] - zero) * e[place]
    assert np.allclose(output.error.numpy(), moved, rtol=1e-9, atol=1e-12)
    assert float(bounded(model, x, np.zeros(shape)).error.max()) < 1e-13  # of rounding alone


ELEMENTWISE: dict[str, tuple[Node, float, int]] = {
    # node, the most that its slope exceeds those at the given inputs by, opset
    "Relu": (("Relu", {}, []), 1.01, 20),
    "Abs": (("Abs", {}, []), 1.01, 20),
    "Sigmoid": (("Sigmoid", {}, []), 4, 20),
    "Tanh": (("Tanh", {}, []), 20, 20),
    "Erf": (("Erf", {}, []), 80, 20),
    "Sin": (("Sin", {}, []), 20, 20),
    "Cos": (("Cos", {}, []), 20, 20),
    "Gelu": (("Gelu", {}, []), 20, 20),
    "Gelu, tanh": (("Gelu", {"approximate": "tanh"}, []), 20, 20),
    "Mish": (("Mish", {}, []), 20, 20),
    "HardSwish": (("HardSwish", {}, []), 20, 20),
    "LeakyRelu": (("LeakyRelu", {}, []), 101, 20),
    "LeakyRelu, steep": (("LeakyRelu", {"alpha": 3.0}, []), 3.01, 20),
    "Elu": (("Elu", {}, []), 10, 20),
    "Elu, steep": (("Elu", {"alpha": 4.0}, []), 10, 20),
    "Celu": (("Celu", {"alpha": 0.5}, []), 80, 20),
    "Clip": (("Clip", {}, [np.array(-1.0), np.array(0.5)]), 1.01, 20),
    "Clip above": (("Clip", {}, [None, np.array(0.5)]), 1.01, 20),
    "Clip below": (("Clip", {}, [np.array(-0.5)]), 1.01, 20),
}


def perturbed(model: onnx.ModelProto, x: np.ndarray, e: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The largest change of each output over inputs at the ends of their intervals, and inside of these."""
    rng = np.random.default_rng(3)
    signs = [np.ones(x.shape), -np.ones(x.shape), *(rng.choice([-1, 1], x.shape) for _ in range(12))]
    signs += [rng.uniform(-1, 1, x.shape) for _ in range(4)]
    return np.max([abs(run_reference(model, {"x": x + s * e})[0] - fixed) for s in signs], axis=0)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_function_of_each_value(name: str) -> None:
    check_function(*ELEMENTWISE[name])


def check_function(node: Node, excess: float, opset: int) -> None:
    """The bound covers what perturbed inputs do to each output, and exceeds it by no more than a factor."""
    shape = (3, 20)
    model, x = model_of(node, shape, opset), numbers(*shape, seed=1)
    e = np.full(shape, E)
    output = bounded(model, x, e)
    (expected,) = run_reference(model, {"x": x})
    assert np.allclose(
        output.value.numpy(), expected, rtol=1e-6, atol=1e-6
    )  # the reference's erf is single precision
    moved = perturbed(model, x, e, expected)
    assert np.all(moved * (1 - 1e-5) <= output.error.numpy() + 1e-9)
    assert float(output.error.max()) <= excess * float(moved.max())


SEVERAL: dict[str, tuple[Node, float, int]] = {
    "MaxPool": (("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 1]}, []), 1.01, 20),
    "MaxPool, dilations": (("MaxPool", {"kernel_shape": [2, 2], "dilations": [3, 2]}, []), 1.01, 20),
    "MaxPool, pads": (("MaxPool", {"kernel_shape": [2, 3], "pads": [1, 0, 0, 2]}, []), 1.01, 20),
    "GlobalMaxPool": (("GlobalMaxPool", {}, []), 1.01, 20),
    "ReduceMax": (("ReduceMax", {"keepdims": 0}, [axes(1, -1)]), 1.01, 20),
    "ReduceMax of all": (("ReduceMax", {"keepdims": 0}, []), 2, 20),
    "ReduceMax, attribute": (("ReduceMax", {"axes": [2]}, []), 1.01, 13),
    "ReduceMax of nothing": (("ReduceMax", {"noop_with_empty_axes": 1}, [axes()]), 1.01, 20),
    "Softmax": (("Softmax", {}, []), 8, 20),
    "Softmax over channels": (("Softmax", {"axis": 1}, []), 8, 13),
    "LogSoftmax": (("LogSoftmax", {"axis": -3}, []), 2.1, 20),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_function_of_several_values(name: str) -> None:
    check_several(*SEVERAL[name])


def check_several(node: Node, excess: float, opset: int, shape: tuple[int, ...] = IMAGE) -> None:
    """As `check_function`, for operators that combine values, on negative numbers."""
    model, x = model_of(node, shape, opset), -abs(numbers(*shape, seed=1))
    e = E * np.random.default_rng(2).uniform(0.5, 1, shape)
    output = bounded(model, x, e)
    (expected,) = run_reference(model, {"x": x})
    assert output.value.shape == output.error.shape == expected.shape
    assert np.allclose(output.value.numpy(), expected, rtol=1e-13, atol=1e-13)
    moved = perturbed(model, x, e, expected)
    assert np.all(moved <= output.error.numpy() * (1 + 1e-12) + 1e-13)
    assert float(output.error.max()) <= excess * float(moved.max())


def test_a_number_before_the_image() -> None:
    """c − x and c·x: each operand keeps its place."""
    for op, expected in (("Sub", lambda c, x: c - x), ("Mul", lambda c, x: c * x)):
        c, x = numbers(3), numbers(2, 3, seed=1)
        output = bounded(model_of((op, {}, [c]), (2, 3), first=True), x, np.full((2, 3), E))
        assert np.array_equal(output.value.numpy(), expected(c, x))
        slope = 1 if op == "Sub" else abs(c)
        assert np.allclose(output.error.numpy(), E * slope * np.ones((2, 3)), rtol=1e-12)


def test_parts_of_an_image_and_its_shape() -> None:
    """Split gives several outputs; Shape with `start` and `end` gives plain numbers, which a Reshape reads."""
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        helper.make_node("Shape", ["x"], ["lead"], start=0, end=1),
        helper.make_node("Shape", ["x"], ["last"], start=-1),
        helper.make_node("Constant", [], ["free"], value_ints=[-1]),
        helper.make_node("Concat", ["lead", "free", "last"], ["sizes of b"], axis=0),
        helper.make_node("Reshape", ["b", "sizes of b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "parts",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, IMAGE)],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
        [numpy_helper.from_array(axes(1, 2), "sizes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x, e = numbers(*IMAGE), abs(numbers(*IMAGE, seed=2))
    output = bounded(model, x, e)
    assert np.array_equal(output.value.numpy(), x[:, 1:].reshape(2, 10, 4))
    assert np.array_equal(output.error.numpy(), e[:, 1:].reshape(2, 10, 4))


WITHOUT: dict[str, tuple[Node, tuple[int, ...], int, bool]] = {
    "an operator without a rule": (("Softplus", {}, []), IMAGE, 20, False),
    "a divisor that depends on the image": (("Div", {}, [numbers(3, 1, 1)]), IMAGE, 20, True),
    "AveragePool with ceil_mode": (("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1}, []), IMAGE, 20, False),
    "AveragePool with dilations": (
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [1, 2]}, []), IMAGE, 20, False,
    ),
    "AveragePool with uneven pads": (
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 0]}, []), IMAGE, 20, False,
    ),
    "a pool that PyTorch refuses": (
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [2, 0, 2, 0]}, []), IMAGE, 20, False,
    ),
    "Gemm of the transposed image": (("Gemm", {"transA": 1}, [numbers(4, 2)]), (4, 3), 20, False),
    "Gemm with the image as its weight": (("Gemm", {}, [numbers(2, 4)]), (4, 3), 20, True),
    "Conv with the image as its weight": (("Conv", {}, [numbers(1, 3, 6, 6)]), IMAGE, 20, True),
    "Pad of another mode": (("Pad", {"mode": "edge"}, [axes(0, 0, 1, 0, 0, 0, 0, 0)]), IMAGE, 20, False),
    "Pad along chosen axes": (("Pad", {}, [axes(1, 0), None, axes(2)]), IMAGE, 20, False),
    "Softmax over several axes": (("Softmax", {}, []), IMAGE, 11, False),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT)
def test_a_node_without_a_bound(name: str) -> None:
    """There is no bound, with the operator in the reason; it is no error of the verifier."""
    node, shape, opset, first = WITHOUT[name]
    with pytest.raises(NoRuleError, match=node[0].lower() if first and node[0] == "Div" else node[0]):
        bounded(model_of(node, shape, opset, first), numbers(*shape), np.zeros(shape))


def test_softmax_of_old_models_over_one_axis() -> None:
    """Before opset 13 it flattens from axis 1 on, which is the same where the axes after it have the size 1."""
    model, x = model_of(("Softmax", {}, []), (2, 3, 1, 1), 11), numbers(2, 3, 1, 1)
    output = bounded(model, x, np.zeros(x.shape))
    assert output.value.numpy() == pytest.approx(np.exp(x) / np.exp(x).sum(1, keepdims=True), rel=1e-12)


def test_negative_pads_cut() -> None:
    """ONNX's reference implementation does not compute these."""
    model, x = model_of(("Pad", {}, [axes(0, 0, -1, 0, 0, 0, 2, -3)]), IMAGE), numbers(*IMAGE)
    output = bounded(model, x, abs(x))
    expected = np.pad(x[:, :, 1:, :-3], [(0, 0), (0, 0), (0, 2), (0, 0)])
    assert np.array_equal(output.value.numpy(), expected)
    assert np.array_equal(output.error.numpy(), abs(expected))


def test_a_bound_that_is_not_finite_is_none() -> None:
    model = model_of(("Mul", {}, [np.array(1e200)]), (2, 3))
    graph = ir.from_proto(model)
    with pytest.raises(NoRuleError, match="overflows"):
        OnnxRunningError(CallableOnnx(graph))(torch.from_numpy(1e150 * numbers(2, 3)))


def test_an_output_that_does_not_depend_on_the_image() -> None:
    model = model_of(("Identity", {}, []), (2, 3))
    model.graph.node[0].input[0] = "c"
    model.graph.initializer.append(numpy_helper.from_array(numbers(2), "c"))
    with pytest.raises(NoRuleError, match="does not depend"):
        bounded(model, numbers(2, 3), np.zeros((2, 3)))


def test_images_in_batches_of_a_fixed_size() -> None:
    """Three images through a model of two: the last batch is filled up to two, and its filling is left out."""
    model = model_of(("Gemm", {}, [numbers(3, 2), numbers(2)]), (2, 3))
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "both"], ["rows"]))
    model.graph.initializer.append(numpy_helper.from_array(axes(2, 3), "both"))
    model.graph.node[1].input[0] = "rows"
    x = numbers(3, 3)
    network = CallableOnnx(ir.from_proto(model), batch=2)
    ((value, bound),) = OnnxRunningError(network)(torch.from_numpy(x))
    operands = LINEAR["Gemm"][0][2]
    assert value.numpy() == pytest.approx(x @ operands[0] + operands[1], rel=1e-12)
    assert bound.shape == (3, 2)
    assert float(bound.min()) > 0


def test_models_in_other_types_than_float32_have_no_bound() -> None:
    network = AnalysedOnnx(ir.from_proto(model_of(("Neg", {}, []), (2, 3))))
    with pytest.raises(NoRuleError, match="float64"):
        network.running_error(torch.zeros(2, 3))


TRANSPOSED = "Gemm with transA, or of two values"
UNEVEN = {"kernel_shape": [2, 2], "pads": [0, 0, 1, 0]}
#: The node, the image's shape, the names of the operands where they are not the image and constants, and the reason.
REASONS: dict[str, tuple[Node, tuple[int, ...], str, str]] = {
    "the transposed image": (("Gemm", {"transA": 1}, [numbers(4, 2)]), (4, 3), "", TRANSPOSED),
    "the image as a weight": (("Gemm", {}, [numbers(2, 4)]), (4, 3), "c0 x", TRANSPOSED),
    "the image as a bias": (("Gemm", {}, [numbers(3, 3)]), (2, 3), "x c0 x", "Gemm with a bias that depends"),
    "ceil_mode": (
        ("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": 1}, []), IMAGE, "", "with ceil_mode or dilation",
    ),
    "dilations": (
        ("AveragePool", {"kernel_shape": [2, 2], "dilations": [1, 2]}, []), IMAGE, "", "with ceil_mode or dilation",
    ),
    "uneven pads": (("AveragePool", UNEVEN, []), IMAGE, "", "AveragePool with uneven padding"),
    "pads of copies": (
        ("Pad", {"mode": "edge"}, [axes(0, 0, 1, 0, 0, 0, 0, 0)]), IMAGE, "", "Pad of another mode than constant",
    ),
    "pads along axes": (("Pad", {}, [axes(1, 0), None, axes(2)]), IMAGE, "", "Pad of another mode than constant"),
    "old softmax": (("Softmax", {}, []), IMAGE, "", "Softmax over several axes"),
    "an index of the image": (("Gather", {}, []), (2,), "x x", "with an index that depends on the image"),
    "a shape of the image": (("Reshape", {}, []), (2,), "x x", "a setting that depends on the image"),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_for_no_bound(name: str) -> None:
    node, shape, operands, reason = REASONS[name]
    model = model_of(node, shape, 11 if name == "old softmax" else 20)
    if operands:
        model.graph.node[0].input[:] = operands.split()
    with pytest.raises(NoRuleError, match=reason):
        bounded(model, numbers(*shape), np.zeros(shape))
