"""ONNX operators by kind, and where each names the axes along which it works."""

from __future__ import annotations

from dataclasses import dataclass

MICROSOFT = "com.microsoft"
# fmt: off
POINTWISE = frozenset(("", name) for name in [
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf",
    "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu",
    "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
]) | frozenset((MICROSOFT, name) for name in ["Gelu", "QuickGelu", "BiasGelu", "FastGelu"])
# fmt: on
REDUCTIONS = frozenset(
    f"Reduce{name}"
    for name in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
)
SOFTMAXES = frozenset(["Softmax", "LogSoftmax", "Hardmax"])
NORMALISATIONS = frozenset(["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"])
#: Normalisations of a sum, of `MICROSOFT`: where the scale, the offset and the bias are inputs; None without an offset.
SUM_NORMALISATIONS: dict[str, tuple[int, int | None, int]] = {
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, None, 3),
}
#: Activations of a sum of two inputs, of which the second is a vector along the last axis: the activation by itself.
BIASED_ACTIVATIONS = {"BiasGelu": "Gelu", "FastGelu": "FastGelu"}
RESHAPES = frozenset(["Reshape", "Flatten"])
KEEPING_AXES = frozenset(["Squeeze", "Unsqueeze"])
#: The first opset in which Softmax normalises along one axis; before, along an axis and all after it.
SOFTMAX_ALONG_ONE_AXIS = 13
#: The first opset in which the axes of a reduction are an input.
REDUCTION_AXES_ARE_AN_INPUT = {"ReduceSum": 13}
OTHER_REDUCTION_AXES_ARE_AN_INPUT = 18
#: The first opset in which Slice has inputs instead of attributes.
SLICE_HAS_INPUTS = 10


@dataclass(frozen=True)
class AxisSetting:
    """Where an operator names its axes: an attribute, or an input by its index."""

    attribute: str | None = None
    input: int | None = None
    is_list: bool = False
    default: int | None = None


def axis_setting(op_type: str, opset: int) -> AxisSetting | None:
    """The setting of an operator that works along some axes and leaves the others alone; None for other operators."""
    if op_type in SOFTMAXES:
        default = -1 if opset >= SOFTMAX_ALONG_ONE_AXIS else 1
        return AxisSetting("axis", default=default)
    if op_type in REDUCTIONS:
        first = REDUCTION_AXES_ARE_AN_INPUT.get(op_type, OTHER_REDUCTION_AXES_ARE_AN_INPUT)
        return AxisSetting(input=1, is_list=True) if opset >= first else AxisSetting("axes", is_list=True)
    if op_type == "Slice":
        return (
            AxisSetting(input=3, is_list=True)
            if opset >= SLICE_HAS_INPUTS
            else AxisSetting("axes", is_list=True)
        )
    return {
        "ArgMax": AxisSetting("axis", default=0),
        "ArgMin": AxisSetting("axis", default=0),
        "Concat": AxisSetting("axis"),
        "CumSum": AxisSetting(input=1),
        "DequantizeLinear": AxisSetting("axis", default=1),
        "Gather": AxisSetting("axis", default=0),
        "LpNormalization": AxisSetting("axis", default=-1),
        "QuantizeLinear": AxisSetting("axis", default=1),
        "Split": AxisSetting("axis", default=0),
    }.get(op_type)
