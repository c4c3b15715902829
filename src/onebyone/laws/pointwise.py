"""Linear = pointwise convolution.

Equation, at every position p of a map of any dimension, for W (O, F) and K (O, F, 1, ...):

    conv(x; K, b)[n, o, p] = Σ_c K[o, c, 0, ...]·x[n, c, p] + b[o] = (W·x[n, :, p] + b)[o],   K = W with axes of size 1

so both weights are the same array, viewed with or without trailing axes of size 1. A token tensor (B, T, C) has the
memory layout of a channels-last image (B, C, T, 1).

Source: Lin, Chen and Yan, "Network In Network", 2014, §3.1 (cascaded cross-channel pooling is a 1×1
convolution); Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2015,
§3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from numpy.typing import NDArray

from onebyone.errors import BadInput

NAME = "linear = pointwise convolution"
EQUATION = "conv(x; W[:, :, 1…], b)[n, :, p] = W·x[n, :, p] + b"

Array = NDArray[Any]


def why_not_pointwise(
    weight_shape: Sequence[int], bias_shape: Sequence[int] | None = None, dims: int = 2
) -> str | None:
    """Why a linear weight (O, F) cannot be a pointwise convolution in `dims` dimensions; None if it can.

    >>> why_not_pointwise((10, 32), (10,))
    >>> why_not_pointwise((10, 32), (32,))
    'the bias has shape (32,); a weight of shape (10, 32) needs (10,)'
    """
    if dims not in (1, 2, 3):
        return f"a convolution has 1, 2 or 3 dimensions, not {dims}"
    if len(weight_shape) != 2:
        return f"a linear weight has shape (O, F), not {tuple(weight_shape)}"
    return _why_not_weight(weight_shape, bias_shape)


def why_not_linear(
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None = None,
    *,
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
    groups: int = 1,
) -> str | None:
    """Why a convolution (O, C/groups, *kernel) is not a linear layer at each position; None if it is.

    `stride` and `padding` are per axis (empty: 1 and 0). Dilation has no effect if the kernel is 1. Strided and grouped
    convolutions have laws of their own, to which the reasons refer.

    >>> why_not_linear((8, 3, 1, 1), (8,))
    >>> why_not_linear((8, 3, 3, 3))
    'the kernel is 3×3, not 1×1: it reads neighbours'
    """
    if len(weight_shape) not in (3, 4, 5):
        return f"a convolution's weight has shape (O, C, *kernel), not {tuple(weight_shape)}"
    kernel = weight_shape[2:]
    ones = "×".join("1" for _ in kernel)
    if any(k != 1 for k in kernel):
        return f"the kernel is {'×'.join(map(str, kernel))}, not {ones}: it reads neighbours"
    if any(p != 0 for p in padding):
        return f"padding {tuple(padding)} adds positions whose value is the bias"
    if any(s != 1 for s in stride):
        return f"stride {tuple(stride)} skips positions: subsample first (law `strided`)"
    if groups != 1:
        return f"{groups} groups do not connect all channels: use a batched product (law `grouped`)"
    return _why_not_weight(weight_shape, bias_shape)


def conv_shape(linear_shape: Sequence[int], dims: int = 2) -> tuple[int, ...]:
    """(O, F) -> (O, F, 1, ...) with `dims` ones.

    >>> conv_shape((10, 32), 1)
    (10, 32, 1)
    """
    reason = why_not_pointwise(linear_shape, dims=dims)
    if reason:
        raise BadInput(reason)
    return (*linear_shape, *(1,) * dims)


def linear_shape(conv_shape: Sequence[int]) -> tuple[int, int]:
    """(O, C, 1, ...) -> (O, C).

    >>> linear_shape((10, 32, 1, 1))
    (10, 32)
    """
    reason = why_not_linear(conv_shape)
    if reason:
        raise BadInput(reason)
    return conv_shape[0], conv_shape[1]


def to_conv(weight: Array, dims: int = 2) -> Array:
    """A linear weight (O, F) as a kernel (O, F, 1, ...): a view.

    Raises
    ------
    BadInput
        with `why_not_pointwise`'s reason.
    """
    conv_shape(weight.shape, dims)
    return weight[(..., *(None,) * dims)]


def to_linear(kernel: Array) -> Array:
    """A pointwise kernel (O, C, 1, ...) as a linear weight (O, C): a view.

    Raises
    ------
    BadInput
        with `why_not_linear`'s reason.
    """
    linear_shape(kernel.shape)
    at_zero: tuple[Any, ...] = (..., *(0,) * (kernel.ndim - 2))
    view: Array = kernel[at_zero]
    return view


def tokens_to_image(x: Array) -> Array:
    """Tokens (B, T, C) as an image (B, C, T, 1): a view with channels-last memory layout."""
    _need_axes(x, 3, "tokens (B, T, C)")
    return x.transpose(0, 2, 1)[..., None]


def image_to_tokens(x: Array) -> Array:
    """An image (B, C, H, W) as tokens (B, H·W, C) in row-major order: a view if the layout is channels last."""
    _need_axes(x, 4, "an image (B, C, H, W)")
    batch, channels, height, width = x.shape
    return x.transpose(0, 2, 3, 1).reshape(batch, height * width, channels)


def image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape (N, C, H, W) of the channels-last image with the memory layout of a linear layer's input (..., C).

    (C,) is one position of one image; (N, C) is N images of one position; (B, T, C) has the tokens on H; (B, H, W, C)
    is the channels-last image itself; further axes are merged into the batch.

    >>> image_shape((8, 197, 384)), image_shape((32, 2048)), image_shape((2, 7, 5, 6, 16))
    ((8, 384, 197, 1), (32, 2048, 1, 1), (14, 16, 5, 6))
    """
    if not shape:
        raise BadInput("shape=(): expected at least one axis")
    *lead, channels = shape
    *batch, height, width = (*lead, *(1,) * (3 - len(lead)))
    return prod(batch), channels, height, width


def _need_axes(x: Array, axes: int, what: str) -> None:
    if x.ndim != axes:
        raise BadInput(f"expected {what}, not an array of shape {x.shape}")


def _why_not_weight(weight_shape: Sequence[int], bias_shape: Sequence[int] | None) -> str | None:
    if min(weight_shape) < 1:
        return f"the weight of shape {tuple(weight_shape)} is empty"
    if bias_shape is not None and tuple(bias_shape) != (weight_shape[0],):
        return (
            f"the bias has shape {tuple(bias_shape)}; a weight of shape {tuple(weight_shape)} needs "
            f"({weight_shape[0]},)"
        )
    return None
