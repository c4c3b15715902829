"""A pointwise convolution with a stride = subsample, then linear at each position.

Equation, for stride s on each axis and no padding:

    conv1×1(x; W, b, stride s)[n, :, i, j] = W·x[n, :, s·i, s·j] + b

so the positions in between are never read, and ⌈size / s⌉ positions remain on an axis. Subsampling commutes with every
operator that acts on each position separately, so it may also be done afterwards.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, §2.4 (relationship
6, k = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from onebyone.errors import BadInput

NAME = "strided pointwise convolution = subsample, linear"
EQUATION = "conv(x; W, b, stride s)[n, :, i, j] = W·x[n, :, s·i, s·j] + b"

Array = NDArray[Any]


def why_not_subsample(kernel: Sequence[int], padding: Sequence[int] = ()) -> str | None:
    """Why a strided convolution with this kernel, per axis, is not a subsampled linear layer; None if it is.

    >>> why_not_subsample((1, 1))
    >>> why_not_subsample((1, 1), padding=(1, 1))
    'padding (1, 1) shifts the sampled positions and adds positions whose value is the bias'
    """
    if any(k != 1 for k in kernel):
        return f"the kernel is {'×'.join(map(str, kernel))}: it reads neighbours"
    if any(padding):
        return f"padding {tuple(padding)} shifts the sampled positions and adds positions whose value is the bias"
    return None


def out_size(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Number of positions that remain of `size`, per axis: ⌈size / stride⌉.

    >>> out_size((7, 8), (2, 3))
    (4, 3)
    """
    _check(size, stride)
    return tuple(-(-n // s) for n, s in zip(size, stride, strict=True))


def subsample(x: Array, stride: Sequence[int]) -> Array:
    """Every s-th position of a map (N, C, *size), starting with the first: a view (N, C, *out_size).

    Raises
    ------
    BadInput
        if the map does not have two axes more than there are strides, or a stride is below 1.
    """
    if x.ndim < 2:
        raise BadInput(f"expected a map (N, C, *size), not an array of shape {x.shape}")
    _check(x.shape[2:], stride)
    return x[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]


def _check(size: Sequence[int], stride: Sequence[int]) -> None:
    if len(size) != len(stride) or any(s < 1 for s in stride):
        raise BadInput(
            f"stride={tuple(stride)}: expected {len(size)} numbers of at least 1 for a map of {tuple(size)}"
        )
