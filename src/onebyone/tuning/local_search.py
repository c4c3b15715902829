"""Which layers to flip: a search over groups of alike layers, on the time of the whole network. Pure.

Forms interact (a layer that leaves its output in another layout slows the next), so what is fastest by itself only
orders the moves. Descent from the best whole: first all of the predicted winners at once, then one group after the
other, then two groups close to each other together, until nothing helps or no more may be measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

_REACH = 3  # groups further apart than this hardly hand each other a layout
State = Mapping[int, str]
"""Group → form."""


@dataclass(frozen=True)
class SearchResult:
    """The best state, its time, and every state measured with its time, in order."""

    best: dict[int, str]
    time: float
    trail: tuple[tuple[dict[int, str], float], ...]


class _StopError(Exception):
    """No more may be measured."""


@dataclass
class _Descent:
    measure: Callable[[State], float | None]
    margin: float
    best: dict[int, str]
    time: float
    trail: list[tuple[dict[int, str], float]] = field(default_factory=list)

    def try_(self, state: dict[int, str]) -> bool:
        """Measure a state that was not measured before; whether it is the new best, by more than the margin."""
        if any(state == seen for seen, _ in self.trail):
            return False
        taken = self.measure(state)
        if taken is None:
            raise _StopError
        self.trail.append((state, taken))
        if taken < self.time * (1 - self.margin):
            self.best, self.time = state, taken
            return True
        return False


def search(
    start: State,
    options: Mapping[int, Sequence[str]],
    gain: Callable[[int, str], float],
    measure: Callable[[State], float | None],
    *,
    time: float | None = None,
    margin: float = 0.01,
) -> SearchResult:
    """The fastest state found from `start`.

    `options` gives each group's forms; `gain(group, form)` the time that the form is predicted to save in it over its
    own form (negative: to lose); `measure` the whole network's time in a state, infinite where it cannot be built, or
    None when no more may be measured; `time` that of `start` where it is known. A state counts as faster by `margin`,
    the share that measurements of one thing differ by.

    >>> cost = {"linear": 2.0, "conv": 1.0}
    >>> found = search({0: "linear"}, {0: ["linear", "conv"]}, lambda g, f: 0.0, lambda s: cost[s[0]])
    >>> found.best, found.time
    ({0: 'conv'}, 1.0)
    """
    descent = _Descent(measure, margin, dict(start), math.inf if time is None else time)
    try:
        if time is None:
            descent.try_(dict(start))
        else:
            descent.trail.append((dict(start), time))
        winners = {g: max(forms, key=lambda f, g=g: gain(g, f)) for g, forms in options.items()}  # type: ignore[misc]
        descent.try_({**start, **winners})
        while _descend(descent, _single(options, gain)) or _descend(descent, _double(options, gain)):
            pass
    except _StopError:
        pass
    return SearchResult(descent.best, descent.time, tuple(descent.trail))


Moves = list[dict[int, str]]


def _single(options: Mapping[int, Sequence[str]], gain: Callable[[int, str], float]) -> Moves:
    """One group in one form, the largest predicted saving first."""
    moves = [(g, f) for g, forms in options.items() for f in forms]
    return [{g: f} for g, f in sorted(moves, key=lambda m: -gain(*m))]


def _double(options: Mapping[int, Sequence[str]], gain: Callable[[int, str], float]) -> Moves:
    """Two groups at once: neighbours first (they hand each other their layouts), then by predicted saving."""

    def pairs() -> Iterator[tuple[int, int, str, str]]:
        for a, b in combinations(sorted(options), 2):
            if b - a > _REACH:
                continue
            for f, g in product(options[a], options[b]):
                yield a, b, f, g

    ordered = sorted(pairs(), key=lambda m: (m[1] - m[0], -gain(m[0], m[2]) - gain(m[1], m[3])))
    return [{a: f, b: g} for a, b, f, g in ordered]


def _descend(descent: _Descent, moves: Moves) -> bool:
    """Try each move from the best state there is by then; whether any helped."""
    helped = False
    for move in moves:
        if any(descent.best.get(g) != f for g, f in move.items()):
            helped |= descent.try_({**descent.best, **move})
    return helped
