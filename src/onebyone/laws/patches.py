"""A convolution on adjacent patches = rearrange the pixels, then linear at each patch.

Equation, for a kernel k that equals the stride on each axis, without padding, dilation or groups:

    conv(x; W, b, stride k)[n, :, p] = W'·patch(x, p)[n] + b,    W' = W reshaped to (O, C·Πk)

where patch(x, p)[n] is the C·Πk elements of x[n, :, k·p + (0 … k − 1)], ordered by channel, then by position in the
patch. W' is a view, because a kernel is stored in that order. A map has ⌊size / k⌋ patches on an axis; the remainder at
the far edge is not read, as in the convolution. No element is in two patches, so the rearranged map is no larger than
the map (unfolding a convolution with overlapping windows multiplies it).

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, §3.1 (a linear projection of flattened patches, which
implementations write as a convolution); Shi et al., "Real-Time Single Image and Video Super-Resolution Using an
Efficient Sub-Pixel Convolutional Neural Network", 2016, §3.2 (the inverse rearrangement).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from numpy.typing import NDArray

from onebyone.errors import BadInput

NAME = "convolution on patches = rearrange, linear"
EQUATION = "conv(x; W, b, stride k)[n, :, p] = W'·patch(x, p)[n] + b"

Array = NDArray[Any]


def why_not_patches(
    kernel: Sequence[int],
    stride: Sequence[int],
    *,
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
) -> str | None:
    """Why a convolution is not a linear layer on adjacent patches; None if it is.

    `padding` and `dilation` are per axis (empty: 0 and 1). Dilation does not matter on an axis where the kernel is 1.

    >>> why_not_patches((16, 16), (16, 16))
    >>> why_not_patches((3, 3), (2, 2))
    'the kernel is 3×3 and the stride 2×2: adjacent patches need them to be equal'
    """
    if len(kernel) != len(stride) or len(kernel) not in (1, 2, 3):
        return (
            f"kernel {tuple(kernel)} and stride {tuple(stride)} do not have the same one, two or three axes"
        )
    if tuple(kernel) != tuple(stride):
        size, step = ("×".join(map(str, v)) for v in (kernel, stride))
        return f"the kernel is {size} and the stride {step}: adjacent patches need them to be equal"
    if any(padding):
        return f"padding {tuple(padding)} shifts the patches and adds elements that are not in the map"
    if any(d != 1 and k != 1 for d, k in zip(dilation, kernel, strict=False)):
        return f"dilation {tuple(dilation)} leaves gaps in a patch"
    if groups != 1:
        return f"{groups} groups do not connect all channels: use a batched product"
    return None


def out_size(size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Number of complete patches on each axis: ⌊size / kernel⌋.

    >>> out_size((224, 230), (16, 16))
    (14, 14)
    """
    if len(size) != len(kernel) or any(k < 1 for k in kernel):
        raise BadInput(
            f"kernel={tuple(kernel)}: expected {len(size)} numbers of at least 1 for a map of {tuple(size)}"
        )
    return tuple(n // k for n, k in zip(size, kernel, strict=True))


def patches(x: Array, kernel: Sequence[int]) -> Array:
    """A map (N, C, *size) as its patches (N, *out_size, C·Πkernel): one copy, no larger than the map.

    Raises
    ------
    BadInput
        if the map does not have two axes more than the kernel, or a kernel size is below 1.
    """
    if x.ndim < 3:
        raise BadInput(f"expected a map (N, C, *size), not an array of shape {x.shape}")
    counts = out_size(x.shape[2:], kernel)
    batch, channels = x.shape[:2]
    complete = x[(slice(None), slice(None), *(slice(n * k) for n, k in zip(counts, kernel, strict=True)))]
    split = complete.reshape(batch, channels, *(m for pair in zip(counts, kernel, strict=True) for m in pair))
    axes = len(counts)
    positions, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return split.transpose(0, *positions, 1, *inside).reshape(batch, *counts, channels * prod(kernel))


def to_linear(kernel: Array) -> Array:
    """A kernel (O, C, *k) as the linear weight (O, C·Πk) on patches: a view.

    Raises
    ------
    BadInput
        if it is not the kernel of a convolution with one to three axes.
    """
    if kernel.ndim not in (3, 4, 5):
        raise BadInput(f"a convolution's weight has shape (O, C, *kernel), not {kernel.shape}")
    return kernel.reshape(kernel.shape[0], prod(kernel.shape[1:]))
