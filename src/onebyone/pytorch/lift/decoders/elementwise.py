"""Element-wise operators, dropout, and constants that are filled with one number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from onebyone.lifting.operators import Elementwise
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.pytorch.lift.exported_graph import module_path
from onebyone.pytorch.lift.graph_lifter import Decoder, GraphLifter, op_name

aten = torch.ops.aten

#: Element-wise operators that do not bear PyTorch's own mark for them (`torch.Tag.pointwise`).
_UNMARKED = (
    aten.relu6_, aten.gelu_, aten.mish_, aten.hardswish, aten.hardswish_, aten.log_sigmoid, aten.threshold_,
    aten.rrelu_, aten._to_copy, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.fix, aten.isreal,
    aten.rsub, aten.subtract, aten.multiply, aten.divide, aten.true_divide, aten.floor_divide, aten.negative,
    aten.absolute, aten.greater, aten.greater_equal, aten.less, aten.less_equal, aten.not_equal, aten.arctan,
    aten.arctan2, aten.arccos, aten.arcsin, aten.arcsinh, aten.arccosh, aten.arctanh, aten.special_expit,
    aten.special_logit, aten.special_erf, aten.where, aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_,
    aten.__and__, aten.__or__,
)  # fmt: skip


def each_element(lifter: GraphLifter, node: fx.Node) -> Elementwise:
    """An operator on each element by itself: on one value, on values and constants, on several values."""
    if not isinstance(node.meta["val"], torch.Tensor):
        raise Cannot("it gives no tensor of its operands' elements")
    call = lifter.call_of(node)
    return Elementwise(call.operands, call.apply)


def cast(lifter: GraphLifter, node: fx.Node) -> Lifted:
    """The value in the type of another, whose shape does not matter."""
    value, other = lifter.lifted(node.args[0]), lifter.value(node.args[1])
    target: Any = node.target
    return replace(value, handle=lifter.call(target, value.handle, other, *node.args[2:], **node.kwargs))


def dropout(lifter: GraphLifter, node: fx.Node) -> Lifted:
    """A dropout module of the same probability: nothing in eval mode, and dropout again in training."""
    value: Lifted = lifter.value(node.args[0])
    if value.affine is not None:  # it would act before the scale and shift that the next linear layer absorbs
        return value
    kinds = {
        "dropout": nn.Dropout,
        "alpha_dropout": nn.AlphaDropout,
        "feature_dropout": (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[lifter.axes - 1],
        "feature_alpha_dropout": nn.FeatureAlphaDropout,
    }
    kind = kinds[op_name(node.target).removeprefix("aten.").rstrip("_")]
    name = _free_name(lifter, module_path(node), node)
    lifter.modules[name] = kind(float(node.args[1]))  # type: ignore[arg-type]
    handle = lifter.proxy(lifter.graph.call_module(name, (value.handle.node,)))
    return replace(value, handle=handle)


def _free_name(lifter: GraphLifter, path: str, node: fx.Node) -> str:
    taken = {name.rpartition(".")[0] for name in lifter.traced.tensors} | set(lifter.modules)
    if path and path not in taken and not any(t.startswith(path + ".") for t in taken):
        return path
    return f"{path}.{node.name}" if path else node.name


def gated_linear_unit(lifter: GraphLifter, node: fx.Node) -> Elementwise:
    """One half times the sigmoid of the other."""
    value = lifter.lifted(node.args[0])
    axis = int(node.args[1] if len(node.args) > 1 else -1) % (len(value.shape) + 1) - 1  # type: ignore[arg-type]
    if axis < 0:
        raise Cannot("halves of the batch")
    first, second = (
        lifter.compact(value.with_index(np.ascontiguousarray(half)))
        for half in np.split(value.indices(), 2, axis)
    )
    return Elementwise((first, second), lambda half, gate: half * torch.sigmoid(gate))


def parametric_relu(lifter: GraphLifter, node: fx.Node) -> Elementwise:
    """A slope per channel, or one for all."""
    value, weight = lifter.lifted(node.args[0]), lifter.value(node.args[1])
    if not isinstance(weight, Const):
        raise Cannot("a slope that depends on the image")
    count = int(np.prod(weight.shape))
    slopes = replace(weight, shape=(count, *(1,) * (len(value.shape) - 1)) if count > 1 else (1,))
    return Elementwise((value, slopes), lambda x, slope: torch.where(x > 0, x, x * slope))


def filled_like(lifter: GraphLifter, node: fx.Node) -> Const:
    """A constant in the type of a value that depends on the image, of which nothing else is read."""
    meta, source = node.meta["val"], lifter.lifted(node.args[0])
    shape, name = tuple(int(n) for n in meta.shape), str(node.target)
    if "empty" in name:
        return Const(source.handle.new_empty(shape, dtype=meta.dtype), shape)
    number = lifter.arguments(node)["fill_value"] if "full" in name else int("ones" in name)
    handle = source.handle.new_full((1,), number, dtype=meta.dtype)
    return Const(handle, shape, None, torch.full(shape, number, dtype=meta.dtype))


DECODERS: dict[Any, Decoder] = {
    **dict.fromkeys(_UNMARKED, each_element),
    **dict.fromkeys((aten.type_as, aten.to.other), cast),
    **dict.fromkeys(
        (
            aten.dropout, aten.dropout_, aten.alpha_dropout, aten.alpha_dropout_, aten.feature_dropout,
            aten.feature_dropout_, aten.feature_alpha_dropout, aten.feature_alpha_dropout_,
        ),
        dropout,
    ),
    aten.glu.default: gated_linear_unit,
    **dict.fromkeys((aten.prelu, aten._prelu_kernel), parametric_relu),
    **dict.fromkeys(
        (
            aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.zeros_like, aten.ones_like,
            aten.full_like, aten.empty_like,
        ),
        filled_like,
    ),
}  # fmt: skip
