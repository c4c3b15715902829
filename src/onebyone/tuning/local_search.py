"""Local search over the forms of layer groups, guided by the time of the whole network (pure functions).

Forms interact: a layer that leaves its output in another memory format slows the next one down. So the fastest form of
each layer alone only orders the moves. The search descends from the best form of the whole network: first all
predicted winners at once, then one group after another, then pairs of neighbouring groups, until no move helps or no
more measurements are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

_MAX_PAIR_DISTANCE = 3  # groups further apart hardly influence each other's memory format
State = Mapping[int, str]
"""Group → form."""
Gain = Callable[[int, str], float]
"""(group, form) → the time that the form is predicted to save over the group's own form; negative if it loses time."""
Measure = Callable[[State], float | None]
"""State → the time of the whole network; infinite if it cannot be built, None if no more measurements are allowed."""


@dataclass(frozen=True)
class SearchResult:
    """The best state, its time, and every measured state with its time, in order."""

    best: dict[int, str]
    time: float
    measured: tuple[tuple[dict[int, str], float], ...]


class _StopError(Exception):
    """No more measurements are allowed."""


@dataclass
class _Descent:
    measure: Measure
    margin: float
    best: dict[int, str]
    time: float
    measured: list[tuple[dict[int, str], float]] = field(default_factory=list)

    def try_state(self, state: dict[int, str]) -> bool:
        """Measure a state unless it was measured before; return whether it is better by more than the margin."""
        if any(state == known for known, _ in self.measured):
            return False
        time = self.measure(state)
        if time is None:
            raise _StopError
        self.measured.append((state, time))
        if time < self.time * (1 - self.margin):
            self.best, self.time = state, time
            return True
        return False


def search(
    start: State,
    options: Mapping[int, Sequence[str]],
    gain: Gain,
    measure: Measure,
    *,
    time: float | None = None,
    margin: float = 0.01,
) -> SearchResult:
    """Return the fastest state that is found from `start`.

    Parameters
    ----------
    start: the initial state.
    options: the forms that each group may take.
    gain: the predicted saving of a form, which orders the moves.
    measure: the time of the whole network in a state.
    time: the time of `start` if it is known; then it is not measured.
    margin: a state counts as faster if it saves more than this share, by which two measurements of one state differ.

    Example
    -------
    >>> cost = {"linear": 2.0, "conv": 1.0}
    >>> result = search({0: "linear"}, {0: ["linear", "conv"]}, lambda g, f: 0.0, lambda s: cost[s[0]])
    >>> result.best, result.time
    ({0: 'conv'}, 1.0)
    """
    descent = _Descent(measure, margin, dict(start), math.inf if time is None else time)
    try:
        if time is None:
            descent.try_state(dict(start))
        else:
            descent.measured.append((dict(start), time))
        winners = {g: max(forms, key=lambda f, g=g: gain(g, f)) for g, forms in options.items()}  # type: ignore[misc]
        descent.try_state({**start, **winners})
        while _try_moves(descent, _single_moves(options, gain)) or _try_moves(
            descent, _pair_moves(options, gain)
        ):
            pass
    except _StopError:
        pass
    return SearchResult(descent.best, descent.time, tuple(descent.measured))


Moves = list[dict[int, str]]


def _single_moves(options: Mapping[int, Sequence[str]], gain: Gain) -> Moves:
    """One group in one form; the largest predicted saving first."""
    moves = [(g, f) for g, forms in options.items() for f in forms]
    return [{g: f} for g, f in sorted(moves, key=lambda m: -gain(*m))]


def _pair_moves(options: Mapping[int, Sequence[str]], gain: Gain) -> Moves:
    """Two groups at once: the closest pairs first (they share memory formats), then by predicted saving."""

    def pairs() -> Iterator[tuple[int, int, str, str]]:
        for a, b in combinations(sorted(options), 2):
            if b - a > _MAX_PAIR_DISTANCE:
                continue
            for f, g in product(options[a], options[b]):
                yield a, b, f, g

    ordered = sorted(pairs(), key=lambda m: (m[1] - m[0], -gain(m[0], m[2]) - gain(m[1], m[3])))
    return [{a: f, b: g} for a, b, f, g in ordered]


def _try_moves(descent: _Descent, moves: Moves) -> bool:
    """Try each move from the best state so far; return whether any move helped."""
    helped = False
    for move in moves:
        if any(descent.best.get(g) != f for g, f in move.items()):
            helped |= descent.try_state({**descent.best, **move})
    return helped
