"""A network that is tuned once for all tests, and the comparison of outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.tuning import Tuned, selection
from onebyone.tuning.time_budget import Budget
from onebyone.verification.pytree import leaves
from tests.tuning import networks

BUDGET = 0.3


@pytest.fixture
def ample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try every network form, however slow the machine is, and skip the search over layers."""
    ignore_the_budget(monkeypatch)


def ignore_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budget, "allows", lambda self, kind: True)
    monkeypatch.setattr(selection, "search_layers", lambda *_: None)


def tuned(network: Any, example: Any, **options: Any) -> Tuned:
    return onebyone.tune(network, example, **({"engines": "eager", "budget": BUDGET} | options))


@pytest.fixture(scope="session")
def made() -> tuple[nn.Module, Tensor, Tuned]:
    """Every form is tried, whatever the time: which one is the fastest does not matter to the tests."""
    network, x = networks.images(), torch.randn(2, 3, 8, 8)
    with pytest.MonkeyPatch.context() as monkeypatch:
        ignore_the_budget(monkeypatch)
        return network, x, tuned(network, x)


def close(a: Any, b: Any) -> None:
    """Assert that outputs agree within the limit that `verify` derives: √(u'/u)·u = 2^-17.5 of the largest number."""
    size = max(float(t.detach().abs().max()) for _, t in leaves(b))
    torch.testing.assert_close(a, b, rtol=0, atol=2**-17.5 * size)
