"""The benchmark on a page of digits: its pages, its targets, and a small run of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from bench import digits_page
from bench.digit_pages import BLOCK, SCALES, _nearest, ground_truth, places, strips, write_page
from onebyone.comparison.digits import load_digits
from onebyone.detection.nms import iou
from onebyone.laws.geometry import Geometry


def test_a_page_has_its_digits_in_their_boxes(tmp_path: Path) -> None:
    """The ink is inside the boxes, every box has some, boxes of one page do not touch, and the file has the page."""
    digits, side = load_digits().test, 3 * BLOCK + 20
    page = places(side, len(digits), np.random.default_rng(3))
    image = np.concatenate(list(strips(page, digits, 0)))
    assert image.shape == (side, side)
    ink = image < 160  # the paper has at least (0.88 - 0.05) · 255 - 4
    inside = np.zeros_like(ink)
    for x1, y1, x2, y2 in page.boxes:
        assert not inside[y1:y2, x1:x2].any()
        assert 0.02 < ink[y1:y2, x1:x2].mean() < 0.6
        inside[y1:y2, x1:x2] = True
    assert not ink[~inside].any()
    factors = (page.boxes[:, 2] - page.boxes[:, 0]) / 40
    assert {1, 2, 4} == set(np.rint(factors).astype(int).tolist())
    write_page(tmp_path / "page.tif", page, digits, 0)
    assert np.array_equal(tifffile.imread(tmp_path / "page.tif"), image)
    annotations = ground_truth(page, digits, "page.tif")["annotations"]
    assert [a["category_id"] for a in annotations] == digits.labels[page.rows].tolist()
    assert [a["bbox"][:2] for a in annotations] == page.boxes[:, :2].tolist()


def test_training_and_held_out_digits_are_different() -> None:
    split = load_digits()
    assert not set(split.train.ids.tolist()) & set(split.test.ids.tolist())


def test_targets_are_the_overlaps_of_windows_with_boxes() -> None:
    """The IoU by axes equals that of whole boxes."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 80, (7, 2))
    boxes = np.concatenate([corners, corners + random.uniform(10, 60, (7, 2))], axis=1)
    geometry = Geometry((40, 40), (8, 8), (0, 0), (40, 40), (0, 0), True)
    best, owner = _nearest(geometry, torch.Size([9, 11]), boxes)
    for i in range(9):
        for j in range(11):
            x, y = 8 * j, 8 * i
            expected = iou(np.array([x, y, x + 40, y + 40], float), boxes)
            # a quotient of sums of float32 numbers below 2^14: a few units in the last place
            assert best[i, j] == pytest.approx(expected.max(), rel=1e-5)
            assert expected[owner[i, j]] == pytest.approx(expected.max(), rel=1e-5)


def test_the_committed_figures_meet_the_aims() -> None:
    figures = json.loads(digits_page.RESULTS.read_text(encoding="utf-8"))
    assert figures["pixels"] == 20_000**2
    assert figures["mAP50"] >= 0.9
    assert figures["peak_bytes"] < 2**31
    assert all(figures["digits_by_scale"][f"{scale:g}"] > 1000 for scale in SCALES)


@pytest.mark.slow
def test_the_commands_on_a_small_page(tmp_path: Path) -> None:
    """Few training steps: most digits are found, where no untrained network finds any."""
    out = tmp_path / "figures.json"
    digits_page.main(
        ["--size", "1500", "--steps", "250", "--folder", str(tmp_path / "page"), "--out", str(out)]
    )
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["mAP50"] > 0.7  # 0.81 after 200 steps on a larger page
    assert figures["peak_bytes"] < 2**30
