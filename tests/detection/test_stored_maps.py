"""Detections of score maps in files: the same as of the map in memory, read part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

import onebyone
from onebyone.dense import ScoreMap
from onebyone.stores.map_reader import StoredMap


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".zarr", ".tif"])
def test_a_stored_map_gives_the_same_boxes(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
