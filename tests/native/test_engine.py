"""The engine "onebyone" of `tune`: accuracy checks, step times, and inputs of other shapes."""

from __future__ import annotations

import pytest
import torch

from onebyone.errors import BadInput
from onebyone.tuning.accuracy import Judge
from onebyone.tuning.candidates import Candidate, Workshop
from onebyone.tuning.engines import EngineSetting
from onebyone.tuning.target import subject_of
from onebyone.tuning.tune import inside
from tests.native.build import build, needs_compiler
from tests.native.test_networks import Block

CPU = EngineSetting(torch.device("cpu"), 2)
pytestmark = needs_compiler


def test_its_accuracy_is_checked_and_its_steps_are_timed() -> None:
    torch.manual_seed(0)
    network, x = Block().eval(), torch.randn(1, 3, 32, 32)
    subject = subject_of(network, x)
    workshop = Workshop(subject, Judge(subject.network, subject.calling), CPU)
    own = workshop.attempt(Candidate("onebyone", "original"))
    assert own.model is not None
    times = own.model.times(x)
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert set(times) == set(build(network, x).times(x))
    (note,) = inside(own.model, subject.calling)
    assert all(f"{kind} " in note for kind in times)
    with pytest.raises(BadInput, match="1×3×32×32"):
        own.model.times(x[:, :, :16])
    eager = workshop.attempt(Candidate("eager", "original"))
    assert eager.model is not None
    assert eager.model.times(x) == {}
    assert inside(eager.model, subject.calling) == []
    assert own.refused is None
    assert own.ratio is not None
    assert own.ratio < 30
