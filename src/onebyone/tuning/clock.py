"""Reliable timing of candidates: interleaved in random order, medians over rounds, disturbed rounds repeated.

In each round every candidate has one turn, in a new random order, so that a slowdown of the machine affects all
candidates alike. A turn begins with one call that is not timed: threads of the previous candidate may still spin, and
its data fill the caches; what is measured is the time of consecutive calls.

A round during which other processes used the processor (see `contention`) is discarded and repeated, at most as often
as there are rounds in all. After that, disturbed rounds are used too, and the result says how many. The reported
figure is the median over rounds, the spread is the interquartile range.

Source: Georges, Buytaert and Eeckhout, "Statistically Rigorous Java Performance Evaluation", 2007, §3-4 (steady
state, interleaving, spread beside the average).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Protocol

TimedCall = Callable[[], object]
MIN_SAMPLE_SECONDS = 5e-4
"""Shorter calls are repeated until a sample lasts about this long, so that reading the clock costs nothing."""
_MAX_REPEATS = 200
_STEADY = 0.05  # warming up ends when the last three samples agree within this share
_MAX_WARM_UPS = 12
_MIN_SETTLED_ROUNDS = 8
_SETTLED = 0.004  # a median has settled when its standard error is below this share of it


@dataclass(frozen=True)
class Timing:
    """The time of one candidate: the median and the interquartile range of `runs` samples, in milliseconds.

    >>> Timing.of([0.002, 0.001, 0.003])
    Timing(median_ms=2.0, spread_ms=1.0, runs=3)
    """

    median_ms: float
    spread_ms: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Make a timing from one or more samples in seconds."""
        low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (0.0, 0.0, 0.0)
        return cls(1e3 * median(seconds), 1e3 * (high - low), len(seconds))


@dataclass(frozen=True)
class InterleavedTimings:
    """The timings of candidates that were measured in the same rounds.

    `samples` are seconds by candidate, one for each round used. `disturbed` counts the disturbed rounds, and
    `kept_disturbed` those of them that are used because too few others were left.
    """

    timings: Mapping[str, Timing]
    samples: Mapping[str, tuple[float, ...]]
    disturbed: int = 0
    kept_disturbed: int = 0

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def ratio(self, name: str, base: str) -> float:
        """Return the time of one candidate ÷ that of another: the median of the ratios of each round."""
        return median(self._ratios(name, base))

    def ratio_interval(self, name: str, base: str) -> tuple[float, float]:
        """Return a confidence interval of that ratio (95 % from six rounds on)."""
        return median_interval(self._ratios(name, base))

    def _ratios(self, name: str, base: str) -> list[float]:
        pairs = zip(self.samples[name], self.samples[base], strict=True)
        return [a / max(b, 1e-12) for a, b in pairs]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % confidence interval of the median of the values' distribution, whatever that distribution is.

    Its ends are the k-th smallest and the k-th largest value, with the largest k for which P(fewer than k of n fair
    coins show heads) is at most 2.5 %. For fewer than six values no such k exists; then the smallest and the largest
    value are returned.

    Source: David and Nagaraja, Order Statistics, 3rd ed., 2003, §7.1.

    >>> median_interval([3.0, 1.0, 2.0]), median_interval(list(range(1, 11)))
    ((1.0, 3.0), (2, 9))
    """
    n, ordered = len(values), sorted(values)
    tail, k = 0.0, 0
    while k < n // 2 and (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    return ordered[max(k, 1) - 1], ordered[n - max(k, 1)]


class RoundMonitor(Protocol):
    """Detects whether other processes used the machine during a round."""

    def begin(self) -> None:
        """Mark the beginning of a round."""

    def disturbed(self) -> bool:
        """Mark the end of the round, and return whether it was disturbed."""


class NoContention:
    """A monitor that never reports a disturbance (for CUDA queues, and tests)."""

    def begin(self) -> None:
        """Do nothing."""

    def disturbed(self) -> bool:
        """Return False."""
        return False


@dataclass
class Clock:
    """The method of timing. Each part can be replaced; tests use a simulated clock.

    `now` returns seconds. `wait` returns when all submitted work is done (CUDA's synchronize).
    """

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[], object] = lambda: None
    monitor: RoundMonitor = field(default_factory=NoContention)
    seed: int = 0

    def sample(self, call: TimedCall, repeats: int = 1) -> float:
        """Return the seconds that one call takes: the mean of `repeats` consecutive calls."""
        self.wait()
        start = self.now()
        for _ in range(repeats):
            call()
        self.wait()
        return (self.now() - start) / repeats

    def warm_up(self, call: TimedCall, seconds: float = 2.0) -> tuple[int, float]:
        """Run a call until three consecutive samples agree, or `seconds` are over.

        Returns how often a sample should repeat the call, and the shortest sample in seconds. The first call, which
        may compile or allocate, counts towards neither.
        """
        self.sample(call)
        end, samples = self.now() + seconds, [self.sample(call)]
        repeats = min(_MAX_REPEATS, max(1, int(MIN_SAMPLE_SECONDS / max(samples[0], 1e-9))))
        while len(samples) < _MAX_WARM_UPS and self.now() < end:
            samples.append(self.sample(call, repeats))
            last = samples[-3:]
            if len(last) == 3 and max(last) <= (1 + _STEADY) * min(last):
                break
        return repeats, min(samples)

    def _turn(self, call: TimedCall, repeats: int) -> float:
        """Return a sample taken after one call that is not timed."""
        call()
        return self.sample(call, repeats)

    def interleave(
        self, calls: Mapping[str, TimedCall], seconds: float, *, rounds: int = 30, least: int = 3
    ) -> InterleavedTimings:
        """Measure candidates in turns for about `seconds`: between `least` and `rounds` rounds.

        It ends early when every median has settled. Disturbed rounds are used only if fewer than `least` others are
        left, and then those with the least slowdown.
        """
        shuffle = random.Random(self.seed).shuffle
        share = seconds / 4 / max(1, len(calls))
        repeats = {name: self.warm_up(call, share)[0] for name, call in calls.items()}
        undisturbed: list[dict[str, float]] = []
        disturbed: list[dict[str, float]] = []
        end = self.now() + 0.75 * seconds
        while len(undisturbed) < rounds and len(disturbed) <= rounds:
            if self.now() >= end and len(undisturbed) + len(disturbed) >= least:
                break
            names = list(calls)
            shuffle(names)
            self.monitor.begin()
            samples_of_round = {name: self._turn(calls[name], repeats[name]) for name in names}
            (disturbed if self.monitor.disturbed() else undisturbed).append(samples_of_round)
            if len(undisturbed) >= max(least, _MIN_SETTLED_ROUNDS) and all(
                _settled([r[name] for r in undisturbed]) for name in names
            ):
                break
        kept = _least_disturbed(disturbed)[: max(0, least - len(undisturbed))]
        samples = {name: tuple(r[name] for r in undisturbed + kept) for name in calls}
        timings = {name: Timing.of(list(values)) for name, values in samples.items()}
        return InterleavedTimings(timings, samples, len(disturbed), len(kept))


def _least_disturbed(rounds: list[dict[str, float]]) -> list[dict[str, float]]:
    """Sort rounds by their slowdown: the sum of each candidate's time ÷ its best time."""
    best = {name: max(min(r[name] for r in rounds), 1e-12) for name in (rounds[0] if rounds else ())}
    return sorted(rounds, key=lambda r: sum(r[name] / best[name] for name in best))


def _settled(seconds: list[float]) -> bool:
    """Return whether more rounds would hardly move the median, judging by its standard error from the quartiles."""
    timing = Timing.of(seconds)
    return timing.spread_ms / math.sqrt(timing.runs) <= _SETTLED * timing.median_ms
