"""A winner wins by more than the noise that was measured; figures of a noisy measurement are ranges."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from statistics import median

import pytest
import torch
from torch import nn

import onebyone
from onebyone.tuning import plan_builder, selection
from onebyone.tuning.candidates import Candidate, Trial
from onebyone.tuning.clock import InterleavedTimings, Timing, median_interval
from onebyone.tuning.result import BASELINE, remarks
from tests.tuning.simulated_clock import clock
from tests.tuning.test_selection import World


@pytest.mark.parametrize("n", range(1, 12))
def test_the_interval_misses_the_median_in_at_most_5_percent(n: int) -> None:
    """Enumerate all 2^n ways in which n samples are above or below the median; a narrower interval fails too often."""
    low, high = median_interval([float(i) for i in range(n)])
    missed = 0
    for sides in product((False, True), repeat=n):  # True: above
        below = n - sum(sides)  # the median lies between the ordered samples below - 1 and below
        missed += not low <= below - 0.5 <= high
    assert missed / 2**n <= 0.05 or (low, high) == (0.0, n - 1.0)
    if n >= 6:
        narrower = sum(not low + 1 <= n - sum(s) - 0.5 <= high - 1 for s in product((False, True), repeat=n))
        assert narrower / 2**n > 0.05


def noisy_world(seed: int, fast: float, spread: float) -> World:
    """Return a contest of one candidate and the original, whose times have random factors."""
    world, chance = World(lambda c: 1.0), random.Random(seed)
    taken = {BASELINE: 1.0, "compile:conv": fast}

    def attempt(candidate: Candidate, name: str | None) -> Trial:
        def call() -> None:
            world.time.seconds += taken[candidate.name] * chance.lognormvariate(0.0, spread)

        return Trial(candidate, candidate.name, run=call, model=object())  # type: ignore[arg-type]

    world.contest.attempt = attempt
    world.contest.enter(Candidate("eager", "original"))
    world.contest.enter(Candidate("compile", "conv"))
    return world


def test_a_candidate_as_fast_as_the_original_does_not_win_by_chance() -> None:
    winners = [noisy_world(seed, 1.0, 0.5).contest.final_comparison(12.0)[0].name for seed in range(200)]
    # by chance at most 2.5 % of the intervals end below 1 (2^-5 where there were five rounds only): 200 trials of a
    # coin of 1/32 give more than 16 once in 1,000 times
    assert winners.count("compile:conv") <= 16
    medians = [noisy_world(seed, 1.0, 0.5).contest for seed in range(20)]
    by_chance = sum(
        sorted(c.final_comparison(12.0), key=lambda t: t.relative_time or 1.0)[0].name != BASELINE
        for c in medians
    )
    assert by_chance > 4  # the rule of the smallest median would have taken many


def test_a_candidate_that_is_faster_beyond_the_noise_wins() -> None:
    winners = [noisy_world(seed, 0.3, 0.2).contest.final_comparison(12.0)[0].name for seed in range(50)]
    assert winners.count("compile:conv") == 50


def test_the_reason_states_a_range_if_the_measurement_is_uncertain() -> None:
    (first, *_) = noisy_world(1, 0.2, 0.6).contest.final_comparison(12.0)
    assert first.relative_time_range is not None
    low, high = first.relative_time_range
    assert low <= (first.relative_time or 0.0) <= high < 1
    timing = replace(first, timing=Timing(1.0, 0.1, 5))
    base = Trial(Candidate("eager", "original"), BASELINE, timing=Timing(5.0, 0.1, 5))
    assert f"{1 / high:.3g} to {1 / low:.3g} times as fast" in plan_builder.reason_for(
        timing, {BASELINE: base}
    )
    still = replace(timing, relative_time=0.5, relative_time_range=(0.49, 0.51))
    assert "2 times as fast" in plan_builder.reason_for(still, {BASELINE: base})


def test_the_interval_is_that_of_rounds_in_which_both_ran() -> None:
    samples = {"a": (1.0, 4.0, 9.0), "b": (2.0, 4.0, 3.0)}
    times = InterleavedTimings({n: Timing.of(list(s)) for n, s in samples.items()}, samples)
    assert times.ratio_interval("a", "b") == (0.5, 3.0)
    assert times.ratio("a", "b") == median([0.5, 1.0, 3.0])


def test_missing_libraries_are_reported_however_small_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onebyone.tuning.engines import base

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    net = nn.Sequential(nn.Linear(4, 4)).eval()
    tuned = onebyone.tune(net, torch.randn(1, 4), engines=["eager", "onnxruntime"], budget=0.01)
    refused = {c["name"]: c["refused"] for c in tuned.plan.candidates}
    assert "pip install 'onebyone[engines]'" in refused["onnxruntime:original"]
    assert any("more than its budget of 0.01 s" in note for note in tuned.notes)


def test_layers_slower_than_their_network_are_reported_as_such() -> None:
    net = nn.Sequential(nn.Linear(4, 4)).eval()
    plan = onebyone.tune(net, torch.randn(1, 4), engines="eager", budget=0.5).plan
    (layer,) = plan.layers
    slow = {**layer, "forms": [{**f, "median_ms": 1e6} for f in layer["forms"]]}
    assert any("more than the" in said for said in remarks(replace(plan, layers=(slow,))))
    assert not any("spent in other operators" in said for said in remarks(replace(plan, layers=(slow,))))


def test_the_final_comparison_has_the_least_number_of_rounds() -> None:
    world = noisy_world(3, 0.5, 0.1)
    world.contest.clock = clock(world.time)
    world.contest.final_comparison(0.001)
    timing = world.contest.trials["compile:conv"].timing
    assert timing is not None
    assert timing.runs >= selection.MIN_FINAL_ROUNDS
