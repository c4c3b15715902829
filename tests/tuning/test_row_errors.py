"""Errors by row, on small tensors whose values are known."""

from __future__ import annotations

import math

import pytest
import torch

from onebyone.tuning.row_errors import rounding_errors, sizes, worst_ratio

U = 2.0**-24


def test_rows_of_outputs_of_each_rank() -> None:
    assert sizes(torch.tensor([1.0, -5.0])).tolist() == [5.0]  # no batch: one row
    assert sizes(torch.tensor([[1.0, -5.0], [2.0, 0.0]])).tolist() == [5.0, 2.0]
    tokens = torch.zeros(2, 3, 8)
    tokens[1, 2, 7], tokens[0, 1, 0] = -4.0, 3.0
    assert sizes(tokens).tolist() == [0, 3, 0, 0, 0, 4]
    assert sizes(tokens[..., :7]).tolist() == [3, 0]  # fewer than eight features: by sample
    volume = torch.zeros(2, 1, 2, 2, 2)
    volume[1, 0, 1, 1, 1] = 6.0
    assert sizes(volume).tolist() == [0, 6]
    assert sizes(torch.zeros(0, 3)).tolist() == [0]
    assert sizes(torch.ones(2, dtype=torch.float16)).dtype == torch.float64


@pytest.mark.parametrize("near", [0, 1, 2])
def test_positions_of_a_map_include_their_neighbourhood(near: int) -> None:
    x = torch.zeros(1, 2, 7, 7)
    x[0, 1, 3, 3] = -9.0
    reached = sizes(x, near).view(7, 7) == 9
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[3 - near : 4 + near, 3 - near : 4 + near] = True
    assert torch.equal(reached, expected)


def test_rounding_errors_are_the_largest_over_the_runs() -> None:
    exact = torch.ones(3, 8, dtype=torch.float64)
    first, second = exact.clone(), exact.clone()
    first[0, 0] += 2.0**-10
    second[0, 1] += 2.0**-8
    second[1, 2] -= 2.0**-12
    second[2, 3] += 2.0**-9
    errors = rounding_errors(exact, [first, second], U)
    assert errors.tolist() == [2.0**-8, 2.0**-9, 2.0**-9]  # the second row's is less than the median


def test_no_row_is_expected_to_be_more_accurate_than_its_rounding() -> None:
    exact = torch.tensor([[4.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert rounding_errors(exact, [exact], U).tolist() == [
        4 * U,
        U,
        U,
    ]  # a row of zeros has the median size, 1
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    assert rounding_errors(nothing, [nothing], U).tolist() == [0, 0]


def test_the_worst_row_is_that_of_the_largest_ratio_not_of_the_largest_error() -> None:
    exact = torch.zeros(3, 2, dtype=torch.float64)
    output = torch.tensor([[8.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert worst_ratio(exact, output, torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)) == (3.0, 1)


def test_ratios_over_an_expected_error_of_zero() -> None:
    exact, none = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert worst_ratio(exact, torch.zeros(2, 2), none)[0] == 1
    ratio, row = worst_ratio(exact, torch.tensor([[0.0, 0.0], [0.0, 1e-30]]), none)
    assert (ratio, row) == (math.inf, 1)
