"""A scan of a resized image is shown over the image as the file has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import onebyone
from onebyone.dense.images import open_image
from onebyone.dense.unfinished import open_scores
from onebyone.stores.regions import Span
from onebyone.viewing import ScanView

SIZE = (90, 150)
BOUND = (
    2**-14
)  # twice the rounding of two sums of at most 192 products of pixels below 1 and weights below 1/8


@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_map_windows_and_detections_are_placed_over_the_original(tmp_path: Path, factor: float) -> None:
    pixels = np.zeros(SIZE, np.uint8)
    pixels[20:50, 100:140] = 255  # one bright rectangle, which the network looks for
    Image.fromarray(pixels).save(tmp_path / "image.png")
    network = nn.Sequential(nn.Conv2d(1, 2, 8, stride=4), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight[:] = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1) / 8
        network[0].bias[:] = torch.tensor([-4.0, 4.0])
    labels = onebyone.Labels(("bright", "dark"), scale=1 / 255, background=("dark",))
    dense = onebyone.convolutionalize(network, 8, labels=labels, score_kind="logits")
    onebyone.scan(dense, tmp_path / "image.png", out=tmp_path / "s.npz", resize=factor)
    scores, path = open_scores(tmp_path / "s.npz")
    view = ScanView(scores, path, tmp_path / "image.png", dense)
    assert view.image is not None

    assert view.facts()["size"] == list(SIZE)  # the image, not its resized form
    np.testing.assert_array_equal(view.image.tile(view.grid.max_level, 0, 0)[..., 0], pixels)
    ratio = np.array(SIZE) / np.array(scores.image_size)
    reach = 8 * ratio.max()  # a window reaches at most this far beyond the rectangle
    seen = view.map_tile(0, view.grid.max_level, 0, 0, "viridis")[..., 3] > 127
    rows, columns = np.nonzero(seen)
    assert len(rows)
    assert (20 - reach, 100 - reach) <= (rows.min(), columns.min())
    assert rows.max() <= 50 + reach
    assert columns.max() <= 140 + reach
    assert seen[35, 120]
    for x1, y1, x2, *_ in view.boxes(0.5, 0.3)["boxes"]:
        assert x2 - x1 == pytest.approx(8 * ratio[1], abs=0.02)
        assert (100 - reach, 20 - reach) <= (x1, y1)

    resized = open_image(tmp_path / "image.png", channels=1, resize=factor)
    for x, y in ((120, 35), (60, 40), (30, 70)):
        window = view.window(x, y, True)
        left, top, right, bottom = np.array(window["box"]) / [*ratio[::-1], *ratio[::-1]]
        assert (right - left, bottom - top) == pytest.approx((8, 8), abs=0.02)
        assert abs((window["box"][0] + window["box"][2]) / 2 - x) <= 2 * ratio[1] + 0.01  # half a stride
        crop = resized.read((Span(round(top), round(bottom)), Span(round(left), round(right))))
        with torch.inference_mode():
            expected = network(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255).flatten()
        np.testing.assert_allclose(window["crop"]["scores"], expected, rtol=0, atol=BOUND)
        assert window["crop"]["max_difference"] <= BOUND
