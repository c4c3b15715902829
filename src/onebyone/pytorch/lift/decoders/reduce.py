"""Reductions, and operators along the elements of some axes: softmax, variance, sorting, running sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from onebyone.lifting.operators import AxisOperator, Reduce, Reduction, axes_without_batch
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.pytorch.lift.graph_lifter import Decoder, GraphLifter, functional, op_name

aten = torch.ops.aten

_REDUCTIONS: dict[Any, Reduction] = {
    aten.mean.dim: "mean", aten.sum.dim_IntList: "sum", aten.amax.default: "max", aten.amin.default: "min",
}  # fmt: skip
#: Over any number of axes, in any order: of channels, of the positions of a window, or of both.
_ANY_ORDER = (
    aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim, aten.var_mean.correction,
    aten.std_mean.correction, aten.var_mean.dim, aten.std_mean.dim, aten.logsumexp.default, aten.nansum.default,
    aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype, aten.count_nonzero.dim_IntList,
)  # fmt: skip
#: Over one axis, whose elements keep their order.
_ORDERED = (
    aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default, aten.cumsum.default,
    aten.cumprod.default, aten.logcumsumexp.default, aten.cummax.default, aten.cummin.default, aten.sort.default,
    aten.sort.stable, aten.argsort.default, aten.argsort.stable, aten.topk.default,
    aten.kthvalue.default, aten.median.dim, aten.nanmedian.dim, aten.mode.default, aten.argmax.default,
    aten.argmin.default, aten.prod.dim_int, aten.any.dim, aten.all.dim, aten.diff.default,
)  # fmt: skip


def reduce(lifter: GraphLifter, node: fx.Node) -> Reduce:
    return _reduction(lifter, node, _REDUCTIONS[node.target])


def extremum(lifter: GraphLifter, node: fx.Node) -> Reduce | AxisOperator:
    """The largest or smallest elements, and where they are; a reduction where nothing reads the second result."""
    if any(user.args[1] == 1 for user in node.users):
        return ordered(lifter, node)
    return _reduction(lifter, node, "max" if "max" in str(node.target) else "min")


def vector_norm(lifter: GraphLifter, node: fx.Node) -> Reduce | AxisOperator:
    """A norm of order 2 is a reduction that pools can compute; of another order the operator itself runs."""
    arguments = lifter.arguments(node)
    if arguments["ord"] != 2 or arguments["dtype"] is not None:
        return any_order(lifter, node)
    return _reduction(lifter, node, "norm")


def _reduction(lifter: GraphLifter, node: fx.Node, reduction: Reduction) -> Reduce:
    arguments, value = lifter.arguments(node), lifter.lifted(node.args[0])
    axes = axes_without_batch(arguments["dim"], len(value.shape) + 1)
    return Reduce(value, reduction, axes, bool(arguments["keepdim"]))


def ordered(lifter: GraphLifter, node: fx.Node) -> AxisOperator:
    return _along(lifter, node, any_order=False)


def any_order(lifter: GraphLifter, node: fx.Node) -> AxisOperator:
    return _along(lifter, node, any_order=True)


def _along(lifter: GraphLifter, node: fx.Node, any_order: bool) -> AxisOperator:
    arguments, value = lifter.arguments(node), lifter.lifted(node.args[0])
    axes = axes_without_batch(arguments["dim"], len(value.shape) + 1)
    name = op_name(node.target).removeprefix("aten.")

    def apply(handle: Any, dims: Any) -> list[Any]:
        result = _over_other_axes(lifter, node, handle, list(dims))
        meta = node.meta["val"]
        return [result] if isinstance(meta, torch.Tensor) else [result[i] for i in range(len(meta))]

    reduces = any_order or "keepdim" in arguments
    return AxisOperator(value, axes, apply, reduces, any_order, any_extent=name.startswith(("var", "std")))


def _over_other_axes(lifter: GraphLifter, node: fx.Node, handle: Any, dims: list[int]) -> Any:
    """The node's own operator on `handle` over `dims`, without keeping reduced axes."""
    arguments = lifter.arguments(node)
    if any(isinstance(v, (Const, Lifted)) for v in list(arguments.values())[1:]):
        raise Cannot("an argument that is a tensor")
    target = functional(node.target)
    args, kwargs = [handle], {}
    for argument in list(target._schema.arguments)[1:]:
        value = arguments[argument.name]
        if argument.name == "dim":
            value = dims if "List" in str(argument.type) else dims[0]
        elif argument.name == "keepdim":
            value = False
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return lifter.call(target, *args, **kwargs)


DECODERS: dict[Any, Decoder] = {
    **dict.fromkeys(_REDUCTIONS, reduce),
    **dict.fromkeys(_ORDERED, ordered),
    **dict.fromkeys(_ANY_ORDER, any_order),
    aten.max.dim: extremum,
    aten.min.dim: extremum,
    aten.linalg_vector_norm.default: vector_norm,
}

REFUSED = {
    "a reduction over the whole batch, which mixes its samples": (
        aten.mean.default, aten.sum.default, aten.max.default, aten.min.default, aten.prod.default, aten.var.default,
        aten.std.default, aten.median.default, aten.any.default, aten.all.default, aten.var_mean.default,
        aten.std_mean.default, aten.norm.Scalar, aten.norm.ScalarOpt_dtype,
    ),
}  # fmt: skip
