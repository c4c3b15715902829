"""Average pooling commutes with linear.

Equation. Let output position q of the pool have weights a[q, p] ≥ 0 over the input positions p. Then

    W·(Σ_p a[q, p]·x[:, p]) + b = Σ_p a[q, p]·(W·x[:, p] + b)      if b = 0 or Σ_p a[q, p] = 1

so "pool, then linear" equals "pointwise convolution, then pool" with the same W and b. The result before the pool is
the class map. On a larger map, a global pool over an h×w window becomes an average pool of h×w at stride 1.

The weights sum to 1 if the average counts only real elements. They do not if zeros of the padding are included in the
divisor (`count_include_pad`), or if `divisor_override` differs from the number of elements. Max pooling does not
commute with linear: max(-x) = -min(x).

Source: Lin, Chen and Yan, "Network In Network", 2014, §3.2; Zhou et al., "Learning Deep Features for
Discriminative Localization", 2016, §2, eqs. 1-2. Divisors: PyTorch
`aten/src/ATen/native/cpu/AvgPoolKernel.cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.laws.geometry import Sliding

NAME = "average pooling commutes with linear"
EQUATION = "W·mean_p(x[:, p]) + b = mean_p(W·x[:, p] + b)"

Array = NDArray[Any]


def why_not_commute(
    kind: str,
    ops: Sequence[Sliding],
    sizes: Sequence[int] | None = None,
    *,
    bias: bool = True,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str | None:
    """Why a pool of `kind` ("average" or another) does not commute with a linear layer; None if it does.

    `ops` is the pool, per axis. `sizes` is the size of its input map per axis, or None for a map of any size, in which
    all padding is assumed to be read. Without a bias every weighted sum commutes.

    >>> why_not_commute("average", [Sliding(7), Sliding(7)])
    >>> why_not_commute("max", [Sliding(2, stride=2)])
    'a max pool is not linear: only an average pool commutes with a linear layer'
    """
    if kind != "average":
        return f"a {kind} pool is not linear: only an average pool commutes with a linear layer"
    if not bias:
        return None
    if divisor_override is not None:
        return _why_not_override(ops, sizes, divisor_override)
    if count_include_pad and any(_reads_padding(op, size) for op, size in _with_sizes(ops, sizes)):
        return "padding is included in the average: the weights sum to less than 1, which scales the bias"
    return None


def windowed(size: Sequence[int]) -> tuple[Sliding, ...]:
    """The pool that a global average over `size` positions becomes on a larger map: of that size, at stride 1.

    >>> windowed((7, 5))[1]
    Sliding(kernel=5, stride=1, dilation=1, pad_before=0, pad_after=0, ceil_mode=False)
    """
    return tuple(Sliding(kernel=n) for n in size)


def pooling_matrix(op: Sliding, size: int, count_include_pad: bool = True) -> Array:
    """The weights a (positions, size) of an average pool on one axis, float64; those of several axes are multiplied.

    Raises
    ------
    BadInput
        if an output position reads only padding, so that its average is 0/0.

    >>> pooling_matrix(Sliding(2, stride=2, pad_before=1, pad_after=1), 2)
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    rows = np.zeros((op.out_size(size), size))
    for position, row in enumerate(rows):
        elements = _elements_read(op, size, position)
        divisor = _divisor(op, size, position) if count_include_pad else len(elements)
        if divisor < 1:
            raise BadInput(f"position {position} of the pool reads only padding: its average is 0/0")
        row[elements] = 1 / divisor
    return rows


def pooled_kernel(weight: Array, size: Sequence[int]) -> Array:
    """Mean over h×w positions, then linear (O, C), as one convolution with a kernel (O, C, h, w) filled with W / (h·w).

    The kernel is a read-only broadcast view of W / (h·w).

    >>> pooled_kernel(np.array([[6.0, 12.0]]), (2, 3))[0, 1]
    array([[2., 2., 2.],
           [2., 2., 2.]])
    """
    if weight.ndim != 2:
        raise BadInput(f"a linear weight has shape (O, C), not {weight.shape}")
    scaled = (weight / prod(size))[(..., *(None,) * len(size))]
    return np.broadcast_to(scaled, (*weight.shape, *size))


def _taps(op: Sliding, position: int) -> range:
    first = position * op.stride - op.pad_before
    return range(first, first + op.extent, op.dilation)


def _elements_read(op: Sliding, size: int, position: int) -> list[int]:
    """The input positions that output `position` averages, without padding."""
    return [tap for tap in _taps(op, position) if 0 <= tap < size]


def _divisor(op: Sliding, size: int, position: int) -> int:
    # with count_include_pad PyTorch counts padding, but not the part of a ceil_mode window beyond the padding
    return sum(tap < size + op.pad_after for tap in _taps(op, position))


def _reads_padding(op: Sliding, size: int | None) -> bool:
    if size is None:
        return op.padded()
    return any(len(_elements_read(op, size, q)) != _divisor(op, size, q) for q in range(op.out_size(size)))


def _why_not_override(ops: Sequence[Sliding], sizes: Sequence[int] | None, divisor: int) -> str | None:
    if sizes is None:
        partial = any(op.padded() or op.ceil_mode for op in ops)
        counts = {prod(op.kernel for op in ops)} | ({0} if partial else set())
    else:
        axes = [
            {len(_elements_read(op, n, q)) for q in range(op.out_size(n))}
            for op, n in zip(ops, sizes, strict=True)
        ]
        counts = {prod(lengths) for lengths in product(*axes)}
    if counts <= {divisor}:
        return None
    return f"divisor_override {divisor} is not the number of positions of each window: the weights do not sum to 1"


def _with_sizes(ops: Sequence[Sliding], sizes: Sequence[int] | None) -> list[tuple[Sliding, int | None]]:
    if sizes is not None and len(sizes) != len(ops):
        raise BadInput(f"sizes={tuple(sizes)}: expected {len(ops)} numbers, one per axis")
    return list(zip(ops, sizes if sizes is not None else [None] * len(ops), strict=True))
