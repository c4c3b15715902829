"""Which operators of an exported graph are affine, for class maps (`onebyone.lifting.class_map`)."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from functools import partial
from typing import Any

import torch
from torch import fx

from onebyone.lifting import class_map as lifting
from onebyone.lifting.values import Lifted
from onebyone.pytorch.lift.exported_graph import module_path
from onebyone.pytorch.lift.graph_lifter import GraphLifter, op_name
from onebyone.results.any_size import ClassMap

aten = torch.ops.aten


def class_map(lifter: GraphLifter) -> tuple[ClassMap, tuple[int, ...]]:
    """The class map of a lifted graph, and the jump of its positions in pixels; see `onebyone.lifting.class_map`."""
    output = next(n for n in lifter.traced.graph.nodes if n.op == "output")
    pool, nonlinear, jump = lifting.left_out_pool(lifter, _steps(lifter), output.args[0])
    return ClassMap(pool, nonlinear), jump


def _steps(lifter: GraphLifter) -> list[lifting.ClassMapStep]:
    return [
        lifting.ClassMapStep(
            node.name,
            f"{module_path(node) or node.name} ({op_name(node.target)})",
            [n for n in node.all_input_nodes if _depends_on_image(lifter.values.get(n))],
            [node],
            partial(_affine, node),
        )
        for node in lifter.traced.graph.nodes
        if node.op == "call_function" and node in lifter.values
    ]


def _depends_on_image(value: Any) -> bool:
    return isinstance(value, Lifted) or (isinstance(value, tuple) and any(map(_depends_on_image, value)))


# every operand may depend on the pool
_SUMS = ("add", "sub", "subtract", "rsub", "cat", "concat", "concatenate", "stack")
# the first operand may
_FIRST = (
    "linear", "matmul", "mm", "conv1d", "conv2d", "conv3d", "convolution", "div", "divide", "true_divide",
    "batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "neg", "mean", "sum", "dropout",
    "feature_dropout", "alpha_dropout", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "pad", "positive",
)  # fmt: skip
# any one of them may
_ONE = ("mul", "multiply")
# nothing but the order of the elements changes, or nothing at all
_ORDER = (
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T", "mT", "adjoint", "ravel", "view_as", "reshape_as",
    "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "flip", "roll", "rot90", "narrow",
    "select", "slice", "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "unbind",
    "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "diagonal", "unfold", "index_select", "clone", "contiguous",
    "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "type_as", "_assert_tensor_metadata", "getitem",
)  # fmt: skip


def _affine(node: fx.Node, after: Collection[Hashable]) -> bool:
    """Whether an operator is affine in what depends on the pool; what is not known to be is not."""
    name = op_name(node.target).removeprefix("aten.").removesuffix("_")
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        return False
    operands = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node) and a in after]
    if name in _SUMS or name in _ORDER:
        return True
    if name == "addmm":
        return node.args[2] not in after
    if name in ("div", "divide", "true_divide") and _rounds(node):
        return False
    if name in _FIRST:
        return operands == [node.args[0]]
    return name in _ONE and len(operands) == 1


def _rounds(node: fx.Node) -> bool:
    return len(node.args) > 2 or node.kwargs.get("rounding_mode") is not None
