"""Winograd: a k×k convolution at stride 1 is (m + k - 1)² fully connected layers applied to transformed tiles.

Equation, for one axis, m outputs of a kernel w of r taps from a tile d of n = m + r - 1 positions:

    y = Aᵀ[(G·w) ⊙ (Bᵀ·d)]

with n multiplications instead of m·r. On two axes, each of the n² transformed positions (i, j) has a product over the
channels with its own matrix: Y_ij = U_ij·V_ij with U = G·w·Gᵀ and V = Bᵀ·d·B, which is a linear layer (or a 1×1
convolution) over all tiles. For m = 4, r = 3 there are 36 products instead of 144: a quarter.

Aᵀ, G and Bᵀ result from evaluating polynomials at n - 1 points and at infinity (Toom-Cook): correlation with w is the
transpose of multiplication by the polynomial w. In rational numbers the equation is exact for any points; in floating
point the points determine how much rounding errors are amplified. `F4X3` uses the points 0, ±3/4, ±3/2: every entry of
Aᵀ and Bᵀ is exact in float32, pairs ±p share their sums, and errors are less than half those of the usual 0, ±1, ±2.

    |ŷ - y| ≤ γ·|Aᵀ|·Σ_c(|G|·|w_c|·|Gᵀ| ⊙ |Bᵀ|·|d_c|·|B|)·|A|,   γ = (C + s)·u / (1 - (C + s)·u)

with s roundings in addition to the sum over C channels. The bound of an output depends only on its own tile of n × n
positions, so every sample has a bound of its own. All m × m outputs of a tile share one bound: a position much larger
than the others reduces the accuracy of all of them. An infinity or NaN spreads to all of them; in the direct
convolution it reaches r × r outputs.

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
        """Positions of a tile along one axis, n = m + r - 1; a tile has n² products."""
        return self.outputs + self.taps - 1

    @property
    def saving(self) -> Fraction:
        """Multiplications of the direct convolution divided by those of this one, on two axes, for complete tiles.

        >>> F4X3.saving
        Fraction(4, 1)
        """
        return Fraction(self.outputs * self.taps, self.edge) ** 2

    def tiles(self, size: Sequence[int]) -> int:
        """Number of tiles that cover an output of `size` positions per axis.

        >>> F4X3.tiles((14, 14)), F4X3.tiles((224, 224))
        (16, 3136)
        """
        return int(np.prod([-(-n // self.outputs) for n in size]))

    def macs(self, size: Sequence[int], channels: int, outputs: int) -> int:
        """MACs of the products over channels for one sample, without the transforms.

        >>> F4X3.macs((224, 224), 64, 64) * 4 == 224 * 224 * 9 * 64 * 64
        True
        """
        return self.edge**2 * self.tiles(size) * channels * outputs

    def gamma(self, channels: int, unit: float, roundings: int) -> float:
        """γ for sums over `channels` with `roundings` additional roundings, for the unit roundoff `unit` of a dtype.

        Raises BadInput if (C + s)·u is 1 or more, so that no bound exists.
        """
        relative_error = (channels + roundings) * unit
        if not 0 <= relative_error < 1:
            raise BadInput(
                f"channels={channels}: no bound exists with {roundings} more roundings at unit roundoff {unit}"
            )
        return relative_error / (1 - relative_error)

    def correlate(self, tiles: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        """Outputs (T, O, m, m) of tiles (T, C, n, n) and weights (O, C, r, r), in the dtype of the arrays.

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
        """The factor of γ in the bound, from the absolute values of all matrices; shapes as for `correlate`."""
        parts = [np.abs(entries(m, np.float64)) for m in (self.output, self.weight, self.input)]
        return self._correlate(np.abs(tiles).astype(np.float64), np.abs(weight).astype(np.float64), *parts)

    def _correlate(self, d: Any, w: Any, a: Any, g: Any, b: Any) -> NDArray[Any]:
        u = g @ w @ g.T  # (O, C, n, n)
        v = b @ d @ b.T  # (T, C, n, n)
        products = (u[None] * v[:, None]).sum(2)  # (T, O, n, n)
        y: NDArray[Any] = a @ products @ a.T
        return y


def entries(matrix: Matrix, dtype: Any) -> NDArray[Any]:
    """The matrix as an array of a dtype; dtype object gives Fractions."""
    return np.array(matrix, dtype=dtype)


def winograd(outputs: int, taps: int, points: Sequence[Fraction | int]) -> Winograd:
    """The algorithm with the evaluation points `points` (n - 1 distinct rational numbers) and infinity.

    Raises BadInput if the number of points is wrong or points are repeated.

    >>> f23 = winograd(2, 3, (0, 1, -1))
    >>> [[str(x) for x in row] for row in f23.output]
    [['1', '1', '1', '0'], ['0', '1', '-1', '1']]
    """
    edge = outputs + taps - 1
    at = [Fraction(p) for p in points]
    if outputs < 1 or taps < 1 or len(at) != edge - 1 or len(set(at)) != len(at):
        raise BadInput(
            f"points={list(map(str, at))}: expected {edge - 1} distinct points for F({outputs}, {taps})"
        )
    others = [[q for q in at if q != p] for p in at]
    scale = [_product([p - q for q in rest]) for p, rest in zip(at, others, strict=True)]
    zero = (Fraction(0),)
    output = tuple((*(p**k for p in at), Fraction(int(k == outputs - 1))) for k in range(outputs))
    weight = (
        *(tuple(p**k / s for k in range(taps)) for p, s in zip(at, scale, strict=True)),
        (*zero * (taps - 1), Fraction(1)),
    )
    tile = (*((*_polynomial(rest), *zero) for rest in others), _polynomial(at))
    return Winograd(outputs, taps, output, weight, tile)


def _product(factors: Sequence[Fraction]) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def _polynomial(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of Π(x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, extended = [Fraction(0), *coefficients], [*coefficients, Fraction(0)]
        coefficients = [low - root * high for low, high in zip(shifted, extended, strict=True)]
    return tuple(coefficients)


F4X3 = winograd(4, 3, (0, Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)))
"""F(4×4, 3×3), used by the inference engine (`onebyone.native`)."""
