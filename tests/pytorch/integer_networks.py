"""What the tests of `convert` share: networks of small integers, on which both forms give the very same numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def exact(*shape: int) -> Tensor:
    """Small integers as floats: sums of a few of their products are exact."""
    return torch.randint(-2, 3, shape).float()


def integer(layer: nn.Module) -> nn.Module:
    """The layer with small integers for weights."""
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(exact(*p.shape))
    return layer


class Net(nn.Module):
    """Two linear layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = integer(nn.Linear(3, 3)), integer(nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def network() -> nn.Module:
    """A 3×3 convolution, a strided and a grouped 1×1 one, and two linear layers; takes `X`."""
    return integer(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1, stride=2),
            nn.Conv2d(6, 4, 1, groups=2),
            nn.Flatten(2),
            nn.Linear(16, 5),
            nn.ReLU(),
            nn.Linear(5, 4, bias=False),
        )
    )


X = exact(2, 3, 8, 8)
