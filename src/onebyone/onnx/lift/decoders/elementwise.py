"""Element-wise operators, dropout, and quantisation of values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from onebyone.lifting.operators import Elementwise
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.onnx.lift.graph_lifter import Decoder, OnnxGraphLifter

_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf",
    "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where",
    "Xor",
)  # fmt: skip


def each_element(lifter: OnnxGraphLifter, node: ir.Node) -> Elementwise:
    """An operator on each element by itself: on one value, on values and constants, on several values."""
    call = lifter.call_of(node)
    return Elementwise(call.operands, call.apply)


def cast_like(lifter: OnnxGraphLifter, node: ir.Node) -> Elementwise:
    """The value in the type of another, of which nothing else is read."""
    kind = lifter.inferred(node)[0][0]
    return Elementwise((lifter.operand(node, 0),), lambda x: lifter.writer.cast(x, kind))


def unchanged(lifter: OnnxGraphLifter, node: ir.Node) -> Any:
    """The operand itself."""
    return lifter.operand(node, 0)


def dropout(lifter: OnnxGraphLifter, node: ir.Node) -> Any:
    """Nothing, unless the node states that it trains."""
    training = lifter.numbers(node, 2)
    if training is not None and bool(training.reshape(-1)[0]):
        raise Cannot("random at every call (training_mode is 1), so a window has no single result")
    return lifter.operand(node, 0)


def quantisation(lifter: OnnxGraphLifter, node: ir.Node) -> Elementwise | Lifted:
    """With one scale for all elements, or one for each channel of a map."""
    value, scale = lifter.lifted(lifter.operand(node, 0)), lifter.operand(node, 1)
    if not isinstance(scale, Const):
        raise Cannot("a scale that depends on the image")
    source = node.inputs[0]
    assert source is not None

    def apply(handle: Any) -> Any:
        return lifter.emit_as_it_is(node, {source: handle})

    if all(size == 1 for size in scale.shape) and not node.attributes.get_int("block_size", 0):
        return Elementwise((value,), apply)
    axis = node.attributes.get_int("axis", 1) % (len(value.shape) + 1)
    if axis != 1 or len(scale.shape) != 1 or value.index is not None:
        raise Cannot("scales of other groups than the channels of a map")
    return replace(value, handle=apply(value.handle))


DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(_ELEMENTWISE, each_element),
    "CastLike": cast_like,
    "Identity": unchanged,
    "Dropout": dropout,
    "QuantizeLinear": quantisation,
    "DequantizeLinear": quantisation,
}
