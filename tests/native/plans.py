"""Plans are read, and what their steps mean is compared with the network in float64."""

from __future__ import annotations

import copy
from collections import Counter
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.native.kernels.program import Map, Step
from onebyone.tuning.engines import EngineSetting
from onebyone.tuning.engines.exported_program import export
from onebyone.tuning.engines.native import Planner
from onebyone.tuning.target import subject_of
from tests.native.reference_steps import interpreted

CPU = EngineSetting(torch.device("cpu"), 2)


class Library:
    """In place of the compiled one: a plan wants the width of a vector alone."""

    def onebyone_lanes(self) -> int:
        return 8


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made as where vectors have eight numbers, with nothing compiled."""
    monkeypatch.setattr(import_module("onebyone.native.lowering"), "kernel", Library)


def read(network: nn.Module, x: Tensor) -> tuple[list[Step], Map]:
    subject = subject_of(network.eval(), x)
    module: Any = export(subject.network, subject.calling, CPU).program.module()
    return Planner(module).read(module.graph)


def planned(network: nn.Module, x: Tensor, within: float = 1e-11) -> Counter[str]:
    """How many steps of each kind there are; their result is right, with parameters that are not zeros and ones."""
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
