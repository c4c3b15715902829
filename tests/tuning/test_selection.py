"""The contest, on candidates whose times are known and a clock that they alone move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from onebyone.errors import BadInput
from onebyone.tuning import selection
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.candidates import Candidate, Trial
from onebyone.tuning.clock import Timing
from onebyone.tuning.engines import engines_named
from onebyone.tuning.layer_groups import group_layers
from onebyone.tuning.layer_times import LayerTimes
from onebyone.tuning.result import BASELINE
from onebyone.tuning.target import target_of
from onebyone.tuning.time_budget import Budget
from tests.tuning import networks
from tests.tuning.simulated_clock import Time, clock

FORMS = ("original", "conv", "linear")
FIVE = ("eager", "compile", "compile+freeze", "onnxruntime", "openvino")


class World:
    """Candidates by name: what they take (or why they are refused), and what building one takes."""

    def __init__(
        self, seconds: Callable[[Candidate], float | str], build: float = 1.0, budget: float = 1e4
    ) -> None:
        self.time, self.seconds, self.build = Time(), seconds, build
        self.built: list[str] = []
        self.told: list[tuple[int, int]] = []
        self.budget = Budget(budget, now=self.time.now)
        self.contest = selection.Contest(
            self.attempt, clock(self.time), self.budget, lambda done, of: self.told.append((done, of))
        )

    def attempt(self, candidate: Candidate, name: str | None) -> Trial:
        self.time.seconds += self.build
        self.built.append(name or candidate.name)
        trial = Trial(candidate, name or candidate.name, rounding_ratio=1.0)
        taken = self.seconds(candidate)
        if isinstance(taken, str):
            return replace(trial, refused=taken)
        return replace(trial, run=self.time.spend(trial.name, taken), model=object())  # type: ignore[arg-type]

    def wholes(self, engines: Any = FIVE, forms: tuple[str, ...] = FORMS) -> None:
        selection.try_network_forms(self.contest, engines_named(engines), forms, (None,))

    def winner(self) -> str:
        return self.contest.final_comparison(1.0)[0].name


def table(**seconds: float | str) -> Callable[[Candidate], float | str]:
    times = {k.replace("_", ":").replace("freeze", "compile+freeze"): v for k, v in seconds.items()}
    return lambda c: times.get(c.name, 1.0)


def test_the_fastest_whole_wins() -> None:
    world = World(table(openvino_conv=0.4, compile_linear=0.5))
    world.wholes()
    assert world.winner() == "openvino:conv"
    share = world.contest.trials["openvino:conv"].relative_time
    assert share == pytest.approx(0.4)


def test_one_that_is_refused_is_never_chosen_however_fast() -> None:
    world = World(table(onnxruntime_original="not equivalent: off by 7", compile_conv=0.5))
    world.wholes()
    assert world.winner() == "compile:conv"
    assert world.contest.trials["onnxruntime:original"].timing is None
    assert world.contest.trials["onnxruntime:original"].refused == "not equivalent: off by 7"


def test_never_slower_than_the_network_as_it_is() -> None:
    world = World(lambda c: 1.0 if c.name == BASELINE else 1.5)
    world.wholes("onnxruntime")
    assert world.winner() == BASELINE
    assert world.built[0] == BASELINE  # although eager was not asked for
    assert "eager:conv" not in world.built


def test_all_are_told_of_in_the_end() -> None:
    world = World(table())
    world.wholes()
    names = {f"{e}:{f}" for e in FIVE for f in FORMS}
    assert set(world.contest.trials) == names
    assert world.told[-1] == (15, 15)
    assert [done for done, _ in world.told] == list(range(1, 16))


def test_a_form_that_does_not_exist_is_not_asked_of_other_engines() -> None:
    world = World(lambda c: "it has no layer" if c.form == "linear" else 1.0)
    world.wholes()
    assert [n for n in world.built if n.endswith(":linear")] == ["eager:linear"]


def test_engines_take_turns_in_eager_s_order_of_forms() -> None:
    world = World(table(eager_conv=0.5, eager_linear=0.8))
    world.wholes(FIVE[:3])
    assert world.built[3:] == [
        *("compile+freeze:conv", "compile:conv", "compile+freeze:linear", "compile:linear"),
        *("compile+freeze:original", "compile:original"),
    ]


@pytest.mark.parametrize("noisy", [False, True])
def test_a_machine_that_was_never_quiet_is_told(noisy: bool) -> None:
    world = World(table())
    world.wholes(["eager"])
    world.contest.clock = clock(world.time, *[noisy] * 200)
    world.contest.final_comparison(1.0)
    assert world.contest.final_always_disturbed is noisy
    assert (world.contest.disturbed_rounds > 0) is noisy


def test_a_baseline_that_cannot_be_run_ends_it() -> None:
    with pytest.raises(BadInput, match="outputs in eager mode are not reproducible: off by 7"):
        World(table(eager_original="off by 7")).wholes()


def test_the_budget_is_kept_and_what_was_not_tried_is_said() -> None:
    """Everything takes no time but building: 10 s each, 80 of 100 seconds of which may be used."""
    world = World(lambda c: 1e-9, build=10.0, budget=100.0)
    world.wholes()
    assert world.time.seconds <= 100.0
    assert 5 <= len(world.built) <= 8
    skipped = {n for n, t in world.contest.trials.items() if t.refused == selection.BUDGET_SPENT}
    assert skipped == set(world.contest.trials) - set(world.built)


def test_work_that_would_not_end_in_time_is_not_begun() -> None:
    world = World(lambda c: 1e-9, budget=100.0)
    world.budget.record("compile", 79.0)
    world.budget.record("compile+freeze", 30.0)
    world.wholes(FIVE[:3])
    assert "compile:original" not in world.built
    assert "compile+freeze:original" in world.built


def test_hopeless_programs_are_let_go_of_and_the_baseline_is_not() -> None:
    world = World(lambda c: {"eager": 10.0, "openvino": 1.0, "onnxruntime": 1.2}.get(c.engine, 5.0))
    world.wholes()
    kept = {n for n, t in world.contest.trials.items() if t.run is not None}
    assert BASELINE in kept
    assert len(kept) <= selection.FINALISTS + 3
    assert world.winner().startswith("openvino")


def layer_times(seconds: dict[str, dict[str, float]]) -> tuple[Any, list[LayerTimes]]:
    """The groups of the token network, with times made up."""
    target = target_of(networks.tokens(), torch.randn(1, 4, 8))
    groups = group_layers(target.network, CallSignature.of(target.network, torch.randn(1, 4, 8)))
    found = [
        LayerTimes(g, {f: Timing(1e3 * s, 0.0, 9) for f, s in seconds.get(g.pattern, {}).items()}, ())
        for g in groups
    ]
    return target, found


class Shop:
    def __init__(self, target: Any) -> None:
        self.target = target


def test_groups_are_flipped_together_and_the_whole_s_time_decides() -> None:
    """fc1 is faster as a convolution by itself, and slower in the network: the search must see that."""
    target, times = layer_times(
        {
            "*.fc1": {"linear": 1.0, "conv": 0.5},
            "*.fc2": {"linear": 1.0, "conv": 0.9},
            "*": {"linear": 1.0, "conv": 2.0},
        }
    )

    def whole(candidate: Candidate) -> float:
        forms = candidate.assignment
        if candidate.form == "conv":
            return 1.2
        return 1.0 + 0.1 * ("0.fc1" in forms) - 0.2 * ("2.fc2" in forms) + 0.05 * ("3" in forms)

    world = World(whole)
    world.wholes("eager")
    selection.search_layers(world.contest, Shop(target), times, engines_named("eager"))  # type: ignore[arg-type]
    best = world.contest.final_comparison(1.0)[0]
    assert best.candidate.assignment == dict.fromkeys(["0.fc2", "1.fc2", "2.fc2"], "conv")
    flips = [t.candidate.layers for t in world.contest.trials.values() if t.candidate.form == "layers"]
    assert len(flips) == len(set(flips))
    for flip in flips:  # never one of three alike layers by itself
        paths = {path for path, _ in flip}
        for name in ("fc1", "fc2"):
            assert len({f"{i}.{name}" in paths for i in range(3)}) == 1


def test_the_search_ends_with_the_budget() -> None:
    target, times = layer_times({})
    world = World(lambda c: 1e-9, build=5.0, budget=60.0)
    world.wholes("eager")
    selection.search_layers(world.contest, Shop(target), times, engines_named("eager"))  # type: ignore[arg-type]
    assert world.time.seconds <= 60.0
    assert any(name.startswith("eager:layers") for name in world.built)


def test_a_form_that_does_more_than_turn_layers_is_not_searched_from() -> None:
    target, times = layer_times({})
    world = World(lambda c: 0.5 if c.form == "rewritten" else 1.0)
    world.wholes(["eager"], (*FORMS, "rewritten"))
    selection.search_layers(world.contest, Shop(target), times, engines_named("eager"))  # type: ignore[arg-type]
    assert world.winner() == "eager:rewritten"
    assert not any(name.startswith("eager:layers") for name in world.built)


def test_options_leave_out_what_is_hopeless_by_itself() -> None:
    _, times = layer_times({"*.fc1": {"linear": 1.0, "conv": 3.5, "bmm": 1.1, "conv-nchw": 2.9}})
    options = selection.form_options(times)
    names = {times[i].group.pattern: forms for i, forms in options.items()}
    assert names["*.fc1"] == ["linear", "bmm", "conv-nchw"]
    assert names["*.fc2"] == ["linear", "conv", "bmm", "conv-nchw"]


def test_starting_states() -> None:
    _, times = layer_times({})
    options = selection.form_options(times)
    assert set(selection.initial_state("conv", times, options).values()) == {"conv"}
    assert selection.assignment_of(selection.initial_state("original", times, options), times) == ()
    assert (
        dict(selection.assignment_of(selection.initial_state("conv", times, options), times))["2.fc1"]
        == "conv"
    )


def test_every_engine_has_its_first_turn_before_eager_s_other_forms() -> None:
    """However slow eager mode is, it does not keep the others from being tried."""
    world = World(table(eager_conv=0.5))
    world.wholes(FIVE, (*FORMS, "native-conv", "original+channels_last"))
    assert world.built[:3] == ["eager:original", "eager:conv", "eager:linear"]
    firsts = [world.built.index(f"{e}:conv") for e in ("compile", "compile+freeze")]
    firsts += [world.built.index(f"{e}:original") for e in ("onnxruntime", "openvino")]
    assert sorted(firsts) == [3, 4, 5, 6]
    assert world.built.index("eager:native-conv") > 6
