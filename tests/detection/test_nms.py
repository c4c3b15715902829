"""Non-maximum suppression against a brute-force implementation, and its independence of the order of the boxes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebyone.detection.nms import MAX_COORDINATE, canonical_order, iou, nms, vote
from onebyone.errors import BadInput

Box = tuple[int, int, int, int]


def exact_iou(a: Box, b: Box) -> Fraction:
    """Intersection over union in exact fractions."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return Fraction(shared, union) if union else Fraction(0)


def brute_force(rows: list[tuple[Box, int, int]], threshold: Fraction, per_class: bool) -> list[tuple]:
    """The definition: by falling score, keep a box that no kept box overlaps by more than the threshold."""
    kept: list[tuple[Box, int, int]] = []
    for box, score, label in sorted(rows, key=lambda row: (-row[1], row[2], row[0])):
        competitors = [b for b, _, other in kept if other == label or not per_class]
        if all(exact_iou(box, b) <= threshold for b in competitors):
            kept.append((box, score, label))
    return kept


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[Box, int, int]]:
    """Boxes of all sizes, empty ones too, with many equal scores."""
    boxes = []
    for _ in range(draw(st.integers(0, 30))):
        x, y = draw(st.integers(-9, 30)), draw(st.integers(-9, 30))
        box = (x, y, x + draw(st.integers(0, 12)), y + draw(st.integers(0, 12)))
        boxes.append((box, draw(st.integers(0, 4)), draw(st.integers(0, 2))))
    return boxes


def run(boxes_scores_labels: list[tuple[Box, int, int]], threshold: float, per_class: bool) -> list[tuple]:
    boxes = np.array([r[0] for r in boxes_scores_labels], dtype=float).reshape(-1, 4)
    scores = np.array([r[1] for r in boxes_scores_labels], dtype=float)
    labels = np.array([r[2] for r in boxes_scores_labels], dtype=np.int64)
    kept, groups = nms(boxes, scores, labels, threshold, per_class=per_class)
    assert sorted(np.concatenate([*groups, np.empty(0, int)]).tolist()) == list(
        range(len(boxes_scores_labels))
    )
    return [boxes_scores_labels[k] for k in kept]


@given(rows(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans())
def test_the_kept_boxes_are_those_of_the_definition(
    boxes: list[tuple[Box, int, int]], threshold: float, per_class: bool
) -> None:
    # quotients of small integers that differ from a quarter do so by far more than float64's rounding
    assert run(boxes, threshold, per_class) == brute_force(boxes, Fraction(threshold), per_class)


@given(rows(), st.randoms(), st.booleans())
def test_the_order_of_the_boxes_does_not_matter(
    boxes: list[tuple[Box, int, int]], random: object, per_class: bool
) -> None:
    shuffled = list(boxes)
    random.shuffle(shuffled)
    assert run(shuffled, 0.5, per_class) == run(boxes, 0.5, per_class)


@given(rows(), st.integers(-2000, 2000), st.integers(-2000, 2000), st.integers(-12, 12), st.booleans())
def test_the_place_of_the_origin_and_the_unit_do_not_matter(
    boxes: list[tuple[Box, int, int]], x: int, y: int, power: int, per_class: bool
) -> None:
    """All boxes moved by the same vector, in pixels of another size: a power of two, so that nothing is rounded."""
    moved = [
        (tuple(np.ldexp([a + x, b + y, c + x, d + y], power).tolist()), score, label)
        for (a, b, c, d), score, label in boxes
    ]
    kept = [boxes[moved.index(row)] for row in run(moved, 0.25, per_class)]
    assert kept == run(boxes, 0.25, per_class)


def test_small_boxes_have_the_overlap_of_large_ones() -> None:
    pair = np.array([[0.0, 0, 2, 2], [1, 0, 3, 2]])
    for unit in (2.0**-20, 1.0, 2.0**20):
        assert iou(pair[0] * unit, pair * unit).tolist() == [1, 2 / 6]


@given(rows())
def test_the_canonical_order_is_that_of_tuples(boxes: list[tuple[Box, int, int]]) -> None:
    corners = np.array([b for b, _, _ in boxes], float).reshape(-1, 4)
    scores, labels = np.array([s for _, s, _ in boxes], float), np.array([k for _, _, k in boxes], int)
    order = canonical_order(corners, scores, labels).tolist()
    assert [boxes[k] for k in order] == sorted(boxes, key=lambda row: (-row[1], row[2], row[0]))


def test_boxes_with_one_corner_in_common_are_ordered_by_the_other() -> None:
    boxes = np.array([[0.0, 0, 9, 1], [0, 0, 8, 2], [0, 0, 8, 1]])
    assert canonical_order(boxes, np.ones(3), np.zeros(3, int)).tolist() == [2, 1, 0]


def test_boxes_of_very_different_sizes_are_compared() -> None:
    boxes = [((0, 0, 1000, 1000), 3, 0), ((900, 900, 1900, 1900), 2, 0), ((999, 999, 1003, 1003), 1, 0)]
    assert run(boxes, 0.0, True) == boxes[:1]


def test_a_hundred_thousand_boxes() -> None:
    """Distant groups of four boxes: exactly the best of each group is kept."""
    y, x = np.mgrid[:160, :157]
    corners = np.stack([x.ravel(), y.ravel()], 1) * 40.0
    boxes = np.concatenate([np.concatenate([corners + d, corners + d + 20], 1) for d in (0, 2, 4, 6)])
    scores = np.repeat([0.5, 0.9, 0.7, 0.6], len(corners))
    assert len(boxes) > 100_000
    kept, groups = nms(boxes, scores, np.zeros(len(boxes), int), 0.3)
    assert (scores[kept] == 0.9).all()
    assert len(kept) == len(corners)
    assert {len(g) for g in groups} == {4}


def test_votes_are_weighted_means() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [50, 50, 60, 60]])
    means = list(vote(boxes, np.array([0.75, 0.25, 0.5]), [np.array([0, 1]), np.array([2])]))
    np.testing.assert_array_equal(means, [[1, 0, 11, 10], [50, 50, 60, 60]])


def test_boxes_without_scores_have_a_plain_mean() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10]])
    np.testing.assert_array_equal(list(vote(boxes, np.zeros(2), [np.array([0, 1])])), [[2, 0, 12, 10]])


def test_an_overlap_of_exactly_the_threshold_is_kept() -> None:
    boxes = np.array([[0.0, 0, 2, 1], [1, 0, 3, 1]])  # IoU 1 / 3
    scores, labels = np.array([0.9, 0.8]), np.zeros(2, int)
    assert len(nms(boxes, scores, labels, 1 / 3)[0]) == 2
    assert len(nms(boxes, scores, labels, np.nextafter(1 / 3, 0))[0]) == 1
    assert len(nms(boxes[[0, 0]], scores, labels, 1.0)[0]) == 2
    assert len(nms(boxes[[0, 0]], scores, labels, np.nextafter(1, 0))[0]) == 1


def test_neighbouring_cells_are_compared_in_every_direction() -> None:
    """Boxes of 10×10 around one at (15, 15), which overlap it by one pixel from the eight neighbouring cells."""
    for dy in (-9, 0, 9):
        for dx in (-9, 0, 9):
            boxes = [
                ((15, 15, 25, 25), 2, 0),
                ((15 + dx, 15 + dy, 25 + dx, 25 + dy), 1, 0),
                ((0, 0, 1, 1), 0, 1),
            ]
            assert run(boxes, 0.0, True) == [boxes[0], boxes[2]]


def test_bad_values_are_refused() -> None:
    box, one = np.zeros((1, 4)), np.ones(1)
    with pytest.raises(BadInput, match=r"iou=1\.5: expected a number from 0 to 1"):
        nms(box, one, one.astype(int), 1.5)
    for bad_boxes, bad_scores in ((box, one * np.nan), (box + np.inf, one)):
        with pytest.raises(BadInput, match="must be finite"):
            nms(bad_boxes, bad_scores, one.astype(int), 0.5)


def test_boxes_without_area_far_apart_are_all_kept() -> None:
    """The number of cells is bounded, so their numbers do not overflow."""
    far = [0.0, 1e3, 1e15, 3e15, 1e90]
    boxes = np.array([[x, y, x, y] for x in far for y in far])
    kept, _ = nms(boxes, np.ones(25), np.arange(25) % 3, 0.5)
    assert sorted(kept.tolist()) == list(range(25))
    near = np.array([[1e15, 0, 1e15 + 8, 8], [1e15 + 1, 0, 1e15 + 9, 8], [0, 0, 0, 0]])
    assert nms(near, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), 0.5)[0].tolist() == [0, 2]
    for bound in (MAX_COORDINATE, -MAX_COORDINATE):
        assert len(nms(np.array([[bound, 0, bound, 1]]), np.ones(1), np.zeros(1, int), 0.5)[0]) == 1
    with pytest.raises(BadInput, match=r"a coordinate is 1e\+200; expected at most 1e\+100"):
        nms(np.array([[0, 0, 1e200, 1]]), np.ones(1), np.zeros(1, int), 0.5)
