"""Strassen's product in Winograd's variant: a product of 2×2 blocks in 7 products and 15 sums instead of 8 and 4.

Equation, for Y = X·B with X = A (rows × K), B = Wᵀ (K × N), both split in halves along both axes:

    S1 = A21 + A22,   S2 = S1 - A11,   S3 = A11 - A21,   S4 = A12 - S2
    T1 = B12 - B11,   T2 = B22 - T1,   T3 = B22 - B12,   T4 = T2 - B21
    C11 = A11·B11 + A12·B21
    U2 = A11·B11 + S2·T2,   U3 = U2 + S3·T3,   C21 = U3 + A22·(-T4)
    M5 = S1·T1,   C22 = U3 + M5,   C12 = (U2 + M5) + S4·B22

Commutativity is not used, so the seven products may be computed in the same way recursively: 7^levels products of
K/2^levels terms, with (8/7)^levels times fewer multiplications than the direct product. An odd number of rows is padded
with a row of zeros at every level; K and N must be divisible by 2^levels. The seven weights (the T's) are computed once
in advance, with sums in float64 that are rounded once to the weight's dtype; storing them takes (7/4)^levels times the
memory.

    |Ŷ - Y| ≤ γ·reach(X, W),   γ = (n + s)·u / (1 - (n + s)·u),   n = K/2^levels,   s = 7·levels

`reach` is the algorithm applied to absolute values with every minus replaced by a plus. Expanded, Ŷ is a sum of
±a·b·Π(1 + δ); s is the largest number of roundings of a term in addition to those of its product of n terms: for S2·T2,
at each level, 2 in S2, 2 in T2 and 3 in U2, U3 and C21 (or C22; C12 has as many). Sums of weights in float64, rounded
once, need fewer: 5·levels + 1 and those in float64. For ones (K = 2), one level gives a reach of 18 while |X|·|Wᵀ| is
2; this is the 18 of Higham's bound in norms. An accumulator that continues through several products (two for C11) sums
that many times n terms; `gamma` has the parameter `joined` for it. Overflow and underflow are not covered.

A value affects more than its own row, because S1 to S4 add rows of both halves. At each level an infinity or NaN, or a
sum that overflows, spreads from its row to the row half the rows away (mostly as NaN, because infinities cancel). So do
rounding errors, as `reach` shows: a row of small numbers loses accuracy beside a row of large ones. For the weights the
same holds for columns of B, outputs N/2 apart.

Source: Strassen, "Gaussian Elimination is not Optimal", Numerische Mathematik 13, 1969; Winograd, "On Multiplication
of 2 × 2 Matrices", Linear Algebra and its Applications 4, 1971; Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., 2002, §23.2.2 (error bound) and §3.1 (γ); Huang, Smith, Henry and van de Geijn, "Strassen's
Algorithm Reloaded", SC16, 2016 (sums computed where a product packs its blocks and stores its results).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.laws.bounds import gamma as sum_gamma

NAME = "Strassen's product, Winograd's variant"
EQUATION = "C11 = A11·B11 + A12·B21,  C21 = U3 - A22·T4,  C22 = U3 + M5,  C12 = U2 + M5 + S4·B22"
PRODUCTS = 7
ROUNDINGS = 7
"""s for one level: 2 roundings in S2, 2 in T2, 3 in the output."""

Array = NDArray[Any]
Minus = Callable[[Any, Any], Any]


def saving(levels: int) -> Fraction:
    """Multiplications of the direct product divided by those of this one, if the rows divide by 2^levels.

    >>> saving(1), saving(2)
    (Fraction(8, 7), Fraction(64, 49))
    """
    _require_divisible(levels)
    return Fraction(8, 7) ** levels


def growth(levels: int) -> Fraction:
    """Size of the stored weights divided by the size of W.

    >>> growth(1), growth(2)
    (Fraction(7, 4), Fraction(49, 16))
    """
    _require_divisible(levels)
    return Fraction(7, 4) ** levels


def macs(rows: int, K: int, N: int, levels: int) -> int:
    """Multiply-accumulates of the 7^levels products (without the sums).

    >>> macs(196, 512, 1024, 1) * 8 == 196 * 512 * 1024 * 7
    True
    >>> macs(5, 4, 4, 2)  # 49 products of 2 rows, one term, one output
    98
    """
    _require_divisible(levels, K=K, N=N)
    if rows < 0:
        raise BadInput(f"rows={rows}: expected 0 or more")
    products: int = PRODUCTS**levels
    return products * -(-rows >> levels) * (K >> levels) * (N >> levels)


def gamma(K: int, unit: float, levels: int, joined: int = 1) -> float:
    """γ for K inputs and the unit roundoff `unit` of a dtype; at most `joined` products share one accumulator.

    Raises BadInput if (joined·K/2^levels + 7·levels)·unit is 1 or more, so that no bound exists.

    >>> gamma(64, 2.0**-24, 1) == sum_gamma(32 + 7, 2.0**-24)
    True
    """
    _require_divisible(levels, K=K)
    if joined < 1:
        raise BadInput(
            f"joined={joined}: expected the largest number of products in one accumulator, 1 or more"
        )
    return sum_gamma(joined * (K >> levels) + ROUNDINGS * levels, unit)


def sums(a: Array) -> tuple[Array, ...]:
    """The seven left factors of A for one level, in the order of the products: A11, A12, S2, S3, A22, S1, S4.

    >>> [int(s.item()) for s in sums(np.array([[1, 2], [4, 8]]))]
    [1, 2, 11, -3, 8, 12, -9]
    """
    return _left(a, operator.sub)


def weight_sums(b: Array) -> tuple[Array, ...]:
    """The seven right factors of B for one level, in the order of the products: B11, B21, T2, T3, -T4, T1, B22.

    >>> [int(t.item()) for t in weight_sums(np.array([[1, 2], [4, 8]]))]
    [1, 4, 7, 6, -3, 1, 8]
    """
    return _right(b, operator.sub)


def join(products: Sequence[Array]) -> Array:
    """C from the seven products of one level.

    >>> a, b = np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])
    >>> join([s @ t for s, t in zip(sums(a), weight_sums(b), strict=True)]).tolist()
    [[19, 22], [43, 50]]
    """
    m1, m2, m3, m4, m6, m5, m7 = products
    u2 = m1 + m3
    u3 = u2 + m4
    return np.block([[m1 + m2, (u2 + m5) + m7], [u3 + m6, u3 + m5]])


def weights(b: Array, levels: int) -> list[Array]:
    """The 7^levels matrices (K/2^levels × N/2^levels) of B (K × N), indexed outer·7 + inner.

    Floating-point dtypes are summed in float64 (or in their own dtype, if wider) and rounded once; others in their own.

    >>> [w.shape for w in weights(np.ones((8, 12), np.float32), 2)] == [(2, 3)] * 49
    True
    """
    _require_matrix("b", b, levels, ("K", "N"))
    wide = np.promote_types(b.dtype, np.float64) if np.issubdtype(b.dtype, np.floating) else b.dtype
    return [t.astype(b.dtype) for t in _weights(b.astype(wide), levels, operator.sub)]


def apply(x: Array, weights: Sequence[Array], levels: int) -> Array:
    """Y (rows × N) of X (rows × K) and the result of `weights`, in the dtype of the arrays.

    Raises BadInput if the number of weights is wrong or X does not have K columns.
    """
    _require_divisible(levels)
    if len(weights) != PRODUCTS**levels:
        raise BadInput(f"weights={len(weights)} matrices: expected {PRODUCTS**levels}, for levels={levels}")
    _require_rows(x, len(weights[0]) << levels)
    return _apply(x, weights, levels, operator.sub)


def multiply(x: Array, w: Array, levels: int) -> Array:
    """Y (rows, N) for X (rows, K) and a layer's weight W (N, K), in the dtype of the arrays.

    Arrays of Fractions (dtype object) and of integers are computed exactly.

    >>> x, w = np.arange(12).reshape(3, 4), np.arange(24).reshape(6, 4)
    >>> bool((multiply(x, w, 1) == x @ w.T).all())
    True
    """
    _require_matrix("w", w, levels, ("N", "K"))
    _require_rows(x, w.shape[1])
    return apply(x, weights(w.T, levels), levels)


def reach(x: Array, w: Array, levels: int) -> Array:
    """The factor of γ in the bound, in float64; shapes as for `multiply`.

    >>> reach(np.ones((2, 2)), np.ones((2, 2)), 1).tolist()
    [[2.0, 18.0], [18.0, 18.0]]
    """
    _require_matrix("w", w, levels, ("N", "K"))
    _require_rows(x, w.shape[1])
    parts = _weights(np.abs(w.T).astype(np.float64), levels, operator.add)
    return _apply(np.abs(x).astype(np.float64), parts, levels, operator.add)


def _quadrants(name: str, m: Array) -> tuple[Array, Array, Array, Array]:
    if m.ndim != 2 or m.shape[0] % 2 or m.shape[1] % 2:
        raise BadInput(f"{name}={m.shape}: expected a matrix with even numbers of rows and columns")
    rows, columns = m.shape[0] // 2, m.shape[1] // 2
    return m[:rows, :columns], m[:rows, columns:], m[rows:, :columns], m[rows:, columns:]


def _left(a: Array, minus: Minus) -> tuple[Array, ...]:
    a11, a12, a21, a22 = _quadrants("a", a)
    s1 = a21 + a22
    s2 = minus(s1, a11)
    return a11, a12, s2, minus(a11, a21), a22, s1, minus(a12, s2)


def _right(b: Array, minus: Minus) -> tuple[Array, ...]:
    b11, b12, b21, b22 = _quadrants("b", b)
    t1 = minus(b12, b11)
    t2 = minus(b22, t1)
    return b11, b21, t2, minus(b22, b12), minus(b21, t2), t1, b22


def _weights(b: Array, levels: int, minus: Minus) -> list[Array]:
    if not levels:
        return [b]
    return [inner for outer in _right(b, minus) for inner in _weights(outer, levels - 1, minus)]


def _apply(a: Array, weights: Sequence[Array], levels: int, minus: Minus) -> Array:
    if not levels:
        product: Array = a @ weights[0]
        return product
    rows, inner = len(a), len(weights) // PRODUCTS
    if rows % 2:
        a = np.concatenate([a, np.zeros((1, a.shape[1]), a.dtype)])
    parts = (weights[i * inner : (i + 1) * inner] for i in range(PRODUCTS))
    return join([_apply(s, t, levels - 1, minus) for s, t in zip(_left(a, minus), parts, strict=True)])[:rows]


def _require_divisible(levels: int, **sizes: int) -> None:
    """Raise BadInput unless every size is divisible by 2^levels."""
    if levels < 0:
        raise BadInput(f"levels={levels}: expected a number of recursion levels, 0 or more")
    for name, size in sizes.items():
        if size < 1 or size % 2**levels:
            raise BadInput(f"{name}={size}: expected a multiple of {2**levels}, for levels={levels}")


def _require_matrix(name: str, matrix: Array, levels: int, axes: tuple[str, str]) -> None:
    if matrix.ndim != 2:
        raise BadInput(f"{name}={matrix.shape}: expected a matrix ({', '.join(axes)})")
    _require_divisible(levels, **dict(zip(axes, matrix.shape, strict=True)))


def _require_rows(x: Array, K: int) -> None:
    if x.ndim != 2 or x.shape[1] != K:
        raise BadInput(f"x={x.shape}: expected a matrix (rows, {K})")
