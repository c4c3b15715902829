"""Convolutions, pools, padding and interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.lifting.operators import Convolution, Pad, Pool, Resize
from onebyone.lifting.values import Cannot, Const
from onebyone.onnx.lift.graph_lifter import Decoder, OnnxGraphLifter
from onebyone.onnx.window_settings import same_padding

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def convolution(lifter: OnnxGraphLifter, node: ir.Node) -> Convolution:
    value, weight, bias = (lifter.operand(node, number) for number in range(3))
    if not isinstance(weight, Const):
        raise Cannot("a kernel that depends on the image")
    kernel = weight.shape[2:]
    stride, dilation = _per_axis(node, "strides", kernel), _per_axis(node, "dilations", kernel)
    padding = _padding(node, lifter.lifted(value).shape[1:], kernel, stride, dilation)
    groups = node.attributes.get_int("group", 1)
    return Convolution(value, weight, bias, stride, padding, dilation, groups)


def pool(lifter: OnnxGraphLifter, node: ir.Node) -> Pool:
    value = lifter.lifted(lifter.operand(node, 0))
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    stride, dilation = _per_axis(node, "strides", kernel), _per_axis(node, "dilations", kernel)
    return Pool(
        value,
        "max" if node.op_type == "MaxPool" else "mean",
        kernel,
        stride,
        _padding(node, value.shape[1:], kernel, stride, dilation),
        dilation,
        bool(node.attributes.get_int("ceil_mode", 0)),
        bool(node.attributes.get_int("count_include_pad", 0)),
    )


def _per_axis(node: ir.Node, name: str, kernel: Sequence[int]) -> list[int]:
    return list(node.attributes.get_ints(name) or [1] * len(kernel))


def _padding(
    node: ir.Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """The amounts before and after each axis; those of auto_pad as they are for one window.

    Source: ONNX, Conv: output size ⌈n / stride⌉, an odd amount at the end for SAME_UPPER, at the start for SAME_LOWER.
    """
    axes, mode = len(kernel), node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * axes
    if mode in ("NOTSET", ""):
        pads = list(node.attributes.get_ints("pads") or [0] * 2 * axes)
        if min(pads) < 0:
            raise Cannot("negative padding")
        return [(pads[axis], pads[axis + axes]) for axis in range(axes)]
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Cannot(f"auto_pad={mode!r}, which ONNX does not define")
    amounts = []
    for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        pair = same_padding(mode, n, k, s, d)
        if pair is None:
            raise Cannot(
                f"auto_pad={mode} with a stride of {s} leaves elements out: runtimes differ in which"
            )
        amounts.append(pair)
    return amounts


def pad(lifter: OnnxGraphLifter, node: ir.Node) -> Pad:
    value = lifter.lifted(lifter.operand(node, 0))
    rank = len(value.shape) + 1
    sides, number, axes = lifter.integers(node, 1) or [], lifter.numbers(node, 2), lifter.integers(node, 3)
    listed = [axis % rank for axis in (range(rank) if axes is None else axes)]
    amounts = [(0, 0)] * rank
    for place, axis in enumerate(listed):
        amounts[axis] = sides[place], sides[place + len(listed)]
    if any(amounts[0]):
        raise Cannot("padding of the batch")
    mode = node.attributes.get_string("mode", "constant")
    if mode not in _PAD_MODES:
        raise Cannot(f"padding in mode {mode!r}")
    filling = 0.0 if number is None or not number.size else float(number.reshape(-1)[0])
    return Pad(value, amounts[1:], _PAD_MODES[mode], filling)


def resize(lifter: OnnxGraphLifter, node: ir.Node) -> Resize:
    """Interpolation by whole factors of the positions alone."""
    value = lifter.lifted(lifter.operand(node, 0))
    size = [int(n) for n in lifter.inferred(node)[0][1][1:] if isinstance(n, int)]
    if len(size) != len(value.shape) or size[0] != value.shape[0]:
        raise Cannot("interpolation over the channels, or to a size that is not known")
    mode = node.attributes.get_string("mode", "nearest")
    where = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
        for n, m in zip(value.shape[1:], size[1:], strict=True):
            if m % n == 0 and not _repeats(m // n, where, rounding):
                raise Cannot(
                    f"interpolation of mode nearest that does not repeat positions ({where}, {rounding})"
                )
        return Resize(value, size[1:], "nearest")
    if mode != "linear":
        raise Cannot("interpolation that reads more than the neighbouring positions")
    if where not in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        raise Cannot(f"interpolation with {where}: what it reads depends on the size of the image")
    return Resize(value, size[1:], "linear")


def _repeats(factor: int, where: str, rounding: str) -> bool:
    """Whether nearest interpolation by a whole factor repeats each position `factor` times, at every position."""
    fine = np.arange(4 * factor)
    if where == "asymmetric":
        coordinate = fine / factor
    elif where in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        coordinate = (fine + 0.5) / factor - 0.5
    else:
        return False
    rounded: dict[str, Any] = {
        "floor": np.floor(coordinate),
        "ceil": np.ceil(coordinate),
        "round_prefer_floor": np.ceil(coordinate - 0.5),
        "round_prefer_ceil": np.floor(coordinate + 0.5),
    }
    return bool(np.array_equal(rounded[rounding], fine // factor)) if rounding in rounded else False


DECODERS: dict[str, Decoder] = {
    "Conv": convolution,
    **dict.fromkeys(("MaxPool", "AveragePool"), pool),
    "Pad": pad,
    "Resize": resize,
}

REFUSED = {
    "a transposed convolution: which of its kernel's phases a position gets depends on where the window begins": (
        "ConvTranspose",
    ),
}
