"""Small networks to draw, with the shapes of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.demo.network import build, folded
from onebyone.drawing import Drawing, describe


class Residual(nn.Module):
    """Two identical residual blocks, grouped and strided 1×1 convolutions, and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(2)
        )
        self.narrow = nn.Conv2d(16, 8, 1, stride=2)
        self.groups = nn.Conv2d(8, 32, 1, groups=4, bias=False)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        out: Tensor = self.fc(torch.flatten(self.pool(self.groups(self.narrow(x))), 1))
        return out


class Tokens(nn.Module):
    """A patch embedding, a class token, three identical MLP blocks and a head; it accepts one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, 1, 24))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24)) for _ in range(3)
        )
        self.head = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.first.expand(len(t), -1, -1), t], 1)
        for block in self.blocks:
            t = t + block(t)
        out: Tensor = self.head(t[:, 0])
        return out


def deep() -> nn.Module:
    """More successive fully connected layers, all different, than F3 draws with their values."""
    sizes = range(20, 42)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


MADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "demo": (lambda: folded(build(0)), (1, 1, 40, 40)),
    "one layer": (lambda: nn.Sequential(nn.Linear(10, 4)), (1, 10)),
    "signal": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 5),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(8 * 14, 6),
            nn.Linear(6, 3),
        ),
        (1, 2, 32),
    ),
    "residual": (Residual, (1, 3, 32, 32)),
    "tokens": (Tokens, (1, 3, 16, 16)),
    "pointwise": (lambda: nn.Sequential(nn.Conv2d(4, 24, 1), nn.ReLU(), nn.Conv2d(24, 6, 1)), (1, 4, 9, 7)),
    "neither": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (1, 3, 8, 8)),
    "deep": (deep, (1, 20)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (1, 6, 16)),
    "volume": (lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 8, 3)), (1, 1, 4, 4, 4)),
}
ZOO = ("torchvision:vgg11", "timm:vit_small_patch16_224", "torchvision:resnet18", "timm:convnext_tiny")


def zoo(*names: str) -> list[Any]:
    """Networks of the zoo as parameters of a test; large ones only with the marker for the zoo."""
    extra = {name: [pytest.mark.slow] if name in ZOO[2:] else [] for name in names or ZOO}
    return [pytest.param(name, marks=[pytest.mark.zoo, *more]) for name, more in extra.items()]


@cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network by name, with the same weights in every run, and an example."""
    torch.manual_seed(0)
    if ":" in name:
        from onebyone.pytorch.files.sources import load_source

        made = load_source(name)
        assert isinstance(made, nn.Module)
        return made.eval(), torch.zeros(1, 3, 224, 224)
    make, shape = MADE[name]
    return make().eval(), torch.zeros(shape)


@cache
def drawing(name: str) -> Drawing:
    """The data of the figures of a network, by name."""
    return describe(*network(name))
