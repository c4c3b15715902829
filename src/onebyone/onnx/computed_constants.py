"""Constants that a graph computes with operators that shape inference does not follow.

Exporters write the expansion of a token as Expand to a shape made with ConstantOfShape, Equal and Where. Such nodes are
run by the ONNX reference implementation, as long as what they compute is small.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onebyone.onnx.constant_values import Array, is_constant, shape_of

#: Operators that are run, beside those that only compute with shapes; their result has the size of a tensor.
# fmt: off
_OPERATORS = frozenset([
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "GatherElements",
    "Greater", "Identity", "Less", "Mod", "Mul", "Neg", "Not", "Range", "Reshape", "Shape", "Slice",
    "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
])
# fmt: on
#: The most elements that a constant computed here may have.
MOST_ELEMENTS = 2**22


def evaluate_constants(graph: ir.Graph, opset: int) -> bool:
    """Record the numbers of computed constants that hold sizes, or whose shape is unknown; whether there were any.

    What cannot be computed stays as it is.
    """
    arrays: dict[ir.Value, Array | None] = {}
    found = False
    for node in graph:
        for output in node.outputs:
            if is_constant(output) and _is_wanted(output):
                array = _computed(output, opset, arrays)
                if array is not None:
                    output.shape, output.const_value = ir.Shape(array.shape), ir.tensor(array)
                    found = True
    return found


def _is_wanted(value: ir.Value) -> bool:
    if value.const_value is not None:
        return False
    return shape_of(value) is None or (value.dtype is not None and value.dtype.is_integer())


def _computed(value: ir.Value, opset: int, arrays: dict[ir.Value, Array | None]) -> Array | None:
    """The numbers of a constant; every value is computed once, operands before results."""
    waiting = [value]
    while waiting:
        now = waiting[-1]
        node = now.producer()
        if now in arrays:
            waiting.pop()
        elif now.const_value is not None:
            arrays[now] = np.asarray(now.const_value.numpy())
        elif node is None or node.domain != "" or node.op_type not in _OPERATORS:
            arrays[now] = None
        else:
            missing = [operand for operand in node.inputs if operand is not None and operand not in arrays]
            if missing:
                waiting.extend(missing)
                continue
            arrays[now] = _run(node, opset, [None if v is None else arrays[v] for v in node.inputs])
    return arrays[value]


def _run(node: ir.Node, opset: int, operands: list[Array | None]) -> Array | None:
    given = [array for array in operands if array is not None]
    return None if len(given) < len(_operands(node)) else run_operator(node, opset, given)


def _operands(node: ir.Node) -> list[ir.Value]:
    return [operand for operand in node.inputs if operand is not None]


def run_operator(node: ir.Node, opset: int, given: list[Array]) -> Array | None:
    """The result of a node on these numbers, one array for each operand that is not left out; None if it is unknown."""
    if node.domain != "" or node.op_type not in _OPERATORS or not _is_small(node, given):
        return None
    if node.op_type == "GatherElements":  # the reference implementation of onnx 1.23 fails on some shapes
        data, indices = given
        axis = node.attributes.get_int("axis", 0)
        in_range = indices.size == 0 or -data.shape[axis] <= indices.min() <= indices.max() < data.shape[axis]
        return np.take_along_axis(data, indices % data.shape[axis], axis) if in_range else None
    inputs = [ir.Value(name=f"i{index}") for index in range(len(given))]
    for operand, array in zip(inputs, given, strict=True):
        operand.type, operand.shape = ir.TensorType(ir.tensor(array).dtype), ir.Shape(array.shape)
    rest = iter(inputs)
    arguments = [None if operand is None else next(rest) for operand in node.inputs]
    output = ir.Value(name="o")
    copy = ir.Node("", node.op_type, arguments, node.attributes.values(), outputs=[output])
    graph = ir.Graph(inputs, [output], nodes=[copy], opset_imports={"": opset}, name="constant")
    try:
        proto = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
        feeds = {f"i{index}": array for index, array in enumerate(given)}
        return np.asarray(ReferenceEvaluator(proto).run(None, feeds)[0])
    except Exception:  # whatever the reference implementation cannot run stays unknown
        return None


def _is_small(node: ir.Node, operands: list[Array]) -> bool:
    """Whether the result has few elements; operators that make more than they are given are estimated first."""
    if any(array.size > MOST_ELEMENTS for array in operands):
        return False
    if node.op_type in ("ConstantOfShape", "Expand"):
        return prod(max(1, int(size)) for size in operands[-1].reshape(-1)) <= MOST_ELEMENTS
    if node.op_type == "Range":
        start, limit, step = (float(array) for array in operands)
        return step != 0 and abs((limit - start) / step) <= MOST_ELEMENTS
    broadcast: int = prod(max(sizes) for sizes in zip(*(a.shape[::-1] for a in operands), strict=False))
    return bool(broadcast <= MOST_ELEMENTS)
