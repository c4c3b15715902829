"""A few networks of the zoo, a different sample for every day of commits."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.zoo import smallest
from bench.zoo.models import Entry, entries
from bench.zoo.steps import Run, Step

pytestmark = pytest.mark.zoo

FIXED_DAY = "2026-11-21"
#: Networks small enough that one takes seconds: most parameters, largest sum of image and window sides.
SMALL, SIDES = 1_700_000, 400
#: Structures that must be built with real weights first, of gigabytes.
HEAVY = "regnet"


def _day() -> str:
    """The day of the last commit, so that the sample of a commit is the same everywhere."""
    command = ["git", "log", "-1", "--format=%cs"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    except (OSError, subprocess.CalledProcessError):
        return FIXED_DAY
    return said.stdout.strip() or FIXED_DAY


def _sample() -> list[Any]:
    """Three small timm networks, two blocks and two structures; all but one of each are slow tests."""
    chance = random.Random(_day())
    small = {
        f"timm:{file}"
        for file, of in smallest.load().items()
        if of["parameters"] <= SMALL and of["side"] + of["window"] <= SIDES
    }
    groups = [
        [e for e in entries() if e.key in small],
        [e for e in entries() if e.group == "block"],
        [e for e in entries() if e.group == "structure" and HEAVY not in e.key],
    ]
    return [
        pytest.param(entry, marks=pytest.mark.slow if number else (), id=entry.key)
        for group, n in zip(groups, (3, 2, 2), strict=True)
        for number, entry in enumerate(sorted(chance.sample(group, n), key=_parameters))
    ]


def _parameters(entry: Entry) -> int:
    """The number of parameters of a timm network, by which the smallest of a sample is chosen; 0 for the others."""
    of = smallest.load().get(entry.key.removeprefix("timm:"))
    return int(of["parameters"]) if of else 0


@pytest.mark.parametrize("entry", _sample())
def test_every_step_converts_or_is_refused_with_a_reason(entry: Entry) -> None:
    steps: list[Step] = []
    Run(entry, steps.append).all()
    assert steps[0].name == "build"
    assert len(steps) >= 2
    faults = [(s.name, s.outcome, s.reason) for s in steps if s.outcome in ("not equivalent", "crashed")]
    assert not faults
    assert all(s.reason for s in steps if s.outcome == "refused")


def test_a_fault_in_one_weight_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks detect a conversion that changes one number."""
    from bench.zoo import steps as module

    convert = module.convert_module

    def faulty(model: torch.nn.Module, **options: object) -> object:
        made = convert(model, copy=True, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            next(made.model.parameters()).flatten()[0] += 0.01
        return made

    monkeypatch.setattr(module, "convert_module", faulty)
    entry = next(e for e in entries() if e.key == "block:mlp")
    found: list[Step] = []
    Run(entry, found.append).all()
    assert {s.name: s.outcome for s in found}["layers"] == "not equivalent"
