"""Scaling by powers of two, so that Strassen's product has an error bound for each row.

Equation, for X (rows × K), W (N × K), and diagonal matrices R (rows × rows) and S (K × K) of powers of two:

    X·Wᵀ = R⁻¹·[(R·X·S)·(W·S⁻¹)ᵀ]

This is exact in binary floating point, barring overflow and underflow, so the product in brackets may be Strassen's
(`onebyone.laws.strassen`), whose error in one row depends on the rows that it is added to. With X' = R·X·S,
W' = W·S⁻¹, ω_k = max_j |w_jk|, m_i = max_k |x'_ik|, and

    m_h ≤ ρ·m_i for all rows h that row i is added to,    and β/τ ≤ ω'_k ≤ β for all columns of W' that are not zero,

each row has the bound

    max_j |ŷ_ij - y_ij| ≤ γ·18^L·(K/2^L)·ρ·τ·max_k |x_ik|·ω_k ≤ γ·18^L·(K/2^L)·ρ·τ·max_j (|x_i|·|W|ᵀ)_j.

Proof: `strassen.reach` of factors that are at most M and β is at most 18^L·(K/2^L)·M·β; here M ≤ ρ·m_i and
β ≤ τ·ω'_k, so that M·β ≤ ρ·τ·max_k |x'_ik|·ω'_k (columns of zeros have s_k = 0 and contribute nothing). The bound of
the direct product in the same terms is γ_K·K·max_k |x_ik|·ω_k: that of Strassen is (18/4)^L·ρ·τ times as large, at L
levels.

Which rows and channels are scaled:
- If the largest absolute values of the rows are within the factor `ROWS` of each other and within `MIDDLE` of 1, the
  rows are not scaled: ρ = 4. Otherwise each row is multiplied by the power of two that brings its largest absolute
  value into [1, 2), and ρ = 2.
- If the largest weights of the channels are within the factor `CHANNELS` of each other, the channels are not scaled:
  τ = 16. Otherwise each channel is scaled so that its largest weight is in (β/2, β], and τ = 2. The scales depend only
  on the weights.
- A row of zeros is left out of the sums: its product is 0. A row that contains an infinity or NaN enters the sums as
  zeros. Its product depends only on those values and the signs of their weights: y_ij = Σ x_ik·sign(w_jk) over them.
- Weights whose largest absolute value is not within `MIDDLE` of 1 are multiplied directly. With both factors within
  MIDDLE no sum or product overflows: 2⁸⁰·18²·K is far below 2¹²⁷. Values that underflow are below 2⁻¹²⁶, while the
  largest products are above 2⁻⁸⁰. Scaling a row back overflows exactly if its true product is too large.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, §23.2.2 (the bound in norms), §2.1
(scaling by powers of the base is exact); Dumitrescu, "Improving and estimating the accuracy of Strassen's algorithm",
Numerische Mathematik 79, 1998, and Ballard et al., "Improving the Numerical Stability of Fast Matrix Multiplication",
SIAM J. Matrix Analysis 37, 2016 (scaling of the rows of one factor, the columns of the other, and the inner dimension).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.laws.strassen import multiply as product
from onebyone.laws.strassen import reach as product_reach

NAME = "Scaling by powers of two"
EQUATION = "X·Wᵀ = R⁻¹·[(R·X·S)·(W·S⁻¹)ᵀ]"
ROWS = 4.0
"""ρ: rows are not scaled if their largest absolute values differ by at most this factor."""
CHANNELS = 16.0
"""τ: channels are not scaled if their largest weights differ by at most this factor."""
MIDDLE = 2.0**40
"""Rows between 1 / MIDDLE and MIDDLE need no scaling; weights outside this range are multiplied directly."""
_LEAST = 2.0**-100

Array = NDArray[Any]


def weight_sizes(w: Array) -> Array:
    """ω (K,): the largest |weight| of each channel of W (N, K), in float64.

    >>> weight_sizes(np.array([[1.0, -4.0], [2.0, 0.0]])).tolist()
    [2.0, 4.0]
    """
    sizes: Array = np.abs(w.astype(np.float64)).max(axis=0)
    return sizes


def why_not(w: Array) -> str | None:
    """The reason why W (N, K) must be multiplied directly; None if Strassen's product may be used.

    >>> why_not(np.ones((2, 2))), why_not(np.full((2, 2), 1e30))
    (None, 'its largest weight, 1e+30, is not between 9.1e-13 and 1.1e+12')
    """
    largest = float(weight_sizes(w).max(initial=0.0))
    if not np.isfinite(largest):
        return "its weights contain an infinity or NaN"
    if not 1 / MIDDLE <= largest <= MIDDLE:
        return f"its largest weight, {largest:.3g}, is not between {1 / MIDDLE:.2g} and {MIDDLE:.2g}"
    return None


def channel_scales(w: Array) -> Array | None:
    """The diagonal of S (K,) in float64, at most 1, 0 for channels of zeros; None if no channel needs scaling.

    Channels whose weights are below 2⁻¹⁰⁰ of the largest weight get the scale 2⁻¹⁰⁰.

    >>> channel_scales(np.array([[1.0, 0.3, 0.0]])).tolist(), channel_scales(np.array([[1.0, 0.3]]))
    ([1.0, 0.5, 0.0], None)
    """
    sizes = weight_sizes(w)
    if sizes.min() * CHANNELS >= sizes.max():
        return None
    powers = np.exp2(np.ceil(np.log2(np.where(sizes > 0, sizes, 1.0))))
    powers = np.where(powers < sizes, 2 * powers, powers)  # the logarithm may have been rounded down
    scales: Array = np.where(sizes > 0, np.maximum(powers / powers[sizes > 0].max(), _LEAST), 0.0)
    return scales


def row_scales(x: Array) -> Array:
    """The diagonal of R (rows,) that scales each row of X into [1, 2); 0 for rows of zeros and nonfinite rows.

    >>> row_scales(np.array([[3.0, -5.0], [0.0, 0.0], [np.inf, 1.0]])).tolist()
    [0.25, 0.0, 0.0]
    """
    largest = np.abs(x.astype(np.float64)).max(axis=1, initial=0.0)
    usable = np.isfinite(largest) & (largest > 0)
    _, exponents = np.frexp(np.where(usable, largest, 1.0))
    scales: Array = np.where(usable, np.ldexp(1.0, 1 - exponents), 0.0)
    return scales


def scaled_weight(w: Array, scales: Array | None) -> Array:
    """W·S⁻¹ (N, K) in float64; 0 in channels with s_k = 0."""
    if scales is None:
        return w.astype(np.float64)
    scaled: Array = w.astype(np.float64) * _inverse(scales)
    return scaled


def scaled_rows(x: Array, scales: Array | None) -> tuple[Array, Array]:
    """R·X·S (rows, K) in float64 and the diagonal of R; rows with an infinity or NaN are replaced by zeros."""
    usable = np.isfinite(x).all(axis=1, keepdims=True)
    finite = np.where(usable, x, 0.0).astype(np.float64) * (1.0 if scales is None else scales)
    rows = row_scales(finite)
    return finite * rows[:, None], rows


def nonfinite_rows(x: Array, w: Array) -> Array:
    """Y (rows, N) of rows that contain an infinity or NaN, as the direct product gives it unless finite sums overflow.

    >>> nonfinite_rows(np.array([[np.inf, 7.0]]), np.array([[-2.0, 1.0], [0.0, 1.0], [1e-9, 1.0]]))
    array([[-inf,  nan,  inf]])
    """
    with np.errstate(invalid="ignore"):
        nonfinite = x * ~np.isfinite(x)  # finite values times 0, which cannot overflow when they are added
        y: Array = (nonfinite[:, None, :] * np.sign(w)).sum(axis=2)
    return y


def multiply(x: Array, w: Array, levels: int) -> Array:
    """Y (rows, N) in the dtype of X, for X (rows, K) and W (N, K), with every row scaled; directly if `why_not(w)`.

    >>> multiply(np.array([[1.0, 2.0], [3e30, 2e30]], np.float32), np.ones((2, 2), np.float32), 1).tolist()[0]
    [3.0, 3.0]
    """
    if why_not(w) is not None:
        direct: Array = x @ w.T
        return direct
    scales = channel_scales(w)
    scaled, rows = scaled_rows(x, scales)
    y = product(scaled.astype(x.dtype), scaled_weight(w, scales).astype(w.dtype), levels)
    with np.errstate(over="ignore"):
        y = (y.astype(np.float64) * _inverse(rows)[:, None]).astype(x.dtype)
    nonfinite = ~np.isfinite(x).all(axis=1)
    y[nonfinite] = nonfinite_rows(x[nonfinite], w)
    return y


def reach(x: Array, w: Array, levels: int) -> Array:
    """The factor of `strassen.gamma` in the bound of each output, in float64 (rows, N), for finite X.

    This is `strassen.reach` if a row, and every row that it may be added to, has the largest allowed value ρ·m_i in
    every channel.

    >>> reach(np.array([[1.0, 1.0], [1e6, 1e6]]), np.ones((2, 2)), 1).tolist()
    [[72.0, 72.0], [72000000.0, 72000000.0]]
    """
    if not levels:
        return product_reach(x, w, 0)
    scales = channel_scales(w)
    sizes = (np.abs(x.astype(np.float64)) * (1.0 if scales is None else scales)).max(axis=1, keepdims=True)
    ones = np.ones((1 << levels, w.shape[1]))
    factor: Array = ROWS * sizes * product_reach(ones, scaled_weight(w, scales), levels).max(axis=0)
    return factor


def row_reach(x: Array, w: Array, levels: int) -> Array:
    """18^L·(K/2^L)·ρ·τ·max_k |x_ik|·ω_k (rows,): the factor of the bound in norms, an upper bound of `reach`."""
    spread = CHANNELS if channel_scales(w) is None else 2.0
    largest = (np.abs(x.astype(np.float64)) * weight_sizes(w)).max(axis=1)
    factor: Array = 18.0**levels * (w.shape[1] >> levels) * ROWS * spread * largest
    return factor


def _inverse(scales: Array) -> Array:
    """1 / s for each scale s, and 0 for 0."""
    with np.errstate(divide="ignore"):
        return np.where(scales > 0, 1 / scales, 0.0)
