"""Scanning the result of `convolutionalize`: the halo of its geometry is the one that tiles need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from onebyone.dense import scan, scan_windows
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.records import Labels

from .networks import integers

UNSCALED = Labels(std=(1.0,))


class Residual(nn.Module):
    """Padding, strides, a shortcut, a ceil-mode pool and a fully connected head, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 5, stride=2, padding=2)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.one = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.two = nn.Conv2d(3, 3, 3, padding=1)
        self.shortcut = nn.Conv2d(2, 3, 1, stride=2)
        self.head = nn.Linear(3 * 2 * 2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.two(torch.relu(self.one(x))) + self.shortcut(x))
        return self.head(x.flatten(1))


@pytest.mark.parametrize("tile", [1, (2, 5)])
def test_tiles_of_a_padded_branching_network_equal_the_whole(tile: object) -> None:
    """Integers in double precision: every sum is exact, so a halo that is one pixel short gives a difference."""
    dense = convolutionalize(integers(Residual().double()), window=(16, 16), labels=UNSCALED)
    image = np.random.default_rng(0).integers(0, 8, (131, 118), dtype=np.uint8)
    assert not dense.geometry.exact
    whole = scan(dense, image, tile=10**9, compared=0)
    tiled = scan(dense, image, tile=tile, compared=0)
    assert tiled.passes > whole.passes == 1
    np.testing.assert_array_equal(tiled.scores, whole.scores)


def test_scanning_equals_the_classifier_on_every_window() -> None:
    """An unpadded classifier with two fully connected layers, at its stride and finer, bit for bit."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 2 * 2, 8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip
    dense = convolutionalize(integers(model, 5), window=(12, 12), labels=UNSCALED)
    image = np.random.default_rng(1).integers(0, 8, (61, 50), dtype=np.uint8)
    for shifts in (1, 2):
        scores = scan(dense, image, shifts=shifts, tile=4)
        windows = scan_windows(model, image, scores.geometry, labels=UNSCALED)
        np.testing.assert_array_equal(scores.scores, windows.scores)
