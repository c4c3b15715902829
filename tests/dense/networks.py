"""Small networks with known geometry and integer weights: every sum is exact, so results are compared bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from onebyone.dense import open_image
from onebyone.dense.checks import check_whole
from onebyone.laws.geometry import Geometry, Sliding, follow
from onebyone.records import Labels
from onebyone.stores.source import whole_region


@dataclass
class Net:
    """A network with what `scan` needs to know about it."""

    model: nn.Module
    geometry: Geometry
    channels: int = 1
    labels: Labels = field(
        default_factory=lambda: Labels(std=(1.0,))
    )  # states that pixel values are not scaled


def integers(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights in {−2 … 2}: on images of small integers every sum stays below 2^24, exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-2, 3, p.shape, generator=generator).to(p.dtype))
    return model.eval()


def geometry_of(steps: list[Sliding], window: int) -> Geometry:
    """The geometry of a chain of operators on both axes, for a window that gives one position."""
    f = follow(steps)
    padded = tuple(f"step {k}: padding" for k, s in enumerate(steps) if s.padded())
    return Geometry.from_fields((window, window), (f, f), padded)


def exact_net(channels: int = 1) -> Net:
    """Unpadded: conv 3, pool 2, conv 3 over dilation 2, pool 2, conv 2: stride 4, window 18."""
    model = nn.Sequential(
        nn.Conv2d(channels, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 3, 3, dilation=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 3, 2),
    )
    steps = [Sliding(3), Sliding(2, 2), Sliding(3, dilation=2), Sliding(2, 2), Sliding(2)]
    return Net(integers(model), geometry_of(steps, follow(steps).size), channels)


class Cropped(nn.Module):
    """Keeps the positions that have a window, floor((size − window) / stride) + 1, as convolutionalize does."""

    def __init__(self, body: nn.Module, geometry: Geometry) -> None:
        super().__init__()
        self.body, self.geometry = body, geometry

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = self.geometry.positions(x.shape[2:])
        return self.body(x)[:, :, :h, :w]


def padded_net() -> Net:
    """Padding in a convolution (asymmetric) and in a max-pool: the receptive field exceeds the window of 16."""
    body = nn.Sequential(
        nn.ZeroPad2d((2, 1, 2, 1)),
        nn.Conv2d(1, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(3, 2, 4),
    )
    steps = [
        Sliding(3, pad_before=2, pad_after=1),
        Sliding(3, 2, pad_before=1, pad_after=1),
        Sliding(3, pad_before=1, pad_after=1),
        Sliding(2, 2),
        Sliding(4),
    ]
    geometry = geometry_of(steps, 16)
    return Net(Cropped(integers(body, 1), geometry), geometry)


def corner_net(window: int, stride: int, offset: int = 0) -> Net:
    """Gives each window's first pixel: on an image of pixel coordinates, the coordinates of the window."""
    conv = nn.Conv2d(2, 2, window, stride, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = conv.weight[1, 1, 0, 0] = 1
    size = (window, window)
    return Net(conv, Geometry(size, (stride, stride), (offset, offset), size, (offset, offset), True), 2)


def coordinate_image(height: int, width: int) -> np.ndarray:
    """An image whose pixel (y, x) has the values (y, x)."""
    return np.stack(np.mgrid[:height, :width], axis=2).astype(np.float32)


def integer_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Small random integers as uint8, one channel."""
    return np.random.default_rng(seed).integers(0, 8, (height, width), dtype=np.uint8)


def pixels_of(image: object, labels: Labels | None = None, **options: Any) -> np.ndarray:
    """All pixels (H, W, C) of an image, opened and checked as a scan does."""
    source = open_image(image, labels=labels, **options)
    check_whole(source, labels or Labels())
    return source.read(whole_region(source))
