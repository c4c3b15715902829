"""Convolutions, pools, padding and interpolation."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from onebyone.lifting.operators import AdaptivePool, Convolution, Pad, Pool, Resize
from onebyone.lifting.values import Cannot, Const
from onebyone.pytorch.lift.arguments import padding_of, per_axis
from onebyone.pytorch.lift.graph_lifter import Decoder, GraphLifter

aten = torch.ops.aten


def convolution(lifter: GraphLifter, node: fx.Node) -> Convolution:
    arguments = lifter.arguments(node)
    weight = arguments["weight"]
    if not isinstance(weight, Const):
        raise Cannot("a kernel that depends on the image")
    if arguments.get("transposed"):
        raise Cannot("a transposed convolution gives a finer map than it reads")
    kernel = weight.shape[2:]
    dilation = per_axis(arguments["dilation"], len(kernel))
    return Convolution(
        arguments["input"],
        weight,
        arguments["bias"],
        per_axis(arguments["stride"], len(kernel)),
        padding_of(arguments["padding"], kernel, dilation),
        dilation,
        arguments["groups"],
    )


def max_pool(lifter: GraphLifter, node: fx.Node) -> Pool:
    return _pool(lifter, node, "max")


def mean_pool(lifter: GraphLifter, node: fx.Node) -> Pool:
    return _pool(lifter, node, "mean")


def _pool(lifter: GraphLifter, node: fx.Node, reduction: Any) -> Pool:
    arguments = lifter.arguments(node)
    axes = next(int(c) for c in str(node.target).partition("pool")[2] if c.isdigit())
    kernel = per_axis(arguments["kernel_size"], axes)
    return Pool(
        lifter.value(node.args[0]),
        reduction,
        kernel,
        per_axis(arguments["stride"] or kernel, axes),
        [(n, n) for n in per_axis(arguments["padding"], axes)],
        per_axis(arguments.get("dilation", 1), axes),
        bool(arguments["ceil_mode"]),
        bool(arguments.get("count_include_pad", True)),
        arguments.get("divisor_override"),
    )


def adaptive_max_pool(lifter: GraphLifter, node: fx.Node) -> AdaptivePool:
    return AdaptivePool(lifter.value(node.args[0]), "max", _bins(lifter, node))


def adaptive_mean_pool(lifter: GraphLifter, node: fx.Node) -> AdaptivePool:
    return AdaptivePool(lifter.value(node.args[0]), "mean", _bins(lifter, node))


def _bins(lifter: GraphLifter, node: fx.Node) -> list[int]:
    size = lifter.value(node.args[1])
    return [int(n) for n in (size if isinstance(size, (list, tuple)) else [size])]


def pad(lifter: GraphLifter, node: fx.Node) -> Pad:
    """PyTorch gives the amounts from the last axis on."""
    arguments, name = lifter.arguments(node), str(node.target)
    sides = [int(n) for n in lifter.value(node.args[1])]
    amounts = [(sides[i], sides[i + 1]) for i in range(0, len(sides), 2)][::-1]
    mode = arguments.get("mode", "constant")
    mode = "reflect" if "reflection" in name else "replicate" if "replication" in name else mode
    return Pad(lifter.value(node.args[0]), amounts, mode, arguments.get("value") or 0.0)


def nearest(lifter: GraphLifter, node: fx.Node) -> Resize:
    return Resize(lifter.value(node.args[0]), _size(node), "nearest")


def linear(lifter: GraphLifter, node: fx.Node) -> Resize:
    if lifter.arguments(node).get("align_corners"):
        raise Cannot("interpolation with align_corners: what it reads depends on the size of the image")
    return Resize(lifter.value(node.args[0]), _size(node), "linear")


def _size(node: fx.Node) -> list[int]:
    return [int(n) for n in node.meta["val"].shape[2:]]


DECODERS: dict[Any, Decoder] = {
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution.default), convolution),
    **dict.fromkeys(
        (
            aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.max_pool2d_with_indices,
            aten.max_pool3d_with_indices,
        ),
        max_pool,
    ),
    **dict.fromkeys((aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d), mean_pool),
    **dict.fromkeys(
        (aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d), adaptive_max_pool
    ),
    **dict.fromkeys(
        (
            aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d,
            aten._adaptive_avg_pool2d,
        ),
        adaptive_mean_pool,
    ),
    **dict.fromkeys((aten.pad, aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d), pad),
    **dict.fromkeys((aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d), nearest),
    **dict.fromkeys((aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d), linear),
}  # fmt: skip

REFUSED = {
    "interpolation that reads more than the neighbouring positions": (
        aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
    ),
    "a transposed convolution: which of its kernel's phases a position gets depends on where the window begins": (
        aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
    ),
}  # fmt: skip
