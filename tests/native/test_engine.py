"""The engine "onebyone" of `tune`: accuracy checks, step times, and inputs of other shapes."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from onebyone.errors import BadInput
from onebyone.native.kernels.program import _Placed
from onebyone.native.steps import LinearStep
from onebyone.tuning.accuracy import AccuracyChecker
from onebyone.tuning.candidates import Candidate, CandidateBuilder
from onebyone.tuning.engines import EngineSettings
from onebyone.tuning.target import target_of
from onebyone.tuning.tune import step_time_notes
from tests.native.build import build, needs_compiler
from tests.native.test_networks import Block

CPU = EngineSettings(torch.device("cpu"), 2)
pytestmark = needs_compiler


def test_its_accuracy_is_checked_and_its_steps_are_timed() -> None:
    torch.manual_seed(0)
    network, x = Block().eval(), torch.randn(1, 3, 32, 32)
    target = target_of(network, x)
    builder = CandidateBuilder(target, AccuracyChecker(target.network, target.signature), CPU)
    own = builder.attempt(Candidate("onebyone", "original"))
    assert own.model is not None
    times = own.model.times(x)
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert set(times) == set(build(network, x).times(x))
    (note,) = step_time_notes(own.model, target.signature)
    assert all(f"{kind} " in note for kind in times)
    with pytest.raises(BadInput, match="1×3×32×32"):
        own.model.times(x[:, :, :16])
    eager = builder.attempt(Candidate("eager", "original"))
    assert eager.model is not None
    assert eager.model.times(x) == {}
    assert step_time_notes(eager.model, target.signature) == []
    assert own.refused is None
    assert own.rounding_ratio is not None
    assert own.rounding_ratio < 30


def test_packed_weights_are_freed_as_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a program is built, a step's weights are in memory twice only until its record is written."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)
    ).eval()
    packed: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    record = LinearStep.record

    def counted(step: LinearStep, placed: object) -> object:
        if isinstance(placed, _Placed):
            alive.append(sum(reference() is not None for reference in packed))
            packed.append(weakref.ref(step.weight))
        return record(step, placed)

    monkeypatch.setattr(LinearStep, "record", counted)
    x = torch.randn(1, 20, 64)
    compiled = build(network, x)
    assert len(packed) == 3
    assert max(alive) <= 1  # that of the step before, until the next one is taken
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), atol=1e-5, rtol=0)
