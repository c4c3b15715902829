"""Reductions and global pools, and operators along the elements of some axes: softmax, sorting, running sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.lifting.operators import AxisOperator, Reduce, Reduction, axes_without_batch
from onebyone.lifting.rules.table import lift
from onebyone.lifting.values import Cannot, Lifted
from onebyone.onnx.lift.graph_lifter import Decoder, OnnxGraphLifter

_REDUCTIONS: dict[str, Reduction] = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max", "ReduceMin": "min", "ReduceL2": "norm",
}  # fmt: skip
_GLOBAL_POOLS: dict[str, Reduction] = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}
#: Reductions that the operator itself computes, over elements in any order.
_ANY_ORDER = ("ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")
#: Until this opset, they normalise over all axes from the given one on.
_OVER_ONE_AXIS = 13


def reduce(lifter: OnnxGraphLifter, node: ir.Node) -> Any:
    value = lifter.lifted(lifter.operand(node, 0))
    axes = _axes(lifter, node, value)
    if axes is None:
        return value
    return Reduce(value, _REDUCTIONS[node.op_type], axes, bool(node.attributes.get_int("keepdims", 1)))


def any_order(lifter: OnnxGraphLifter, node: ir.Node) -> Any:
    value = lifter.lifted(lifter.operand(node, 0))
    axes = _axes(lifter, node, value)
    if axes is None:
        raise Cannot("a reduction over no axis")

    def apply(handle: Any, dims: Sequence[int]) -> list[Any]:
        return [lifter.writer.reduction(node.op_type, handle, list(dims), keep_axes=False)]

    return AxisOperator(value, axes, apply, reduces=True, any_order=True)


def _axes(lifter: OnnxGraphLifter, node: ir.Node, value: Lifted) -> tuple[int, ...] | None:
    """The axes without the batch; None where nothing is reduced."""
    axes = lifter.integers(node, 1)
    if axes is None:
        axes = list(node.attributes.get_ints("axes", ()))
    if not axes and node.attributes.get_int("noop_with_empty_axes", False):
        return None
    return axes_without_batch(axes, len(value.shape) + 1)


def global_pool(lifter: OnnxGraphLifter, node: ir.Node) -> Reduce:
    value = lifter.lifted(lifter.operand(node, 0))
    return Reduce(value, _GLOBAL_POOLS[node.op_type], tuple(range(1, len(value.shape))), keep_axes=True)


def softmax(lifter: OnnxGraphLifter, node: ir.Node) -> Any:
    """Softmax, LogSoftmax and Hardmax; until opset 12 over all axes from `axis` on, together."""
    value = lifter.lifted(lifter.operand(node, 0))
    rank = len(value.shape) + 1
    axis = node.attributes.get_int("axis", -1 if lifter.opset >= _OVER_ONE_AXIS else 1) % rank
    if axis == 0:
        raise Cannot("a softmax over the batch")

    def apply(handle: Any, dims: Sequence[int]) -> list[Any]:
        (along,) = dims
        return [_over_one_axis(lifter, node.op_type, handle, along)]

    later = value.shape[axis - 1 :]
    if lifter.opset >= _OVER_ONE_AXIS or prod(later[1:]) == 1:
        return AxisOperator(value, (axis - 1,), apply, reduces=False, any_order=False)
    lead = value.shape[: axis - 1]
    flat = value.with_index(np.ascontiguousarray(value.indices().reshape(*lead, -1)))
    call = replace(lifter.call_of(node), shapes=(flat.shape,))
    together = lift(lifter, call, AxisOperator(flat, (axis - 1,), apply, reduces=False, any_order=False))
    return together.with_index(together.indices().reshape(value.shape))


def _over_one_axis(lifter: OnnxGraphLifter, op_type: str, handle: Any, axis: int) -> Any:
    """The operator over one axis of a handle in any opset: until opset 12 that axis must be the last."""
    writer, last = lifter.writer, handle.shape.rank() - 1
    if lifter.opset >= _OVER_ONE_AXIS or axis == last:
        return writer.op(op_type, [handle], {"axis": axis})
    order = [a for a in range(last + 1) if a != axis] + [axis]
    moved = writer.op("Transpose", [handle], {"perm": order})
    result = writer.op(op_type, [moved], {"axis": last})
    return writer.op("Transpose", [result], {"perm": [order.index(a) for a in range(last + 1)]})


def along_axis(lifter: OnnxGraphLifter, node: ir.Node) -> AxisOperator:
    """ArgMax, ArgMin, TopK, CumSum and LpNormalization over one axis, whose elements keep their order."""
    value = lifter.lifted(lifter.operand(node, 0))
    name, rank, source = node.op_type, len(value.shape) + 1, node.inputs[0]
    assert source is not None
    default = {"ArgMax": 0, "ArgMin": 0}.get(name, -1)
    axis = (
        (lifter.integers(node, 1) or [0])[0] if name == "CumSum" else node.attributes.get_int("axis", default)
    )
    reduces = name in ("ArgMax", "ArgMin")

    def apply(handle: Any, dims: Sequence[int]) -> list[Any]:
        (along,) = dims
        operands = [handle, *(lifter.handle_of(v) for v in node.inputs[1:] if v is not None)]
        attributes = {a.name: a for a in node.attributes.values()}
        if name == "CumSum":
            operands[1] = lifter.writer.constant(np.asarray(along, dtype=np.int64), "axis")
        else:
            attributes["axis"] = ir.AttrInt64("axis", along)
        if reduces:
            attributes["keepdims"] = ir.AttrInt64("keepdims", 0)
        return lifter.writer.node(name, operands, attributes.values(), outputs=len(node.outputs))

    return AxisOperator(value, axes_without_batch(axis, rank), apply, reduces, any_order=False)


DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(_ANY_ORDER, any_order),
    **dict.fromkeys(_GLOBAL_POOLS, global_pool),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK", "CumSum", "LpNormalization"), along_axis),
}
