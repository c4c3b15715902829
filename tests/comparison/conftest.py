"""Layers for the experiments: correct ones, and ones for which a claim is false."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.comparison.operation import (
    Operation,
    connected_form,
    convolution_form,
    pointwise_form,
    pooled_form,
)

SHAPE = (3, 5, 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pointwise(**changes: object) -> Operation:
    parts = {"weight": random(6, 3, 1, 1), "bias": random(6, seed=1), "form": pointwise_form} | changes
    return Operation(name="pointwise", map_shape=SHAPE, **parts)  # type: ignore[arg-type]


def connected(**changes: object) -> Operation:
    parts = {"weight": random(7, 60), "bias": random(7, seed=1), "form": connected_form} | changes
    return Operation(name="fully connected", map_shape=SHAPE, **parts)  # type: ignore[arg-type]


def kernel() -> Operation:
    """A 3×3 convolution that keeps the map's size."""
    return Operation(
        "3×3 convolution", convolution_form(padding=(1, 1)), random(6, 3, 3, 3), random(6, seed=1), SHAPE
    )


def pooled() -> Operation:
    """Global mean and a fully connected layer: it accepts any size and does not depend on where a pattern is."""
    return Operation("global pool + FC", pooled_form, random(7, 3), random(7, seed=1), SHAPE)


def max_pool(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


@pytest.fixture
def roles() -> dict[str, Operation]:
    return {"pointwise": pointwise(), "connected": connected(), "kernel": kernel()}


def network(activation: nn.Module | None = None) -> nn.Sequential:
    """A small classifier with k×k and pointwise convolutions, flatten + FC and FC. Window 8×7, no padding."""
    torch.manual_seed(0)
    act = activation or nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        act,
        nn.Conv2d(8, 6, 1),
        act,
        nn.Flatten(),
        nn.Linear(6 * 6 * 5, 20),
        activation or nn.ReLU(inplace=True),
        nn.Linear(20, 4),
    ).eval()
