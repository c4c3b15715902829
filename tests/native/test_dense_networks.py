"""What convolutionalized networks need of the engine: average pools at stride 1, and large kernels that are views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.native.build import error, needs_compiler

pytestmark = needs_compiler


def positive(network: nn.Module) -> nn.Module:
    """The network with the magnitudes of its weights: errors of positive sums are at most u per rounding of a term."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.abs_()
    return network


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(7, 1, 0), ((2, 5), (1, 2), 0), (3, 2, 1), ((1, 4), 1, 0), ((5, 1), 2, (2, 0)), (64, 1, 0)],
)
def test_average_pools_of_a_fixed_window(kernel: Any, stride: Any, padding: Any) -> None:
    torch.manual_seed(0)
    network = positive(nn.Sequential(nn.Conv2d(3, 19, 1, bias=False), nn.AvgPool2d(kernel, stride, padding)))
    roundings = 2 * 3 + sum((kernel, kernel) if isinstance(kernel, int) else kernel) + 2
    assert error(network, torch.rand(2, 3, 66, 70)) <= roundings


class Stretched(nn.Module):
    """A linear layer over a map of 11×11 positions, applied at every position as a convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16 * 11 * 11, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, outputs, H - 12, W - 12)."""
        return F.conv2d(self.first(x).relu(), self.head.weight.view(-1, 16, 11, 11), self.head.bias)


@pytest.mark.parametrize("outputs", [3, 20])
def test_a_kernel_of_many_positions_that_is_a_view_of_a_linear_layer(outputs: int) -> None:
    torch.manual_seed(0)
    network = positive(Stretched(outputs))
    assert error(network, torch.rand(2, 3, 17, 21)) <= 3 * 9 + 16 * 11 * 11 + 3
