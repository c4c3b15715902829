"""Steps on channels-last maps: convolutions with the batch norms behind them, and pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onebyone.native.graph_queries import constant, convolution_arguments, pool_arguments, with_norm
from onebyone.native.kernels.program import Kind, Map, Step, on_axes
from onebyone.native.layout import Value, aten
from onebyone.native.lowering import Planning
from onebyone.native.unserved import UnservedError

_MOST_TAPS, _NARROW = 64, 4


def convolution(plan: Planning, node: Any) -> None:
    """A convolution with the batch norm behind it."""
    a = convolution_arguments(node)
    weight, bias = constant(plan.network, a["weight"]), constant(plan.network, a["bias"])
    if weight is None or weight.dim() != 4 or (bias is None and a["bias"] is not None):
        raise UnservedError("a convolution's weight is not one of its parameters")
    weight, bias, norm = with_norm(plan.network, node, weight, bias)
    if norm is not None:
        node = norm
        plan.folded.add(norm)
    outputs, per_group, kernel_h, kernel_w = weight.shape
    sizes = on_axes((kernel_h, kernel_w), a["stride"], a["padding"], a["dilation"])
    y = Map(_image_shape(node))
    source = a["input"]
    narrow = a["groups"] == 1 and _narrow(plan, source, per_group, sizes)
    if narrow and kernel_h <= _MOST_TAPS:
        x = _padded(plan, source, sizes)
        sizes |= {"pad_h": 0, "pad_w": 0, "dilation_w": 0}
        plan.add(Step(Kind.CONVOLUTION, x, y, weight, bias, sizes=sizes))
    elif a["groups"] == 1 and kernel_h * kernel_w <= _MOST_TAPS:
        plan.add(Step(Kind.CONVOLUTION, plan.map_of(source), y, weight, bias, sizes=sizes))
    elif a["groups"] == outputs and per_group == 1 and kernel_h * kernel_w <= _MOST_TAPS:
        plan.add(Step(Kind.DEPTHWISE, plan.map_of(source), y, weight, bias, sizes=sizes))
    else:
        raise UnservedError(f"a {kernel_h}×{kernel_w} convolution in {a['groups']} groups")
    plan.values[node] = Value(y)


def _narrow(plan: Planning, source: Any, channels: int, sizes: dict[str, int]) -> bool:
    """Whether it alone reads the image, of few channels: then a row of its kernel is one run of numbers."""
    alone = source is plan.image and sum(u.op != "call_module" for u in source.users) == 1
    return alone and channels <= _NARROW and sizes["dilation_w"] == 1


def _padded(plan: Planning, source: Any, sizes: dict[str, int]) -> Map:
    n, c, h, w = source.meta["val"].shape
    x = Map((n, c, h + 2 * sizes["pad_h"], w + 2 * sizes["pad_w"]))
    pads = {"pad_h": sizes["pad_h"], "pad_w": sizes["pad_w"]}
    return plan.add(Step(Kind.INPUT, None, x, sizes=pads, given=(n, c, h, w)))


def adaptive_pool(plan: Planning, node: Any) -> None:
    """To one place, or to as many as there are."""
    x, (high, wide) = plan.map_of(node.args[0]), _image_shape(node)[2:]
    if (high, wide) == x.shape[2:]:
        plan.values[node] = Value(x)
    elif (high, wide) == (1, 1):
        plan.values[node] = Value(plan.add(Step(Kind.MEAN, x, Map((*x.shape[:2], 1, 1)))))
    else:
        raise UnservedError(f"an adaptive pool from {x.shape[2:]} to {(high, wide)} places")


def max_pool(plan: Planning, node: Any) -> None:
    """Any max pool without ceil_mode."""
    *settings, ceil = pool_arguments(node)
    if ceil:
        raise UnservedError("a max pool with ceil_mode")
    x, y = plan.map_of(node.args[0]), Map(_image_shape(node))
    plan.values[node] = Value(plan.add(Step(Kind.MAX_POOL, x, y, sizes=on_axes(*settings))))


def _image_shape(node: Any) -> tuple[int, int, int, int]:
    shape = tuple(node.meta["val"].shape)
    if len(shape) != 4 or not all(isinstance(n, int) for n in shape):
        raise UnservedError("a value that is no image of known size")
    return shape


HANDLERS: dict[Any, Callable[[Planning, Any], None]] = {
    aten.conv2d.default: convolution,
    aten.adaptive_avg_pool2d.default: adaptive_pool,
    aten.max_pool2d.default: max_pool,
}
