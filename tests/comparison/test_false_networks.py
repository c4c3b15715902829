"""Networks in which a claim is false, which `onebyone.compare` must report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID
from onebyone.errors import Refused
from tests.comparison.conftest import network

IMAGE = torch.randn(1, 3, 8, 7, generator=torch.Generator().manual_seed(1))


def verdicts(model: nn.Module, x: Tensor, *rows: str) -> dict[str, str]:
    return {row.id: row.verdict for row in onebyone.compare(model, x, budget=5, rows=rows).rows}


def test_an_activation_that_does_nothing() -> None:
    assert verdicts(network(), IMAGE, "S3") == {"S3": HOLDS}
    assert verdicts(network(nn.LeakyReLU(negative_slope=1.0)), IMAGE, "S3") == {"S3": NOT_AS_SAID}


def test_a_pruned_network() -> None:
    model = network()
    with torch.no_grad():
        model[5].weight.view(20, 6, 6, 5)[:, :, :, 2:] = 0  # type: ignore[operator]
    assert verdicts(model, IMAGE, "S4", "D1", "D8") == {
        "S4": HOLDS,
        "D1": NOT_AS_SAID,
        "D8": NOT_AS_SAID,
    }
    with torch.no_grad():
        model[5].weight.view(20, 6, 6, 5)[:, 1:] = 0  # type: ignore[operator]
    assert verdicts(model, IMAGE, "S4") == {"S4": NOT_AS_SAID}


def test_a_layer_with_equal_weights_at_all_positions() -> None:
    model = network()
    with torch.no_grad():
        weight = model[5].weight.view(20, 6, 30)  # type: ignore[operator]
        weight.copy_(weight.mean(2, keepdim=True).expand_as(weight))
    assert verdicts(model, IMAGE, "D3", "D7") == {"D3": NOT_AS_SAID, "D7": NOT_AS_SAID}


def test_a_network_that_keeps_its_dimensions() -> None:
    torch.manual_seed(0)
    square = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)).eval()
    assert verdicts(square, torch.randn(1, 3, 2, 2), "D4") == {"D4": HOLDS}
    assert verdicts(network(), IMAGE, "D4") == {"D4": NOT_AS_SAID}


class Plus(nn.Linear):
    """A linear layer with a changed forward, which is not converted."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Mixing(nn.Module):
    """Attention over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens).mean(1))


def test_what_cannot_be_replaced_or_enlarged_is_a_condition() -> None:
    torch.manual_seed(0)
    own = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), Plus(5, 2)).eval()
    assert verdicts(own, torch.randn(1, 3, 2, 2), "R1") == {"R1": "holds when the layer is an ordinary one"}
    model, x = Mixing().eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(Refused):
        onebyone.convolutionalize(model, 8)
    assert verdicts(model, x, "R3") == {"R3": "holds when the image has the size the network was built for"}
