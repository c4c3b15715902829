"""Files of detections, key by key: COCO, GeoJSON, CSV and the printed table."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from onebyone import detection
from onebyone.detection import Detections, coco_ground_truth, coco_results
from onebyone.errors import BadInput
from onebyone.stores.placement import Placement

FOUND = Detections(
    np.array([[1.5, 2, 4, 8], [0, 0, 10, 20]], np.float32),
    np.array([0.75, 0.5], np.float32),
    np.array([1, 0]),
    ("cat", "dog"),
    (30, 40),
)


def test_coco_results_have_the_keys_of_the_format() -> None:
    """https://cocodataset.org/#format-results: the box is its first corner, width and height."""
    expected = [
        {"image_id": 1, "category_id": 1, "bbox": [1.5, 2.0, 2.5, 6.0], "score": 0.75},
        {"image_id": 1, "category_id": 0, "bbox": [0.0, 0.0, 10.0, 20.0], "score": 0.5},
    ]
    assert FOUND.to_coco() == expected
    assert [row["image_id"] for row in FOUND.to_coco(7)] == [7, 7]


def test_coco_ground_truth_has_the_keys_of_the_format() -> None:
    """https://cocodataset.org/#format-data, object detection."""
    truth = coco_ground_truth(FOUND.boxes, FOUND.labels, FOUND.classes, FOUND.image_size, image_id=3)
    assert truth["images"] == [{"id": 3, "height": 30, "width": 40}]
    assert truth["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    assert truth["info"] == {"description": "made by onebyone"}
    assert truth.keys() == {"info", "images", "categories", "annotations"}
    assert truth["annotations"] == [
        {"id": 11, "image_id": 3, "category_id": 1, "bbox": [1.5, 2.0, 2.5, 6.0], "area": 15.0, "iscrowd": 0},
        {"id": 17, "image_id": 3, "category_id": 0, "bbox": [0.0, 0.0, 10.0, 20.0], "area": 200.0, "iscrowd": 0},
    ]  # fmt: skip
    json.dumps(truth)
    default = coco_ground_truth(FOUND.boxes, FOUND.labels, FOUND.classes, FOUND.image_size)
    assert default["images"][0]["id"] == default["annotations"][0]["image_id"] == 1
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        coco_ground_truth(FOUND.boxes, [0], FOUND.classes, FOUND.image_size)


def test_annotations_of_all_images_have_different_positive_ids() -> None:
    ids = [
        a["id"]
        for image in range(40)
        for a in coco_ground_truth([[0, 0, 1, 1]] * 30, [0] * 30, ["a"], (2, 2), image_id=image)[
            "annotations"
        ]
    ]
    assert min(ids) > 0
    assert len(set(ids)) == len(ids) == 1200


def test_results_without_detections_keep_the_images_and_categories() -> None:
    from pycocotools.coco import COCO

    truth = COCO()
    truth.dataset = coco_ground_truth(FOUND.boxes, FOUND.labels, FOUND.classes, FOUND.image_size)
    truth.createIndex()
    empty = coco_results(truth, [])
    assert (empty.getImgIds(), empty.getCatIds(), empty.getAnnIds()) == ([1], [0, 1], [])
    assert len(truth.getAnnIds()) == 2
    rows = FOUND.to_coco()
    assert len(coco_results(truth, rows).getAnnIds()) == 2
    assert rows == FOUND.to_coco()  # pycocotools adds keys to what it reads


def test_a_feature_has_what_qupath_and_other_readers_look_for() -> None:
    collection = FOUND.to_geojson()
    assert collection.keys() == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    assert collection["features"][0] == {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[1.5, 2.0], [4.0, 2.0], [4.0, 8.0], [1.5, 8.0], [1.5, 2.0]]],
        },
        "properties": {
            "objectType": "detection",
            "classification": {"name": "dog"},
            "class": "dog",
            "label": 1,
            "score": 0.75,
            "measurements": {"score": 0.75},
        },
    }
    placed = FOUND.to_geojson(Placement((0.0, 0.0), (2.0, 2.0), crs="WKT"))
    assert placed["crs"] == {"type": "name", "properties": {"name": "WKT"}}


def test_the_table_is_text_without_quotes() -> None:
    assert FOUND.to_csv() == (
        "class,label,score,x1,y1,x2,y2\ndog,1,0.75,1.5,2.0,4.0,8.0\ncat,0,0.5,0.0,0.0,10.0,20.0\n"
    )


def test_the_printed_table() -> None:
    lines = str(FOUND).splitlines()
    assert lines[0] == "2 detections in an image of 30×40 pixels"
    assert lines[1].split() == ["class", "score", "x1", "y1", "x2", "y2"]
    assert ["dog", "0.750", "1.5", "2.0", "4.0", "8.0"] in [line.split() for line in lines]
    assert "…" not in str(FOUND)


@pytest.mark.parametrize("suffix", [".JSON", ".GeoJson", ".CSV"])
def test_suffixes_are_read_in_any_case(tmp_path: Path, suffix: str) -> None:
    FOUND.save(tmp_path / f"a{suffix}", image_id=5, placement=Placement((0.0, 0.0), (2.0, 2.0), crs="WKT"))
    text = (tmp_path / f"a{suffix}").read_text()
    assert text.endswith("\n")
    if suffix == ".JSON":
        assert text == json.dumps(FOUND.to_coco(5), indent=1) + "\n"  # one key a line
    elif suffix == ".GeoJson":
        expected = FOUND.to_geojson(Placement((0.0, 0.0), (2.0, 2.0), crs="WKT"))
        assert text == json.dumps(expected, indent=1) + "\n"
    else:
        assert text == FOUND.to_csv()
    FOUND.save(tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())[0]["image_id"] == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf"])
def test_every_format_of_pictures_can_be_written(tmp_path: Path, suffix: str) -> None:
    FOUND.save(tmp_path / f"a{suffix}", image=np.zeros((30, 40), np.uint8))
    head = (tmp_path / f"a{suffix}").read_bytes()[:12]
    signatures = (b"\x89PNG", b"\xff\xd8", b"II*\0", b"MM\0*", b"RIFF", b"%PDF")
    assert head.startswith(signatures)


def test_resized_detections_are_at_the_same_place_of_the_world() -> None:
    placed = Detections(
        FOUND.boxes, FOUND.scores, FOUND.labels, FOUND.classes, (30, 40), Placement((5.0, 7.0), (2.0, 3.0))
    )
    half = placed.resized((15, 80))
    np.testing.assert_allclose(half.boxes[0], [3, 1, 8, 4])
    assert half.image_size == (15, 80)
    assert half.boxes.dtype == np.float32
    for a, b in zip(placed.to_geojson()["features"], half.to_geojson()["features"], strict=True):
        np.testing.assert_allclose(a["geometry"]["coordinates"], b["geometry"]["coordinates"], rtol=1e-6)
    assert FOUND.resized((15, 20)).placement is None


def test_the_package_exports_what_it_imports() -> None:
    public = {
        name
        for name, value in vars(detection).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(detection.__all__) == public


def test_the_formats_are_listed_where_none_fits(tmp_path: Path) -> None:
    known = ".json, .geojson, .csv, .parquet, .png, .jpg, .jpeg, .tif, .tiff, .webp, .pdf"
    with pytest.raises(BadInput) as error:
        FOUND.save(tmp_path / "a.txt")
    assert str(error.value).endswith(f"a.txt: expected a file name that ends in one of {known}")
