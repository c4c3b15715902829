"""The settings of a node that slides a window (convolutions and pools), with defaults filled in and padding resolved.

Source: the ONNX operator reference of Conv, MaxPool and AveragePool; `auto_pad` SAME_UPPER gives ⌈size / stride⌉
positions, and puts the odd element at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onebyone.onnx.constant_values import shape_of, sizes_of

#: Operators with a window, and the index of their weight (None for pools, whose kernel is an attribute).
SLIDING: dict[str, int | None] = {
    "Conv": 1,
    "ConvTranspose": 1,
    "MaxPool": None,
    "AveragePool": None,
    "LpPool": None,
}
#: Pools over all positions.
GLOBAL_POOLS = frozenset(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])


@dataclass(frozen=True)
class WindowSettings:
    """Kernel, strides, dilations and padding per spatial axis; `pads` holds all begins, then all ends.

    `pads` is None where `auto_pad` asks for an amount that depends on a size that is not known, or in which runtimes
    differ.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    group: int = 1


def window_settings(node: ir.Node) -> WindowSettings | None:
    """The settings of a Conv, ConvTranspose or pool; None for other nodes, and where the kernel is not known."""
    if node.domain != "" or node.op_type not in SLIDING:
        return None
    kernel = _kernel(node)
    if kernel is None:
        return None
    ones = [1] * len(kernel)
    strides = tuple(node.attributes.get_ints("strides") or ones)
    dilations = tuple(node.attributes.get_ints("dilations") or ones)
    if len(strides) != len(kernel) or len(dilations) != len(kernel):
        return None
    pads = _pads(node, kernel, strides, dilations)
    return WindowSettings(kernel, strides, dilations, pads, node.attributes.get_int("group", 1))


def runtimes_disagree(total: int) -> bool:
    """Whether runtimes read different elements for a SAME padding of `total` elements, both sides together.

    It is negative where the stride is larger than the kernel, so that elements at the end are left out. TensorFlow and
    ONNX's reference take it for zero, so that the first window begins at the first element. ONNX Runtime leaves
    elements out at both ends from -3 on.
    """
    return total < -2


def same_padding(mode: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int] | None:
    """The elements before and after an axis of `size` elements for SAME_UPPER or SAME_LOWER.

    None where runtimes read different elements (`runtimes_disagree`).

    >>> same_padding("SAME_UPPER", 6, 3, 2, 1), same_padding("SAME_LOWER", 6, 3, 2, 1)
    ((0, 1), (1, 0))
    """
    total = (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size
    if runtimes_disagree(total):
        return None
    total = max(total, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _kernel(node: ir.Node) -> tuple[int, ...] | None:
    written = node.attributes.get_ints("kernel_shape")
    if written:
        return tuple(written)
    index = SLIDING[node.op_type]
    weight = None if index is None or index >= len(node.inputs) else node.inputs[index]
    shape = None if weight is None else shape_of(weight)
    return None if shape is None else shape[2:]


def _pads(
    node: ir.Node, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...] | None:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    zeros = (0,) * (2 * len(kernel))
    if mode == "VALID":
        return zeros
    if mode == "NOTSET":
        return tuple(node.attributes.get_ints("pads") or zeros)
    data = node.inputs[0]
    sizes = None if data is None else sizes_of(data)
    if sizes is None or node.op_type == "ConvTranspose":
        return None
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes[2:], kernel, strides, dilations, strict=True):
        if size is None and stride > 1:
            return None
        amounts = same_padding(mode, size or 1, k, stride, dilation)  # at stride 1 the size has no effect
        if amounts is None:
            return None
        begins.append(amounts[0])
        ends.append(amounts[1])
    return (*begins, *ends)
