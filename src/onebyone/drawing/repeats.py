"""Runs of alike things, so that a picture draws them once and says how often they occur."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Run(Generic[T]):
    """Things in a row that occur `len(repeats)` times in a row; each repeat holds the real ones."""

    repeats: tuple[tuple[T, ...], ...]

    @property
    def times(self) -> int:
        """How often."""
        return len(self.repeats)

    @property
    def first(self) -> tuple[T, ...]:
        """The first repeat: what is drawn."""
        return self.repeats[0]


def runs(items: Sequence[T], key: Callable[[T], Hashable], longest: int = 24) -> tuple[Run[T], ...]:
    """The items as runs of repeats, greedily: at each place the repeat that takes in the most.

    >>> [(r.first, r.times) for r in runs("xababay", str)]
    [(('x',), 1), (('a', 'b'), 2), (('a',), 1), (('y',), 1)]
    """
    keys = [key(item) for item in items]
    found: list[Run[T]] = []
    place = 0
    while place < len(items):
        period, times = 1, 1
        for length in range(1, min(longest, (len(items) - place) // 2) + 1):
            count = _times(keys, place, length)
            if count > 1 and length * (count - 1) > period * (times - 1):
                period, times = length, count
        stop = place + period * times
        found.append(Run(tuple(tuple(items[i : i + period]) for i in range(place, stop, period))))
        place = stop
    return tuple(found)


def _times(keys: Sequence[Hashable], place: int, length: int) -> int:
    """How often the `length` keys at `place` follow each other."""
    pattern = keys[place : place + length]
    count = 1
    while keys[place + count * length : place + (count + 1) * length] == pattern:
        count += 1
    return count


def common_path(paths: Sequence[str]) -> str:
    """Dotted paths as one, with a range or a set where they differ.

    >>> common_path(["blocks.0.fc", "blocks.1.fc", "blocks.2.fc"]), common_path(["a.1.x", "a.4.x"])
    ('blocks.0–2.fc', 'a.1,4.x')
    """
    parts = [p.split(".") for p in paths]
    if len({len(p) for p in parts}) > 1:
        return f"{paths[0]} … {paths[-1]}"
    return ".".join(_common(column) for column in zip(*parts, strict=True))


def _common(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    if len(distinct) == 1:
        return distinct[0]
    if all(n.isdecimal() for n in distinct):
        numbers = [int(n) for n in distinct]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            return f"{numbers[0]}–{numbers[-1]}"
    return ",".join(distinct) if len(distinct) <= 3 else f"{distinct[0]},…,{distinct[-1]}"
