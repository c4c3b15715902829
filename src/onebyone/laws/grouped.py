"""A grouped pointwise convolution = a batched matrix product, one matrix per group.

Equation, for G groups, W (O, C/G, 1, ...) viewed as (G, O/G, C/G), x (N, C, ...) viewed as (N, G, C/G, ...):

    y[n, g, :, p] = W[g]·x[n, g, :, p] + b[g]

This equals one linear layer with the block-diagonal matrix diag(W[0], …, W[G-1]) of shape (O, C), which has G times the
parameters and MACs, almost all of them zeros. That matrix is never built here. With G = C = O (depthwise) each W[g] is
one number.

Source: Krizhevsky, Sutskever and Hinton, 2012, §3.5 (groups); Zhang et al., "ShuffleNet", 2018, §3.1
(grouped 1×1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from onebyone.errors import BadInput

NAME = "grouped pointwise convolution = batched product"
EQUATION = "y[n, g, :, p] = W[g]·x[n, g, :, p] + b[g],  W (G, O/G, C/G)"

Array = NDArray[Any]


def why_not_batched(
    weight_shape: Sequence[int], groups: int, in_channels: int | None = None, padding: Sequence[int] = ()
) -> str | None:
    """Why a convolution (O, C/groups, *kernel) is not a batched product of `groups` matrices; None if it is.

    >>> why_not_batched((8, 3, 1, 1), groups=4, in_channels=12)
    >>> why_not_batched((9, 3, 1, 1), groups=4)
    '9 output channels do not divide into 4 groups'
    """
    if len(weight_shape) not in (3, 4, 5) or min(weight_shape) < 1:
        return f"a convolution's weight has shape (O, C/groups, *kernel), not {tuple(weight_shape)}"
    if any(k != 1 for k in weight_shape[2:]):
        return f"the kernel is {'×'.join(map(str, weight_shape[2:]))}: it reads neighbours"
    if any(padding):
        return f"padding {tuple(padding)} adds positions whose value is the bias"
    if groups < 1 or weight_shape[0] % groups:
        return f"{weight_shape[0]} output channels do not divide into {groups} groups"
    if in_channels is not None and in_channels != groups * weight_shape[1]:
        return f"the input has {in_channels} channels; expected {groups} groups of {weight_shape[1]}"
    return None


def batched_shape(weight_shape: Sequence[int], groups: int) -> tuple[int, int, int]:
    """(O, C/G, 1, ...) -> (G, O/G, C/G).

    >>> batched_shape((8, 3, 1, 1), 4)
    (4, 2, 3)
    """
    reason = why_not_batched(weight_shape, groups)
    if reason:
        raise BadInput(reason)
    return groups, weight_shape[0] // groups, weight_shape[1]


def to_batched(kernel: Array, groups: int) -> Array:
    """A grouped pointwise kernel (O, C/G, 1, ...) as G matrices (G, O/G, C/G): a view.

    Raises
    ------
    BadInput
        with `why_not_batched`'s reason.
    """
    return kernel.reshape(batched_shape(kernel.shape, groups))


def to_grouped(matrices: Array, dims: int = 2) -> Array:
    """G matrices (G, O/G, C/G) as a grouped pointwise kernel (O, C/G, 1, ...): a view."""
    if matrices.ndim != 3 or dims not in (1, 2, 3):
        raise BadInput(f"expected matrices (G, O/G, C/G) and 1 to 3 dims, not {matrices.shape} and {dims}")
    groups, out, channels = matrices.shape
    return matrices.reshape(groups * out, channels, *(1,) * dims)


def split_channels(x: Array, groups: int) -> Array:
    """A map (N, C, *size) with its channels grouped, (N, G, C/G, *size): a view.

    Raises
    ------
    BadInput
        if the channels do not divide into the groups.
    """
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups:
        raise BadInput(f"a map of shape {x.shape} does not divide into {groups} groups of channels")
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
