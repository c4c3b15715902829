"""Detections of score maps in files: the same as of the map in memory, read part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import onebyone
from onebyone.dense import ScoreMap, WindowClassifier
from onebyone.errors import BadInput
from onebyone.stores.map_reader import StoredMap
from onebyone.stores.placement import Placement
from tests.stores.image_formats import CASES, Case, identifier

CORNER, SIDE = (64, 160), 32  # of the planted object, in pixels of the full resolution
LEVELS = [c for c in CASES if c.step == 4 and c.name in ("p.tif", "aperio.tif", "geo.tif", "o4.zarr")]


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".zarr", ".tif"])
def test_a_stored_map_gives_the_same_boxes(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 2, 8, stride=2), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Sigmoid()
    )
    dense = onebyone.convolutionalize(network.eval(), 10, labels=onebyone.Labels(std=(64.0,)))
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3)).astype(np.uint8)
    expected = onebyone.detect(onebyone.scan(dense, image), threshold=0.55)
    assert len(expected) > 5
    path = tmp_path / f"scores{suffix}"
    onebyone.scan(dense, image, out=path)
    whole: list[bool] = []
    if suffix != ".npz":
        monkeypatch.setattr(StoredMap, "__array__", lambda *_, **__: whole.append(True))
    detections = onebyone.detect(ScoreMap.load(path), threshold=0.55)
    assert np.array_equal(detections.boxes, expected.boxes)
    assert np.array_equal(detections.labels, expected.labels)
    assert np.allclose(
        detections.scores, expected.scores, rtol=1e-6
    )  # tiles of other sizes round differently
    assert not whole


def bright_windows() -> nn.Module:
    """A classifier of windows of 8 pixels: the probability that their mean is above 210."""
    convolution = nn.Conv2d(3, 1, 8, stride=8)
    with torch.no_grad():
        convolution.weight.fill_(1 / (3 * 64))
        convolution.bias.fill_(-210)  # type: ignore[union-attr]
    return nn.Sequential(convolution, nn.Flatten(), nn.Sigmoid()).eval()


@pytest.mark.parametrize("case", LEVELS, ids=identifier)
def test_boxes_of_a_level_are_where_the_object_was_planted(tmp_path: Path, case: Case) -> None:
    """The GeoJSON of a scan of a level has pixels of the full resolution, or world coordinates with their system."""
    image = np.full((240, 328, 3), 20, np.uint8)
    (top, left), name = CORNER, tmp_path / case.name
    image[top : top + SIDE, left : left + SIDE] = 220
    case.write(name, image)
    corners = np.array([[left, top], [left + SIDE, top + SIDE]], float)
    if case.name == "geo.tif":  # as `geotiff` writes it: 10 m per pixel, rows to the south
        corners = np.array([5e5, 5e6]) + corners * [10, -10]
    labels = onebyone.Labels(std=(1.0,))
    dense = onebyone.convolutionalize(bright_windows(), 8, labels=labels)
    maps = [onebyone.scan(dense, name, **case.options)]
    windows = WindowClassifier(bright_windows(), dense.geometry, 3, labels)
    maps.append(onebyone.scan(windows, name, mode="windows", score_kind="probabilities", **case.options))
    for suffix in (".npz", ".npy", ".zarr", ".tif"):
        out = tmp_path / f"scores{suffix}"
        onebyone.scan(dense, name, out=out, **case.options)
        maps.append(ScoreMap.load(out))
    for scores in maps:
        detections = onebyone.detect(scores)
        assert detections.boxes.tolist() == [[v / 4 for v in (left, top, left + SIDE, top + SIDE)]]
        document = detections.to_geojson()
        ring = np.array(document["features"][0]["geometry"]["coordinates"][0])
        expected = np.stack([corners.min(axis=0), corners.max(axis=0)])
        np.testing.assert_allclose([ring.min(axis=0), ring.max(axis=0)], expected, rtol=1e-12)
        if case.name == "geo.tif":
            system = rasterio.crs.CRS.from_wkt(document["crs"]["properties"]["name"])
            assert system == rasterio.crs.CRS.from_epsg(32632)
        else:
            assert "crs" not in document


def test_a_placement_of_other_axes_is_refused() -> None:
    dense = onebyone.convolutionalize(bright_windows(), 8, labels=onebyone.Labels(std=(1.0,)))
    scores = onebyone.scan(dense, np.zeros((16, 16, 3), np.uint8))
    for bad in (Placement((0.0,), (1.0,)), Placement((0.0,), (1.0, 1.0))):
        with pytest.raises(BadInput, match="expected 2 axes"):
            ScoreMap(scores.scores, scores.geometry, scores.labels, scores.image_size, placement=bad)
