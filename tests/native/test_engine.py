"""The engine "onebyone" of `tune`: accuracy checks, step times, and inputs of other shapes."""

from __future__ import annotations

import pytest
import torch

from onebyone.errors import BadInput
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
