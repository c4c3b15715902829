"""Running error bounds of ONNX models: each node through PyTorch's operator of the same meaning and its error rule.

The rules are those of `error_rules`. A node without such an operator has no bound (`NoRuleError`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor

from onebyone.laws.bounds import unit_roundoff
from onebyone.lifting.values import Cannot
from onebyone.onnx.lift.graph_lifter import literal_of
from onebyone.onnx.lift.single_nodes import evaluate
from onebyone.onnx_file import fed_inputs
from onebyone.records import first_line
from onebyone.verification.error_rules import RULES, Approx, NoRuleError
from onebyone.verification.onnx_network import CallableOnnx

aten = torch.ops.aten
Array = np.ndarray[Any, Any]
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_MAX_POOLS = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
_MEAN_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)


class OnnxRunningError:
    """A model with running error bounds on its outputs; the counterpart of `running_error.RunningError`."""

    def __init__(self, network: CallableOnnx) -> None:
        self.network = network
        self.model = network.model
        if self.model.functions:
            self.model = self.model.clone()
            InlinePass()(self.model)
        self.opset = self.model.opset_imports.get("", 1)

    def __call__(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The outputs and their bounds for images `(N, C, H, W)`, which are assumed to be exact."""
        rows = torch.from_numpy(self.network.own_layout(x.numpy()))
        size = self.network.batch or len(rows)
        parts = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
            outputs = _Interpreter(self.model.graph, self.opset, filled).outputs()
            parts.append([(y.value[: len(part)], y.error[: len(part)]) for y in outputs])
        bounds = []
        for column in zip(*parts, strict=True):
            value, error = torch.cat([v for v, _ in column]), torch.cat([e for _, e in column])
            if not bool(torch.isfinite(error).all()):
                raise NoRuleError("a bound that overflows: errors grow too much along the network")
            bounds.append((value, error))
        return bounds


class AnalysedOnnx(CallableOnnx):
    """An ONNX model whose errors the verifier bounds by this analysis."""

    def running_error(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The outputs for images, and bounds on their errors."""
        if self.dtype != np.float32:
            raise NoRuleError(f"sums in {np.dtype(self.dtype).name}")
        return OnnxRunningError(self)(image)


class _Interpreter:
    """One run of a graph: values that depend on the image carry error bounds, all others are arrays."""

    def __init__(self, graph: ir.Graph, opset: int, rows: Tensor) -> None:
        self.graph, self.opset, self.dtype = graph, opset, rows.dtype
        self.u = unit_roundoff(str(rows.dtype))
        self.values: dict[ir.Value, Approx | Array] = {}
        for value in graph.initializers.values():
            if value.const_value is not None:
                self.values[value] = np.asarray(value.const_value.numpy())
        source = fed_inputs(graph)[0]
        self.values[source] = Approx(rows, torch.zeros_like(rows))

    def outputs(self) -> list[Approx]:
        for node in self.graph:
            for value, result in zip(node.outputs, self._results(node), strict=False):
                self.values[value] = result
        found = [self.values[value] for value in self.graph.outputs]
        if not all(isinstance(value, Approx) for value in found):
            raise NoRuleError("an output that does not depend on the input")
        return found  # type: ignore[return-value]

    def _results(self, node: ir.Node) -> Sequence[Approx | Array]:
        operands = [None if v is None else self.values[v] for v in node.inputs]
        try:
            if not any(isinstance(v, Approx) for v in operands):
                literal = literal_of(node)
                if literal is not None:
                    return [literal.array]
                arrays = {str(v.name): self.values[v] for v in node.inputs if v is not None}
                return evaluate(node, arrays, self.opset)  # type: ignore[arg-type]
        except Cannot as error:
            raise NoRuleError(f"{node.op_type}: {error}") from error
        first = operands[0]
        if node.op_type == "Shape" and isinstance(first, Approx):
            shape = torch.tensor(first.value.shape).numpy()
            return [shape[node.attributes.get_int("start") : node.attributes.get_int("end")]]
        translate = _TRANSLATIONS.get(node.op_type) if node.domain == "" else None
        if translate is None:
            raise NoRuleError(node.op_type)
        try:
            result = translate(self, node, operands)
        except NoRuleError:
            raise
        except Exception as error:  # PyTorch's operator takes fewer uses than the node has
            raise NoRuleError(f"{node.op_type}: {first_line(error)}") from error
        return result if isinstance(result, list) else [result]

    def run(self, operator: Any, *operands: Any) -> Any:
        """An operator of PyTorch with its error rule; float arrays become tensors."""
        arguments = [self.tensor(v) if isinstance(v, np.ndarray) else v for v in operands]
        return RULES[operator.overloadpacket](self.u, operator, tuple(arguments), {})

    def tensor(self, array: Array) -> Tensor:
        # an operand has the type of the other, which depends on the image and so is a float
        return torch.from_numpy(np.array(array)).to(self.dtype)

    def integers(self, value: Any) -> list[int]:
        if isinstance(value, Approx):
            raise NoRuleError("a setting that depends on the image")
        return [int(n) for n in np.ravel(value)]


_Translation = Callable[[_Interpreter, ir.Node, list[Any]], Any]


def _is_set(node: ir.Node, name: str) -> bool:
    """Whether a flag that is off by default is on."""
    return bool(node.attributes.get_int(name))


def _padding(node: ir.Node, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    axes, mode = len(kernel), node.attributes.get_string("auto_pad")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        stride = node.attributes.get_ints("strides") or [1] * axes
        dilation = node.attributes.get_ints("dilations") or [1] * axes
        totals = [
            max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            for n, s, k, d in zip(sizes, stride, kernel, dilation, strict=True)
        ]
        pairs = [(t // 2, t - t // 2) for t in totals]
        return pairs if mode == "SAME_UPPER" else [(b, a) for a, b in pairs]
    pads = node.attributes.get_ints("pads") or [0] * 2 * axes
    return list(zip(pads[:axes], pads[axes:], strict=True))


def _padded(g: _Interpreter, x: Approx, pairs: Sequence[tuple[int, int]], number: float) -> Approx:
    sides = [n for pair in reversed(pairs) for n in pair]
    return x if not any(sides) else g.run(aten.constant_pad_nd.default, x, sides, number)


def _settings(node: ir.Node, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    ones = [1] * len(kernel)
    return (
        list(node.attributes.get_ints("strides") or ones),
        list(node.attributes.get_ints("dilations") or ones),
    )


def _convolution(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x, weight, *rest = operands
    kernel = weight.shape[2:]
    stride, dilation = _settings(node, kernel)
    x = _padded(g, x, _padding(node, x.value.shape[2:], kernel), 0.0)
    bias = rest[0] if rest else None
    zeros, groups = [0] * len(kernel), node.attributes.get_int("group", 1)
    return g.run(_CONVOLUTIONS[len(kernel) - 1], x, weight, bias, stride, zeros, dilation, groups)


def _max_pool(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x, kernel = operands[0], list(node.attributes["kernel_shape"].as_ints())
    stride, dilation = _settings(node, kernel)
    pairs = _padding(node, x.value.shape[2:], kernel)
    if any(map(any, pairs)):
        sides = [n for pair in reversed(pairs) for n in pair]
        value = aten.constant_pad_nd.default(x.value, sides, -math.inf)
        x = Approx(value, aten.constant_pad_nd.default(x.error, sides))
    ceil = _is_set(node, "ceil_mode")
    return g.run(_MAX_POOLS[len(kernel) - 1], x, kernel, stride, [0] * len(kernel), dilation, ceil)


def _mean_pool(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x, kernel = operands[0], list(node.attributes["kernel_shape"].as_ints())
    stride, dilation = _settings(node, kernel)
    pairs = _padding(node, x.value.shape[2:], kernel)
    counted = _is_set(node, "count_include_pad")
    if _is_set(node, "ceil_mode") or any(d > 1 for d in dilation):
        raise NoRuleError("AveragePool with ceil_mode or dilation")
    padding = [a for a, _ in pairs]
    if any(a != b for a, b in pairs):
        if not counted:
            raise NoRuleError("AveragePool with uneven padding")
        x, padding = _padded(g, x, pairs, 0.0), [0] * len(kernel)
    return g.run(_MEAN_POOLS[len(kernel) - 1], x, kernel, stride, padding, False, counted)


def _gemm(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x, weight, *rest = operands
    if _is_set(node, "transA") or isinstance(weight, Approx):
        raise NoRuleError("Gemm with transA, or of two values")
    # factors other than 1 round once more each, in whichever order they are applied
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    matrix = weight if _is_set(node, "transB") else weight.T
    y = g.run(aten.linear.default, x, np.ascontiguousarray(matrix))
    y = y if alpha == 1 else g.run(aten.mul.Tensor, y, np.asarray(alpha))
    if not rest or rest[0] is None:
        return y
    if isinstance(rest[0], Approx):
        raise NoRuleError("Gemm with a bias that depends on the image")
    return g.run(aten.add.Tensor, y, np.asarray(rest[0] * rest[0].dtype.type(beta)))


def _batch_norm(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x, weight, bias, mean, variance = operands
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    operator = aten._native_batch_norm_legit_no_training.default
    return g.run(operator, x, weight, bias, mean, variance, 0.0, epsilon)[0]


def _reduced(operator: Any) -> _Translation:
    def translate(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
        x = operands[0]
        given = operands[1] if len(operands) > 1 else None
        axes = list(node.attributes.get_ints("axes", ())) if given is None else g.integers(given)
        if not axes and _is_set(node, "noop_with_empty_axes"):
            return x
        axes = axes or list(range(x.value.ndim))
        return g.run(operator, x, axes, bool(node.attributes.get_int("keepdims", 1)))

    return translate


def _global(operator: Any) -> _Translation:
    def translate(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
        x = operands[0]
        return g.run(operator, x, list(range(2, x.value.ndim)), True)

    return translate


def _plain(operator: Any, *names: str) -> _Translation:
    """The operator on the node's operands, and on its attributes of these names where they are stated."""

    def translate(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
        settings = [node.attributes.get_float(name) for name in names if name in node.attributes]
        return g.run(operator, *operands, *settings)

    return translate


def _clip(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    given = [None if v is None else float(np.asarray(v)) for v in operands[1:]]
    # before opset 11 the limits are attributes
    stated = [node.attributes.get_float(name) for name in ("min", "max")]
    limits = given + stated[len(given) :]
    if limits == [None, None]:
        return operands[0]
    return g.run(aten.clamp.default, operands[0], *limits)


def _gelu(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x: Approx = operands[0]
    approximate = node.attributes.get_string("approximate", "none")
    return RULES[aten.gelu](g.u, aten.gelu.default, (x,), {"approximate": approximate})


def _softmax(operator: Any) -> _Translation:
    def translate(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
        x = operands[0]
        axis = node.attributes.get_int("axis", -1 if g.opset >= 13 else 1) % x.value.ndim
        if g.opset < 13 and any(n > 1 for n in x.value.shape[axis + 1 :]):
            raise NoRuleError("Softmax over several axes")
        return g.run(operator, x, axis, False)

    return translate


def _reshape(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x = operands[0]
    sizes = [x.value.shape[i] if n == 0 else n for i, n in enumerate(g.integers(operands[1]))]
    return g.run(aten.reshape.default, x, sizes)


def _flatten(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    x, axis = operands[0], node.attributes.get_int("axis", 1)
    lead = math.prod(x.value.shape[:axis])
    return g.run(aten.reshape.default, x, [lead, -1])


def _moved(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    """A shape operator whose result has no other elements than those of its operand: run on their numbers."""
    x = operands[0]
    numbers = torch.arange(x.value.numel()).reshape(x.value.shape).numpy()
    pairs = zip(node.inputs, [numbers, *operands[1:]], strict=True)
    arrays = {str(v.name): o for v, o in pairs if v is not None}
    if any(isinstance(o, Approx) for o in arrays.values()):
        raise NoRuleError(f"{node.op_type} with an index that depends on the image")
    indices = [torch.from_numpy(np.array(i)) for i in evaluate(node, arrays, g.opset)]
    return [Approx(x.value.reshape(-1)[i], x.error.reshape(-1)[i]) for i in indices]


def _concatenated(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    parts = [v if isinstance(v, Approx) else g.tensor(v) for v in operands]
    return g.run(aten.cat.default, parts, node.attributes["axis"].as_int())


def _pad(g: _Interpreter, node: ir.Node, operands: list[Any]) -> Any:
    if node.attributes.get_string("mode", "constant") != "constant" or len(operands) > 3:
        raise NoRuleError("Pad of another mode than constant")
    # before opset 11 the padding and the number are attributes
    pads = operands[1] if len(operands) > 1 else node.attributes.get_ints("pads")
    sides, rank = g.integers(pads), operands[0].value.ndim
    value = operands[2] if len(operands) > 2 else node.attributes.get_float("value")
    number = 0.0 if value is None else float(np.asarray(value))
    return _padded(g, operands[0], list(zip(sides[:rank], sides[rank:], strict=True)), number)


def _same(_g: _Interpreter, _node: ir.Node, operands: list[Any]) -> Any:
    return operands[0]


_TRANSLATIONS: dict[str, _Translation] = {
    "Conv": _convolution, "MaxPool": _max_pool, "AveragePool": _mean_pool, "Gemm": _gemm,
    "BatchNormalization": _batch_norm, "Clip": _clip, "Reshape": _reshape, "Flatten": _flatten,
    "Concat": _concatenated, "Pad": _pad, "Identity": _same, "Dropout": _same,
    "MatMul": _plain(aten.matmul.default), "Add": _plain(aten.add.Tensor), "Sub": _plain(aten.sub.Tensor),
    "Mul": _plain(aten.mul.Tensor), "Div": _plain(aten.div.Tensor), "Relu": _plain(aten.relu.default),
    "Neg": _plain(aten.neg.default), "Abs": _plain(aten.abs.default), "Sigmoid": _plain(aten.sigmoid.default),
    "Tanh": _plain(aten.tanh.default), "Erf": _plain(aten.erf.default),
    "HardSwish": _plain(aten.hardswish.default), "Mish": _plain(aten.mish.default),
    "Sin": _plain(aten.sin.default), "Cos": _plain(aten.cos.default), "Gelu": _gelu,
    "LeakyRelu": _plain(aten.leaky_relu.default, "alpha"), "Elu": _plain(aten.elu.default, "alpha"),
    "Celu": _plain(aten.celu.default, "alpha"),
    "Softmax": _softmax(aten._softmax.default), "LogSoftmax": _softmax(aten._log_softmax.default),
    "GlobalAveragePool": _global(aten.mean.dim), "GlobalMaxPool": _global(aten.amax.default),
    "ReduceMean": _reduced(aten.mean.dim), "ReduceSum": _reduced(aten.sum.dim_IntList),
    "ReduceMax": _reduced(aten.amax.default),
    **dict.fromkeys(
        (
            "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace",
            "SpaceToDepth",
        ),
        _moved,
    ),
}  # fmt: skip
