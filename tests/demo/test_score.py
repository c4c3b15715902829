"""Scores by pycocotools against average precision computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.demo.average_precision import matched, score
from onebyone.demo.data import CLASSES
from onebyone.demo.digit_page import DigitPage
from onebyone.detection import Detections


def page_of(places: list[tuple[int, int, int]]) -> DigitPage:
    """A page with digits at (x, y), label."""
    boxes = np.array([(x, y, x + 40, y + 40) for x, y, _ in places], dtype=np.int64)
    labels = np.array([label for _, _, label in places], dtype=np.int64)
    return DigitPage(np.zeros((400, 600), np.uint8), boxes, labels, labels, "none")


def found_at(places: list[tuple[int, int, int, float]]) -> Detections:
    """Detections at (x, y), label, score."""
    return Detections(
        boxes=np.array([(x, y, x + 40, y + 40) for x, y, *_ in places], dtype=np.float32).reshape(-1, 4),
        scores=np.array([s for *_, s in places], dtype=np.float32),
        labels=np.array([label for _, _, label, _ in places], dtype=np.int64),
        classes=CLASSES,
        image_size=(400, 600),
    )


PAGE = page_of([(0, 0, 3), (100, 0, 3), (200, 0, 3), (0, 200, 7)])


def test_perfect_detections_score_one() -> None:
    found = found_at([(0, 0, 3, 0.9), (100, 0, 3, 0.8), (200, 0, 3, 0.7), (0, 200, 7, 0.6)])
    result = score(found, PAGE)
    assert result.mAP50 == pytest.approx(1.0, abs=1e-12)
    assert result.ap50 == pytest.approx({"3": 1.0, "7": 1.0})


def test_average_precision_is_the_one_worked_out_by_hand() -> None:
    # class 3, best first: hit, false, hit, and one of three missed. Precision at recall up to 1/3 is 1, up
    # to 2/3 it is 2/3, beyond 0. COCO reads it at recall 0, 0.01, …, 1: 34 points to 0.33, 33 from 0.34 to
    # 0.66, 34 beyond. Class 7: the false one comes first, so 1/2 at all 101 points.
    found = found_at(
        [(4, 0, 3, 0.9), (400, 300, 3, 0.8), (100, 4, 3, 0.7), (300, 300, 7, 0.6), (0, 200, 7, 0.5)]
    )
    three = (34 * 1 + 33 * 2 / 3) / 101
    result = score(found, PAGE)
    assert result.ap50 == pytest.approx({"3": three, "7": 0.5})
    assert result.mAP50 == pytest.approx((three + 0.5) / 2)
    assert result.recall == pytest.approx({"3": 2 / 3, "7": 1.0})


def test_boxes_must_overlap_by_half() -> None:
    # 40×40 boxes d apart on one axis overlap by (40 − d) / (40 + d): 13 gives 0.509, 14 gives 0.481
    near = score(found_at([(13, 200, 7, 0.9)]), PAGE)
    far = score(found_at([(14, 200, 7, 0.9)]), PAGE)
    assert (near.ap50["7"], far.ap50["7"]) == (pytest.approx(1.0), 0.0)


def test_a_digit_found_as_another_counts_against_both() -> None:
    result = score(found_at([(0, 200, 3, 0.99), (0, 0, 3, 0.5)]), PAGE)
    assert result.ap50["7"] == 0
    assert result.ap50["3"] == pytest.approx(34 * 0.5 / 101)


def test_no_detections_score_nothing() -> None:
    assert score(found_at([]), PAGE).mAP50 == 0


def test_many_detections_are_not_cut_off() -> None:
    # 300 false ones, each likelier than the true one: COCO's usual 100 would never reach it
    false = [(300, 300, 7, 0.9) for _ in range(300)]
    result = score(found_at([*false, (0, 200, 7, 0.5)]), PAGE)
    assert result.max_detections >= 301
    assert result.recall["7"] == 1
    assert result.ap50["7"] == pytest.approx(1 / 301)


def test_matching_gives_each_digit_to_its_best_detection() -> None:
    found = found_at([(2, 0, 3, 0.9), (0, 0, 3, 0.8), (0, 200, 3, 0.7), (0, 202, 7, 0.6)])
    assert matched(found, PAGE).tolist() == [0, -1, -1, 3]
