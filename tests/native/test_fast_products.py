"""`fast_products`: off by default, reported, saved in the plan, and used when the plan is applied."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import onebyone
from onebyone.errors import NotEquivalent
from onebyone.tuning import TuningPlan, engines
from onebyone.tuning.engines import native
from onebyone.tuning.result import tables
from tests.native.build import needs_compiler
from tests.tuning import networks
from tests.tuning.conftest import ample, tuned

__all__ = ["ample"]  # a fixture
pytestmark = needs_compiler


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).requires_grad_(False)


def error_beside_a_large_row(model: nn.Module, x: torch.Tensor) -> float:
    """The largest relative error of the rows beside one of size 10⁶."""
    x = x.clone()
    x[0, 5] *= 1e6
    exact = network().double()(x.double())[0]
    error = (model(x)[0].double() - exact).norm(dim=1) / exact.norm(dim=1)
    return float(error.max())


def test_rows_keep_their_own_bounds_unless_fast_products_is_set(tmp_path: Path) -> None:
    net, x = network(), torch.randn(1, 196, 256)
    t = tuned(net, x, engines="onebyone", budget=1.0)
    plan = dataclasses.replace(
        t.plan, choice={**t.plan.choice, "engine": "onebyone", "form": "original", "layers": {}}
    )
    assert not plan.fast_products
    assert "fast products" not in str(t)
    assert error_beside_a_large_row(onebyone.tune(net, x, plan=plan).model, x) < 1e-5
    fast = dataclasses.replace(plan, fast_products=True)
    again = onebyone.tune(net, x, plan=fast.save(tmp_path / "plan.json"))
    assert again.plan.fast_products
    assert "fast products: rows may be multiplied together without an error bound for each" in str(again)
    assert error_beside_a_large_row(again.model, x) > 1e-2
    asked = tuned(net, x, engines="onebyone", budget=1.0, fast_products=True)
    assert asked.plan.fast_products
    assert asked.plan.to_dict()["fast_products"] is True


@pytest.mark.usefixtures("ample")
def test_the_accuracy_check_refuses_products_without_row_bounds() -> None:
    """The engine with fast products, although the option is off."""
    net, x = network(), torch.randn(1, 196, 256)
    unguarded = dataclasses.replace(
        engines.engine_named("onebyone"),
        name="unguarded",
        build=lambda n, c, s: native._build(n, c, dataclasses.replace(s, fast_products=True)),
    )
    with networks.registered(unguarded):
        t = tuned(net, x, engines="unguarded", budget=1.0)
        refused = {c["name"]: c["refused"] for c in t.plan.candidates}["unguarded:original"]
        assert "in row" in str(refused)
        assert t.plan.choice["engine"] == "eager"
        plan = dataclasses.replace(t.plan, choice={**t.plan.choice, "engine": "unguarded", "layers": {}})
        with pytest.raises(NotEquivalent, match="in row"):
            onebyone.tune(net, x, plan=plan)


def test_the_worst_row_is_in_the_table_and_in_the_plan() -> None:
    net, x = network(), torch.randn(1, 16, 256)
    t = tuned(net, x)
    headers, rows = tables(t.plan)[0]
    assert headers[6] == "worst row"
    assert float(rows[0][6]) <= 1.0
    assert all(0 < c["row_ratio"] <= 90.5 for c in t.plan.candidates if c["refused"] is None)
    data = t.plan.to_dict()  # a plan of an earlier version has no such key
    assert data.pop("fast_products") is False
    assert not TuningPlan.from_dict(data).fast_products
