"""Plans are read, and the meaning of their steps is compared with the network in float64."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from onebyone.native import lowering
from onebyone.native.maps import Map
from onebyone.native.planner import Planner
from onebyone.native.steps import Step
from tests.native.build import traced
from tests.native.reference_steps import interpreted


class Library:
    """In place of the compiled one: a plan needs only the width of a vector."""

    def onebyone_lanes(self) -> int:
        return 8


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made as for vectors of eight numbers, and nothing is compiled."""
    monkeypatch.setattr(lowering, "kernel", Library)


def read(network: nn.Module, x: Tensor) -> tuple[list[Step], Map]:
    module = traced(network, x)
    return Planner(module).read(module.graph)


def planned(network: nn.Module, x: Tensor, within: float = 1e-11) -> Counter[str]:
    """The number of steps of each kind. Their result is right, with parameters that are not zeros and ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    steps, answer = read(network, x)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(x.double())
    got = interpreted(steps, answer, x).reshape(exact.shape)
    assert bool(got.isfinite().all())
    assert float((got - exact).abs().max()) <= within * float(exact.abs().max())
    return Counter(s.kind.name for s in steps)


def tokens(samples: int, count: int, width: int) -> Tensor:
    return torch.randn(samples, count, width, generator=torch.Generator().manual_seed(0))
