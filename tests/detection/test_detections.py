"""Detections from score maps, their file formats as other tools read them, and drawings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from onebyone.dense import ScoreMap
from onebyone.detection import Detections, coco_ground_truth, coco_results, detect, streaming_nms
from onebyone.detection.overlay import PALETTE, colour_of
from onebyone.detection.thresholds import read_threshold
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels
from onebyone.stores.placement import Placement

GEOMETRY = Geometry((8, 6), (4, 2), (0, 0), (8, 6), (0, 0), True)
SIZE = (48, 40)


def score_map(positions: dict[tuple[int, int, int], float], labels: Labels | None = None) -> ScoreMap:
    """Probabilities {(class, i, j): p} at some positions, and class 2, the background, everywhere else."""
    scores = np.zeros((3, *GEOMETRY.positions(SIZE)), dtype=np.float32)
    for (k, i, j), p in positions.items():
        scores[k, i, j] = p
    scores[2] = 1 - scores[:2].sum(axis=0)
    return ScoreMap(scores, GEOMETRY, labels or Labels(("cat", "dog", "none"), background=("none",)), SIZE)


PROBABILITIES = {(0, 1, 2): 0.9, (0, 1, 3): 0.8, (1, 1, 3): 0.15, (1, 9, 16): 0.75, (1, 5, 8): 0.5}


def test_boxes_are_the_windows_of_the_best_positions() -> None:
    detections = detect(score_map(PROBABILITIES))
    assert detections.names == ("cat", "dog", "dog")
    np.testing.assert_array_equal(detections.boxes, [[4, 4, 10, 12], [32, 36, 38, 44], [16, 20, 22, 28]])
    np.testing.assert_array_equal(detections.scores, np.float32([0.9, 0.75, 0.5]))
    assert (detections.boxes.dtype, detections.scores.dtype, detections.labels.dtype) == (
        np.float32,
        np.float32,
        np.int64,
    )


def test_suppression_within_a_class_or_across_classes() -> None:
    scores = score_map(PROBABILITIES)
    # the windows at columns 2 and 3 share 4 of 6 pixels in each row: IoU 4 / 8
    assert len(detect(scores, iou=0.5)) == 4
    assert len(detect(scores, iou=0.49)) == 3
    assert len(detect(scores, iou=0.49, threshold=0.1)) == 4
    assert len(detect(scores, iou=0.49, threshold=0.1, per_class=False)) == 3


def test_refined_boxes_are_means_weighted_by_score() -> None:
    detections = detect(score_map({(0, 1, 2): 0.75, (0, 1, 3): 0.25}), threshold=0.2, refine=True)
    np.testing.assert_array_equal(detections.boxes, [[4.5, 4, 10.5, 12]])


def test_max_detections_keeps_the_best() -> None:
    assert (
        detect(score_map(PROBABILITIES), max_detections=2).scores.tolist() == np.float32([0.9, 0.75]).tolist()
    )


def test_background_is_excluded_by_labels_by_name_and_by_number() -> None:
    everything = detect(score_map(PROBABILITIES, Labels(("cat", "dog", "none"))))
    assert "none" in everything.names
    for background in (("none",), "none", (2,), 2):
        assert (
            detect(score_map(PROBABILITIES, Labels(("cat", "dog", "none"))), background=background).names[0]
            == "cat"
        )
        assert len(detect(score_map(PROBABILITIES, Labels()), background="2")) == 3
    assert detect(score_map(PROBABILITIES), background=(0,)).names == ("dog", "dog")


def test_an_empty_result_can_be_saved_and_drawn(tmp_path: Path) -> None:
    detections = detect(score_map({}))
    assert (len(detections), detections.boxes.shape) == (0, (0, 4))
    for name in ("a.json", "a.geojson", "a.csv"):
        detections.save(tmp_path / name)
    assert json.loads((tmp_path / "a.json").read_text()) == []
    assert "0 detections" in str(detections)
    detections.draw(np.zeros(SIZE, np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, r"threshold=1.5: expected a number from 0 to 1"),
        ({"iou": -0.1}, r"iou=-0.1: expected a number from 0 to 1"),
        ({"background": ("bird",)}, r"background='bird': expected one of the classes: cat, dog, none"),
        ({"background": (7,)}, r"background=7: expected one of the classes"),
        ({"max_detections": 0}, r"max_detections=0: expected a positive integer or None"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        detect(score_map(PROBABILITIES), **arguments)


def test_scores_that_are_not_finite_are_refused() -> None:
    scores = score_map(PROBABILITIES)
    scores.scores[1, 0, 0] = np.nan
    with pytest.raises(BadInput, match=r"scores have 1 value\(s\) that are not finite"):
        detect(scores)


def test_too_many_boxes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_nms, "MAX_KEPT", 10)
    with pytest.raises(BadInput, match=r"more than 10 boxes are left after non-maximum suppression"):
        detect(score_map(PROBABILITIES), threshold=0, iou=1)


def evaluated(results: list[dict], truth: dict) -> float:
    """pycocotools' mAP at IoU 0.5."""
    data = COCO()
    data.dataset = truth
    data.createIndex()
    run = COCOeval(data, coco_results(data, results), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return float(run.stats[1])


def joined(truths: list[dict]) -> dict:
    """Ground truth of several images as one data set."""
    return {
        "info": {},
        "images": [i for t in truths for i in t["images"]],
        "categories": truths[0]["categories"],
        "annotations": [a for t in truths for a in t["annotations"]],
    }


def test_results_of_several_images_are_joined() -> None:
    """The mAP of images where all objects are detected is 1, of half the images about 0.5, of no detections 0."""
    detections = detect(score_map({(0, 1, 2): 0.9, (1, 5, 8): 0.8}))
    truths = [
        coco_ground_truth(detections.boxes, detections.labels, detections.classes, SIZE, image_id=n)
        for n in (0, 1, 2, 600_000)
    ]
    truth = joined(truths)
    results = [row for n in (0, 1, 2, 600_000) for row in detections.to_coco(n)]
    assert evaluated(results, truth) == 1
    # half the objects of each class, no false positive: precision 1 up to recall 0.5, at 51 of 101 recalls
    assert evaluated(results[:4], truth) == pytest.approx(51 / 101)
    assert evaluated([], truth) == 0
    assert coco_results(COCO(), []).getAnnIds() == []
    one_empty = joined([truths[0], coco_ground_truth([], [], detections.classes, SIZE)])
    assert evaluated(detections.to_coco(0), one_empty) == pytest.approx(1, abs=1e-12)
    with pytest.raises(BadInput, match="image_id=-1: expected 0 or a positive integer"):
        coco_ground_truth([], [], ["a"], SIZE, image_id=-1)


def test_pycocotools_reads_results_and_truth() -> None:
    detections = detect(score_map(PROBABILITIES))
    truth = coco_ground_truth(detections.boxes, detections.labels, detections.classes, SIZE)
    assert evaluated(detections.to_coco(), truth) == 1
    swapped = coco_ground_truth(detections.boxes, 1 - detections.labels, detections.classes, SIZE)
    assert evaluated(detections.to_coco(), swapped) == 0
    moved = coco_ground_truth(detections.boxes + 4, detections.labels, detections.classes, SIZE)
    assert evaluated(detections.to_coco(), moved) == 0


def test_the_suffix_selects_the_format(tmp_path: Path) -> None:
    detections = detect(score_map(PROBABILITIES))
    for name in ("a.json", "a.geojson", "a.csv", "a.png"):
        detections.save(tmp_path / name, image=np.zeros(SIZE, np.uint8))
    coco = json.loads((tmp_path / "a.json").read_text())
    assert coco[0]["bbox"] == [4, 4, 6, 8]
    assert coco[0]["score"] == pytest.approx(0.9)
    geo = json.loads((tmp_path / "a.geojson").read_text())
    ring = geo["features"][1]["geometry"]["coordinates"][0]
    assert ring == [[32, 36], [38, 36], [38, 44], [32, 44], [32, 36]]
    assert geo["features"][1]["properties"]["classification"]["name"] == "dog"
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["class"] for row in rows] == list(detections.names)
    assert [float(rows[2][k]) for k in ("x1", "y1", "x2", "y2")] == detections.boxes[2].tolist()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (40, 48)
    assert len(list(tmp_path.iterdir())) == 4


def test_errors_of_saving_leave_no_file(tmp_path: Path) -> None:
    detections, image = detect(score_map(PROBABILITIES)), np.zeros(SIZE, np.uint8)
    for name, message in {
        "a.txt": "expected a file name that ends in one of .json",
        "no/a.json": "No such file or directory",
        "no/a.png": "No such file or directory",
    }.items():
        with pytest.raises(BadInput, match=message):
            detections.save(tmp_path / name, image=image)
    with pytest.raises(BadInput, match="a drawing needs the image"):
        detections.save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="the image has 48×41 pixels; expected 48×40, as the detections have"):
        detections.draw(np.zeros((48, 41), np.uint8), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_does_not_replace_its_image(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    (tmp_path / "link.png").symlink_to(path)
    for name in ("a.png", "link.png"):
        with pytest.raises(BadInput, match=f"cannot save .*{name}: it is the image to draw on"):
            detect(score_map(PROBABILITIES)).save(tmp_path / name, image=path)
    np.testing.assert_array_equal(np.array(Image.open(path)), pixels)


def test_a_drawing_has_boxes_in_the_colours_of_their_classes() -> None:
    image = np.full((120, 160, 3), 90, dtype=np.uint8)
    boxes = np.array([[10, 30, 60, 80], [90, 40, 150, 110]], dtype=np.float32)
    detections = Detections(boxes, np.float32([0.9, 0.8]), np.array([0, 5]), tuple("abcdef"), (120, 160))
    drawn = np.asarray(detections.draw(image))
    for (x1, y1, x2, y2), colour in zip(boxes.astype(int), (PALETTE[0], PALETTE[5]), strict=True):
        rgb = tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
        for y, x in ((y1, (x1 + x2) // 2), (y2 - 1, x1), ((y1 + y2) // 2, x1), ((y1 + y2) // 2, x2 - 1)):
            assert tuple(drawn[y, x]) == rgb
        assert (drawn[(y1 + y2) // 2, (x1 + x2) // 2] == 90).all()  # the interior is unchanged
    assert (image == 90).all()  # and the given image is not modified


def test_tags_do_not_cover_neighbouring_boxes() -> None:
    """Three boxes in a column, each at the preferred position of the next one's tag."""
    image = np.full((200, 300), 90, dtype=np.uint8)
    boxes = np.float32([[100, 40, 130, 70], [100, 72, 130, 102], [100, 104, 130, 134]])
    detections = Detections(boxes, np.float32([0.7, 0.8, 0.9]), np.arange(3), tuple("abc"), (200, 300))
    drawn = np.asarray(detections.draw(image))
    for x1, y1, x2, y2 in boxes.astype(int):
        assert (drawn[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] == 90).all()


@pytest.mark.parametrize(
    "image", [np.zeros(SIZE, np.uint16), np.zeros((*SIZE, 3)), np.ones((*SIZE, 1), np.float32)]
)
def test_images_of_every_type_can_be_drawn_on(image: np.ndarray) -> None:
    drawn = detect(score_map(PROBABILITIES)).draw(image)
    assert (drawn.mode, drawn.size) == ("RGB", (40, 48))


def test_boxes_of_every_size_can_be_drawn_anywhere() -> None:
    boxes = np.float32([[0, 0, 1, 1], [-5, -5, 300, 300], [38, 46, 40, 48], [3, 3, 3, 3]])
    detections = Detections(boxes, np.ones(4, np.float32), np.arange(4), tuple("abcd"), SIZE)
    detections.draw(np.zeros(SIZE, np.uint8))


def test_a_score_of_exactly_the_threshold_is_a_detection() -> None:
    scores = score_map({(0, 1, 2): 0.625})
    assert len(detect(scores, threshold=0.625)) == 1
    assert len(detect(scores, threshold=float(np.nextafter(np.float32(0.625), np.float32(1))))) == 0


def test_as_many_boxes_as_allowed_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_nms, "MAX_KEPT", 5)
    assert len(detect(score_map({(0, 1, 3 * k): 0.75 for k in range(5)}), iou=1)) == 5
    with pytest.raises(BadInput, match="more than 5 boxes are left"):
        detect(score_map({(0, 1, k): 0.75 for k in range(6)}), iou=1)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        ({"cat": 0.7, "*": 0.3}, {"cat": 1, "dog": 2}),
        ({1: 0.5}, {"cat": 2, "dog": 1}),
        (0.3, {"cat": 3, "dog": 2}),
    ],
)
def test_thresholds_by_class(threshold: object, expected: dict[str, int]) -> None:
    marks = {(0, 1, 2): 0.75, (0, 1, 8): 0.625, (0, 4, 2): 0.375, (1, 1, 14): 0.5, (1, 4, 8): 0.375}
    names = detect(score_map(marks), threshold=threshold, iou=1).names
    assert {name: names.count(name) for name in ("cat", "dog")} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", 0.5),
        ("cat=0.8,a=b=0.5", {"cat": 0.8, "a=b": 0.5}),
        ("@json", {"cat": 0.25, "*": 1.0}),
        ("@lines", {"cat": 0.25, "black dog": 0.5}),
    ],
)
def test_thresholds_as_text(tmp_path: Path, text: str, expected: object) -> None:
    (tmp_path / "json").write_text('{"cat": 0.25, "*": 1}')
    (tmp_path / "lines").write_text("cat=0.25\n\nblack dog = 0.5\n")
    assert read_threshold(text.replace("@", f"@{tmp_path}/")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat=2", r"threshold: 'cat'=2: expected a number from 0 to 1"),
        ("cat=0.5,cat=0.6", "'cat' has two values"),
        ("=0.5", "expected CLASS=P"),
        ("cat=0.5,dog", "'dog': expected CLASS=P"),
        ("high", "threshold='high': expected a number from 0 to 1"),
        ("@none", "cannot read none"),
    ],
)
def test_bad_thresholds_are_named(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_threshold(text)
    with pytest.raises(BadInput, match="'bird' is not a class; expected one of cat, dog, none"):
        detect(score_map(PROBABILITIES), threshold={"bird": 0.5})


def test_boxes_of_a_network_with_a_window_offset() -> None:
    """The window of position (i, j) starts at (4i − 3, 2j + 1); what is outside the image is clipped."""
    geometry = Geometry((8, 6), (4, 2), (3, -1), (8, 6), (3, -1), True)
    values = np.zeros((1, *geometry.positions(SIZE)), np.float32)
    values[0, 2, 5] = values[0, 0, 17] = 0.75
    scores = ScoreMap(values, geometry, Labels(), SIZE, kind=ScoreKind("probabilities"))
    assert sorted(detect(scores).boxes.tolist()) == [[11, 5, 17, 13], [35, 0, 40, 5]]


def test_refined_boxes_are_means_within_their_class() -> None:
    """Suppression across classes, but a box of another class does not move the one that suppressed it."""
    scores = score_map({(0, 1, 2): 0.75, (0, 1, 3): 0.25, (1, 1, 1): 0.5})
    detections = detect(scores, threshold=0.2, iou=0.3, refine=True, per_class=False)
    np.testing.assert_array_equal(detections.boxes, [[4.5, 4, 10.5, 12]])


def test_refined_boxes_of_equal_scores_are_sorted_by_their_new_coordinates() -> None:
    """The window at column 2 comes before the one at column 2 of a later row until it is moved to the right."""
    scores = score_map({(0, 1, 2): 0.75, (0, 1, 3): 0.25, (0, 7, 2): 0.75})
    detections = detect(scores, threshold=0.2, refine=True)
    np.testing.assert_array_equal(detections.boxes, [[4, 28, 10, 36], [4.5, 4, 10.5, 12]])


def test_refining_boxes_of_zero_probability() -> None:
    """At a threshold of 0 every window is a candidate; those without any probability keep finite boxes."""
    detections = detect(score_map({(0, 1, 2): 0.9}), threshold=0, refine=True)
    assert np.isfinite(detections.boxes).all()


def test_the_number_after_the_last_class_is_not_a_class() -> None:
    with pytest.raises(BadInput, match="background=3: expected one of the classes"):
        detect(score_map(PROBABILITIES), background=3)


@pytest.mark.parametrize(("count", "last_line"), [(20, None), (21, "… and 1 more"), (25, "… and 5 more")])
def test_twenty_rows_are_printed(count: int, last_line: str | None) -> None:
    boxes = np.tile(np.float32([0, 0, 4, 4]), (count, 1))
    detections = Detections(boxes, np.ones(count, np.float32), np.zeros(count, int), ("a",), SIZE)
    lines = str(detections).splitlines()
    assert sum(line.startswith("a ") for line in lines) == min(count, 20)
    assert [line for line in lines if line.startswith("…")] == ([last_line] if last_line else [])


def test_colours_repeat_after_the_last() -> None:
    assert [colour_of(k) for k in range(16)] == [*PALETTE, *PALETTE]


def test_parquet_is_read_by_pyarrow(tmp_path: Path) -> None:
    boxes = np.array([[1.5, 2, 3, 4.25]], np.float32)
    for found in (boxes, boxes[:0]):
        n = len(found)
        detections = Detections(
            found, np.full(n, 0.5, np.float32), np.ones(n, np.int64), ("a", "b"), (10, 20)
        )
        detections.save(tmp_path / "d.parquet")
        table = parquet.read_table(tmp_path / "d.parquet")
        assert table.to_pylist() == detections.to_dicts()
        types = ["string", "int64", *["float"] * 5]  # also of a table without rows
        assert [str(kind) for kind in table.schema.types] == types


def test_geojson_is_in_the_coordinates_of_the_world() -> None:
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    detections = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), ("a",), (10, 20))
    placement = Placement((0.0, 0.0), (4.0, 4.0), transform=(10.0, 0.0, 500.0, 0.0, -10.0, 900.0), crs="WKT")
    collection = detections.to_geojson(placement)
    assert collection["crs"]["properties"]["name"] == "WKT"
    ring = collection["features"][0]["geometry"]["coordinates"][0]
    assert ring == [[540.0, 820.0], [620.0, 820.0], [620.0, 740.0], [540.0, 740.0], [540.0, 820.0]]
    level = detections.to_geojson(Placement((0.0, 0.0), (4.0, 4.0)))
    assert level["features"][0]["geometry"]["coordinates"][0][0] == [4.0, 8.0]


def test_a_drawing_without_boxes_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    nothing = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), ("a",), (30, 40)
    )
    np.testing.assert_array_equal(np.asarray(nothing.draw(image)), image)
