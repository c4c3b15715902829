"""The tensors that the steps of a compiled network read and write."""

from __future__ import annotations

from dataclasses import dataclass

CACHE_LINE = 16
"""Floats of a cache line."""


@dataclass(eq=False)
class Map:
    """A tensor (N, C, H, W) stored channels-last: in memory it is (N, H, W, C).

    `base` is the map whose memory this one views under another shape, if any. `offset` is where the memory begins in
    the program's memory, in floats, and `last_use` the last step that needs it; `memory_plan.assign_memory` sets both.
    """

    shape: tuple[int, int, int, int]
    last_use: int = -1
    offset: int = 0
    base: Map | None = None

    @property
    def memory(self) -> Map:
        """The map that owns the memory."""
        return self if self.base is None else self.base.memory

    @property
    def floats(self) -> int:
        """The size in floats, rounded up to whole cache lines."""
        n, c, h, w = self.shape
        return whole_lines(n * c * h * w)


def whole_lines(floats: int) -> int:
    """A number of floats rounded up to whole cache lines.

    >>> whole_lines(17), whole_lines(32)
    (32, 32)
    """
    return -(-floats // CACHE_LINE) * CACHE_LINE
