"""Scans in the form that `tune` chose for the shape of the tiles. Sums of small integers are exact in every form."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onebyone
from onebyone.dense import scan, tuned_runner
from onebyone.dense.runner import TorchSettings
from onebyone.dense.tuned_runner import TunedTile, tuned_tile
from onebyone.errors import BadInput, NotEquivalent, Refused
from onebyone.laws.geometry import Sliding
from onebyone.tuning import TuningPlan
from onebyone.tuning.engines import base, engine_named
from onebyone.tuning.tuned_model import TunedModel
from tests.dense.networks import Net, geometry_of, integers
from tests.native.build import needs_compiler

TILE = 8


@pytest.fixture(scope="module")
def net() -> Net:
    """Unpadded: conv 5, pool 2, conv 5, pool 2, conv 1: stride 4, window 16; wide enough for the engine's vectors."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 3, 1),
    )  # fmt: skip
    return Net(
        integers(model), geometry_of([Sliding(5), Sliding(2, 2), Sliding(5), Sliding(2, 2), Sliding(1)], 16)
    )


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (108, 140, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def plan(net: Net) -> TuningPlan:
    """A plan for the tiles that states the engine of this package, whichever is faster here."""
    shape = (1, 1, 4 * (TILE - 1) + 16, 4 * (TILE - 1) + 16)
    measured = onebyone.tune(net.model, torch.zeros(shape), engines="eager", budget=0.2).plan
    return with_engine(measured, "onebyone")


def with_engine(plan: TuningPlan, engine: str) -> TuningPlan:
    choice = {"name": f"{engine}:original", "engine": engine, "form": "original", "dtype": None, "layers": {}}
    return replace(plan, choice=choice)


@needs_compiler
def test_a_plan_gives_the_same_scores_in_memory_in_a_file_and_in_batches(
    net: Net, image: np.ndarray, plan: TuningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scan(net, image, tile=TILE).scores
    plan.save(tmp_path / "plan.json")
    np.testing.assert_array_equal(scan(net, image, tile=TILE, tune=plan).scores, expected)
    np.testing.assert_array_equal(
        scan(net, image, tile=TILE, batch=3, tune=tmp_path / "plan.json").scores, expected
    )
    run = TunedModel._run
    monkeypatch.setattr(TunedModel, "_run", lambda self, args, kwargs: run(self, args, kwargs) + 1)
    changed = scan(net, image, tile=TILE, tune=plan).scores
    assert (changed == expected + 1).all(), "a tile was not run in the chosen form"


@needs_compiler
def test_a_stored_scan_keeps_its_plan_and_states_the_engine(
    net: Net, image: np.ndarray, plan: TuningPlan, tmp_path: Path
) -> None:
    out = tmp_path / "scores.npy"
    plan.save(tmp_path / "scores.npy.tuning.json")  # as an interrupted scan would have left it
    stored = scan(net, image, tile=TILE, tune=True, out=out)
    np.testing.assert_array_equal(np.asarray(stored.scores), scan(net, image, tile=TILE).scores)
    (description,) = [p for p in tmp_path.iterdir() if p.name.startswith("scores") and p.suffix == ".json"
                      and "tuning" not in p.name]  # fmt: skip
    assert json.loads(description.read_text())["key"]["tuned"]["engine"] == "onebyone"


def test_measuring_keeps_the_plan_beside_the_output(
    net: Net, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_runner, "ENGINES", ("eager",))
    monkeypatch.setattr(tuned_runner, "_LEAST_SECONDS", 0.2)
    monkeypatch.setattr(tuned_runner, "_RUNS", 0.0)
    stored = scan(net, image, tile=TILE, tune=True, out=tmp_path / "scores.npy")
    np.testing.assert_array_equal(np.asarray(stored.scores), scan(net, image, tile=TILE).scores)
    kept = TuningPlan.load(tmp_path / "scores.npy.tuning.json")
    assert kept.inputs[0]["shape"][:2] == [1, 1]


@pytest.fixture
def wrong_engine() -> Iterator[str]:
    """An engine whose outputs are off by a thousandth."""

    def build(network: Any, signature: Any, settings: Any) -> Any:
        call = engine_named("eager").build(network, signature, settings)
        return lambda *args: call(*args) * 1.001

    base.register_engine(replace(engine_named("eager"), name="wrong", build=build))
    yield "wrong"
    del base._ENGINES["wrong"]


def test_a_wrong_engine_is_caught(net: Net, image: np.ndarray, plan: TuningPlan, wrong_engine: str) -> None:
    with pytest.raises(NotEquivalent, match="rounding error"):
        scan(net, image, tile=TILE, tune=with_engine(plan, wrong_engine))


def test_a_plan_for_another_tile_is_refused(net: Net, image: np.ndarray, plan: TuningPlan) -> None:
    with pytest.raises(Refused, match="1×1×44×44, and this is float32 1×1×28×28"):
        scan(net, image, tile=4, tune=plan)


def test_another_process_builds_the_form_from_the_plan(net: Net, plan: TuningPlan) -> None:
    plan = with_engine(plan, "eager")
    shape = (1, 1, 44, 44)
    tile = pickle.loads(pickle.dumps(tuned_tile(net.model, shape, torch.device("cpu"), plan)))
    assert isinstance(tile, TunedTile)
    assert tile.model is None
    assert tile.shape == shape
    x = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)
    with tuned_runner.tuned_runner(net.model, TorchSettings(torch.device("cpu"), False), tile) as run:
        np.testing.assert_array_equal(run(x), net.model(torch.from_numpy(x)).detach().numpy())


def test_other_modes_are_refused(net: Net, image: np.ndarray) -> None:
    with pytest.raises(BadInput, match="expected mode='dense'"):
        scan(net, image, mode="windows", tune=True)
