"""Scaling by powers of two is exact and gives each row a bound that does not depend on other rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onebyone.laws import bounds, strassen
from onebyone.laws.scaling import (
    CHANNELS,
    MIDDLE,
    channel_scales,
    multiply,
    nonfinite_rows,
    reach,
    row_reach,
    row_scales,
    scaled_rows,
    scaled_weight,
    weight_sizes,
    why_not,
)

UNIT = 2.0**-24
SEEDS = st.integers(0, 2**32 - 1)
LEVELS = st.sampled_from((0, 1, 2))


def uneven(
    seed: int, rows: int, K: int, N: int, most: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows up to 10^most times as large as others, and channels whose weights compensate for their size."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((rows, K)), rng.standard_normal((N, K))
    x *= 10.0 ** rng.integers(-most, most + 1, (rows, 1))
    channels = 10.0 ** rng.integers(-4, 5, K) if seed % 2 else np.ones(K)
    return (x * channels).astype(np.float32), (w / channels).astype(np.float32)


def exact(x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    product: NDArray[Any] = x.astype(np.float64) @ w.astype(np.float64).T
    return product


@given(LEVELS, st.integers(1, 12), st.integers(1, 8), st.integers(1, 6), SEEDS)
def test_scaling_is_exact(levels: int, rows: int, k: int, n: int, seed: int) -> None:
    x, w = uneven(seed, rows, k << levels, n << levels, 9)
    scales = channel_scales(w)
    met, by = scaled_rows(x, scales)
    weight = scaled_weight(w, scales)
    for scaled in (met, weight):  # float32 holds each number, so nothing was rounded
        assert (scaled.astype(np.float32) == scaled).all()
    s = np.ones(x.shape[1]) if scales is None else scales
    assert (np.frexp(s[s > 0])[0] == 0.5).all()
    assert (met / by[:, None] == x * s).all()
    assert (weight * s == w).all()


@given(LEVELS, st.integers(1, 12), st.integers(1, 8), st.integers(1, 6), SEEDS)
def test_every_row_is_within_its_own_bound(levels: int, rows: int, k: int, n: int, seed: int) -> None:
    x, w = uneven(seed, rows, k << levels, n << levels, 9)
    found = multiply(x, w, levels)
    assert found.dtype == np.float32
    gamma = strassen.gamma(x.shape[1], UNIT, levels)
    allowed = gamma * reach(x, w, levels)
    assert (np.abs(found - exact(x, w)) <= allowed).all()
    assert (reach(x, w, levels) <= row_reach(x, w, levels)[:, None] * (1 + 1e-12)).all()


@given(st.sampled_from((1, 2)), SEEDS)
def test_the_bound_in_norms_is_a_constant_times_that_of_the_direct_product(levels: int, seed: int) -> None:
    """The constant does not depend on the values of rows and channels."""
    x, w = uneven(seed, 8, 16, 8, 12)
    direct = bounds.gamma(16, UNIT) * 16 * (np.abs(x).astype(np.float64) * weight_sizes(w)).max(1)
    ratio = strassen.gamma(16, UNIT, levels) * row_reach(x, w, levels) / direct
    constant = (18 / 4) ** levels * 4 * CHANNELS  # and γ of K/2^L + 7·L roundings instead of K
    assert (ratio <= constant * (16 / 2**levels + 7 * levels) / 16 * 2**levels * 1.001).all()
    assert (row_reach(x, w, levels) >= (np.abs(x) @ np.abs(w).T).max(1)).all()


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("large", [1e4, 1e6, 1e30])
def test_a_large_row_spoils_no_other(levels: int, large: float) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((32, 256), (64, 256)))
    x[5] *= np.float32(large)
    spoiled, error = (np.abs(f(x, w, levels) - exact(x, w)).max(1) for f in (strassen.multiply, multiply))
    direct, sizes = np.abs(x @ w.T - exact(x, w)).max(1), np.abs(exact(x, w)).max(1)
    assert (error / sizes).max() < 4.5**levels * (direct / sizes).max()  # (18/4)^L
    assert (spoiled / sizes).max() > 100 * (error / sizes).max()  # the fault that scaling mends


def test_large_channels_with_small_weights_spoil_no_row() -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((32, 256), (64, 256)))
    x[:, :128] *= 1e4
    w[:, :128] /= 1e4
    spoiled, error = (np.abs(f(x, w, 2) - exact(x, w)).max() for f in (strassen.multiply, multiply))
    assert error < 4.5**2 * np.abs(x @ w.T - exact(x, w)).max()
    assert spoiled > 100 * error


def test_which_channels_are_scaled() -> None:
    w = np.array([[1.0, -0.1], [0.5, 0.0]])
    assert channel_scales(w) is None
    w[0, 1] = -0.05
    scales = channel_scales(w)
    assert scales is not None
    assert scales.tolist() == [1.0, 0.0625]
    assert channel_scales(np.array([[3.0, 2.0**-130, 0.0]])).tolist() == [1.0, 2.0**-100, 0.0]  # type: ignore[union-attr]
    assert channel_scales(np.zeros((2, 3))) is None


@given(st.floats(2.0**-149, 2.0**127, width=32), st.booleans())
def test_rows_and_channels_come_into_their_range(size: float, negative: bool) -> None:
    x = np.array([[0.0, -size if negative else size]], np.float32)
    assert 1 <= np.abs(x * row_scales(x)[:, None]).max() < 2
    w = np.array([[size, size * 0.01]])
    scales = channel_scales(w)
    if size > 2.0**-120:
        met = weight_sizes(scaled_weight(w, scales))
        assert met.max() < 2 * met.min() or met.max() == met.min()


def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_stays_where_it_is() -> None:
    rng = np.random.default_rng(2)
    x, w = (rng.integers(-4, 5, s).astype(np.float32) for s in ((8, 8), (8, 8)))
    w[3, 2] = 0
    x[1] = 0
    x[2, 2] = np.inf
    x[4, 2], x[4, 3] = np.inf, -np.inf
    x[6, 5] = np.nan
    with np.errstate(invalid="ignore"):
        direct = x @ w.T
    for levels in (0, 1, 2):
        assert np.array_equal(multiply(x, w, levels), direct, equal_nan=True)
    assert np.array_equal(nonfinite_rows(x[[2, 4, 6]], w), direct[[2, 4, 6]], equal_nan=True)


@pytest.mark.parametrize("places", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_an_infinity_beside_finite_values_whose_sum_would_overflow_is_infinite(
    places: tuple[int, ...],
) -> None:
    x = np.array([[np.inf, -3e38, -3e38]], np.float32)[:, places]
    assert nonfinite_rows(x, np.ones((2, 3), np.float32)).tolist() == [[np.inf, np.inf]]
    assert nonfinite_rows(-x, np.ones((2, 3), np.float32)).tolist() == [[-np.inf, -np.inf]]


def test_numbers_at_the_ends_of_the_range() -> None:
    rng = np.random.default_rng(3)
    x, w = rng.choice([-1.0, 1.0], (8, 8)) * 3e38, rng.uniform(-1, 1, (8, 8)) / 8
    x, w = x.astype(np.float32), w.astype(np.float32)
    x[1] *= np.float32(1e-38)
    x[2] = x[2] * np.float32(1e-38) * np.float32(1e-38)
    for levels in (1, 2):
        found = multiply(x, w, levels)
        sizes = np.abs(exact(x, w)).max(1)
        assert np.isfinite(found).all()
        assert (np.abs(found - exact(x, w)).max(1) <= 4e-6 * sizes + 2.0**-149).all()
    with np.errstate(over="ignore"):
        assert (multiply(x, w * 64, 1)[[0, 3]] == (exact(x, w * 64)[[0, 3]]).astype(np.float32)).mean() > 0.1


def test_weights_that_are_multiplied_directly() -> None:
    assert why_not(np.ones((2, 2))) is None
    assert "infinity or NaN" in str(why_not(np.array([[np.nan, 1.0]])))
    assert "largest weight" in str(why_not(np.full((2, 2), 1e-30)))
    assert "largest weight" in str(why_not(np.zeros((2, 2))))
    x, w = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1e30, np.inf], [0.0, 1e30]])
    with np.errstate(invalid="ignore", over="ignore"):
        assert np.array_equal(multiply(x, w, 1), x @ w.T, equal_nan=True)


def test_the_range_of_weights_includes_its_limits() -> None:
    for size in (MIDDLE, 1 / MIDDLE):
        assert why_not(np.full((2, 2), size)) is None
    for size in (np.nextafter(MIDDLE, np.inf), np.nextafter(1 / MIDDLE, 0)):
        assert "is not between" in str(why_not(np.full((2, 2), size)))


def test_scales_bring_channels_just_above_a_power_of_two_below_the_next_one() -> None:
    """log2 of the number after 4 is rounded down to 2; its channel has the size 8, the other 1/8."""
    scales = channel_scales(np.array([[np.nextafter(4.0, 5.0), 0.1]]))
    assert scales is not None
    assert scales.tolist() == [1.0, 2.0**-6]


def test_channels_of_zeros_and_rows_without_channels() -> None:
    assert scaled_weight(np.array([[1.0, 5.0]]), np.array([0.5, 0.0])).tolist() == [[2.0, 0.0]]
    assert row_scales(np.zeros((2, 0))).tolist() == [0.0, 0.0]


def test_products_are_computed_in_the_dtype_of_the_factors() -> None:
    """Bit for bit Strassen's product in float32 of the scaled factors, scaled back by powers of two."""
    draw = np.random.default_rng(0)
    x, w = (draw.normal(size=(n, 8)).astype(np.float32) for n in (6, 4))
    rows = row_scales(x)
    scaled = (x * rows[:, None]).astype(np.float32)
    expected = strassen.multiply(scaled, w, 1) / rows[:, None].astype(np.float32)
    assert multiply(x, w, 1).tobytes() == expected.astype(np.float32).tobytes()


def test_factors_of_the_bound_in_exact_numbers() -> None:
    """K = 2, one level: `strassen.reach` of ones is at most 18; ρ = 4; τ = 2 for uneven channels, else 16."""
    x, uneven_w = np.array([[64.0, 1.0]]), np.array([[1.0, 64.0], [1.0, 64.0]])
    assert reach(x, uneven_w, 1).tolist() == [[4 * 64 * 18, 4 * 64 * 18]]
    assert row_reach(x, uneven_w, 1).tolist() == [18 * 4 * 2 * 64]
    even_w = np.array([[1.0, 16.0], [1.0, 16.0]])
    assert row_reach(x, even_w, 1).tolist() == [18 * 4 * 16 * 64]


def test_scales_are_relative_to_the_largest_channel_that_is_not_zero() -> None:
    scales = channel_scales(np.array([[0.25, 2.0**-9, 0.0]]))
    assert scales is not None
    assert scales.tolist() == [1.0, 2.0**-7, 0.0]
    assert "is not between" in str(why_not(np.zeros((2, 0))))


def test_rows_that_are_not_finite_enter_as_zeros() -> None:
    scaled, rows = scaled_rows(np.array([[np.inf, 2.0], [3.0, 0.0]]), None)
    assert (scaled.tolist(), rows.tolist()) == ([[0.0, 0.0], [1.5, 0.0]], [0.0, 0.5])


def test_a_product_that_is_too_large_is_infinite_without_a_warning() -> None:
    y = multiply(np.full((2, 2), 3e38, np.float32), np.ones((2, 2), np.float32), 1)
    assert np.isposinf(y).all()


@pytest.mark.parametrize("exponent", [-60, 0, 1, 10, 60])
def test_scales_of_sizes_just_above_a_power_of_two(exponent: int) -> None:
    """In float64 the logarithm of the next number above 2^10 is 10, but the power above it is 2^11."""
    large, small = np.nextafter(2.0**exponent, np.inf), 2.0 ** (exponent - 20)
    scales = channel_scales(np.array([[large, small]]))
    assert scales is not None
    assert scales.tolist() == [1.0, 2.0**-21]
