"""The Winograd transforms: proven in exact arithmetic, bounded in floating point."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.laws.winograd import F4X3, Winograd, entries, winograd

Objects = NDArray[np.object_]
# of `correlate` in float32, besides the sum over channels: two passes of six terms going in and going out, two of three
# terms with rounded entries for the weights, and the product
ROUNDINGS = 12 + 12 + 8 + 1
KNOWN = {
    "F(4, 3)": F4X3,
    "F(4, 3) at the usual points": winograd(4, 3, (0, 1, -1, 2, -2)),
    "F(2, 3)": winograd(2, 3, (0, 1, -1)),
    "F(3, 2)": winograd(3, 2, (0, 1, -1)),
    "F(1, 1)": winograd(1, 1, ()),
    "F(6, 5)": winograd(6, 5, (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), 3, -3)),
}


def direct(tile: NDArray[np.float64], weight: NDArray[np.float64], outputs: int) -> NDArray[np.float64]:
    """Correlation by its definition: (C, n, n) and (O, C, r, r) to (O, m, m)."""
    taps = weight.shape[-1]
    found = np.zeros((len(weight), outputs, outputs), dtype=np.result_type(tile, weight))
    for o, y, x in product(range(len(weight)), range(outputs), range(outputs)):
        found[o, y, x] = (tile[:, y : y + taps, x : x + taps] * weight[o]).sum()
    return found


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_correlation_exactly(name: str) -> None:
    """Both sides are linear in the tile and in the weights, so equality on pairs of unit vectors is sufficient."""
    f = KNOWN[name]
    a, g, b = (entries(m, object) for m in (f.output, f.weight, f.input))
    for tap, place in product(range(f.taps), range(f.edge)):
        found = a @ (g[:, tap] * b[:, place])
        assert list(found) == [Fraction(int(place == y + tap)) for y in range(f.outputs)]


def test_a_wrong_entry_is_no_correlation() -> None:
    rows = [list(row) for row in F4X3.input]
    rows[2][3] += Fraction(1, 64)
    wrong = Winograd(4, 3, F4X3.output, F4X3.weight, tuple(map(tuple, rows)))
    a, g, b = (entries(m, object) for m in (wrong.output, wrong.weight, wrong.input))
    assert any(
        list(a @ (g[:, tap] * b[:, place])) != [int(place == y + tap) for y in range(4)]
        for tap, place in product(range(3), range(6))
    )


def test_two_axes_in_exact_numbers() -> None:
    rng = np.random.default_rng(0)
    tile = np.vectorize(Fraction)(rng.integers(-9, 10, (1, 2, 6, 6)))
    weight = np.vectorize(Fraction)(rng.integers(-9, 10, (3, 2, 3, 3)))
    assert (F4X3.correlate(tile, weight)[0] == direct(tile[0], weight, 4)).all()


def test_its_input_and_output_transforms_are_exact_in_float32() -> None:
    for matrix in (F4X3.input, F4X3.output):
        for entry in (e for row in matrix for e in row):
            assert Fraction(float(np.float32(float(entry)))) == entry


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([-3, 0, 4]))
def test_rounding_stays_within_the_bound(channels: int, seed: int, magnitude: int) -> None:
    rng = np.random.default_rng(seed)
    tiles = (rng.standard_normal((2, channels, 6, 6)) * 10.0**magnitude).astype(np.float32)
    weight = rng.standard_normal((3, channels, 3, 3)).astype(np.float32)
    found = F4X3.correlate(tiles, weight)
    assert found.dtype == np.float32
    bound = F4X3.gamma(channels, 2.0**-24, ROUNDINGS) * F4X3.reach(tiles, weight)
    for tile, y, limit in zip(tiles, found, bound, strict=True):
        assert (np.abs(y - direct(tile.astype(np.float64), weight.astype(np.float64), 4)) <= limit).all()


def test_the_chosen_points_amplify_less_than_the_usual_ones() -> None:
    rng = np.random.default_rng(1)
    tiles = rng.standard_normal((64, 32, 6, 6)).astype(np.float32)
    weight = rng.standard_normal((8, 32, 3, 3)).astype(np.float32)
    exact = F4X3.correlate(tiles.astype(np.float64), weight.astype(np.float64))
    usual = KNOWN["F(4, 3) at the usual points"]
    chosen, other = (np.abs(f.correlate(tiles, weight) - exact).mean() for f in (F4X3, usual))
    assert chosen < 0.6 * other
    assert F4X3.reach(tiles, weight).mean() < usual.reach(tiles, weight).mean()


@pytest.mark.parametrize("points", [(0, 1), (0, 1, 1), (0, 1, -1, 2)])
def test_other_numbers_of_points_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="expected 3 distinct points"):
        winograd(2, 3, points)


def test_a_bound_that_bounds_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="no bound exists"):
        F4X3.gamma(2**24, 2.0**-24, 18)


def test_savings_and_gamma_in_exact_numbers() -> None:
    assert winograd(2, 3, (0, 1, -1)).saving == Fraction(9, 4)  # (2·3 / 4)²
    assert F4X3.gamma(3, 0.125, 1) == 1.0  # 0.5 / (1 - 0.5)
    assert F4X3.gamma(0, 0.125, 0) == 0.0
    for channels in (7, 8):
        with pytest.raises(BadInput, match="no bound exists"):
            F4X3.gamma(channels, 0.125, 1)


def test_the_wider_dtype_is_used() -> None:
    tiles, weight = np.ones((1, 1, 6, 6), np.float32), np.ones((1, 1, 3, 3))
    assert F4X3.correlate(tiles, weight).dtype == np.float64
    assert F4X3.correlate(tiles.astype(np.float64), weight.astype(np.float32)).dtype == np.float64
    assert F4X3.correlate(tiles, weight.astype(np.float32)).dtype == np.float32
    assert F4X3.reach(tiles, weight.astype(np.float32)).dtype == np.float64


def test_tiles_of_one_axis() -> None:
    assert [F4X3.tiles((n,)) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_outputs_have_the_wider_type_of_both_operands() -> None:
    tile, weight = np.ones((1, 2, 6, 6)), np.ones((3, 2, 3, 3))
    for a, b, kind in ((np.float32, np.float64, np.float64), (np.float64, np.float32, np.float64),
                       (np.float32, np.float32, np.float32)):  # fmt: skip
        assert F4X3.correlate(tile.astype(a), weight.astype(b)).dtype == kind
    third = np.full((1, 1, 6, 6), 1 / 3)
    exact = F4X3.correlate(third.astype(np.float32), np.ones((1, 1, 3, 3)))
    assert abs(exact - 9 * float(np.float32(1 / 3))).max() < 1e-13  # entries of float32 would be off by 1e-7


@pytest.mark.parametrize(("outputs", "taps"), [(0, 4), (4, 0), (-1, 5)])
def test_at_least_one_output_and_one_tap(outputs: int, taps: int) -> None:
    with pytest.raises(
        BadInput, match=rf"expected {outputs + taps - 2} distinct points for F\({outputs}, {taps}\)"
    ):
        winograd(outputs, taps, range(outputs + taps - 2))


def test_tiles_and_weights_of_different_types_are_computed_in_the_wider_one() -> None:
    """Entries such as 1/6 are no numbers of float32 and no integers: the type of either operand alone is too narrow."""
    rng = np.random.default_rng(0)
    tiles, weight = rng.integers(-9, 10, (2, 3, 6, 6)), rng.integers(-9, 10, (4, 3, 3, 3))
    expected = np.array([direct(t.astype(float), weight.astype(float), 4) for t in tiles])
    for a, b in ((np.float64, np.float32), (np.float32, np.float64)):
        assert abs(F4X3.correlate(tiles.astype(a), weight.astype(b)) - expected).max() < 1e-10
    for a, b in ((object, np.int64), (np.int64, object)):
        x, w = (
            np.vectorize(lambda n: Fraction(int(n)), [object])(v) if t is object else v
            for v, t in ((tiles, a), (weight, b))
        )
        assert (F4X3.correlate(x, w) == expected).all()
