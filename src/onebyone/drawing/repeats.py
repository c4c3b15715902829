"""Finds repeated sequences, so that a figure draws them once and states how often they occur."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Run(Generic[T]):
    """A sequence of items that occurs `len(repeats)` times in a row; each repeat holds its actual items."""

    repeats: tuple[tuple[T, ...], ...]

    @property
    def times(self) -> int:
        """The number of repeats."""
        return len(self.repeats)

    @property
    def first(self) -> tuple[T, ...]:
        """The first repeat, which is drawn."""
        return self.repeats[0]


def runs(items: Sequence[T], key: Callable[[T], Hashable], longest: int = 24) -> tuple[Run[T], ...]:
    """Split the items into runs of repeats, greedily: at each position the run that covers the most items.

    >>> [(r.first, r.times) for r in runs("xababay", str)]
    [(('x',), 1), (('a', 'b'), 2), (('a',), 1), (('y',), 1)]
    """
    keys = [key(item) for item in items]
    result: list[Run[T]] = []
    start = 0
    while start < len(items):
        period, times = 1, 1
        for length in range(1, min(longest, (len(items) - start) // 2) + 1):
            count = _times(keys, start, length)
            if count > 1 and length * (count - 1) > period * (times - 1):
                period, times = length, count
        stop = start + period * times
        result.append(Run(tuple(tuple(items[i : i + period]) for i in range(start, stop, period))))
        start = stop
    return tuple(result)


def _times(keys: Sequence[Hashable], start: int, length: int) -> int:
    """How often the `length` keys from `start` on occur in a row."""
    pattern = keys[start : start + length]
    count = 1
    while keys[start + count * length : start + (count + 1) * length] == pattern:
        count += 1
    return count


def common_path(paths: Sequence[str]) -> str:
    """Several dotted paths as one, with a range or a list where they differ.

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
