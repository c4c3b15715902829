"""Winograd: a k×k convolution at stride 1 is (m + k - 1)² fully connected layers, applied to transformed tiles.

Equation, for one axis, m outputs of a kernel of r taps from a tile d of n = m + r - 1 places:

    y = Aᵀ[(G·w) ⊙ (Bᵀ·d)]

n multiplications instead of m·r. On two axes, for every pair (i, j) of the n² transformed places, the channels meet in
a product with a matrix of its own: Y_ij = U_ij·V_ij with U = G·w·Gᵀ and V = Bᵀ·d·B, which is a linear layer (or a 1×1
convolution) over all tiles. For m = 4, r = 3 these are 36 products where the convolution has 144: a quarter.

Aᵀ, G and Bᵀ come from evaluating polynomials at n - 1 points and at infinity (Toom and Cook): correlation with w is the
transpose of multiplying by the polynomial w. In rational numbers the equation is exact, whatever the points; in
floating point they decide how far rounding is amplified. `F4X3` has the points 0, ±3/4, ±3/2: every entry of Aᵀ and Bᵀ
is exact in float32, pairs ±p share their sums, and its errors are less than half those of the usual 0, ±1, ±2.

    |ŷ - y| ≤ γ·|Aᵀ|·Σ_c(|G|·|w_c|·|Gᵀ| ⊙ |Bᵀ|·|d_c|·|B|)·|A|,   γ = (C + s)·u / (1 - (C + s)·u)

with s roundings besides the sum over C channels. The bound of an output holds what its own tile of n × n places holds,
and nothing else: samples and tiles are apart, so that each sample keeps a bound of its own. Within a tile it is one for
all m × m outputs: a place that is much larger than the others costs all of them digits, an infinity or NaN spreads to
all of them, where the direct convolution has it in r × r.

Source: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", CVPR 2016, §4; Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution
for Deep Neural Networks", ACM TOMS 46, 2020, §§3-5 (error bound, choice of points).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput

NAME = "winograd"
EQUATION = "y = Aᵀ[(G·w·Gᵀ) ⊙ (Bᵀ·d·B)]A"
Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Winograd:
    """F(outputs × outputs, taps × taps): `output` is Aᵀ (m × n), `weight` G (n × r), `input` Bᵀ (n × n)."""

    outputs: int
    taps: int
    output: Matrix
    weight: Matrix
    input: Matrix

    @property
    def edge(self) -> int:
        """Places of a tile along one axis, n = m + r - 1; it has n² products."""
        return self.outputs + self.taps - 1

    @property
    def saving(self) -> Fraction:
        """The direct convolution's multiplications ÷ this one's, on two axes, for outputs that fill their tiles.

        >>> F4X3.saving
        Fraction(4, 1)
        """
        return Fraction(self.outputs * self.taps, self.edge) ** 2

    def tiles(self, places: Sequence[int]) -> int:
        """Tiles that cover an output of so many places.

        >>> F4X3.tiles((14, 14)), F4X3.tiles((224, 224))
        (16, 3136)
        """
        return int(np.prod([-(-p // self.outputs) for p in places]))

    def macs(self, places: Sequence[int], channels: int, outputs: int) -> int:
        """Multiply-accumulates of the products over channels for one sample (without the transforms).

        >>> F4X3.macs((224, 224), 64, 64) * 4 == 224 * 224 * 9 * 64 * 64
        True
        """
        return self.edge**2 * self.tiles(places) * channels * outputs

    def gamma(self, channels: int, unit: float, roundings: int) -> float:
        """γ for sums over that many channels in a type of unit roundoff `unit` and so many `roundings` besides.

        Raises BadInput where (C + s)·u is 1 or more: then nothing is bounded.
        """
        reach = (channels + roundings) * unit
        if not 0 <= reach < 1:
            raise BadInput(
                f"channels={channels}: {roundings} roundings more at unit roundoff {unit} bound nothing"
            )
        return reach / (1 - reach)

    def correlate(self, tiles: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        """Tiles (T, C, n, n) and weights (O, C, r, r) to outputs (T, O, m, m), in the arrays' own type.

        Arrays of Fractions (dtype object) are computed exactly.

        >>> tile, weight = np.ones((1, 2, 6, 6)), np.ones((3, 2, 3, 3))
        >>> bool(np.allclose(F4X3.correlate(tile, weight), 18.0))
        True
        """
        kind = np.result_type(tiles, weight)
        return self._correlate(
            tiles, weight, *(entries(m, kind) for m in (self.output, self.weight, self.input))
        )

    def reach(self, tiles: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        """What γ is multiplied by in the bound, with every matrix in absolute values; shapes as for `correlate`."""
        parts = [np.abs(entries(m, np.float64)) for m in (self.output, self.weight, self.input)]
        return self._correlate(np.abs(tiles).astype(np.float64), np.abs(weight).astype(np.float64), *parts)

    def _correlate(self, d: Any, w: Any, a: Any, g: Any, b: Any) -> NDArray[Any]:
        u = g @ w @ g.T  # (O, C, n, n)
        v = b @ d @ b.T  # (T, C, n, n)
        met = (u[None] * v[:, None]).sum(2)  # (T, O, n, n)
        y: NDArray[Any] = a @ met @ a.T
        return y


def entries(matrix: Matrix, dtype: Any) -> NDArray[Any]:
    """The matrix as an array of a type; of Fractions for dtype object."""
    return np.array([list(row) for row in matrix], dtype=object).astype(dtype)


def winograd(outputs: int, taps: int, points: Sequence[Fraction | int]) -> Winograd:
    """The algorithm that evaluates at `points` (n - 1 different rational numbers) and at infinity.

    Raises BadInput for another number of points, or two that are the same.

    >>> f23 = winograd(2, 3, (0, 1, -1))
    >>> [[str(x) for x in row] for row in f23.output]
    [['1', '1', '1', '0'], ['0', '1', '-1', '1']]
    """
    edge = outputs + taps - 1
    at = [Fraction(p) for p in points]
    if outputs < 1 or taps < 1 or len(at) != edge - 1 or len(set(at)) != len(at):
        raise BadInput(
            f"points={list(map(str, at))}: expected {edge - 1} different ones for F({outputs}, {taps})"
        )
    others = [[q for q in at if q != p] for p in at]
    scale = [_product([p - q for q in rest]) for p, rest in zip(at, others, strict=True)]
    none = (Fraction(0),)
    output = tuple((*(p**k for p in at), Fraction(int(k == outputs - 1))) for k in range(outputs))
    weight = (
        *(tuple(p**k / s for k in range(taps)) for p, s in zip(at, scale, strict=True)),
        (*none * (taps - 1), Fraction(1)),
    )
    given = (*((*_polynomial(rest), *none) for rest in others), _polynomial(at))
    return Winograd(outputs, taps, output, weight, given)


def _product(factors: Sequence[Fraction]) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def _polynomial(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of Π(x - root), the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        found = [
            low - root * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)
        ]
    return tuple(found)


F4X3 = winograd(4, 3, (0, Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)))
"""F(4×4, 3×3), what `onebyone.tune` computes with."""
