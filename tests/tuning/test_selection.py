"""Selection among candidates with given times, on a simulated clock."""

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
from onebyone.tuning.engines import EngineSettings, engines_named
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
    """A contest in which `seconds` gives the time of a candidate, or the reason why it is refused.

    Building a candidate takes `build` seconds.
    """

    def __init__(
        self, seconds: Callable[[Candidate], float | str], build: float = 1.0, budget: float = 1e4
    ) -> None:
        self.time, self.seconds, self.build = Time(), seconds, build
        self.built: list[str] = []
        self.progress: list[tuple[int, int]] = []
        self.budget = Budget(budget, now=self.time.now)
        self.contest = selection.Contest(
            self.attempt, clock(self.time), self.budget, lambda done, of: self.progress.append((done, of))
        )

    def attempt(self, candidate: Candidate, name: str | None) -> Trial:
        self.time.seconds += self.build
        self.built.append(name or candidate.name)
        trial = Trial(candidate, name or candidate.name, rounding_ratio=1.0)
        seconds = self.seconds(candidate)
        if isinstance(seconds, str):
            return replace(trial, refused=seconds)
        return replace(trial, run=self.time.spend(trial.name, seconds), model=object())  # type: ignore[arg-type]

    def try_forms(self, engines: Any = FIVE, forms: tuple[str, ...] = FORMS) -> None:
        selection.try_network_forms(self.contest, engines_named(engines), forms, (None,))

    def winner(self) -> str:
        return self.contest.final_comparison(1.0)[0].name


def table(**seconds: float | str) -> Callable[[Candidate], float | str]:
    times = {k.replace("_", ":").replace("freeze", "compile+freeze"): v for k, v in seconds.items()}
    return lambda c: times.get(c.name, 1.0)


def test_the_fastest_candidate_wins() -> None:
    world = World(table(openvino_conv=0.4, compile_linear=0.5))
    world.try_forms()
    assert world.winner() == "openvino:conv"
    share = world.contest.trials["openvino:conv"].relative_time
    assert share == pytest.approx(0.4)


def test_refused_candidates_are_never_chosen() -> None:
    world = World(table(onnxruntime_original="not equivalent: off by 7", compile_conv=0.5))
    world.try_forms()
    assert world.winner() == "compile:conv"
    assert world.contest.trials["onnxruntime:original"].timing is None
    assert world.contest.trials["onnxruntime:original"].refused == "not equivalent: off by 7"


def test_the_original_wins_if_every_candidate_is_slower() -> None:
    world = World(lambda c: 1.0 if c.name == BASELINE else 1.5)
    world.try_forms("onnxruntime")
    assert world.winner() == BASELINE
    assert world.built[0] == BASELINE  # although eager mode was not selected
    assert "eager:conv" not in world.built


def test_progress_is_reported_for_every_candidate() -> None:
    world = World(table())
    world.try_forms()
    names = {f"{e}:{f}" for e in FIVE for f in FORMS}
    assert set(world.contest.trials) == names
    assert world.progress[-1] == (15, 15)
    assert [done for done, _ in world.progress] == list(range(1, 16))


def test_forms_that_eager_mode_refuses_are_not_tried_in_other_engines() -> None:
    world = World(lambda c: "it has no layer" if c.form == "linear" else 1.0)
    world.try_forms()
    assert [n for n in world.built if n.endswith(":linear")] == ["eager:linear"]


def test_engines_take_turns_in_the_order_of_eager_times() -> None:
    world = World(table(eager_conv=0.5, eager_linear=0.8))
    world.try_forms(FIVE[:3])
    assert world.built[3:] == [
        *("compile+freeze:conv", "compile:conv", "compile+freeze:linear", "compile:linear"),
        *("compile+freeze:original", "compile:original"),
    ]


@pytest.mark.parametrize("noisy", [False, True])
def test_disturbed_final_rounds_are_reported(noisy: bool) -> None:
    world = World(table())
    world.try_forms(["eager"])
    world.contest.clock = clock(world.time, *[noisy] * 200)
    world.contest.final_comparison(1.0)
    assert world.contest.final_always_disturbed is noisy
    assert (world.contest.disturbed_rounds > 0) is noisy


def test_an_original_that_cannot_run_is_an_error() -> None:
    with pytest.raises(BadInput, match="outputs in eager mode are not reproducible: off by 7"):
        World(table(eager_original="off by 7")).try_forms()


def test_candidates_beyond_the_budget_are_skipped_with_the_reason() -> None:
    """Building takes 10 s each and running takes no time; 80 of 100 seconds may be used."""
    world = World(lambda c: 1e-9, build=10.0, budget=100.0)
    world.try_forms()
    assert world.time.seconds <= 100.0
    assert 5 <= len(world.built) <= 8
    skipped = {n for n, t in world.contest.trials.items() if t.refused == selection.BUDGET_SPENT}
    assert skipped == set(world.contest.trials) - set(world.built)


def test_candidates_that_would_exceed_the_budget_are_not_built() -> None:
    world = World(lambda c: 1e-9, budget=100.0)
    world.budget.record("compile", 79.0)
    world.budget.record("compile+freeze", 30.0)
    world.try_forms(FIVE[:3])
    assert "compile:original" not in world.built
    assert "compile+freeze:original" in world.built


def test_slow_models_are_released_but_not_the_original() -> None:
    world = World(lambda c: {"eager": 10.0, "openvino": 1.0, "onnxruntime": 1.2}.get(c.engine, 5.0))
    world.try_forms()
    kept = {n for n, t in world.contest.trials.items() if t.run is not None}
    assert BASELINE in kept
    assert len(kept) <= selection.FINALISTS + 3
    assert world.winner().startswith("openvino")


def layer_times(seconds: dict[str, dict[str, float]]) -> tuple[Any, list[LayerTimes]]:
    """Return the layer groups of the token network with the given times in seconds."""
    target = target_of(networks.tokens(), torch.randn(1, 4, 8))
    groups = group_layers(target.network, CallSignature.of(target.network, torch.randn(1, 4, 8)))
    times = [
        LayerTimes(g, {f: Timing(1e3 * s, 0.0, 9) for f, s in seconds.get(g.pattern, {}).items()}, ())
        for g in groups
    ]
    return target, times


class Builder:
    """Stands in for a CandidateBuilder, of which the search reads the target only."""

    def __init__(self, target: Any) -> None:
        self.target = target


def test_layer_groups_change_together_and_the_time_of_the_network_decides() -> None:
    """Alone, fc1 is faster as a convolution; in the network it is slower, which the search must detect."""
    target, times = layer_times(
        {
            "*.fc1": {"linear": 1.0, "conv": 0.5},
            "*.fc2": {"linear": 1.0, "conv": 0.9},
            "*": {"linear": 1.0, "conv": 2.0},
        }
    )

    def network_time(candidate: Candidate) -> float:
        forms = candidate.assignment
        if candidate.form == "conv":
            return 1.2
        return 1.0 + 0.1 * ("0.fc1" in forms) - 0.2 * ("2.fc2" in forms) + 0.05 * ("3" in forms)

    world = World(network_time)
    world.try_forms("eager")
    selection.search_layers(world.contest, Builder(target), times, engines_named("eager"))  # type: ignore[arg-type]
    best = world.contest.final_comparison(1.0)[0]
    assert best.candidate.assignment == dict.fromkeys(["0.fc2", "1.fc2", "2.fc2"], "conv")
    assignments = [t.candidate.layers for t in world.contest.trials.values() if t.candidate.form == "layers"]
    assert len(assignments) == len(set(assignments))
    for assignment in assignments:  # never one of three identical layers alone
        paths = {path for path, _ in assignment}
        for name in ("fc1", "fc2"):
            assert len({f"{i}.{name}" in paths for i in range(3)}) == 1


def test_the_search_ends_with_the_budget() -> None:
    target, times = layer_times({})
    world = World(lambda c: 1e-9, build=5.0, budget=60.0)
    world.try_forms("eager")
    selection.search_layers(world.contest, Builder(target), times, engines_named("eager"))  # type: ignore[arg-type]
    assert world.time.seconds <= 60.0
    assert any(name.startswith("eager:layers") for name in world.built)


def test_the_search_does_not_start_from_forms_that_change_more_than_layers() -> None:
    target, times = layer_times({})
    world = World(lambda c: 0.5 if c.form == "rewritten" else 1.0)
    world.try_forms(["eager"], (*FORMS, "rewritten"))
    selection.search_layers(world.contest, Builder(target), times, engines_named("eager"))  # type: ignore[arg-type]
    assert world.winner() == "eager:rewritten"
    assert not any(name.startswith("eager:layers") for name in world.built)


def test_forms_more_than_three_times_as_slow_are_no_options() -> None:
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


def test_every_engine_has_its_first_turn_before_the_other_forms_of_eager_mode() -> None:
    """A slow eager mode does not prevent the others from being tried."""
    world = World(table(eager_conv=0.5))
    world.try_forms(FIVE, (*FORMS, "native-conv", "original+channels_last"))
    assert world.built[:3] == ["eager:original", "eager:conv", "eager:linear"]
    firsts = [world.built.index(f"{e}:conv") for e in ("compile", "compile+freeze")]
    firsts += [world.built.index(f"{e}:original") for e in ("onnxruntime", "openvino")]
    assert sorted(firsts) == [3, 4, 5, 6]
    assert world.built.index("eager:native-conv") > 6


def test_the_four_fastest_are_compared_once_more_and_only_these_times_count() -> None:
    seconds = {"a": 0.8, "b": 0.85, "c": 0.9, "d": 0.95, "e": 0.99, "original": 1.0}
    world = World(lambda c: 1.0)
    world.contest.attempt = lambda candidate, name: Trial(  # times are read when a candidate runs
        candidate,
        candidate.name,
        run=lambda: world.time.spend(candidate.name, seconds[candidate.form])(),
        model=object(),  # type: ignore[arg-type]
    )
    for form in reversed(seconds):
        world.contest.enter(Candidate("eager", form))
    assert [t.candidate.form for t in world.contest.viable()] == ["a", "b", "c", "d", "e", "original"]
    seconds.update(a=3.0, d=0.25, e=0.1, original=2.0)
    ranked = world.contest.final_comparison(1.0)
    assert [t.candidate.form for t in ranked] == ["d", "b", "c", "original", "a"]
    assert ranked[0].relative_time == pytest.approx(0.125)
    assert ranked[0].relative_time_range == pytest.approx((0.125, 0.125))
    fifth = world.contest.trials["eager:e"]
    assert fifth.relative_time == pytest.approx(0.99)
    assert fifth.timing is not None
    assert fifth.timing.median_ms == pytest.approx(1980)  # its relative time, times the original's time now


def test_times_of_different_runs_are_relative_to_the_original_in_the_same_run() -> None:
    """The machine becomes slower with each candidate; relative to the original, their times do not change."""
    slowness = {"value": 1.0}
    times = {"original": 1.0, "a": 0.5, "b": 2.0}
    world = World(lambda c: 1.0)

    def attempt(candidate: Candidate, name: str | None) -> Trial:
        slowness["value"] *= 2

        def run() -> None:
            world.time.seconds += slowness["value"] * times[candidate.form]

        return Trial(candidate, candidate.name, run=run, model=object())  # type: ignore[arg-type]

    world.contest.attempt = attempt
    trials = [world.contest.enter(Candidate("eager", form)) for form in times]
    assert [t.relative_time for t in trials] == pytest.approx([1.0, 0.5, 2.0])
    assert [t.timing.median_ms for t in trials if t.timing] == pytest.approx([2000, 1000, 4000])


def test_rescaled_timings_keep_their_relative_spread() -> None:
    assert selection._rescaled(Timing(10.0, 2.0, 7), 5.0) == Timing(5.0, 1.0, 7)
    assert selection._rescaled(Timing(0.0, 0.0, 7), 5.0) == Timing(5.0, 0.0, 7)


def test_the_winograd_form_has_its_layers_and_no_shorter_dtype() -> None:
    world = World(table())
    layers = (("0", "winograd"), ("1", "winograd"))
    forms = ("original", "winograd")
    selection.try_network_forms(
        world.contest, engines_named("eager"), forms, (None, "bfloat16"), {"winograd": layers}
    )
    candidates = [t.candidate for t in world.contest.trials.values()]
    assert [(c.form, c.dtype, c.layers) for c in candidates] == [
        ("original", None, ()),
        ("original", "bfloat16", ()),
        ("winograd", None, layers),
    ]


def test_engines_that_cannot_be_used_are_skipped_with_the_reason() -> None:
    world = World(table())
    settings = EngineSettings(torch.device("cpu"), 1, dynamic_batch=True)
    engines = engines_named(["eager", "onednn-graph"])
    available = selection.available_engines(world.contest, engines, FORMS, settings)
    assert [e.name for e in available] == ["eager"]
    reasons = {name: trial.refused for name, trial in world.contest.trials.items()}
    reason = "a trace is valid only for the shapes that it was made on"
    assert reasons == {"onednn-graph:original": reason, "onednn-graph:conv": reason}


def test_layers_that_are_faster_in_a_form() -> None:
    _, times = layer_times(
        {
            "*.fc1": {"linear": 1.0, "conv": 0.9},
            "*.fc2": {"linear": 1.0, "conv": 1.1},
            "*": {"linear": 1.0, "conv": 0.5},
        }
    )
    times = [replace(t, ranking=("conv",)) for t in times]
    times[2] = replace(times[2], ranking=())  # the form does not exist for the last layer
    assert selection.layers_faster_in("conv", times) == tuple((f"{i}.fc1", "conv") for i in range(3))


@pytest.mark.parametrize(
    ("timing", "noise"),
    [
        (Timing(10.0, 0.0, 9), 0.01),
        (Timing(10.0, 0.4, 9), 0.01),
        (Timing(10.0, 2.0, 9), 0.04),
        (None, 0.01),
    ],
)
def test_the_search_ignores_gains_within_the_noise(timing: Timing | None, noise: float) -> None:
    trial = Trial(Candidate("eager", "original"), BASELINE, timing=timing)
    assert selection._noise(trial) == pytest.approx(noise)


def test_the_fastest_four_are_kept_however_slow() -> None:
    world = World(lambda c: {"original": 1.0, "conv": 5.0, "linear": 9.0}[c.form])
    world.try_forms(["eager"])
    assert all(trial.run is not None for trial in world.contest.trials.values())


def search_from(fastest: Candidate, forms: tuple[str, ...], dtypes: Any = (None,)) -> World:
    """Search after `fastest` was found to be twice as fast as every other network form."""
    target, times = layer_times({})
    world = World(lambda c: 0.5 if c == fastest else 1.0)
    selection.try_network_forms(world.contest, engines_named("eager"), forms, dtypes)
    selection.search_layers(world.contest, Builder(target), times, engines_named("eager"))  # type: ignore[arg-type]
    return world


def assigned(world: World) -> list[Candidate]:
    return [t.candidate for t in world.contest.trials.values() if t.candidate.layers]


def test_the_start_is_measured_if_it_is_more_than_an_assignment() -> None:
    """A rewritten graph may differ from the same forms of single layers."""
    every = {f"{i}.{name}": "conv" for i in range(3) for name in ("fc1", "fc2")} | {"3": "conv"}
    graph = search_from(Candidate("eager", "graph-conv"), ("original", "conv", "graph-conv"))
    assert assigned(graph)[0].assignment == every
    drop_ins = search_from(Candidate("eager", "conv"), ("original", "conv"))
    assert every not in [c.assignment for c in assigned(drop_ins)]


@pytest.mark.parametrize("form", ["conv", "conv+channels_last"])
def test_the_search_keeps_the_memory_format_of_its_start(form: str) -> None:
    world = search_from(Candidate("eager", form), ("original", "conv", "conv+channels_last"))
    assert {c.form for c in assigned(world)} == {form.replace("conv", "layers")}


def test_the_search_starts_from_the_networks_own_dtype() -> None:
    world = search_from(Candidate("eager", "conv", "bfloat16"), ("original", "conv"), (None, "bfloat16"))
    assert world.contest.viable()[0].candidate.dtype == "bfloat16"
    assert all(c.dtype is None for c in assigned(world))
    one_group = {f"{i}.fc1": "conv" for i in range(3)}
    assert one_group in [
        c.assignment for c in assigned(world)
    ]  # a change of the original, not of its conv form
