"""Strassen's product in Winograd's variant: proven exactly, bounded in floating point."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.laws import bounds
from onebyone.laws.strassen import (
    ROUNDINGS,
    apply,
    gamma,
    growth,
    join,
    macs,
    multiply,
    reach,
    saving,
    sums,
    weight_sums,
    weights,
)

UNIT = 2.0**-24
LEVELS = (0, 1, 2)
SEEDS = st.integers(0, 2**32 - 1)


class Roundings:
    """A number that records only the largest number of roundings of one of its terms."""

    def __init__(self, met: int = 0) -> None:
        self.met = met

    def __add__(self, other: Roundings) -> Roundings:
        return Roundings(max(self.met, other.met) + 1)

    __sub__ = __add__

    def __mul__(self, other: Roundings) -> Roundings:
        return Roundings(self.met + other.met)  # the product's own are counted in n

    @classmethod
    def matrix(cls, edge: int) -> NDArray[np.object_]:
        return np.array([[cls() for _ in range(edge)] for _ in range(edge)], dtype=object)


def unit(down: int, across: int) -> NDArray[np.int64]:
    found = np.zeros((2, 2), dtype=np.int64)
    found[down, across] = 1
    return found


def floats(seed: int, rows: int, K: int, N: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((rows, K)), rng.standard_normal((N, K))
    return x.astype(np.float32), w.astype(np.float32)


def outside(found: NDArray[Any], x: NDArray[Any], w: NDArray[Any], levels: int) -> int:
    """Number of outputs whose difference from the float64 product exceeds the bound."""
    limit = gamma(x.shape[1], UNIT, levels) * reach(x, w, levels)
    return int((~(np.abs(found - x.astype(np.float64) @ w.astype(np.float64).T) <= limit)).sum())


def test_it_is_the_product_exactly() -> None:
    """Both sides are bilinear and do not exchange factors, so equality on all pairs of unit matrices implies equality
    for blocks of any size."""
    for i, j, k, n in product(range(2), repeat=4):
        a, b = unit(i, j), unit(k, n)
        found = join([s @ t for s, t in zip(sums(a), weight_sums(b), strict=True)])
        assert (found == (unit(i, n) if j == k else 0)).all()


@pytest.mark.parametrize("which", range(7))
@pytest.mark.parametrize("factors", [sums, weight_sums])
def test_a_wrong_entry_is_no_product(
    factors: Callable[[NDArray[Any]], tuple[NDArray[Any], ...]], which: int
) -> None:
    """Every factor matters: with its sign reversed, some pair of unit matrices is multiplied wrongly."""

    def faulty(
        m: NDArray[Any], own: Callable[[NDArray[Any]], tuple[NDArray[Any], ...]]
    ) -> list[NDArray[Any]]:
        return [-f if own is factors and at == which else f for at, f in enumerate(own(m))]

    assert any(
        (join([s @ t for s, t in zip(faulty(a, sums), faulty(b, weight_sums), strict=True)]) != a @ b).any()
        for a, b in product([unit(*at) for at in product(range(2), repeat=2)], repeat=2)
    )


@given(st.sampled_from(LEVELS), st.integers(0, 11), st.integers(1, 3), st.integers(1, 3), SEEDS)
def test_it_is_a_linear_layer_in_integers(levels: int, rows: int, K: int, N: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-999, 1000, (rows, K << levels))
    w = rng.integers(-999, 1000, (N << levels, K << levels))
    assert (multiply(x, w, levels) == x @ w.T).all()
    narrow, small = x.astype(np.int8), w.astype(np.int8)  # they wrap around: exact in that ring too
    assert (multiply(narrow, small, levels) == narrow @ small.T).all()


@pytest.mark.parametrize("levels", [*LEVELS, 3])
@pytest.mark.parametrize("rows", [1, 3, 6])
def test_it_is_a_linear_layer_in_fractions(levels: int, rows: int) -> None:
    rng = np.random.default_rng(rows)
    ratio = np.vectorize(lambda n, d: Fraction(int(n), int(d)), otypes=[object])
    x, w = (
        ratio(rng.integers(-9, 10, shape), rng.integers(1, 10, shape))
        for shape in ((rows, 1 << levels), (1 << levels, 1 << levels))
    )
    found = multiply(x, w, levels)
    assert found.dtype == object
    assert (found == x @ w.T).all()


def test_weights_come_outer_product_first() -> None:
    b = np.arange(16).reshape(4, 4) ** 2
    found = weights(b, 2)
    for outer, inner in product(range(7), repeat=2):
        assert (found[outer * 7 + inner] == weight_sums(weight_sums(b)[outer])[inner]).all()
    assert sum(w.size for w in found) == growth(2) * b.size


def test_weights_are_rounded_once() -> None:
    """T2 = B22 - (B12 - B11) for values at which float32 would lose B11 in the first sum."""
    b = np.array([[0.5, 2**24], [0, 2**24]], dtype=np.float32)
    t2 = weights(b, 1)[2]
    assert t2.dtype == np.float32
    assert t2.item() == 0.5
    assert weight_sums(b)[2].item() == 0


@given(st.sampled_from(LEVELS), st.integers(1, 9), st.integers(1, 24), SEEDS, st.sampled_from([-6, 0, 6]))
def test_rounding_stays_within_the_bound(levels: int, rows: int, K: int, seed: int, apart: int) -> None:
    x, w = floats(seed, rows, K << levels, 2 << levels)
    x[: rows // 2] *= np.float32(10.0**apart)
    found = multiply(x, w, levels)
    assert found.dtype == np.float32
    assert outside(found, x, w, levels) == 0


def test_small_rows_beside_large_ones_lose_digits_the_plain_bound_would_have() -> None:
    x, w = floats(1, 8, 64, 32)
    x[:4] *= np.float32(1e6)
    error = np.abs(multiply(x, w, 1) - x.astype(np.float64) @ w.astype(np.float64).T)
    plain = bounds.gamma(64, UNIT) * (np.abs(x) @ np.abs(w).T)
    assert (error[4:] > plain[4:]).mean() > 0.5
    assert outside(multiply(x, w, 1), x, w, 1) == 0


@pytest.mark.parametrize("levels", [1, 2])
def test_faults_are_beyond_the_bound(levels: int) -> None:
    x, w = floats(2, 7, 32, 16)
    parts = weights(w.T, levels)
    assert outside(apply(x, parts, levels), x, w, levels) == 0
    for at in range(len(parts)):
        turned = [-p if i == at else p for i, p in enumerate(parts)]
        assert outside(apply(x, turned, levels), x, w, levels)
        moved = [p.copy() for p in parts]
        moved[at][1, 1] += np.float32(0.01)
        assert outside(apply(x, moved, levels), x, w, levels)


def test_reach_is_what_higham_has_for_one_level_and_the_plain_one_for_none() -> None:
    x, w = floats(3, 5, 8, 4)
    assert np.allclose(reach(x, w, 0), np.abs(x).astype(np.float64) @ np.abs(w).T)
    assert (reach(x, w, 1) >= reach(x, w, 0)).all()
    assert reach(np.ones((4, 4)), np.ones((4, 4)), 2).max() == 18**2


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_no_term_meets_more_roundings_than_counted(levels: int) -> None:
    parts = weights(Roundings.matrix(1 << levels), levels)

    def most(parts: list[NDArray[Any]]) -> int:
        def go(a: NDArray[Any], parts: list[NDArray[Any]], level: int) -> NDArray[Any]:
            if not level:
                return a * parts[0]
            inner = len(parts) // 7
            return join([go(s, parts[i * inner : (i + 1) * inner], level - 1) for i, s in enumerate(sums(a))])

        return max(y.met for y in go(Roundings.matrix(1 << levels), parts, levels).flat)

    assert most(parts) == ROUNDINGS * levels
    assert most([Roundings.matrix(1)] * 7**levels) == 5 * levels  # with weights that are exact


def test_joined_products_count_their_terms() -> None:
    assert gamma(64, UNIT, 2) == bounds.gamma(16 + 14, UNIT)
    assert gamma(64, UNIT, 2, joined=2) == bounds.gamma(32 + 14, UNIT)
    assert gamma(64, UNIT, 0) == bounds.gamma(64, UNIT)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinity_reaches_the_rows_a_part_away_and_no_others(levels: int, value: float) -> None:
    x, w = floats(4, 8, 16, 8)
    clean = multiply(x, w, levels)
    x[1, 3] = value
    found = multiply(x, w, levels)
    met = np.arange(8) % (8 >> levels) == 1
    assert np.array_equal(found[~met], clean[~met])
    assert (~np.isfinite(found[met])).any(axis=1).all()


def test_cost() -> None:
    assert (saving(0), growth(0)) == (1, 1)
    for levels in LEVELS:
        assert macs(12, 8, 20, levels) * saving(levels) == 12 * 8 * 20
    assert macs(11, 8, 20, 2) == macs(12, 8, 20, 2)
    assert macs(0, 8, 20, 1) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: multiply(np.ones((2, 6)), np.ones((4, 6)), 2),
            "K=6: expected a multiple of 4, for levels=2",
        ),
        (
            lambda: multiply(np.ones((2, 4)), np.ones((3, 4)), 1),
            "N=3: expected a multiple of 2, for levels=1",
        ),
        (lambda: multiply(np.ones((2, 6)), np.ones((4, 4)), 1), r"x=\(2, 6\): expected a matrix \(rows, 4\)"),
        (lambda: reach(np.ones(4), np.ones((4, 4)), 1), r"x=\(4,\): expected a matrix \(rows, 4\)"),
        (lambda: reach(np.ones((2, 4)), np.ones(4), 1), r"w=\(4,\): expected a matrix \(N, K\)"),
        (lambda: weights(np.ones((4, 0)), 1), "N=0: expected a multiple of 2"),
        (lambda: apply(np.ones((2, 4)), [np.ones((2, 2))] * 7, 2), "weights=7 matrices: expected 49"),
        (lambda: sums(np.ones((3, 2))), r"a=\(3, 2\): expected a matrix with even numbers"),
        (lambda: weight_sums(np.ones(2)), r"b=\(2,\): expected a matrix with even numbers"),
        (lambda: macs(4, 4, 2, 2), "N=2: expected a multiple of 4"),
        (lambda: macs(-1, 4, 4, 2), "rows=-1: expected 0 or more"),
        (lambda: saving(-1), "levels=-1: expected a number of recursion levels, 0 or more"),
        (lambda: gamma(8, UNIT, 1, joined=0), "joined=0: expected"),
        (lambda: gamma(2**25, UNIT, 1), "no rounding bound exists"),
    ],
)
def test_what_does_not_divide_or_fit_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights(np.ones(2), 1), r"b=\(2,\): expected a matrix \(K, N\)"),
        (lambda: weights(np.ones((3, 4)), 1), "K=3: expected a multiple of 2"),
        (lambda: weights(np.ones((4, 3)), 1), "N=3: expected a multiple of 2"),
        (lambda: multiply(np.ones((2, 4)), np.ones(4), 1), r"w=\(4,\): expected a matrix \(N, K\)"),
        (lambda: reach(np.ones((2, 4)), np.ones((4, 4, 1)), 1), r"w=\(4, 4, 1\): expected a matrix \(N, K\)"),
        (lambda: gamma(7, UNIT, 1), "K=7: expected a multiple of 2, for levels=1"),
    ],
)
def test_messages_name_the_argument_and_its_axes(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()


def test_integers_are_never_converted() -> None:
    """2⁶⁰ + 1 is no number of float64."""
    assert int(weights(np.array([[0, 0], [0, 2**60 + 1]]), 1)[6].item()) == 2**60 + 1
    with pytest.raises(BadInput, match="K=3: expected a multiple of 2"):
        macs(4, 3, 4, 1)
