"""Rounding bounds and exact integers, against exact fractions and against the formats themselves."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest
import torch

from onebyone.errors import BadInput
from onebyone.laws import bounds

NAMES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("name", NAMES)
def test_unit_roundoff_is_half_of_torchs_epsilon(name):
    assert bounds.unit_roundoff(name) == torch.finfo(getattr(torch, name)).eps / 2
    assert bounds.unit_roundoff(str(getattr(torch, name))) == bounds.unit_roundoff(name)
    with pytest.raises(BadInput, match="dtype='int32': expected one of float16, bfloat16, float32, float64"):
        bounds.unit_roundoff("int32")


def test_gamma_is_the_fraction_and_covers_every_product_of_roundings():
    """Lemma 3.1: |Π (1 + δ_i)^±1 - 1| ≤ γ_n, at the corners, where the product is largest and smallest."""
    u = Fraction(1, 32)
    for n in range(9):
        exact = n * u / (1 - n * u)
        assert abs(Fraction(bounds.gamma(n, float(u))) - exact) <= exact * Fraction(4, 2**53)
        for up in range(n + 1):  # `up` factors (1 + u), the others 1 / (1 - u), and their opposites
            high = (1 + u) ** up / (1 - u) ** (n - up)
            low = (1 - u) ** up / (1 + u) ** (n - up)
            assert max(high - 1, 1 - low) <= exact
    with pytest.raises(BadInput, match=r"n·u = 1 with n = 256, u = 0\.00390625; expected less than 1"):
        bounds.gamma(256, bounds.unit_roundoff("bfloat16"))
    with pytest.raises(BadInput, match="n=-1: expected a number of roundings"):
        bounds.gamma(-1, 0.1)


def rounded_dot(w: np.ndarray, x: np.ndarray, b: np.floating, order: list[int]) -> np.floating:
    """Every product and addition is rounded to the dtype of the arrays; the bias is one of the terms."""
    terms = [*(wi * xi for wi, xi in zip(w, x, strict=True)), b]
    total = terms[order[0]]
    for i in order[1:]:
        total = total + terms[i]
    return total


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_two_orders_of_one_sum_differ_by_no_more_than_the_bound(dtype):
    rng, shuffle, u = np.random.default_rng(0), random.Random(0), bounds.unit_roundoff(np.dtype(dtype).name)
    largest = 0.0
    for n in (1, 2, 3, 5, 17, 60):
        for _ in range(40):
            w, x = rng.standard_normal((2, n)).astype(dtype)
            b = dtype(rng.standard_normal())
            orders = [shuffle.sample(range(n + 1), n + 1) for _ in range(2)]
            first, second = (Fraction(float(rounded_dot(w, x, b, order))) for order in orders)
            pairs = zip(w.astype(float), x.astype(float), strict=True)
            abs_dot = sum(abs(Fraction(wi) * Fraction(xi)) for wi, xi in pairs) + abs(Fraction(float(b)))
            bound = bounds.dot_bound(n, float(abs_dot), u)
            assert abs(first - second) <= bound
            largest = max(largest, float(abs(first - second)) / bound)
    assert largest > 0.01, "the orders do differ, so the bound is put to the test"


def test_the_bound_is_smaller_than_a_dropped_bias_and_a_swapped_order():
    rng = np.random.default_rng(1)
    w, x, b = rng.standard_normal((4, 30)), rng.standard_normal(30), rng.standard_normal(4)
    bound = bounds.dot_bound(30, np.abs(w) @ np.abs(x) + np.abs(b), bounds.unit_roundoff("float32"))
    right = w @ x + b
    swapped = w.reshape(4, 2, 15).transpose(0, 2, 1).reshape(4, 30) @ x + b
    assert np.all(np.abs(right - (w @ x)) > bound)
    assert np.all(np.abs(right - swapped) > bound)
    single = (w.astype(np.float32) @ x.astype(np.float32) + b.astype(np.float32)).astype(float)
    inputs = np.abs(w - w.astype(np.float32)) @ np.abs(x) + np.abs(w) @ np.abs(x - x.astype(np.float32))
    assert np.all(np.abs(single - right) <= bound + 2 * inputs + np.abs(b - b.astype(np.float32)))


def test_dot_bound_takes_numbers_arrays_and_tensors():
    u = bounds.unit_roundoff("float32")
    one = bounds.dot_bound(9, 1.0, u)
    assert one == 2 * bounds.gamma(10, u)
    np.testing.assert_array_equal(bounds.dot_bound(9, np.array([1.0, 0.0]), u), [one, 0.0])
    assert bounds.dot_bound(9, torch.ones(2, dtype=torch.float64), u).tolist() == [one, one]


def test_probe_range_is_the_largest_that_fits():
    for n, bits in product([*range(1, 40), 4608, 25088, 10**6], (8, 11, 24, 53)):
        if n + 1 > 2**bits:
            with pytest.raises(BadInput, match="no integers give exact sums"):
                bounds.probe_range(n, bits)
            continue
        m = bounds.probe_range(n, bits)
        assert n * m * m + m <= 2**bits < n * (m + 1) ** 2 + m + 1
    assert bounds.probe_range(1, 1) == 1
    for n, bits in ((0, 53), (1, 0)):
        with pytest.raises(BadInput, match=f"n={n}, significand_bits={bits}: expected at least 1 for both"):
            bounds.probe_range(n, bits)


def test_sums_in_the_range_are_exact_in_float16_in_every_order_and_one_beyond_is_not():
    for n in (1, 2, 3):
        m = bounds.probe_range(n, bounds.significand_bits("float16"))
        for values in product((m, -m, m - 1), repeat=n):
            w, x = np.array(values, np.float16), np.full(n, m, np.float16)
            exact = sum(v * m for v in values) + m
            for order in permutations(range(n + 1)):
                assert int(rounded_dot(w, x, np.float16(m), list(order))) == exact
    m = bounds.probe_range(1, 11) + 1
    w = np.array([m], np.float16)
    assert int(rounded_dot(w, w, np.float16(m + 1), [0, 1])) != m * m + m + 1


def test_assert_exact_accepts_what_is_exact_and_names_what_is_not():
    m = bounds.probe_range(4, 53)
    full = np.full((3, 4), float(m))
    bounds.assert_exact(full, full[0], full[:, 0], terms=4)
    bounds.assert_exact(torch.ones(2, 3), torch.ones(3), terms=3, significand_bits=2)
    bounds.assert_exact(np.zeros((0, 3)), np.ones(3), terms=3)
    with pytest.raises(BadInput, match="not exact"):
        bounds.assert_exact(full + 1, full[0] + 1, full[:, 0] + 1, terms=4)
    with pytest.raises(BadInput, match="not exact"):
        bounds.assert_exact(full, full[0], full[:, 0], terms=5)
    with pytest.raises(BadInput, match="weight holds values that are not finite integers"):
        bounds.assert_exact(full + 0.5, [1], terms=4)
    with pytest.raises(BadInput, match="x holds values"):
        bounds.assert_exact([1], [np.nan], terms=1)
    with pytest.raises(BadInput, match="bias holds values"):
        bounds.assert_exact([1], [1], [np.inf], terms=1)
    with pytest.raises(BadInput, match="not exact"):
        bounds.assert_exact([1], [1], terms=0)


def test_the_smallest_integer_is_not_overlooked():
    lowest = np.array([-(2**31)], np.int32)  # whose absolute value int32 does not hold
    with pytest.raises(BadInput, match=f"up to {2**31}"):
        bounds.assert_exact(lowest, [2**23], terms=1)


def test_a_dtype_may_have_any_prefix():
    assert bounds.significand_bits("jax.numpy.float32") == 24


def test_the_limit_of_exact_sums_is_included():
    """1·1·2 = 2 = 2^1, with one term and without a bias: allowed; one more in any argument is not."""
    bounds.assert_exact([1.0], [2.0], terms=1, significand_bits=1)
    for weight, x, bias, terms in (
        ([2], [2], None, 1),
        ([1], [3], None, 1),
        ([1], [2], [1], 1),
        ([1], [2], None, 2),
    ):
        with pytest.raises(BadInput, match="not exact"):
            bounds.assert_exact(weight, x, bias, terms=terms, significand_bits=1)
    with pytest.raises(BadInput, match="not exact"):
        bounds.assert_exact([0], [0], terms=0)


def test_an_empty_argument_has_no_largest_value():
    bounds.assert_exact([], [5.0], [1], terms=1, significand_bits=1)
