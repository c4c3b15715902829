"""A scan of a coarser level of a file is shown over that level, and compared with its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

import onebyone
from onebyone.dense.unfinished import open_scores
from onebyone.errors import BadInput
from onebyone.loading import open_dense
from onebyone.viewing import ScanView

SIZES = ((96, 160), (48, 80), (24, 40))
#: Twice the rounding of sums of 192 and of 36 products. PyTorch's weights are below 1/√192 and 1/√36, and pixels at
#: most 1, so that no sum of absolute products exceeds √192 · √36 < 84.
BOUND = 2 * (192 + 36) * 2.0**-24 * 84


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A folder with a pyramid whose levels have nothing in common, so that a wrong one shows, and a network."""
    folder = tmp_path_factory.mktemp("levels")
    rng = np.random.default_rng(0)
    levels = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    with tifffile.TiffWriter(folder / "slide.tif") as file:
        for k, level in enumerate(levels):
            file.write(level, photometric="rgb", tile=(16, 16), subifds=0 if k else 2, subfiletype=int(k > 0))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 8, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2)).eval()
    labels = onebyone.Labels(scale=1 / 255)
    onebyone.convolutionalize(net, window=16, labels=labels).save(folder / "net.pt2")
    return folder, levels


@pytest.mark.parametrize("level", [0, 1])
def test_the_level_that_was_scanned_is_shown(slide: tuple[Path, list[np.ndarray]], level: int) -> None:
    folder, levels = slide
    path = folder / f"scores-{level}.npz"
    onebyone.scan(folder / "net.pt2", folder / "slide.tif", level=level, out=path)
    view = ScanView(*open_scores(path), folder / "slide.tif", open_dense(folder / "net.pt2")[0])
    assert view.image is not None
    finest = view.grid.max_level
    np.testing.assert_array_equal(view.image.tile(finest, 0, 0), levels[level])
    np.testing.assert_array_equal(view.image.tile(finest - 1, 0, 0), levels[level + 1])
    height, width = SIZES[level]
    for y, x in ((8, 8), (height / 2, width / 2), (height - 8, width - 8)):
        seen = view.window(x, y, True)
        left, top, right, bottom = seen["box"]
        pixels = torch.from_numpy(levels[level][top:bottom, left:right]).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = open_dense(folder / "net.pt2")[0].model(pixels).flatten()
        np.testing.assert_allclose(seen["crop"]["scores"], expected, rtol=0, atol=BOUND)
        assert seen["crop"]["max_difference"] <= BOUND


def test_a_scan_of_no_level_is_refused_with_their_sizes(
    slide: tuple[Path, list[np.ndarray]], tmp_path: Path
) -> None:
    folder, levels = slide
    onebyone.scan(folder / "net.pt2", levels[1][:40], out=tmp_path / "part.npz")
    with pytest.raises(BadInput, match="the image has 96×160 or 48×80 or 24×40 pixels; the scan is of 40×80"):
        ScanView(*open_scores(tmp_path / "part.npz"), folder / "slide.tif")
