"""Scanning the result of `convolutionalize`: the halo of its geometry is the one that tiles need."""

from __future__ import annotations

from dataclasses import replace

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


class Gated(nn.Module):
    """A squeeze-and-excitation gate: the sum over the window acts on every position of it."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, stride)
        self.gate = nn.Conv2d(2, 2, 1)
        self.head = nn.Conv2d(2, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        gate = torch.relu(self.gate(x.mean((2, 3), keepdim=True) * (x.shape[2] * x.shape[3])))
        return self.head(x * gate).mean((2, 3))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [4, 5, 6, 8])
def test_tiles_with_a_context_window_equal_the_whole(size: int, stride: int) -> None:
    """The context window of even sizes is asymmetric: its halo differs before and after.

    The sums stay below 2^40 and the divisors below 2^6, so differences are below 2^-7 · 2^-52 · 2^40 unless a tile read
    other pixels, which changes an integer sum by 1 or more.
    """
    window = (size - 1) * stride + 3
    network = integers(Gated(stride).double(), 4)
    dense = convolutionalize(network, window=window, context="window", labels=UNSCALED)
    image = np.random.default_rng(size).integers(
        0, 8, (window + 13 * stride, window + 9 * stride), dtype=np.uint8
    )
    whole = scan(dense, image, tile=10**9, compared=0)
    tiled = scan(dense, image, tile=(3, 2), compared=0)
    assert tiled.passes > whole.passes == 1
    assert np.abs(whole.scores).max() > 100
    np.testing.assert_allclose(tiled.scores, whole.scores, rtol=2**-20, atol=2**-10)


@pytest.mark.parametrize("size", [4, 5])
def test_a_context_window_shifted_by_one_pixel_gives_a_difference(size: int) -> None:
    """An injected fault of the test above: the receptive field declared one stride short on either side."""
    dense = convolutionalize(
        integers(Gated(1).double(), 4), window=size + 2, context="window", labels=UNSCALED
    )
    image = np.random.default_rng(size).integers(0, 8, (size + 15, size + 15), dtype=np.uint8)
    whole = scan(dense, image, tile=10**9, compared=0).scores
    g = dense.geometry
    for before, after in ((1, 0), (0, 1)):
        short = replace(
            g,
            receptive_field=tuple(n - before - after for n in g.receptive_field),
            receptive_field_offset=tuple(n - before for n in g.receptive_field_offset),
        )
        tiled = scan(replace(dense, geometry=short), image, tile=2, compared=0).scores
        assert np.abs(tiled - whole).max() > 1
