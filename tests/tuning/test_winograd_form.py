"""Networks whose 3×3 convolutions are rewritten to the Winograd operator: the graph, engines, and tuning."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import Refused
from onebyone.tuning import TuningPlan
from onebyone.tuning.clock import Clock
from onebyone.tuning.engines import EngineSettings, engine_named
from onebyone.tuning.layer_groups import group_layers
from onebyone.tuning.layer_times import measure_group
from onebyone.tuning.target import TuningTarget, target_of
from onebyone.tuning.winograd_form import WINOGRAD_FORM

pytestmark = pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or os.environ.get("CI") == "true"),
    reason="there is no g++",
)


class Trunk(nn.Module):
    """Convolutions with and without what goes into the kernel, one called twice, one that has two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.plain = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.Sequential(
            nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.strided = nn.Conv2d(32, 16, 3, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 5)."""
        x = self.stem(x).relu()
        y = self.plain(x)
        x = self.norm(y + y.relu())
        x = self.twice(self.twice(x).relu())
        head: Tensor = self.head(self.strided(x).mean((2, 3)))
        return head


def trunk() -> TuningTarget:
    torch.manual_seed(0)
    network = Trunk().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
    return target_of(network, torch.randn(2, 3, 17, 15))


def operators(network: nn.Module) -> list[str]:
    graph: Any = network.graph
    return [str(n.target) for n in graph.nodes if n.op == "call_function"]


def test_the_graph_holds_the_kernel_and_what_it_takes_in() -> None:
    target = trunk()
    formed = WINOGRAD_FORM.build(target, {})
    found = operators(formed.network)
    assert found.count("onebyone.winograd_conv2d.default") == 4
    assert found.count("aten.conv2d.default") == 2  # three channels in; a stride
    assert not [name for name in found if "batch_norm" in name or "max_pool" in name]
    weights = [n for n, _ in formed.network.named_buffers() if n.startswith("_winograd_weight")]
    assert len(weights) == 3  # the layer that is called twice has them once
    x = target.signature.args[0]
    with torch.inference_mode():
        own, exact = target.network(x), trunk().network.double()(x.double())
        assert float((formed.network(x) - exact).abs().max()) < 20 * float((own - exact).abs().max())
        assert torch.allclose(formed.proof.double()(x.double()), exact, atol=1e-10)
    assert operators(target.network) == [] if hasattr(target.network, "graph") else True


def test_only_the_layers_that_are_named_are_turned() -> None:
    formed = WINOGRAD_FORM.build(trunk(), {"twice": "winograd", "head": "conv"})
    assert operators(formed.network).count("onebyone.winograd_conv2d.default") == 2
    with pytest.raises(Refused):
        WINOGRAD_FORM.build(trunk(), {"stem": "winograd"})


@pytest.mark.parametrize("engine", ["eager", "onednn-graph", pytest.param("compile", marks=pytest.mark.slow)])
def test_engines_run_it(engine: str) -> None:
    target = trunk()
    formed = WINOGRAD_FORM.build(target, {})
    call = engine_named(engine).build(
        formed.network, target.signature, EngineSettings(torch.device("cpu"), 2)
    )
    with torch.inference_mode():
        assert torch.allclose(call(*target.signature.args), target.network(*target.signature.args), atol=1e-5)


def test_tune_tries_it_proves_it_and_applies_it_again() -> None:
    target = trunk()
    x = target.signature.args[0]
    tuned = onebyone.tune(target.network, x, engines="eager", budget=3.0)
    (group,) = (g for g in group_layers(target.network, target.signature) if "twice" in g.paths)
    assert "winograd" in measure_group(group, Clock(seed=0), 0.1).timings
    plan = tuned.plan.to_dict()
    layers = {"twice": "winograd", "plain": "winograd"}
    plan["choice"] = {
        "name": "eager:winograd(2)",
        "engine": "eager",
        "form": "winograd",
        "dtype": None,
        "layers": layers,
    }
    again = onebyone.tune(target.network, x, plan=TuningPlan.from_dict(plan))
    assert operators(again.model.network).count("onebyone.winograd_conv2d.default") == 3
    assert torch.allclose(again.model(x), target.network(x), atol=1e-5)


def test_a_batch_norm_whose_folded_weights_overflow_stays_in_the_graph() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
    with torch.no_grad():
        convolution.weight *= 1e30
        norm.weight[3] = 1e10
    network, x = nn.Sequential(convolution, norm).eval(), 1e-25 * torch.randn(1, 16, 9, 9)
    formed = WINOGRAD_FORM.build(target_of(network, x), {})
    assert "aten.batch_norm.default" in operators(formed.network)
    with torch.inference_mode():
        torch.testing.assert_close(
            formed.network(x), network(x), rtol=1e-3, atol=1e-3 * float(network(x).abs().max())
        )
