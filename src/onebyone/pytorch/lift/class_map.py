"""Class maps (`head="cam"`): the average pool before the classifier is left out; the head runs at each position.

An average commutes with what is affine (`laws/pooling.py`): where everything after the pool is, the means of the map
over the pool's positions are the window's results. Where something is not (a ReLU between two layers, a softmax, a norm
over channels), the map still shows which positions support a class, but its means differ from the window's results.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization", 2016, §2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from onebyone.errors import Refused
from onebyone.lifting.values import Lifted
from onebyone.pytorch.lift.exported_graph import module_path
from onebyone.pytorch.lift.graph_lifter import GraphLifter, op_name
from onebyone.records import Refusal, by
from onebyone.results.any_size import ClassMap

aten = torch.ops.aten


def class_map(lifter: GraphLifter) -> tuple[ClassMap, tuple[int, ...]]:
    """The class map of a lifted graph, and the jump of its positions in pixels.

    Raises
    ------
    Refused
        where no average pool was left out, several that differ were, or an output does not come through it.
    """
    pools = {n: pool for n, pool in lifter.left_out.items() if n not in lifter.context_pools}
    if not pools:
        raise _refused(
            "the network has no average pool over several positions before its classifier, and only such a pool can be "
            "left out; use head='window'"
        )
    if len(set(pools.values())) > 1:
        said = " and ".join(
            f"{by(kernel)} positions at stride {by(jump)}" for kernel, jump in set(pools.values())
        )
        raise _refused(f"pools that differ: {said}; use head='window'")
    ((kernel, jump),) = set(pools.values())
    after, nonlinear = _after(lifter, set(pools))
    output = next(n for n in lifter.traced.graph.nodes if n.op == "output")
    for number, value in enumerate(output.args[0]):
        if value is not None and value not in after:
            raise _refused(f"output {number} does not come through the average pool; use head='window'")
    return ClassMap(kernel, nonlinear), jump


def _refused(reason: str) -> Refused:
    return Refused([Refusal("", "head='cam'", reason)], "the network has no class map")


def _after(lifter: GraphLifter, pools: set[str]) -> tuple[set[fx.Node], tuple[str, ...]]:
    """Everything that depends on the pools, and the names of the operators among it that are not affine."""
    after: set[fx.Node] = set()
    named: list[str] = []
    for node in lifter.traced.graph.nodes:
        if node.name in pools:
            after.add(node)
            continue
        inputs = [n for n in node.all_input_nodes if _depends_on_image(lifter.values.get(n))]
        if node.op != "call_function" or not after.intersection(inputs) or node not in lifter.values:
            continue
        after.add(node)
        if not after.issuperset(inputs):
            name = f"{module_path(node) or node.name} ({op_name(node.target)})"
            raise _refused(
                f"at {name} the pooled map is combined with values that do not come through the pool"
            )
        if not _affine(node, after):
            named.append(f"{module_path(node) or node.name} ({op_name(node.target)})")
    return after, tuple(dict.fromkeys(named))


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


def _affine(node: fx.Node, after: set[fx.Node]) -> bool:
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
