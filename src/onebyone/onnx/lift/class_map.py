"""Which nodes of an ONNX graph are affine, for class maps (`onebyone.lifting.class_map`)."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from functools import partial

import onnx_ir as ir

from onebyone.lifting import class_map as lifting
from onebyone.lifting.values import Lifted
from onebyone.onnx.lift.graph_lifter import OnnxGraphLifter, name_of, path_of
from onebyone.results.any_size import ClassMap


def class_map(lifter: OnnxGraphLifter) -> tuple[ClassMap, tuple[int, ...]]:
    """The class map of a lifted graph, and the jump of its positions in pixels; see `onebyone.lifting.class_map`."""
    steps = [
        lifting.ClassMapStep(
            str(node.outputs[0].name),
            f"{path_of(node)} ({name_of(node)})",
            [v for v in node.inputs if v is not None and isinstance(lifter.values.get(v), Lifted)],
            list(node.outputs),
            partial(_affine, node),
        )
        for node in lifter.graph
        if node.outputs and node.outputs[0] in lifter.values
    ]
    pool, nonlinear, jump = lifting.left_out_pool(lifter, steps, list(lifter.graph.outputs))
    return ClassMap(pool, nonlinear), jump


# every operand may depend on the pool
_SUMS = ("Add", "Sub", "Sum", "Mean", "Concat")
# the first operand may
_FIRST = (
    "Gemm", "MatMul", "Conv", "Div", "BatchNormalization", "Neg", "ReduceMean", "ReduceSum", "AveragePool",
    "GlobalAveragePool", "Dropout", "Pad", "Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
    "Slice", "Split", "Expand", "Tile", "Gather", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
# any one of them may
_ONE = ("Mul",)


def _affine(node: ir.Node, after: Collection[Hashable]) -> bool:
    """Whether a node is affine in what depends on the pool; what is not known to be is not."""
    if node.domain != "":
        return False
    operands = [v for v in node.inputs if v is not None and v in after]
    if node.op_type in _SUMS:
        return True
    if node.op_type in _FIRST:
        return operands == [node.inputs[0]]
    return node.op_type in _ONE and len(operands) == 1
