"""Regions: the part of an image or of a score map that is read or written at once, as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The integers start, start + step, … below stop, on one axis.

    >>> len(Span(1, 8, 2)), Span(1, 8, 2).slice
    (4, slice(1, 8, 2))
    """

    start: int
    stop: int
    step: int = 1

    @property
    def slice(self) -> slice:
        """The same as a Python slice."""
        return slice(self.start, self.stop, self.step)

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))


#: A rectangular part of an image or of a map: one span per axis.
Region = Sequence[Span]
