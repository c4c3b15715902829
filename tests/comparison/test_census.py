"""The census of the model zoo: it agrees with the zoo's results, its sums are right, and it is installed."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import onebyone
from onebyone.comparison import census
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID

ROOT = Path(__file__).parents[2]
ZOO = json.loads((ROOT / "bench" / "results" / "zoo.json").read_text("utf-8"))


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onebyone_census", ROOT / "tools" / "census.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()


def networks() -> list[dict[str, Any]]:
    found = census.read_census()
    assert found is not None
    return found


def figures(zoo: list[dict[str, Any]] | None) -> dict[str, Any]:
    return census.measure_census([], 0, zoo)


def test_it_is_that_of_the_zoo_s_results() -> None:
    assert tool.stale() == []


def test_its_sums_are_those_of_the_zoo_s_results() -> None:
    """Counted from the file without functions of the package."""
    both: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    for model in ZOO["models"]:
        if model["key"].startswith("block:"):
            continue
        (built,) = [step["figures"]["eligible"] for step in model["steps"] if step["name"] == "build"]
        both[("linear " if built["linear"] else "") + ("pointwise" if built["conv"] else "")] += 1
        layers += Counter(linear=built["linear"], pointwise=built["conv"])
    totals = figures(networks())["zoo"]
    assert totals["networks"] == sum(both.values()) == len(networks()) > 200
    assert (totals["with_both"], totals["linear_only"], totals["pointwise_only"]) == (
        both["linear pointwise"],
        both["linear "],
        both["pointwise"],
    )
    assert (totals["linear_layers"], totals["pointwise_layers"]) == (layers["linear"], layers["pointwise"])
    groups = totals["by_group"].values()
    assert set(totals["by_group"]) == {"structure", "timm", "torchvision"}
    for name in ("networks", "with_both", "linear_layers", "pointwise_layers"):
        assert sum(group[name] for group in groups) == totals[name]


def test_uses_add_up_in_every_network() -> None:
    run = [n for n in networks() if "uses" in n]
    assert len(run) == sum(not n["key"].startswith("structure:") for n in networks())
    for network in run:
        whole, *parts = (
            network["uses"][name] for name in sorted(network["uses"], key=lambda n: n != census.ALL)
        )
        assert [sum(column) for column in zip(*parts, strict=True)] == whole
        assert 0 < whole[1] <= network["parameters"]
    uses = figures(networks())["zoo"]["uses"]
    assert sum(p["share_of_macs"] for p in uses.values()) == pytest.approx(1)
    tokens = [
        n["uses"].get("linear layer on every token or position", (0, 0, 0))[1] / n["parameters"] for n in run
    ]
    share = uses["linear layer on every token or position"]["share_of_parameters"]
    assert share == pytest.approx(sum(tokens) / len(run))


def test_what_is_stale_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tool.stored()
    changed[3]["linear"] += 1
    gone = changed.pop(7)
    monkeypatch.setattr(tool, "stored", lambda: changed)
    assert tool.stale() == sorted([changed[3]["key"], gone["key"]])


def test_it_is_small_and_installed() -> None:
    """It matches the patterns of the files that an installation includes."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["onebyone"]
    package = ROOT / settings["packages"]["find"]["where"][0] / "onebyone"
    assert tool.CENSUS in {found for pattern in patterns for found in package.glob(pattern)}
    assert tool.CENSUS.stat().st_size < 60_000


def test_it_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    row = onebyone.compare(model, torch.randn(1, 3, 2, 2), rows=["D6"])["D6"]
    assert row.figures["zoo"]["networks"] == len(networks())
    assert row.verdict == NOT_AS_SAID
    assert "networks of timm and torchvision have both" in row.because


def test_without_it_the_network_alone_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census.resources, "files", lambda name: tmp_path)
    assert census.read_census() is None
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    row = onebyone.compare(model, torch.randn(1, 3, 2, 2), rows=["D6"])["D6"]
    assert row.verdict == HOLDS
    assert "is not installed" in row.because


@pytest.mark.zoo
@pytest.mark.parametrize("key", ["timm:resnet", "torchvision:alexnet", "timm:mlp_mixer"])
def test_a_network_is_measured_as_pytorch_counts_it(key: str) -> None:
    """MACs by the FLOP counter of torch, and parameters of layers by their class."""
    from torch.utils.flop_counter import FlopCounterMode

    from bench.zoo.models import build, entries, example

    (kept,) = [n["uses"] for n in networks() if n["key"] == key]
    assert tool.measured(key) == kept
    entry = next(e for e in entries() if e.key == key)
    model, x = build(entry), example(entry)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*x)
    assert counter.get_total_flops() == 2 * len(x[0]) * kept[census.ALL][2]
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == kept[census.ALL][0]
    assert sum(p.numel() for m in layers for p in m.parameters()) == kept[census.ALL][1]
