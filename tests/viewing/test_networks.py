"""Crops in the viewer are computed as the scan computed the map: from the same output, in the engine of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.dense.unfinished import open_scores
from onebyone.loading import open_dense
from onebyone.viewing import ScanView
from tests.onnx.models import graph, model

PIXELS = np.random.default_rng(0).random((40, 50, 1), np.float32)
BOUND = 2 * 65 * 8 * 2**-24  # the rounding of two sums of 64 products of pixels below 1 and weights below 1/8


class TwoHeads(nn.Module):
    """Two outputs of the same number of classes, so that nothing but the numbers tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.quality = nn.Conv2d(1, 3, 8, stride=4), nn.Conv2d(1, 3, 8, stride=4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, 1, H, W) to two outputs (N, 3)."""
        return {"scores": self.scores(x).flatten(1), "quality": self.quality(x).flatten(1)}


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
@pytest.mark.parametrize("output", ["quality", 0])
def test_a_crop_is_taken_from_the_output_that_was_scanned(
    tmp_path: Path, output: str | int, suffix: str
) -> None:
    torch.manual_seed(0)
    dense = onebyone.convolutionalize(TwoHeads().eval(), 8)
    np.save(tmp_path / "image.npy", PIXELS)
    out = tmp_path / f"scores{suffix}"
    onebyone.scan(dense, tmp_path / "image.npy", out=out, output=output, score_kind="logits")
    assert _largest_difference(out, dense) <= BOUND


def test_a_crop_of_a_network_in_double_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 8, stride=4), nn.Flatten()).eval().double()
    dense = onebyone.convolutionalize(network, 8)
    np.save(tmp_path / "image.npy", PIXELS)
    onebyone.scan(dense, tmp_path / "image.npy", out=tmp_path / "scores.npz", score_kind="logits")
    assert _largest_difference(tmp_path / "scores.npz", dense) <= BOUND


def test_a_crop_of_an_onnx_file(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).uniform(-1 / 8, 1 / 8, (3, 1, 8, 8)).astype(np.float32)
    nodes = "c = Conv <strides=[4, 4]> (x, w) y = Flatten (c)"
    dense = onebyone.convolutionalize(model(graph("1, 1, 8, 8", "1, 3", nodes), {"w": weight}), 8)
    dense.save(tmp_path / "dense.onnx")
    np.save(tmp_path / "image.npy", PIXELS)
    loaded = open_dense(tmp_path / "dense.onnx")[0]
    onebyone.scan(loaded, tmp_path / "image.npy", out=tmp_path / "scores.npz", score_kind="logits")
    assert _largest_difference(tmp_path / "scores.npz", loaded) <= BOUND


def _largest_difference(out: Path, dense: Any) -> float:
    """Between the map and the crop at a position."""
    scores, path = open_scores(out)
    window = ScanView(scores, path, out.parent / "image.npy", dense).window(20, 20, True)
    crop = window["crop"]
    np.testing.assert_allclose(crop["scores"], window["scores"], rtol=0, atol=BOUND)
    return float(crop["max_difference"])
