"""Bounds: how far two right ways of computing one sum may differ, and which integers make them agree.

Equation, for y = Σ_{i=1..n} w_i·x_i + b evaluated in floating point, in any order, fused or not:

    |fl(y) - y| ≤ γ_{n+1}·(|w|·|x| + |b|),   γ_n = n·u / (1 - n·u),   n·u < 1

so two such evaluations differ by at most 2·γ_{n+1}·(|w|·|x| + |b|). And if w, x and b are integers with
n·m² + m ≤ 2^p, where m bounds all of them and p is the number of significand bits, every product and every
partial sum, in any order, is an integer that the format holds: they do not differ at all.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, §3.1 (lemma 3.1 and what
follows it: the order of summation does not matter) and §2.1 (unit roundoff). Each term meets one product and
at most n additions.

Not covered: overflow and underflow; algorithms that do not form the plain sum (Winograd and FFT
convolutions, TF32, sums kept in a narrower format than the one named). These need a bound of their own, or
must be turned off.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onebyone.errors import BadInput

NAME = "rounding bounds"
EQUATION = "|fl₁(W·x + b) - fl₂(W·x + b)| ≤ 2·γ_{n+1}·(|W|·|x| + |b|)"

# significand bits, the hidden one included: IEEE 754-2019, table 3.5; bfloat16 is float32 less 16 bits
_SIGNIFICAND_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


class _Scalable(Protocol):
    def __rmul__(self, other: float, /) -> Any: ...


_Amount = TypeVar("_Amount", bound=_Scalable)


def significand_bits(dtype_name: str) -> int:
    """Significand bits of a floating type by name ("float32"; "torch.float32" too), the hidden one included.

    >>> significand_bits("float32"), significand_bits("bfloat16")
    (24, 8)
    """
    bits = _SIGNIFICAND_BITS.get(str(dtype_name).rsplit(".", 1)[-1])
    if bits is None:
        raise BadInput(f"dtype is {dtype_name!r}; it must be one of {', '.join(_SIGNIFICAND_BITS)}")
    return bits


def unit_roundoff(dtype_name: str) -> float:
    """The unit roundoff u = 2^-p of round-to-nearest with p significand bits.

    >>> unit_roundoff("float64") == 2.0**-53
    True
    """
    return 2.0 ** -significand_bits(dtype_name)


def gamma(n: int, u: float) -> float:
    """Higham's γ_n = n·u / (1 - n·u): the relative error that n roundings can add up to.

    Raises
    ------
    BadInput
        where n is negative or n·u ≥ 1: no bound holds (a sum of 256 terms in bfloat16, say).

    >>> gamma(1, 0.25)
    0.3333333333333333
    """
    if n < 0:
        raise BadInput(f"n is {n}; it counts roundings and cannot be negative")
    if n * u >= 1:
        raise BadInput(f"no rounding bound: n·u = {n * u:g} with n = {n}, u = {u:g}, and it must be below 1")
    return n * u / (1 - n * u)


def dot_bound(n: int, abs_dot: _Amount, u: float) -> _Amount:
    """How far two evaluations of a sum of `n` products and a bias may differ: 2·γ_{n+1}·abs_dot.

    `abs_dot` is |W|·|x| + |b|: a number or an array (NumPy or any other) of it, computed in float64.

    >>> dot_bound(3, 1.0, 0.125)
    2.0
    """
    bound: _Amount = 2 * gamma(n + 1, u) * abs_dot
    return bound


def probe_range(n: int, significand_bits: int) -> int:
    """The largest m with n·m² + m ≤ 2^p: sums of `n` products and a bias, of integers in [-m, m], stay exact.

    Raises
    ------
    BadInput
        where not even integers in {-1, 0, 1} are safe.

    >>> m = probe_range(25088, 53); m, 25088 * m**2 + m <= 2**53 < 25088 * (m + 1) ** 2 + m + 1
    (599186, True)
    """
    if n < 1 or significand_bits < 1:
        raise BadInput(f"n = {n} and significand_bits = {significand_bits} must both be at least 1")
    m = (math.isqrt(1 + 4 * n * 2**significand_bits) - 1) // (2 * n)
    if m < 1:
        raise BadInput(
            f"no integers are safe: a sum of {n} products needs more than {significand_bits} significand bits"
        )
    return m


def assert_exact(
    weight: ArrayLike, x: ArrayLike, bias: ArrayLike | None = None, *, terms: int, significand_bits: int = 53
) -> None:
    """Check, on the very numbers of a probe, that sums of `terms` products and a bias are exact in any order.

    All values must be finite integers, and terms·max|weight|·max|x| + max|bias| ≤ 2^significand_bits.

    Raises
    ------
    BadInput
        naming the argument that is not of integers, or the bound that is exceeded.

    >>> assert_exact([[1, -2]], [3.0, 4.0], [5], terms=2)
    """
    w, v = _largest_integer(weight, "weight"), _largest_integer(x, "x")
    b = 0 if bias is None else _largest_integer(bias, "bias")
    largest = terms * w * v + b
    if terms < 1 or largest > 2**significand_bits:
        raise BadInput(
            f"sums of {terms} products of integers up to {w} and {v} and a bias up to {b} reach {largest}, "
            f"more than 2^{significand_bits}: not exact"
        )


def _largest_integer(values: ArrayLike, name: str) -> int:
    array: NDArray[Any] = np.asarray(values)
    if array.size == 0:
        return 0
    if not np.all(np.isfinite(array)) or not np.array_equal(array, np.trunc(array)):
        raise BadInput(f"{name} holds values that are not finite integers")
    return max(abs(int(array.max())), abs(int(array.min())))
