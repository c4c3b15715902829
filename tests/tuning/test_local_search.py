"""Local search over the forms of layer groups, on tables of times in which forms interact."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest

from onebyone.tuning.local_search import State, search


class Table:
    """The time of a network in every state: 10 + the times of single forms + those of pairs; `measured` is the log."""

    def __init__(
        self,
        single: Mapping[int, Mapping[str, float]],
        pairs: Mapping[tuple[int, str, int, str], float] | None = None,
        most: int = 10**6,
    ) -> None:
        self.single, self.pairs, self.most = single, pairs or {}, most
        self.measured: list[dict[int, str]] = []

    def time(self, state: State) -> float:
        extra = sum(v for (a, f, b, g), v in self.pairs.items() if state[a] == f and state[b] == g)
        return 10.0 + sum(self.single[i][form] for i, form in state.items()) + extra

    def measure(self, state: State) -> float | None:
        if len(self.measured) >= self.most:
            return None
        self.measured.append(dict(state))
        return self.time(state)

    def gain(self, group: int, form: str) -> float:
        return self.single[group]["linear"] - self.single[group][form]

    @property
    def options(self) -> dict[int, list[str]]:
        return {i: list(forms) for i, forms in self.single.items()}

    @property
    def optimum(self) -> dict[int, str]:
        states = [
            dict(zip(self.single, forms, strict=True)) for forms in itertools.product(*self.options.values())
        ]
        return min(states, key=self.time)


def start(table: Table) -> dict[int, str]:
    return dict.fromkeys(table.single, "linear")


def test_without_interactions_the_predicted_winners_are_measured_first() -> None:
    table = Table({0: {"linear": 2, "conv": 1}, 1: {"linear": 1, "conv": 3}, 2: {"linear": 5, "bmm": 2}})
    found = search(start(table), table.options, table.gain, table.measure)
    assert found.best == table.optimum == {0: "conv", 1: "linear", 2: "bmm"}
    assert table.measured[1] == found.best
    assert found.time == table.time(found.best)


def test_winners_that_slow_each_other_down_are_detected() -> None:
    """Alone, each layer is faster as a convolution; next to each other, they need a change of layout."""
    table = Table(
        {0: {"linear": 2, "conv": 1}, 1: {"linear": 2, "conv": 1.5}},
        {(0, "conv", 1, "conv"): 3.0},
    )
    found = search(start(table), table.options, table.gain, table.measure)
    assert found.best == table.optimum == {0: "conv", 1: "linear"}


def test_pairs_that_help_only_together_are_found() -> None:
    table = Table(
        {i: {"linear": 1, "conv": 1.5} for i in range(4)},
        {(1, "conv", 2, "conv"): -4.0},
    )
    found = search(start(table), table.options, table.gain, table.measure)
    assert found.best == table.optimum


@pytest.mark.parametrize("seed", range(25))
def test_random_tables_with_neighbours_that_interact(seed: int) -> None:
    """Descent over one and two groups at once: never worse than a local optimum of both; here always the optimum."""
    draw = random.Random(seed)
    groups = range(4)
    own = {i: {f: draw.uniform(1, 3) for f in ("linear", "conv", "bmm")} for i in groups}
    forms = ("linear", "conv", "bmm")
    together = {(i, f, i + 1, g): draw.uniform(-0.4, 0.4) for i in range(3) for f in forms for g in forms}
    table = Table(own, together)
    found = search(start(table), table.options, table.gain, table.measure, margin=0.0)
    assert found.time <= table.time(start(table))
    for a, b in itertools.combinations(groups, 2):
        for f, g in itertools.product(forms, repeat=2):
            assert found.time <= table.time({**found.best, a: f, b: g}) + 1e-12
    assert found.time == pytest.approx(table.time(table.optimum), rel=0.02)


def test_no_state_is_measured_twice() -> None:
    table = Table({i: {"linear": 1, "conv": 1 + 0.1 * i} for i in range(4)})
    search(start(table), table.options, table.gain, table.measure)
    assert len({tuple(sorted(s.items())) for s in table.measured}) == len(table.measured)


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_the_search_ends_when_no_more_measurements_are_allowed(most: int) -> None:
    table = Table({i: {"linear": 2, "conv": 1} for i in range(5)}, most=most)
    found = search(start(table), table.options, table.gain, table.measure)
    assert len(table.measured) <= most
    assert len(found.measured) == len(table.measured)
    if most == 0:
        assert found.best == start(table)


def test_a_known_start_is_not_measured_and_small_gains_are_noise() -> None:
    table = Table({0: {"linear": 2.0, "conv": 1.95}})
    found = search(start(table), table.options, table.gain, table.measure, time=12.0, margin=0.05)
    assert found.best == start(table)
    assert start(table) not in table.measured


def test_states_that_cannot_be_built_are_never_the_result() -> None:
    table = Table({0: {"linear": 2.0, "conv": float("inf")}})
    assert search(start(table), table.options, lambda g, f: 9.0, table.measure).best == start(table)


def test_larger_predicted_savings_are_tried_first() -> None:
    table = Table({0: {"linear": 2, "conv": 3}, 1: {"linear": 2, "conv": 2.5}, 2: {"linear": 2, "conv": 2.1}})
    search(start(table), table.options, table.gain, table.measure)
    flipped = [[i for i, form in s.items() if form == "conv"] for s in table.measured]
    assert flipped == [[], [2], [1], [0], [1, 2], [0, 1], [0, 2]]


@pytest.mark.parametrize(("distance", "found"), [(3, True), (4, False)])
def test_pairs_of_distant_groups_are_not_tried(distance: int, found: bool) -> None:
    table = Table({i: {"linear": 1, "conv": 1.5} for i in range(5)}, {(0, "conv", distance, "conv"): -4.0})
    result = search(start(table), table.options, table.gain, table.measure)
    assert (result.best == table.optimum) is found


def test_a_state_must_be_faster_by_more_than_the_margin() -> None:
    times = {"linear": 10.0, "conv": 9.0}
    for margin, best in ((0.09, "conv"), (0.1, "linear"), (0.11, "linear")):
        result = search(
            {0: "linear"}, {0: list(times)}, lambda g, f: 0.0, lambda s: times[s[0]], margin=margin
        )
        assert result.best == {0: best}


def test_the_result_lists_what_was_measured() -> None:
    table = Table({0: {"linear": 2.0, "conv": 1.0}})
    result = search(start(table), table.options, table.gain, table.measure, time=12.0)
    assert result.measured == (({0: "linear"}, 12.0), ({0: "conv"}, 11.0))
