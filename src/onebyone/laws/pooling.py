"""Average pooling commutes with linear.

Equation. Let a place q of the pool have weights a[q, p] ≥ 0 over the places p of its window. Then

    W·(Σ_p a[q, p]·x[:, p]) + b = Σ_p a[q, p]·(W·x[:, p] + b)      if b = 0 or Σ_p a[q, p] = 1

so "pool, then linear" may be run as "pointwise convolution, then pool" with the same W and b: the class map
before pooling. A global pool over an h×w window is, on a larger map, an average pool of h×w at stride 1.

The weights sum to 1 for an average over what is really there; not where zeros of the padding are counted in
the divisor (`count_include_pad`), nor where a `divisor_override` differs from the number of places. A
maximum does not commute at all: max(-x) = -min(x).

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
    """Why a pool of `kind` ("average" may) does not commute with a linear layer; None if it does.

    `ops` is the pool, per axis; `sizes` the places of the map it reads, per axis, or None for a map of any
    size, where every padding is taken to be seen. Without a bias every weighted sum commutes.

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
    if count_include_pad and any(_sees_padding(op, size) for op, size in _with_sizes(ops, sizes)):
        return "padding is counted in the average: its weights sum to less than 1, which shrinks the bias"
    return None


def windowed(size: Sequence[int]) -> tuple[Sliding, ...]:
    """The pool that a global average over `size` places is, on a larger map: of that size, at stride 1.

    >>> windowed((7, 5))[1]
    Sliding(kernel=5, stride=1, dilation=1, pad_before=0, pad_after=0, ceil_mode=False)
    """
    return tuple(Sliding(kernel=places) for places in size)


def pooling_matrix(op: Sliding, size: int, count_include_pad: bool = True) -> Array:
    """The weights a (places, size) of an average pool on one axis, float64; on more axes they multiply.

    Raises
    ------
    BadInput
        where a place holds padding alone, so that its average is 0/0.

    >>> pooling_matrix(Sliding(2, stride=2, pad_before=1, pad_after=1), 2)
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    rows = np.zeros((op.out_size(size), size))
    for place, row in enumerate(rows):
        seen = _seen(op, size, place)
        divisor = _divisor(op, size, place) if count_include_pad else len(seen)
        if divisor < 1:
            raise BadInput(f"place {place} of the pool holds padding alone: its average is 0/0")
        row[seen] = 1 / divisor
    return rows


def pooled_kernel(weight: Array, size: Sequence[int]) -> Array:
    """Mean over h×w places, then linear (O, C), as one convolution: W / (h·w) all over a kernel (O, C, h, w).

    Memory is that of W / (h·w) alone (a broadcast, read-only view).

    >>> pooled_kernel(np.array([[6.0, 12.0]]), (2, 3))[0, 1]
    array([[2., 2., 2.],
           [2., 2., 2.]])
    """
    if weight.ndim != 2:
        raise BadInput(f"a linear weight has shape (O, C), not {weight.shape}")
    scaled = (weight / prod(size))[(..., *(None,) * len(size))]
    return np.broadcast_to(scaled, (*weight.shape, *size))


def _taps(op: Sliding, place: int) -> range:
    first = place * op.stride - op.pad_before
    return range(first, first + op.extent, op.dilation)


def _seen(op: Sliding, size: int, place: int) -> list[int]:
    """The places of the map that `place` of the pool averages, padding left out."""
    return [tap for tap in _taps(op, place) if 0 <= tap < size]


def _divisor(op: Sliding, size: int, place: int) -> int:
    # with count_include_pad PyTorch counts the padding, but not what a partial ceil_mode place has beyond it
    return sum(tap < size + op.pad_after for tap in _taps(op, place))


def _sees_padding(op: Sliding, size: int | None) -> bool:
    if size is None:
        return op.padded()
    return any(len(_seen(op, size, q)) != _divisor(op, size, q) for q in range(op.out_size(size)))


def _why_not_override(ops: Sequence[Sliding], sizes: Sequence[int] | None, divisor: int) -> str | None:
    if sizes is None:
        partial = any(op.padded() or op.ceil_mode for op in ops)
        counts = {prod(op.kernel for op in ops)} | ({0} if partial else set())
    else:
        axes = [
            {len(_seen(op, n, q)) for q in range(op.out_size(n))} for op, n in zip(ops, sizes, strict=True)
        ]
        counts = {prod(lengths) for lengths in product(*axes)}
    if counts <= {divisor}:
        return None
    return (
        f"divisor_override {divisor} is not the number of places in each window: the weights do not sum to 1"
    )


def _with_sizes(ops: Sequence[Sliding], sizes: Sequence[int] | None) -> list[tuple[Sliding, int | None]]:
    if sizes is not None and len(sizes) != len(ops):
        raise BadInput(f"sizes {tuple(sizes)} need one number for each of {len(ops)} axes")
    return list(zip(ops, sizes if sizes is not None else [None] * len(ops), strict=True))
