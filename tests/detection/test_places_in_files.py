"""Objects planted at known places are where they are in every file of detections, at every level and scale.

Each file is read by a reader of its own: pycocotools, csv, pyarrow and json. The classifier has stride 1, so the best
window is the nearest one, and a corner is off by at most half a pixel of the level that was scanned.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from pycocotools.coco import COCO
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.detection import coco_ground_truth
from tests.detection.test_stored_maps import bright_windows
from tests.stores.image_formats import CASES, Case, geotiff, identifier, pyramid

SIZE = (240, 328)  # a multiple of every level's step, as `means` writes them
ORIGIN, METRES = np.array([5e5, 5e6]), np.array([10.0, -10.0])  # as `geotiff` writes them
NAMES = ("p.tif", "aperio.tif", "geo.tif", "o4.zarr", "o5.zarr")
LEVELS = [c for c in CASES if c.name in NAMES and "mpp" not in c.options]


def coco(path: Path, truth: dict[str, Any]) -> np.ndarray:
    data = COCO()
    data.dataset = truth
    data.createIndex()
    found = data.loadRes(str(path))
    boxes = np.array([a["bbox"] for a in found.loadAnns(found.getAnnIds())]).reshape(-1, 4)
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def table(path: Path, _: dict[str, Any]) -> np.ndarray:
    with path.open(newline="") as file:
        return np.array([[float(row[k]) for k in ("x1", "y1", "x2", "y2")] for row in csv.DictReader(file)])


def columns(path: Path, _: dict[str, Any]) -> np.ndarray:
    data = parquet.read_table(path)
    return np.stack([data[k].to_numpy() for k in ("x1", "y1", "x2", "y2")], axis=1)


def polygons(path: Path, _: dict[str, Any]) -> np.ndarray:
    """The boxes of polygons, whose ring is closed and has the four corners."""
    boxes = []
    for feature in json.loads(path.read_text())["features"]:
        (ring,) = feature["geometry"]["coordinates"]
        points = np.array(ring)
        assert ring[0] == ring[-1]
        assert len(np.unique(points, axis=0)) == 4
        boxes.append([*points.min(axis=0), *points.max(axis=0)])
    return np.array(boxes)


READERS: dict[str, Callable[[Path, dict[str, Any]], np.ndarray]] = {
    ".json": coco,
    ".csv": table,
    ".parquet": columns,
    ".geojson": polygons,
}


def planted(side: int, corners: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """A picture with brighter squares at (x, y), and their boxes; four fifths of a window reach the threshold."""
    image = np.full((*SIZE, 3), 180, np.uint8)
    for x, y in corners:
        image[y : y + side, x : x + side] = 218
    return image, np.array([[x, y, x + side, y + side] for x, y in corners], float)


def detections(folder: Path, image: Path, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """The boxes in each format, left to right, after `scan` and `detect` on the command line."""
    labels = onebyone.Labels(classes=("bright",), std=(1.0,))
    dense = onebyone.convolutionalize(bright_windows(), 8, labels=labels)
    assert dense.geometry.stride == (1, 1)
    scores = onebyone.scan(dense, image, out=folder / "scores.zarr", **options)
    truth = coco_ground_truth(np.empty((0, 4)), [], ("bright",), scores.full_size)
    found = {}
    for suffix, read in READERS.items():
        out = folder / f"boxes{suffix}"
        done = CliRunner().invoke(app, ["detect", str(folder / "scores.zarr"), "--iou", "0", "-o", str(out)])
        assert done.exit_code == 0, done.stderr
        boxes = read(out, truth)
        found[suffix] = boxes[np.argsort(boxes[:, 0])]
    return found


@pytest.mark.parametrize("case", LEVELS, ids=identifier)
def test_places_are_right_to_half_a_pixel_of_every_level(tmp_path: Path, case: Case) -> None:
    """COCO, CSV and Parquet have pixels of the level; GeoJSON those of the full resolution, or of the world."""
    step = case.step
    # at multiples of the level's pixels, and off them by one pixel of the full resolution
    image, boxes = planted(8 * step, [(40, 32), (41 + 16 * step, 97), (200 + 3, 32 + 1)])
    case.write(tmp_path / case.name, image)
    boxes = boxes[np.argsort(boxes[:, 0])]
    world = boxes
    if case.name == "geo.tif":
        ends = ORIGIN + boxes.reshape(-1, 2, 2) * METRES
        world = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    for suffix, found in detections(tmp_path, tmp_path / case.name, case.options).items():
        unit = (10.0 if case.name == "geo.tif" else 1.0) if suffix == ".geojson" else 1 / step
        expected = world if suffix == ".geojson" else boxes / step
        assert found.shape == expected.shape, suffix
        assert np.abs(found - expected).max() <= 0.5 * step * unit, suffix


@pytest.mark.parametrize("factor", [0.5, 0.3, 0.25])
def test_places_are_right_in_resized_images(tmp_path: Path, factor: float) -> None:
    """Boxes are in pixels of the image before it was resized, by the actual ratio of the sizes."""
    side = round(8 / factor)
    image, boxes = planted(side, [(40, 32), (120, 97), (327 - side, 239 - side)])
    pyramid(tmp_path / "p.tif", image)
    for suffix, found in detections(tmp_path, tmp_path / "p.tif", {"resize": factor}).items():
        assert found.shape == boxes.shape, suffix
        # half a pixel of the resized image, and what the side differs from eight of its pixels
        ratios = [n / round(n * factor) for n in SIZE]
        assert np.abs(found - boxes).max() <= 0.5 * max(ratios) + max(abs(8 * r - side) for r in ratios), (
            suffix
        )


def test_a_shift_by_one_pixel_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An injected fault: windows one pixel to the right."""
    from onebyone.detection import extraction

    boxes_at = extraction._boxes_at

    def shifted(*arguments: Any) -> Any:
        corners, complete = boxes_at(*arguments)
        return corners + np.array([1.0, 0, 1, 0]), complete

    monkeypatch.setattr(extraction, "_boxes_at", shifted)
    image, boxes = planted(8, [(40, 32)])
    geotiff(tmp_path / "geo.tif", image)
    found = detections(tmp_path, tmp_path / "geo.tif", {})
    for suffix in (".json", ".csv", ".parquet"):
        assert np.abs(found[suffix] - boxes).max() == 1
    assert found[".geojson"][0, 0] == 5e5 + 410
