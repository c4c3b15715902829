"""Evaluation against an independent computation, and files that do not fit each other."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.detection.thresholds import read_threshold
from onebyone.errors import BadInput

NAMES = {3: "cat", 8: "dog", 9: "owl"}  # the owl has no object
IDS = (10, 20, 30)


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def judged(
    truth: dict[str, Any], rows: list[dict[str, Any]], kind: int, iou: float
) -> list[tuple[float, bool]]:
    """(score, correct) of the detections of a class, by greedy matching from the best score down."""
    free = [a for a in truth["annotations"] if a["category_id"] == kind]
    found = []
    for row in sorted((r for r in rows if r["category_id"] == kind), key=lambda r: -r["score"]):
        candidates = [a for a in free if a["image_id"] == row["image_id"]]
        best = max(candidates, key=lambda a: overlap(row["bbox"], a["bbox"]), default=None)
        hit = best is not None and overlap(row["bbox"], best["bbox"]) >= iou
        if hit:
            free.remove(best)
        found.append((row["score"], hit))
    return found


def average_precision(found: list[tuple[float, bool]], objects: int) -> float:
    """The mean over the hundredths of recall of the best precision at that recall or above."""
    hits, points = 0, []
    for count, (_, hit) in enumerate(found, 1):
        hits += hit
        points.append((hits / objects, hits / count))
    at = [max((p for r, p in points if r >= k / 100 - 1e-12), default=0.0) for k in range(101)]
    return sum(at) / 101


@pytest.fixture(scope="module")
def files() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth of three images, and detections: shifted objects, wrong classes, and boxes of nothing."""
    random = np.random.default_rng(5)
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    cats = random.choice(24, 11, replace=False)  # 11 and 13 objects: no recall between 0 and 1 is a hundredth
    for image in IDS:
        for k in range(8):
            box = [60.0 * k, float(random.integers(0, 100)), 40.0, 50.0]
            kind = 3 if len(annotations) in cats else 8
            annotations.append({"id": len(annotations), "image_id": image, "category_id": kind, "bbox": box})
            for _ in range(int(random.integers(0, 4))):
                x, y = (v + random.normal() * 5 for v in box[:2])
                seen = (
                    (3, 8, 9)[int(random.choice(3, p=[0.45, 0.45, 0.1]))] if random.random() < 0.3 else kind
                )
                row = {"image_id": image, "category_id": seen, "bbox": [x, y, 40.0, 50.0]}
                rows.append({**row, "score": round(float(random.random()), 6)})
    truth = {
        "images": [{"id": i, "file_name": f"train/{i}.png", "height": 200, "width": 500} for i in IDS],
        "categories": [{"id": k, "name": name} for k, name in NAMES.items()],
        "annotations": annotations,
    }
    assert len({row["score"] for row in rows}) == len(rows)  # no ties, whose order is free
    return truth, rows


def test_average_precision_is_that_of_an_independent_computation(files: Any) -> None:
    truth, rows = files
    result = onebyone.evaluate(rows, truth)
    assert [c.name for c in result.classes] == ["cat", "dog"]
    table = {}
    for c, kind in zip(result.classes, (3, 8), strict=True):
        assert c.objects == sum(a["category_id"] == kind for a in truth["annotations"])
        table[kind] = [
            average_precision(judged(truth, rows, kind, 0.5 + 0.05 * k), c.objects) for k in range(10)
        ]
        assert (c.ap50, c.ap75) == pytest.approx((table[kind][0], table[kind][5]), abs=1e-12)
        assert c.ap == pytest.approx(sum(table[kind]) / 10, abs=1e-12)
        assert 0 < c.ap75 < c.ap50 < 1
    means = np.mean(list(table.values()), axis=0)
    assert (result.map, result.map50, result.map75) == pytest.approx((means.mean(), means[0], means[5]))


def test_precision_and_recall_are_counted(files: Any) -> None:
    truth, rows = files
    result = onebyone.evaluate(rows, truth)
    found = [pair for kind in NAMES for pair in judged(truth, rows, kind, 0.5)]
    objects = len(truth["annotations"])

    def counts(threshold: float) -> tuple[int, int]:
        hits = [hit for score, hit in found if score >= threshold]
        return sum(hits), len(hits) - sum(hits)

    assert [p.threshold for p in result.points] == [k / 20 for k in range(20)]
    for point in result.points:
        assert (point.correct, point.wrong) == counts(point.threshold)
        assert point.recall == point.correct / objects
    assert result.best is not None
    f1 = {t: 2 * counts(t)[0] / (sum(counts(t)) + objects) for t, _ in found}
    assert result.best.f1 == pytest.approx(max(f1.values()))
    assert f1[result.best.threshold] == max(f1.values())


def test_images_and_classes_of_predictions_are_matched_by_name(files: Any) -> None:
    truth, rows = files
    expected = onebyone.evaluate(rows, truth).to_dict()
    images, kinds = {30: 1, 10: 2, 20: 3}, {9: 0, 3: 1, 8: 2}  # other ids, in another order
    predictions = {
        "images": [
            {"id": n, "file_name": f"C/{i}.png", "height": 200, "width": 500} for i, n in images.items()
        ],
        "categories": [{"id": n, "name": NAMES[k]} for k, n in kinds.items()],
        "annotations": [
            {**row, "image_id": images[row["image_id"]], "category_id": kinds[row["category_id"]]}
            for row in rows
        ],
    }
    assert onebyone.evaluate(predictions, truth).to_dict() == expected
    numbered = [{**row, "category_id": kinds[row["category_id"]]} for row in rows]
    assert onebyone.evaluate(numbered, truth, classes=["owl", "cat", "dog"]).to_dict() == expected
    more = copy.deepcopy(predictions)
    more["categories"].append({"id": 5, "name": "gnu"})
    more["annotations"] += [{**more["annotations"][0], "category_id": 5}] * 2
    result = onebyone.evaluate(more, truth)
    assert result.notes == ("2 detections of classes that the ground truth does not have were left out: gnu",)
    assert {**result.to_dict(), "notes": []} == expected


def test_detections_of_a_scan_and_their_own_ground_truth() -> None:
    from onebyone.detection import Detections, coco_ground_truth

    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([0, 1]), ("b", "a"), (40, 40))
    truth = coco_ground_truth(boxes, [1, 0], ("a", "b"), (40, 40))
    assert onebyone.evaluate(found, truth).map == pytest.approx(1)  # by name: the ids alone would say 0
    assert onebyone.evaluate(found.to_coco(), truth).map == 0


def test_the_limit_of_detections_is_said() -> None:
    objects = [[20.0 * k, 0.0, 10.0, 10.0] for k in range(150)]
    entries = [{"image_id": 1, "category_id": 0, "bbox": box} for box in objects]
    truth = {"images": [{"id": 1}], "categories": [{"id": 0, "name": "a"}], "annotations": entries}
    rows = [{**entry, "score": 1 - k / 1000} for k, entry in enumerate(entries)]
    few = onebyone.evaluate(rows, truth)
    assert few.map50 == pytest.approx(67 / 101)  # recall 100/150 covers the hundredths 0 to 66
    assert "50 detections do not count" in few.notes[0]
    every = onebyone.evaluate(rows, truth, max_detections=150)
    assert (every.map, every.notes) == (pytest.approx(1), ())


def test_nothing_was_detected(files: Any) -> None:
    result = onebyone.evaluate([], files[0])
    assert (result.map, result.best, result.points[0].precision, result.points[0].recall) == (
        0,
        None,
        None,
        0,
    )


MENDED = {
    "truth of no category": (lambda t, r: t.pop("categories"), "has no list 'categories'"),
    "truth of no boxes": (lambda t, r: t["annotations"].clear(), "has no boxes"),
    "two images of one id": (
        lambda t, r: t["images"].append(t["images"][0]),
        "has id=10, as another one has",
    ),
    "another image": (lambda t, r: r[0].update(image_id=11), r"detections\[0\] has image_id=11"),
    "another class": (lambda t, r: r[2].update(category_id=0), r"category_id=0; expected one of 3, 8, 9"),
    "no score": (lambda t, r: r[1].pop("score"), r"detections\[1\]: score=None"),
    "a score that is not finite": (lambda t, r: r[1].update(score=math.nan), "expected a finite number"),
    "three numbers": (lambda t, r: r[1].update(bbox=[1, 2, 3]), "expected four numbers"),
    "a negative width": (lambda t, r: t["annotations"][4].update(bbox=[1, 2, -3, 4]), "negative width"),
    "an annotation without image": (lambda t, r: t["annotations"][4].update(image_id=1), "does not list"),
    "text": (lambda t, r: r.append("x"), "is not an object"),
    "a list as an id": (lambda t, r: r[0].update(image_id=[1]), "has no image_id"),
}


@pytest.mark.parametrize("fault", MENDED)
def test_data_that_do_not_fit_are_one_sentence(files: Any, fault: str) -> None:
    truth, rows = copy.deepcopy(files)
    change, expected = MENDED[fault]
    change(truth, rows)
    with pytest.raises(BadInput, match=expected) as error:
        onebyone.evaluate(rows, truth)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda p: p["images"][0].update(file_name="99.png"),
            "no image of the ground truth has the file name",
        ),
        (lambda p: p.update(images=p["images"][:1]), r"has image_id=20"),
        (lambda p: p["images"][0].update(file_name="20.png"), "two images have the file name"),
        (lambda p: p["images"][0].update(height=99), "has 99×500 pixels"),
        (lambda p: [c.update(name="x" + c["name"]) for c in p["categories"]], "no class of the detections"),
        (lambda p: [c.update(name="cat") for c in p["categories"]], "two categories are called 'cat'"),
    ],
)
def test_predictions_of_other_images_or_classes(files: Any, change: Any, expected: str) -> None:
    truth, rows = files
    predictions = copy.deepcopy({**truth, "annotations": rows})
    change(predictions)
    with pytest.raises(BadInput, match=expected):
        onebyone.evaluate(predictions, truth)


def test_the_command(tmp_path: Path, files: Any) -> None:
    truth, rows = files
    for name, data in (("truth.json", truth), ("boxes.json", rows)):
        (tmp_path / name).write_text(json.dumps(data))
    (tmp_path / "broken.json").write_text('{"images": [')

    def run(name: str, *options: str) -> Any:
        words = ["evaluate", str(tmp_path / name), str(tmp_path / "truth.json"), *options]
        return CliRunner().invoke(app, words)

    expected = onebyone.evaluate(rows, truth)
    assert json.loads(run("boxes.json", "--json").stdout)["mAP50"] == expected.map50
    done = run("boxes.json")
    assert done.exit_code == 0
    assert f"mAP50 {expected.map50:.3f}" in done.stdout
    assert "Thresholds (IoU 0.5, all classes)" in done.stdout
    best = tmp_path / "best.json"
    assert run("boxes.json", "-o", str(best)).exit_code == 0
    thresholds = read_threshold(f"@{best}")
    assert thresholds == {c.name: c.best.threshold for c in expected.classes if c.best}
    assert set(thresholds) == {"cat", "dog"}
    for name in ("broken.json", "missing.json"):
        bad = run(name)
        assert bad.exit_code == 2
        assert len(bad.stderr.strip().splitlines()) == 1
    assert "category_id=3" in run("boxes.json", "--classes", "owl,cat,dog").stderr
