"""Users' own operators: refused until a rule is registered for them, lifted by the rule afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from onebyone.errors import Refused
from onebyone.lifting.values import Lifted
from onebyone.pytorch.lift import rules
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.graph_lifter import GraphLifter
from tests.pytorch.anysize import deviation

SOFTCAP = "onebyone_tests::softcap"
CHANNEL_MAX = "onebyone_tests::channel_max"


@torch.library.custom_op(SOFTCAP, mutates_args=())
def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """An element-wise operator."""
    return cap * torch.tanh(x / cap)


@torch.library.custom_op(CHANNEL_MAX, mutates_args=())
def channel_max(x: torch.Tensor) -> torch.Tensor:
    """x minus the maximum over the channels: acts on whole places."""
    return x - x.amax(1, keepdim=True)


@softcap.register_fake
def _(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.empty_like(x)


@channel_max.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(channel_max(softcap(self.conv(x), 0.5)).flatten(1))


@pytest.fixture
def clean() -> Iterator[None]:
    before = dict(rules._DECODERS)
    yield
    rules._DECODERS.clear()
    rules._DECODERS.update(before)


@pytest.mark.usefixtures("clean")
def test_a_rule_makes_an_operator_liftable() -> None:
    with pytest.raises(Refused, match=r"onebyone_tests\.softcap\): this operator has no rule yet"):
        convolutionalize(Net(), 8)
    rules.elementwise(torch.ops.onebyone_tests.softcap)
    with pytest.raises(Refused, match=r"onebyone_tests\.channel_max"):
        convolutionalize(Net(), 8)

    @rules.register(torch.ops.onebyone_tests.channel_max)
    def over_channels(lifter: GraphLifter, node: fx.Node) -> Lifted:
        value = lifter.as_map(lifter.lifted(node.args[0]))
        return replace(value, handle=lifter.call(node.target, value.handle))  # type: ignore[arg-type]

    d, error = deviation(Net(), 8)
    assert d.geometry.exact
    assert error < 1e-12
