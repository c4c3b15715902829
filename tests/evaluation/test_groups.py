"""The evaluation of large images in groups equals that of pycocotools on whole ones; cases counted by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import onebyone
from onebyone.evaluation import groups
from onebyone.evaluation.coco_evaluation import evaluate_boxes

IOUS = [0.5, 0.75]


def crowded(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two images full of overlapping boxes of two classes, crowds, empty boxes, and detections of few scores."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image in (1, 2):
        for _ in range(60):
            x, y, w, h = (float(v) for v in (*random.integers(0, 90, 2), *random.integers(0, 14, 2)))
            kind = int(random.integers(1, 3))
            crowd = int(random.random() < 0.1)
            box = [x, y, w * (1 + 3 * crowd), h * (1 + 3 * crowd)]
            row = {"image_id": image, "category_id": kind, "bbox": box}
            annotations.append({"id": len(annotations) + 1, **row, "area": box[2] * box[3], "iscrowd": crowd})
            for _ in range(int(random.integers(0, 4))):
                shifted = [x + random.integers(-2, 3), y + random.integers(-2, 3), w, h]
                score = int(random.integers(1, 5)) / 8
                rows.append({**row, "bbox": [float(v) for v in shifted], "score": score})
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        "annotations": annotations,
    }
    return truth, rows


def of_pycocotools(truth: dict[str, Any], rows: list[dict[str, Any]], most: int) -> Any:
    """pycocotools on the whole images."""
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = truth
        data.createIndex()
        run = COCOeval(data, data.loadRes([dict(row) for row in rows]), "bbox")
        run.params.maxDets, run.params.iouThrs = [most], np.array(IOUS)
        run.params.areaRng, run.params.areaRngLbl = [[0, float("inf")]], ["all"]
        run.evaluate()
        run.accumulate()
    return run


@pytest.mark.parametrize("most", [7, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_groups_give_the_numbers_of_whole_images(
    seed: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to the last bit, with equal scores, crowds, boxes without area and a limit of detections."""
    truth, rows = crowded(seed)
    expected = of_pycocotools(truth, rows, most)
    monkeypatch.setattr(groups, "LIMIT", 0)
    monkeypatch.setattr(groups, "_GROUP", 1)
    assert len(groups.grouped(truth, rows, most).dataset["images"]) > 20
    found = evaluate_boxes(truth, rows, IOUS, most)
    assert np.array_equal(found.precision, expected.eval["precision"][..., 0, 0])
    assert np.array_equal(found.recall, expected.eval["recall"][..., 0, 0])
    for k, category in enumerate(found.categories):
        images = [i for i in expected.evalImgs if i is not None and i["category_id"] == category]
        pairs = [
            (score, bool(match))
            for image in images
            for score, match, ignored in zip(
                image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True
            )
            if not ignored
        ]
        assert sorted(pairs) == sorted(zip(found.scores[k].tolist(), found.correct[k].tolist(), strict=True))
        assert found.objects[k] == sum(int((image["gtIgnore"] == 0).sum()) for image in images)


def test_a_box_in_the_wrong_group_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An injected fault: every box becomes a group of its own, so nothing is matched."""
    truth, rows = crowded(0)
    monkeypatch.setattr(groups, "_groups", lambda found, there: np.arange(len(found) + len(there)))
    expected = of_pycocotools(truth, rows, 1000)
    assert not np.array_equal(
        evaluate_boxes(truth, rows, IOUS, 1000).recall, expected.eval["recall"][..., 0, 0]
    )


def grid(side: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """side² objects of 10 pixels, each with one detection that is 1 pixel off and one of nothing, worse."""
    rows = [
        {"image_id": 1, "category_id": 0, "bbox": [20.0 * i, 20.0 * j, 10.0, 10.0]}
        for i in range(side)
        for j in range(side)
    ]
    truth = {"images": [{"id": 1}], "categories": [{"id": 0, "name": "a"}], "annotations": rows}
    found = []
    for k, row in enumerate(rows):
        x, y, w, h = row["bbox"]
        found.append({**row, "bbox": [x + 1, y, w, h], "score": 0.9 - k * 1e-6})
        found.append({**row, "bbox": [x + 12, y, w / 2, h], "score": 0.4 - k * 1e-6})
    return truth, found


def test_many_objects_of_one_image_are_evaluated_in_groups() -> None:
    """2,500 objects, all found before the 2,500 wrong detections; the IoU 90/110 reaches 0.5 … 0.8."""
    truth, found = grid(50)
    result = onebyone.evaluate(found, truth, max_detections=10**6)
    assert (result.map50, result.map75, result.map) == pytest.approx((1, 1, 0.7))
    assert result.best is not None
    assert (result.best.correct, result.best.wrong, result.best.missed) == (2500, 0, 0)
    few = onebyone.evaluate(found, truth, max_detections=1000)
    assert few.map50 == pytest.approx(41 / 101)  # recall 0.4 covers the hundredths 0 to 40
    assert "4000 detections do not count" in few.notes[0]


def one_class(boxes: list[list[float]], crowds: list[list[float]]) -> dict[str, Any]:
    """Ground truth of one image with objects and crowds."""
    entries = [(box, 0) for box in boxes] + [(box, 1) for box in crowds]
    annotations = [{"image_id": 1, "category_id": 0, "bbox": b, "iscrowd": c} for b, c in entries]
    return {"images": [{"id": 1}], "categories": [{"id": 0, "name": "a"}], "annotations": annotations}


def results(*pairs: tuple[list[float], float]) -> list[dict[str, Any]]:
    """Detections (box, score) of that image and class."""
    return [{"image_id": 1, "category_id": 0, "bbox": box, "score": score} for box, score in pairs]


def test_detections_within_a_crowd_count_neither_as_correct_nor_as_wrong() -> None:
    truth = one_class([[0, 0, 10, 10]], [[100, 100, 100, 100]])
    inside = [([110.0, 110, 10, 10], 0.9), ([150.0, 150, 10, 10], 0.8)]
    result = onebyone.evaluate(results(*inside, ([0, 0, 10, 10], 0.5)), truth)
    assert (result.map50, result.classes[0].objects, result.classes[0].detections) == (
        pytest.approx(1),
        1,
        1,
    )
    outside = onebyone.evaluate(results(([300, 300, 10, 10], 0.9), ([0, 0, 10, 10], 0.5)), truth)
    assert outside.map50 == pytest.approx(0.5)  # one wrong detection before the correct one


def test_a_second_detection_of_an_object_is_wrong() -> None:
    truth = one_class([[0, 0, 10, 10], [50, 0, 10, 10]], [])
    twice = results(([0, 0, 10, 10], 0.9), ([0, 0, 10, 9], 0.8), ([50, 0, 10, 10], 0.7))
    result = onebyone.evaluate(twice, truth)
    # recall 1/2 at precision 1 (hundredths 0 to 50), then recall 1 at precision 2/3
    assert result.map50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.best is not None
    assert (result.best.correct, result.best.wrong) == (2, 1)


def test_an_image_without_objects_only_adds_wrong_detections() -> None:
    truth = one_class([[0, 0, 10, 10]], [])
    truth["images"].append({"id": 2})
    rows = results(([0, 0, 10, 10], 0.5))
    assert onebyone.evaluate(rows, truth).map50 == pytest.approx(1)
    rows.append({"image_id": 2, "category_id": 0, "bbox": [0, 0, 5, 5], "score": 0.9})
    assert onebyone.evaluate(rows, truth).map50 == pytest.approx(0.5)
