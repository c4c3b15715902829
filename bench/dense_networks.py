"""The networks of `bench.dense`, with random weights."""

from __future__ import annotations

import torch
from torch import nn

#: Positions per axis of the last map of a window of `unpadded`.
LAST_MAP = (11, 11)


class Block(nn.Module):
    """The basic block of ResNet-18 (He et al. 2015, figure 5 left), with a projection where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of two convolutions and the shortcut, rectified."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 with 1000 classes and random weights."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    width = 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        blocks += [Block(width, outputs, 2 if stage else 1), Block(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000),
    ).eval()  # fmt: skip


def unpadded() -> nn.Module:
    """A classifier of windows of 64 pixels, stride 4, without padding."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 11 * 11, 4),
    ).eval()  # fmt: skip


def light() -> nn.Module:
    """A network with two pools, window 14, for maps at stride 1."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
