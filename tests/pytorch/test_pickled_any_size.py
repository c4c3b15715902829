"""Any-size networks are pickled and loaded again, as the workers of a cluster receive them."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import onebyone


def padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def flattened() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 3), nn.Softmax(-1)
    )


@pytest.mark.parametrize("make", [padded, flattened])
@pytest.mark.parametrize("size", [(8, 8), (21, 34)])
def test_a_loaded_network_gives_the_same_scores(make: type, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = onebyone.convolutionalize(make().eval(), window=8).model
    loaded = pickle.loads(pickle.dumps(network))
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        assert torch.equal(network(image), loaded(image))
    with pytest.raises(onebyone.errors.BadInput, match="smaller than the window"):
        loaded(torch.randn(1, 1, 7, 7))
