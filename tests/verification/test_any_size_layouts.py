"""Flatten orders written with `view`: correct any-size networks pass in every memory layout that the network makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.verification import verify

Order = Callable[[Tensor], Tensor]
ORDERS: dict[str, Order] = {
    # R-Net and O-Net of MTCNN, translated from a framework that stores columns first
    "permute, contiguous, view": lambda x: x.permute(0, 3, 2, 1).contiguous().view(len(x), -1),
    "transpose, clone, view": lambda x: (
        x.transpose(1, 3).clone(memory_format=torch.contiguous_format).view(len(x), -1)
    ),
    "channels last, permute, view": lambda x: (
        x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(len(x), -1)
    ),
    "flip, transpose, contiguous, view": lambda x: x.flip(2).transpose(1, 2).contiguous().view(len(x), -1),
    "two views": lambda x: x.view(len(x), 2, 2, 36).transpose(1, 2).contiguous().view(len(x), -1),
    "flatten, transpose, view": lambda x: x.flatten(2).transpose(1, 2).contiguous().view(len(x), -1),
    "permute, relu, view": lambda x: x.permute(0, 3, 2, 1).relu().contiguous().view(len(x), -1),
    "view_as": lambda x: x.transpose(1, 2).contiguous().view_as(x).flatten(1),
    "reshape_as": lambda x: x.transpose(2, 3).reshape_as(x.flatten(1)),
}


class Ordered(nn.Module):
    def __init__(self, order: Order) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.order = nn.Conv2d(3, 4, 3), nn.Linear(144, 5), order

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.order(self.conv(x)))
        return out


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_is_verified(name: str) -> None:
    net = Ordered(ORDERS[name]).eval()
    dense = convolutionalize(net, 8)
    found = verify(net, dense)
    assert found.equivalent, found.problems
    assert found.integer_probe
    # the independent second computation: each window cropped, the network as it is
    image = torch.randn(1, 3, 10, 11)
    crops = torch.stack([net(image[..., y : y + 8, x : x + 8])[0] for y in range(3) for x in range(4)])
    assert torch.allclose(dense.model(image)[0].flatten(1).T, crops, atol=1e-5)


def test_another_order_in_a_pair_is_caught() -> None:
    """The planted fault: the layer as lifted from one order, the original's operators of another."""
    right, other = (
        convolutionalize(Ordered(ORDERS[n]).eval(), 8)
        for n in ("permute, contiguous, view", "channels last, permute, view")
    )
    swapped = replace(other.pairs[0], converted=right.pairs[0].converted)
    net = Ordered(ORDERS["channels last, permute, view"]).eval()
    found = verify(net, replace(convolutionalize(net, 8), pairs=(swapped,)))
    assert not found.equivalent
    assert found.integer_probe is False
