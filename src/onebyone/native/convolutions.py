"""Lower operators on feature maps: convolutions with the batch norms that follow them, and pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from onebyone.native.graph_queries import (
    convolution_arguments,
    fold_batch_norm,
    pair,
    pool_arguments,
    why_not_folded,
)
from onebyone.native.layout import Value, aten
from onebyone.native.lowering import Lowering
from onebyone.native.maps import Map
from onebyone.native.steps import (
    ConvolutionStep,
    DepthwiseStep,
    InputStep,
    MaxPoolStep,
    MeanStep,
    SlidingWindow,
)
from onebyone.native.unsupported import UnsupportedError

_MAX_TAPS, _NARROW = 64, 4
_POOL_DEFAULTS = (None, 0, False, True, None)
"""Stride, padding, ceil_mode, count_include_pad and divisor_override of an average pool."""


def convolution(lowering: Lowering, node: Any) -> None:
    """A convolution with the batch norm that follows it."""
    a = convolution_arguments(node)
    weight, bias = lowering.constant(a["weight"]), lowering.constant(a["bias"])
    if weight is None or weight.dim() != 4 or (bias is None and a["bias"] is not None):
        raise UnsupportedError("a convolution's weight is not constant")
    weight, bias, norm = fold_batch_norm(lowering.network, node, weight, bias)
    if norm is not None:
        node = norm
        lowering.folded.add(norm)
    outputs, per_group, kernel_h, kernel_w = weight.shape
    window = SlidingWindow.of((kernel_h, kernel_w), a["stride"], a["padding"], a["dilation"])
    y = Map(_image_shape(node))
    source, groups, taps = a["input"], a["groups"], kernel_h * kernel_w
    narrow = groups == 1 and _narrow(lowering, source, per_group, window)
    runs = groups == 1 and taps > _MAX_TAPS and window.padding == (0, 0) and window.dilation[1] == 1
    if (narrow or runs) and kernel_h <= _MAX_TAPS:
        x = _padded_input(lowering, source, window.padding) if narrow else lowering.map_of(source)
        rows = replace(window, padding=(0, 0))
        lowering.add(
            ConvolutionStep(input=x, output=y, weight=weight, bias=bias, window=rows, whole_rows=True)
        )
    elif groups == 1 and taps <= _MAX_TAPS:
        x = lowering.map_of(source)
        lowering.add(ConvolutionStep(input=x, output=y, weight=weight, bias=bias, window=window))
    elif groups == outputs and per_group == 1 and taps <= _MAX_TAPS:
        x = lowering.map_of(source)
        lowering.add(DepthwiseStep(input=x, output=y, weight=weight, bias=bias, window=window))
    else:
        raise UnsupportedError(f"a {kernel_h}×{kernel_w} convolution in {groups} groups")
    lowering.values[node] = Value(y)


def batch_norm(lowering: Lowering, node: Any) -> None:
    """A batch norm that was not folded into a convolution is not supported."""
    raise UnsupportedError(
        f"it has a batch norm that cannot be folded: {why_not_folded(lowering.network, node)}"
    )


def _narrow(lowering: Lowering, source: Any, channels: int, window: SlidingWindow) -> bool:
    """Whether a convolution alone reads the network's input, which has few channels.

    Then each row of its kernel reads one run of numbers of the padded input.
    """
    only_reader = source is lowering.image and sum(u.op != "call_module" for u in source.users) == 1
    return only_reader and channels <= _NARROW and window.dilation[1] == 1


def _padded_input(lowering: Lowering, source: Any, padding: tuple[int, int]) -> Map:
    n, c, h, w = source.meta["val"].shape
    x = Map((n, c, h + 2 * padding[0], w + 2 * padding[1]))
    return lowering.add(InputStep(output=x, shape=(n, c, h, w), padding=padding))


def adaptive_pool(lowering: Lowering, node: Any) -> None:
    """An adaptive average pool to one position, or to the size that the map has already."""
    x, size = lowering.map_of(node.args[0]), _image_shape(node)[2:]
    if size == x.shape[2:]:
        lowering.values[node] = Value(x)
    elif size == (1, 1):
        lowering.values[node] = Value(lowering.add(MeanStep(input=x, output=Map((*x.shape[:2], 1, 1)))))
    else:
        raise UnsupportedError(f"an adaptive pool from {x.shape[2:]} to {size} positions")


def average_pool(lowering: Lowering, node: Any) -> None:
    """An average pool of a fixed window: means along each row of the window, then along its columns."""
    settings: list[Any] = [*node.args[1:], *_POOL_DEFAULTS[len(node.args) - 2 :]]
    kernel, padding = pair(settings[0], 0), pair(settings[2], 0)
    stride = pair(settings[1] or kernel, 0)
    ceil, counts_padding, divisor = settings[3:]
    if ceil or divisor is not None or (any(padding) and not counts_padding):
        raise UnsupportedError(
            "an average pool with ceil_mode, divisor_override or padding that does not count"
        )
    if max(kernel) > _MAX_TAPS:
        raise UnsupportedError(f"an average pool of {kernel[0]}×{kernel[1]} positions")
    x = lowering.map_of(node.args[0])
    samples, channels, height, _ = x.shape
    *_, out_height, out_width = _image_shape(node)
    along_rows = SlidingWindow((1, kernel[1]), (1, stride[1]), (0, padding[1]))
    along_columns = SlidingWindow((kernel[0], 1), (stride[0], 1), (padding[0], 0))
    for window, rows in ((along_rows, height), (along_columns, out_height)):
        weight = torch.full((channels, 1, *window.kernel), 1 / max(window.kernel), dtype=torch.float64)
        y = Map((samples, channels, rows, out_width))
        x = lowering.add(DepthwiseStep(input=x, output=y, weight=weight, window=window))
    lowering.values[node] = Value(x)


def max_pool(lowering: Lowering, node: Any) -> None:
    """A max pool without ceil_mode."""
    *settings, ceil = pool_arguments(node)
    if ceil:
        raise UnsupportedError("a max pool with ceil_mode")
    x, y = lowering.map_of(node.args[0]), Map(_image_shape(node))
    lowering.values[node] = Value(
        lowering.add(MaxPoolStep(input=x, output=y, window=SlidingWindow.of(*settings)))
    )


def _image_shape(node: Any) -> tuple[int, int, int, int]:
    shape = tuple(node.meta["val"].shape)
    if len(shape) != 4 or not all(isinstance(n, int) for n in shape):
        raise UnsupportedError("a value that is not an image of known size")
    return shape


HANDLERS: dict[Any, Callable[[Lowering, Any], None]] = {
    aten.conv2d.default: convolution,
    aten.batch_norm.default: batch_norm,
    aten.adaptive_avg_pool2d.default: adaptive_pool,
    aten.avg_pool2d.default: average_pool,
    aten.max_pool2d.default: max_pool,
}
