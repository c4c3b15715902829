"""Timing on a simulated clock."""

from __future__ import annotations

from statistics import quantiles

import pytest

from onebyone.tuning.clock import Clock, Timing
from tests.tuning.simulated_clock import Noise, Time, clock


def test_medians_and_spread_are_those_of_the_samples() -> None:
    seconds = [0.004, 0.001, 0.003, 0.010, 0.002]
    timing = Timing.of(seconds)
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    assert timing == Timing(3.0, pytest.approx(1e3 * (high - low)), 5)
    assert Timing.of([0.5]) == Timing(500.0, 0.0, 1)


def test_every_candidate_has_one_turn_per_round_in_a_new_order() -> None:
    """A turn consists of two calls, the first of which is not timed."""
    time = Time()
    calls = {name: time.spend(name, 1.0) for name in "abc"}
    times = clock(time).interleave(calls, 1e6, rounds=7, least=7)
    rounds = [time.log[i : i + 6] for i in range(len(time.log) - 42, len(time.log), 6)]
    assert all(r[::2] == r[1::2] for r in rounds)
    assert all(sorted(r[::2]) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert all(times[name] == Timing(1000.0, 0.0, 7) for name in "abc")


def test_the_order_follows_the_seed() -> None:
    def order(seed: int) -> list[str]:
        time = Time()
        clock(time, seed=seed).interleave({n: time.spend(n, 1.0) for n in "abcdef"}, 1e6, rounds=3)
        return time.log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_disturbed_rounds_are_repeated_and_not_used() -> None:
    time = Time()
    slow = iter([1.0] * 4 + [50.0] * 4 + [1.0] * 100)  # four warm-up calls, then two disturbed rounds

    def call() -> None:
        time.seconds += next(slow)

    times = clock(time, True, True).interleave({"a": call}, 1e6, rounds=5, least=5)
    assert times["a"] == Timing(1000.0, 0.0, 5)
    assert (times.disturbed, times.kept_disturbed) == (2, 0)


def test_if_every_round_is_disturbed_they_are_used_and_counted() -> None:
    time = Time()
    times = clock(time, *[True] * 100).interleave({"a": time.spend("a", 1.0)}, 1e6, rounds=4, least=3)
    assert times["a"].runs == 3
    assert (times.disturbed, times.kept_disturbed) == (5, 3)


def test_disturbed_rounds_do_not_prolong_the_measurement() -> None:
    time = Time()
    times = clock(time, *[True] * 100).interleave({"a": time.spend("a", 10.0)}, 1.0, rounds=30, least=3)
    assert (times["a"].runs, times.disturbed, times.kept_disturbed) == (3, 3, 3)


def test_of_disturbed_rounds_the_fastest_are_used() -> None:
    time = Time()
    rounds = [2.0, 1.0, 9.0, 1.5, 7.0]
    seconds_of_calls = iter([1.0] * 4 + [seconds for r in rounds for seconds in (1.0, r)])

    def call() -> None:
        time.seconds += next(seconds_of_calls)

    times = clock(time, *[True] * 5).interleave({"a": call}, 1e6, rounds=4, least=3)
    assert sorted(times.samples["a"]) == [1.0, 1.5, 2.0]
    assert times.kept_disturbed == 3


def test_it_ends_in_time_but_not_before_the_least_rounds() -> None:
    time = Time()
    times = clock(time).interleave({"a": time.spend("a", 10.0)}, 1.0, rounds=30, least=3)
    assert times["a"].runs == 3
    assert time.seconds <= 10.0 * (4 + 2 * 3)


def test_it_ends_early_once_the_median_has_settled() -> None:
    time = Time()
    times = clock(time).interleave({"a": time.spend("a", 1.0)}, 1e6, rounds=30)
    assert times["a"].runs == 8


def test_the_first_call_of_a_turn_is_not_timed() -> None:
    time = Time()
    previous = [""]

    def candidate(name: str) -> None:
        """Take longer if the other candidate ran before."""
        time.seconds += 1.0 if previous[0] == name else 5.0
        previous[0] = name

    calls = {"a": lambda: candidate("a"), "b": lambda: candidate("b")}
    times = clock(time).interleave(calls, 1e6, rounds=6)
    assert times["a"] == times["b"] == Timing(1000.0, 0.0, 6)


def test_short_calls_are_repeated_and_the_first_call_is_ignored() -> None:
    time = Time()
    seconds_of_calls = iter([9.0] + [1e-5] * 10_000)

    def call() -> None:
        time.seconds += next(seconds_of_calls)

    repeats, seconds = clock(time).warm_up(call, 60.0)
    assert repeats == 50
    assert seconds == pytest.approx(1e-5)


def test_warming_up_ends_when_samples_agree() -> None:
    time = Time()
    seconds_of_calls = iter([8.0, 4.0, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0])
    done: list[float] = []

    def call() -> None:
        done.append(next(seconds_of_calls))
        time.seconds += done[-1]

    assert clock(time).warm_up(call, 1e6)[1] == 1.0
    assert done[-3:] == [1.0, 1.0, 1.0]


def test_ratios_are_computed_round_by_round() -> None:
    """A drift that slows down both candidates changes the medians, but not their ratio."""
    time = Time()
    slowness = {"value": 1.0}

    class Drift(Noise):
        def begin(self) -> None:
            slowness["value"] *= 1.5

    def call(seconds: float) -> None:
        time.seconds += seconds * slowness["value"]

    calls = {"a": lambda: call(1.0), "b": lambda: call(2.0)}
    times = Clock(now=time.now, monitor=Drift()).interleave(calls, 1e9, rounds=5, least=5)
    assert times.ratio("b", "a") == pytest.approx(2.0)
    assert times["a"].spread_ms > 0
