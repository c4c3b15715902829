"""Factories for the command line to open by name: `tests.cli.networks:…`."""

from __future__ import annotations

import torch
from torch import nn


def plain() -> nn.Module:
    """Unpadded, window 16, stride 2: dense equals crops."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 7 * 7, 6), nn.Linear(6, 5)
    )


def padded() -> nn.Module:
    """A padded convolution and a pooled head: dense does not equal crops."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def not_finite() -> nn.Module:
    """A NaN among the weights."""
    network = plain()
    with torch.no_grad():
        network[4].bias[0] = float("nan")  # type: ignore[index, operator]
    return network


class Magnitude(nn.Linear):
    """A linear layer with a forward of its own, which no form is known of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The magnitude of what the layer gives."""
        return super().forward(x).abs()


def refused() -> nn.Module:
    """Its only layer cannot be converted."""
    return nn.Sequential(nn.Flatten(), Magnitude(3 * 16 * 16, 4))


class Attention(nn.Module):
    """Every token sees every other: no window can be answered for by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.query, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        weights = torch.softmax(self.query(tokens) @ tokens.transpose(1, 2), dim=-1)
        out: torch.Tensor = self.head((weights @ tokens).mean(1))
        return out


def attention() -> nn.Module:
    return Attention()


def chatty() -> nn.Module:
    """Prints while it is built, which must not end up in the JSON."""
    print("hello from the factory")
    return plain()


def crashes() -> nn.Module:
    raise RuntimeError("no luck")


def no_network() -> list[int]:
    return [1, 2, 3]


def sigmoid() -> nn.Module:
    """One class, and the probability is in the network: 0.001 everywhere."""
    network = nn.Sequential(nn.Conv2d(3, 1, 8, bias=True), nn.Flatten(), nn.Sigmoid())
    with torch.no_grad():
        network[0].weight.zero_()  # type: ignore[operator, union-attr]
        network[0].bias.fill_(-6.906755)  # type: ignore[operator, union-attr, arg-type]
    return network


class Named(nn.Module):
    """Scores and boxes in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Conv2d(3, 2, 8), nn.Conv2d(3, 4, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.scores(x).flatten(1).softmax(1), "boxes": self.boxes(x).flatten(1)}


def named() -> nn.Module:
    return Named()


def far_sighted() -> nn.Module:
    """Windows of 8 pixels whose receptive field is 38: few dense answers agree with crops."""
    from tests.pytorch.anysize import randomise

    convolutions = [m for _ in range(3) for m in (nn.Conv2d(3, 3, 11, padding=5), nn.ReLU())]
    return randomise(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(192, 12)), seed=6)


def partial() -> nn.Module:
    """Exact at a window of 25, not at 24, where ceil_mode pools have partial places."""
    from tests.pytorch.inexact_networks import Refine

    return Refine()
