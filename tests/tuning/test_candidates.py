"""Building candidates, and the checks that the chosen one must pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.tuning import network_forms, selection
from onebyone.tuning.accuracy import AccuracyChecker, AccuracyResult
from onebyone.tuning.candidates import Candidate, CandidateBuilder, Trial
from onebyone.tuning.clock import Clock
from onebyone.tuning.engines import EngineSettings
from onebyone.tuning.network_forms import FormedNetwork, NetworkForm, register_form
from onebyone.tuning.result import BASELINE
from onebyone.tuning.target import target_of
from onebyone.tuning.time_budget import Budget
from onebyone.tuning.tune import _first_verified
from tests.tuning import networks

CPU = EngineSettings(torch.device("cpu"), 1)


class Biased(nn.Module):
    """A network with an error within the rounding of float32, far beyond that of float64."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y * (1 + 2.0**-22)


@pytest.fixture
def biased_form(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(network_forms, "_FORMS", dict(network_forms._FORMS))
    register_form(NetworkForm("biased", lambda target, _: FormedNetwork(Biased(target.network).eval())))
    return "biased"


def builder(accuracy: Any = None) -> CandidateBuilder:
    target = target_of(networks.tokens(), torch.randn(2, 4, 8))
    return CandidateBuilder(target, accuracy or AccuracyChecker(target.network, target.signature), CPU)


def test_a_form_that_verification_refuses_is_never_chosen(biased_form: str) -> None:
    made = builder()
    base, biased, conv = (made.attempt(Candidate("eager", f)) for f in ("original", biased_form, "conv"))
    assert biased.refused is None  # its outputs in float32 are accurate enough
    contest = selection.Contest(made.attempt, Clock(), Budget(1.0), lambda done, of: None)
    winner, proof = _first_verified(made, contest, [biased, conv, base], 0)
    assert winner.name == "eager:conv"
    assert proof is not None
    assert proof.equivalent
    assert (contest.trials["eager:biased"].refused or "").startswith("not equivalent: ")
    assert contest.trials["eager:biased"].run is None
    winner, proof = _first_verified(made, contest, [biased, base], 0)
    assert (winner.name, proof) == (BASELINE, None)


class Checker:
    """Records how candidates are checked, and returns a given result."""

    def __init__(self, problem: str) -> None:
        self.result = AccuracyResult(2.0, 0.5, problem, 3.0)
        self.checks: list[tuple[torch.dtype | None, bool]] = []

    def check(self, call: Any, dtype: torch.dtype | None, thorough: bool) -> AccuracyResult:
        self.checks.append((dtype, thorough))
        return self.result


@pytest.mark.parametrize("problem", ["", "the output differs"])
def test_finalists_are_checked_thoroughly(problem: str) -> None:
    checker = Checker(problem)
    made = builder(checker)
    trial = Trial(Candidate("eager", "conv"), "eager:conv", model=object(), run=print)  # type: ignore[arg-type]
    checked = made.check_thoroughly(trial)
    assert checker.checks == [(None, True)]
    if problem:
        assert (checked.refused, checked.run) == ("not equivalent: the output differs", None)
    else:
        assert (checked.rounding_ratio, checked.row_ratio, checked.max_error) == (2.0, 3.0, 0.5)
    made.check_thoroughly(replace(trial, candidate=Candidate("eager", "conv", "bfloat16")))
    assert checker.checks[-1] == (torch.bfloat16, True)


def test_candidates_are_first_checked_quickly() -> None:
    checker = Checker("")
    trial = builder(checker).attempt(Candidate("eager", "original"))
    assert checker.checks == [(None, False)]
    assert (trial.rounding_ratio, trial.refused) == (2.0, None)
    assert trial.run is not None
    assert builder(Checker("wrong")).attempt(Candidate("eager", "original")).run is None
