"""Read from an ONNX graph what its outputs' values are: logits, probabilities, or their logarithms.

The last operator before an output determines that. A linear layer or a convolution gives logits, a softmax or a sigmoid
probabilities. Operators that only move values are skipped. After any other operator the kind is unknown: None.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from onebyone.laws.scores import ScoreKind
from onebyone.lifting.values import Lifted
from onebyone.onnx.lift.graph_lifter import OnnxGraphLifter
from onebyone.results.any_size import Output

#: A kind, and the number of values that a softmax normalised over (0 without a softmax).
_Known = tuple[ScoreKind, int]

_MOVES = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Tile", "Gather", "Identity",
    "Dropout", "Cast", "CastLike",
)  # fmt: skip
_LINEAR = ("Gemm", "MatMul", "Einsum", "Conv", "BatchNormalization")
_MEANS = ("ReduceMean", "AveragePool", "GlobalAveragePool", "Mean")
_MAXIMA = ("ReduceMax", "MaxPool", "GlobalMaxPool")
_LOGITS = ScoreKind("logits")


def outputs_of(lifter: OnnxGraphLifter, channels: list[int]) -> tuple[Output, ...]:
    """The outputs of a lifted graph; `channels` is the number of values that each gives for a window."""
    outputs = []
    for value, count in zip(lifter.graph.outputs, channels, strict=True):
        known = _known(lifter, value)
        kind = None if known is None else known[0]
        if known is not None and kind is not None and kind.classes == "exclusive" and known[1] != count:
            kind = ScoreKind(kind.values)  # the softmax ran over one of several groups of classes
        outputs.append(Output(str(value.name), count, kind))
    return tuple(outputs)


def _known(lifter: OnnxGraphLifter, value: ir.Value | None) -> _Known | None:
    node = None if value is None else value.producer()
    if value is None or node is None or not isinstance(lifter.values.get(value), Lifted):
        return None
    name, source = node.op_type, node.inputs[0]
    if name in ("Softmax", "LogSoftmax"):
        axis = node.attributes.get_int("axis", -1 if lifter.opset >= 13 else 1)
        shape = (0, *lifter.values[value].shape)
        group = shape[axis] if lifter.opset >= 13 else prod(shape[axis:])
        return ScoreKind("log-probabilities" if name == "LogSoftmax" else "probabilities", "exclusive"), group
    if name == "Sigmoid":
        return ScoreKind("probabilities", "multi-label"), 0
    if name in _LINEAR:
        return _LOGITS, 0
    if name in _MOVES:
        return _known(lifter, source)
    return _of_known(lifter, node)


def _of_known(lifter: OnnxGraphLifter, node: ir.Node) -> _Known | None:
    """The kind after an operator that keeps or changes the kind of what it reads."""
    name = node.op_type
    of_image = [v for v in node.inputs if v is not None and isinstance(lifter.values.get(v), Lifted)]
    parts = [_known(lifter, v) for v in of_image]
    if name == "Concat":
        return _joined(parts)
    if name in ("Add", "Sub", "Mul", "Div", "Neg", "Sum"):
        scaled = len(of_image) == 1 and (name == "Mul" or of_image[0] is node.inputs[0])
        if name in ("Mul", "Div") and not scaled:
            return None
        return (_LOGITS, 0) if parts and all(p is not None and p[0] == _LOGITS for p in parts) else None
    before = parts[0] if parts else None
    if before is None:
        return None
    kind, group = before
    if kind.values == "logits":
        return before if name in (*_MEANS, *_MAXIMA) else None
    if kind.values == "log-probabilities":
        return (ScoreKind("probabilities", kind.classes), group) if name == "Exp" else None
    if name == "Log":
        return ScoreKind("log-probabilities", kind.classes), group
    if name in _MEANS or name == "Clip":
        return before
    return (ScoreKind("probabilities", "multi-label"), 0) if name in _MAXIMA else None


def _joined(parts: list[_Known | None]) -> _Known | None:
    kinds = {None if part is None else part[0] for part in parts}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        return None
    return (ScoreKind(kind.values) if kind.classes == "exclusive" else kind), 0
