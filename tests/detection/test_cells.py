"""The cells that boxes are sorted into: every neighbour is compared, and nothing that is further away."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebyone.detection.nms import MAX_CELLS, BoxCells, Cells, cell_size, nms

SIDES = np.array([4.0, 2.0])
SIZES = SIDES * (1 + 1e-6)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The range of first corners, and the largest width and height, all multiples of 1/1024."""
    low = np.array([draw(st.integers(-(2**40), 2**40)) for _ in range(2)]) / 1024
    span, side = (np.array([draw(st.integers(0, 2**top)) for _ in range(2)]) / 1024 for top in (45, 12))
    return low, low + span, side


@given(ranges())
def test_cells_are_barely_larger_than_the_largest_box_unless_they_would_be_too_many(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    low, high, side = drawn
    for size, span, largest in zip(cell_size(*drawn), high - low, side, strict=True):
        # the sums of these multiples are exact, so a quotient has one rounding
        assert size == max(largest * (1 + 1e-6), span / MAX_CELLS, 1e-9)
        assert size > largest


@pytest.mark.parametrize("low", [(0.0, 0.0), (-1000.0, 250.0), (3e6, -2e6)])
def test_neighbours_are_the_boxes_of_the_nine_cells_around_a_box(low: tuple[float, float]) -> None:
    """Of a range and boxes that are wider than high, in three classes, by comparing the cells of every pair."""
    random = np.random.default_rng(0)
    corners = np.array(low) + random.integers(0, (41, 23), (300, 2))
    corners[0] = low  # the first of the range
    boxes = np.concatenate([corners, corners + random.integers(1, (5, 3), (300, 2))], axis=1)
    boxes[1, 2:] = boxes[1, :2] + SIDES
    labels = random.choice([-7, 2, 900], 300)
    places = np.floor((corners - low) / SIZES)
    cells = BoxCells(boxes, labels)
    for k in range(300):
        near = (np.abs(places - places[k]) <= 1).all(axis=1) & (labels == labels[k])
        assert sorted(cells.neighbours(k).tolist()) == np.flatnonzero(near).tolist()


def test_numbers_of_different_cells_differ_by_the_same_in_every_part_of_the_grid() -> None:
    """Also among the cells of the largest grid and of tens of thousands of classes."""
    last = 2.0 * MAX_CELLS
    cells = Cells(np.zeros(2), np.array([last, last]), np.ones(2))
    corners = np.array([[0.0, 0], [last, 0], [0, last], [last, last]])
    boxes = np.concatenate([corners, corners + 1], axis=1)
    first, other = (cells.numbers(boxes, np.full(4, group)) for group in (0, 50_000))
    assert first.dtype == np.int64
    row = (
        MAX_CELLS + 2
    )  # the cells of two pixels each, the one that begins at the end, and a number that is left out
    assert first.tolist() == [0, MAX_CELLS, MAX_CELLS * row, MAX_CELLS * row + MAX_CELLS]
    assert (other - first == 50_000 * row * row).all()


@pytest.mark.parametrize("unit", [1.0, 2.0**-12, 2.0**20])
def test_runs_are_those_of_three_rows(unit: float) -> None:
    cells = Cells(np.zeros(2), 2 * SIZES * unit, SIDES * unit)
    corners = np.array(list(itertools.product((0, 1, 2), repeat=2)))[:, ::-1] * SIZES * unit  # row by row
    boxes = np.concatenate([corners, corners + SIDES * unit], axis=1)
    numbers = cells.numbers(boxes, np.zeros(9, np.int64))
    assert numbers.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    above, same, below = cells.runs(numbers[[0, 4, 8]], numbers)
    assert [run.tolist() for run in above] == [[0, 0, 4], [0, 3, 6]]
    assert [run.tolist() for run in same] == [[0, 3, 7], [2, 6, 9]]
    assert [run.tolist() for run in below] == [[3, 6, 9], [5, 9, 9]]


def test_boxes_that_share_a_millionth_of_their_width_are_compared() -> None:
    """Two million pixels wide, one shared: a cell that is smaller by as much would part them by two cells."""
    width = 2e6
    boxes = np.array([[width - 3, 0, 2 * width - 3, 1], [2 * width - 4, 0, 3 * width - 4, 1], [0, 5, 1, 6]])
    kept, groups = nms(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), 0.0)
    assert kept.tolist() == [0, 2]
    assert [g.tolist() for g in groups] == [[0, 1], [2]]


def test_boxes_without_area_far_apart_in_every_direction_are_all_kept() -> None:
    """Also left of and above the origin: the number of cells is that of the range, wherever it is."""
    far = [-3e15, -1e15, -1e3, -1.0]
    boxes = np.array([[x, y, x, y] for x in far for y in far])
    kept, _ = nms(boxes, np.ones(16), np.arange(16) % 3, 0.5)
    assert sorted(kept.tolist()) == list(range(16))
