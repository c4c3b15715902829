"""Rounding bounds: how far two correct evaluations of one sum may differ, and integers on which they agree exactly.

Equation, for y = Σ_{i=1..n} w_i·x_i + b evaluated in floating point, in any order, with or without fused operations:

    |fl(y) - y| ≤ γ_{n+1}·(|w|·|x| + |b|),   γ_n = n·u / (1 - n·u),   n·u < 1

so two such evaluations differ by at most 2·γ_{n+1}·(|w|·|x| + |b|). If w, x and b are integers with absolute values of
at most m and n·m² + m ≤ 2^p, where p is the number of significand bits, every product and every partial sum, in any
order, is an integer that the format represents exactly. The evaluations then agree exactly.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, §3.1 (lemma 3.1 and the remarks after it:
the order of summation does not matter) and §2.1 (unit roundoff). Each term takes part in one product and at most n
additions.

Not covered: overflow and underflow; algorithms that do not compute the plain sum (Winograd and FFT convolutions, TF32,
sums accumulated in a narrower format than the one named). These need a bound of their own, or must be disabled.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onebyone.errors import BadInput

NAME = "rounding bounds"
EQUATION = "|fl₁(W·x + b) - fl₂(W·x + b)| ≤ 2·γ_{n+1}·(|W|·|x| + |b|)"

# significand bits, including the hidden bit: IEEE 754-2019, table 3.5; bfloat16 is float32 without 16 bits
_SIGNIFICAND_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


class _Scalable(Protocol):
    def __rmul__(self, other: float, /) -> Any: ...


_Amount = TypeVar("_Amount", bound=_Scalable)


def significand_bits(dtype_name: str) -> int:
    """Number of significand bits of a dtype ("float32" or "torch.float32"), including the hidden bit.

    >>> significand_bits("float32"), significand_bits("bfloat16")
    (24, 8)
    """
    bits = _SIGNIFICAND_BITS.get(str(dtype_name).rpartition(".")[-1])
    if bits is None:
        raise BadInput(f"dtype={dtype_name!r}: expected one of {', '.join(_SIGNIFICAND_BITS)}")
    return bits


def unit_roundoff(dtype_name: str) -> float:
    """The unit roundoff u = 2^-p of round-to-nearest with p significand bits.

    >>> unit_roundoff("float64") == 2.0**-53
    True
    """
    return 2.0 ** -significand_bits(dtype_name)


def gamma(n: int, u: float) -> float:
    """Higham's γ_n = n·u / (1 - n·u): the largest relative error after n roundings.

    Raises
    ------
    BadInput
        if n is negative, or if n·u ≥ 1 and no bound exists (for example 256 terms in bfloat16).

    >>> gamma(1, 0.25)
    0.3333333333333333
    """
    if n < 0:
        raise BadInput(f"n={n}: expected a number of roundings, 0 or more")
    if n * u >= 1:
        raise BadInput(
            f"no rounding bound exists: n·u = {n * u:g} with n = {n}, u = {u:g}; expected less than 1"
        )
    return n * u / (1 - n * u)


def dot_bound(n: int, abs_dot: _Amount, u: float) -> _Amount:
    """The largest difference of two evaluations of a sum of `n` products and a bias: 2·γ_{n+1}·abs_dot.

    `abs_dot` is |W|·|x| + |b| computed in float64: a number, or an array of any library.

    >>> dot_bound(3, 1.0, 0.125)
    2.0
    """
    bound: _Amount = 2 * gamma(n + 1, u) * abs_dot
    return bound


def probe_range(n: int, significand_bits: int) -> int:
    """The largest m with n·m² + m ≤ 2^p: sums of `n` products and a bias of integers in [-m, m] are exact.

    Raises
    ------
    BadInput
        if not even integers in {-1, 0, 1} give exact sums.

    >>> m = probe_range(25088, 53); m, 25088 * m**2 + m <= 2**53 < 25088 * (m + 1) ** 2 + m + 1
    (599186, True)
    """
    if n < 1 or significand_bits < 1:
        raise BadInput(f"n={n}, significand_bits={significand_bits}: expected at least 1 for both")
    m = (math.isqrt(1 + 4 * n * 2**significand_bits) - 1) // (2 * n)
    if m < 1:
        raise BadInput(
            f"no integers give exact sums: {n} products need more than {significand_bits} significand bits"
        )
    return m


def assert_exact(
    weight: ArrayLike, x: ArrayLike, bias: ArrayLike | None = None, *, terms: int, significand_bits: int = 53
) -> None:
    """Check that sums of `terms` products and a bias of the given values are exact in any order.

    All values must be finite integers, and terms·max|weight|·max|x| + max|bias| ≤ 2^significand_bits.

    Raises
    ------
    BadInput
        if an argument holds other values than finite integers, or the limit is exceeded.

    >>> assert_exact([[1, -2]], [3.0, 4.0], [5], terms=2)
    """
    w, v = _largest_integer(weight, "weight"), _largest_integer(x, "x")
    b = 0 if bias is None else _largest_integer(bias, "bias")
    largest = terms * w * v + b
    if terms < 1 or largest > 2**significand_bits:
        raise BadInput(
            f"sums of {terms} products of integers up to {w} and {v} and a bias up to {b} reach {largest}, "
            f"more than 2^{significand_bits}, so they are not exact"
        )


def _largest_integer(values: ArrayLike, name: str) -> int:
    array: NDArray[Any] = np.asarray(values)
    if array.size == 0:
        return 0
    if not np.all(np.isfinite(array)) or not np.array_equal(array, np.trunc(array)):
        raise BadInput(f"{name} holds values that are not finite integers")
    return max(abs(int(array.max())), abs(int(array.min())))
