"""Stand-ins, small and with random weights, for trained networks whose dense results are far from their crops."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tests.pytorch.anysize import randomise


class Pitch(nn.Module):
    """As CREPE is built: windows of 64 samples, long kernels that pad, a pool after each, then one linear layer.

    The receptive field of 962 samples is 15 times the window: most of what a place sees in a long recording is
    zeros in a crop.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 8, 8, 8, 8)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(a, b, 32, 2 if i == 0 else 1, 15),
                    nn.ReLU(),
                    nn.BatchNorm1d(b),
                    nn.ConstantPad1d((0, 1), 0),
                    nn.MaxPool1d(2),
                )
                for i, (a, b) in enumerate(itertools.pairwise(channels))
            )
        )
        self.head = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.blocks(x).permute(0, 2, 1).flatten(1)))


def pitch() -> nn.Module:
    """The pitch network with distinct random weights, in eval mode."""
    return randomise(Pitch(), seed=1).eval()


class Refine(nn.Module):
    """As R-Net of MTCNN: windows of 24, ceil_mode pools, a flatten in another order, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(4, 5, 3), nn.PReLU(5), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(5, 6, 2), nn.PReLU(6),
        )  # fmt: skip
        self.dense, self.act = nn.Linear(54, 8), nn.PReLU(8)
        self.face, self.box = nn.Linear(8, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.maps(x).permute(0, 3, 2, 1).flatten(1)
        y = self.act(self.dense(y))
        return self.box(y), self.face(y).softmax(1)


class Output(nn.Module):
    """As O-Net of MTCNN: windows of 48, three ceil_mode pools."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(4, 5, 3), nn.PReLU(5), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(5, 6, 3), nn.PReLU(6), nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.Conv2d(6, 7, 2), nn.PReLU(7),
        )  # fmt: skip
        self.dense, self.face = nn.Linear(63, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.face(self.dense(self.maps(x).permute(0, 3, 2, 1).flatten(1)))
