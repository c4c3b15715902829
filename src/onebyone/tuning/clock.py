"""Timing that can be trusted: candidates interleaved in random order, medians, and rounds measured again.

A round gives every candidate a turn, in a new random order, so that a machine that slows down slows all of them; a
turn begins with a call that does not count, and so measures what calls in a row take.
A round in which something else had the processor (see `disturbance`) is thrown away and run again, as often as
there are rounds in all; after that the disturbed ones count too, and the answer says how many they were. The
figure is the median over rounds, the spread the distance between the quartiles.

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

Call = Callable[[], object]
SHORTEST = 5e-4
"""Seconds: a sample repeats a shorter call until it lasts about as long, so that reading the clock costs nothing."""
_REPEATS = 200
_STEADY = 0.05  # the last samples of a warm-up lie this close together
_WARM_UPS = 12
_ENOUGH, _SETTLED = (
    8,
    0.004,
)  # rounds after which a median may count as settled, and the share it may still move by


@dataclass(frozen=True)
class Timing:
    """What one candidate took: `median_ms` and `spread_ms` (between the quartiles) of `runs` samples.

    >>> Timing.of([0.002, 0.001, 0.003])
    Timing(median_ms=2.0, spread_ms=1.0, runs=3)
    """

    median_ms: float
    spread_ms: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """From samples in seconds; at least one."""
        low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (0.0, 0.0, 0.0)
        return cls(1e3 * median(seconds), 1e3 * (high - low), len(seconds))


@dataclass(frozen=True)
class Times:
    """The timings of candidates that were measured together, and how many rounds were disturbed."""

    timings: Mapping[str, Timing]
    samples: Mapping[str, tuple[float, ...]]
    disturbed: int = 0
    kept_disturbed: int = 0

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def share(self, name: str, base: str) -> float:
        """The time of one candidate ÷ that of another: the median over rounds, in each of which both ran."""
        return median(self._shares(name, base))

    def interval(self, name: str, base: str) -> tuple[float, float]:
        """Between which figures that share lies, with 95 % confidence where there are six rounds or more."""
        return median_interval(self._shares(name, base))

    def _shares(self, name: str, base: str) -> list[float]:
        pairs = zip(self.samples[name], self.samples[base], strict=True)
        return [a / max(b, 1e-12) for a, b in pairs]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median of what the values were drawn from, whatever their distribution.

    The k-th smallest and the k-th largest, with the largest k for which P(fewer than k of n fair coins show heads) is
    2.5 % at most; of fewer than six values, which no such k allows, the least and the largest.

    Source: David and Nagaraja, Order Statistics, 3rd ed., 2003, §7.1.

    >>> median_interval([3.0, 1.0, 2.0]), median_interval(list(range(1, 11)))
    ((1.0, 3.0), (2, 9))
    """
    n, ordered = len(values), sorted(values)
    tail, k = 0.0, 0
    while k < n // 2 and (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    return ordered[max(k, 1) - 1], ordered[n - max(k, 1)]


class Watch(Protocol):
    """Tells whether something else had the machine during a round."""

    def begin(self) -> None:
        """A round begins."""

    def disturbed(self) -> bool:
        """Whether the round that `begin` began was disturbed; it ends here."""


class Quiet:
    """A machine that nothing disturbs (for CUDA queues, and tests)."""

    def begin(self) -> None:
        """Nothing to note."""

    def disturbed(self) -> bool:
        """Never."""
        return False


@dataclass
class Clock:
    """How time is measured. All of it can be replaced: tests give a clock of their own.

    `now` gives seconds; `wait` returns once everything asked for is done (CUDA's synchronize).
    """

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[], object] = lambda: None
    watch: Watch = field(default_factory=Quiet)
    seed: int = 0

    def sample(self, call: Call, repeats: int = 1) -> float:
        """Seconds one call takes, the mean of `repeats` calls in a row."""
        self.wait()
        start = self.now()
        for _ in range(repeats):
            call()
        self.wait()
        return (self.now() - start) / repeats

    def warm(self, call: Call, seconds: float = 2.0) -> tuple[int, float]:
        """Run until three samples agree, or time is up: how often a sample should repeat the call, and what it takes.

        The first call, which may compile or allocate, does not count towards either.
        """
        self.sample(call)
        end, taken = self.now() + seconds, [self.sample(call)]
        repeats = min(_REPEATS, max(1, int(SHORTEST / max(taken[0], 1e-9))))
        while len(taken) < _WARM_UPS and self.now() < end:
            taken.append(self.sample(call, repeats))
            last = taken[-3:]
            if len(last) == 3 and max(last) <= (1 + _STEADY) * min(last):
                break
        return repeats, min(taken)

    def _turn(self, call: Call, repeats: int) -> float:
        """A sample after a call that does not count: the threads of the one before may still spin, waiting for work,
        and its data fill the caches.
        """
        call()
        return self.sample(call, repeats)

    def interleave(
        self, calls: Mapping[str, Call], seconds: float, *, rounds: int = 30, least: int = 3
    ) -> Times:
        """Measure candidates in turns for about `seconds`: between `least` and `rounds` rounds.

        It ends early once no median moves any more. Disturbed rounds count only as far as there are too few others,
        and then those that lost the least.
        """
        shuffle = random.Random(self.seed).shuffle
        share = seconds / 4 / max(1, len(calls))
        repeats = {name: self.warm(call, share)[0] for name, call in calls.items()}
        good: list[dict[str, float]] = []
        bad: list[dict[str, float]] = []
        end = self.now() + 0.75 * seconds
        while len(good) < rounds and len(bad) <= rounds:
            if self.now() >= end and len(good) + len(bad) >= least:
                break
            names = list(calls)
            shuffle(names)
            self.watch.begin()
            taken = {name: self._turn(calls[name], repeats[name]) for name in names}
            (bad if self.watch.disturbed() else good).append(taken)
            if len(good) >= max(least, _ENOUGH) and all(_settled([t[n] for t in good]) for n in names):
                break
        missing = _quietest(bad)[: max(0, least - len(good))]
        used = good + missing
        samples = {name: tuple(taken[name] for taken in used) for name in calls}
        timings = {name: Timing.of(list(seconds)) for name, seconds in samples.items()}
        return Times(timings, samples, len(bad), len(missing))


def _quietest(rounds: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rounds by what they lost: each candidate's time over its best."""
    best = {name: max(min(r[name] for r in rounds), 1e-12) for name in (rounds[0] if rounds else ())}
    return sorted(rounds, key=lambda r: sum(r[name] / best[name] for name in best))


def _settled(seconds: list[float]) -> bool:
    """Whether more rounds would hardly move the median: its standard error, from the quartiles, is small enough."""
    timing = Timing.of(seconds)
    return timing.spread_ms / math.sqrt(timing.runs) <= _SETTLED * timing.median_ms
