"""Reading with retries: what cannot be read is recorded with its place, and the scan goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.checks import largest_magnitude
from onebyone.dense.plan import Tile
from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.stores.regions import Region, Span
from onebyone.stores.source import ImageSource, SourceProperties

ATTEMPTS = 3


@dataclass
class GuardedSource(SourceProperties):
    """An image source that reads each block of tiles once, tries again after an error, and records what failed.

    Where a region cannot be read in `attempts` attempts, or holds values that are not finite, `failures` has the error
    by the region, and the region is read as zeros, so that the batch that contains it keeps its shape. The scores
    computed from it are not used. `peak` is the largest absolute value of floating-point pixels so far.
    """

    source: ImageSource
    attempts: int = ATTEMPTS
    failures: dict[tuple[Span, ...], str] = field(default_factory=dict)
    peak: float = 0.0
    _held: list[tuple[tuple[Span, ...], NDArray[Any]]] = field(default_factory=list, init=False)

    def hold(self, tiles: Iterable[Tile]) -> None:
        """Read the region of each block of several tiles (shifted passes) once; its tiles are then parts of it."""
        by_block: dict[tuple[int, ...], list[Tile]] = {}
        for tile in tiles:
            by_block.setdefault(tile.block, []).append(tile)
        self._held = []
        for members in by_block.values():
            if len(members) > 1:
                hull = tuple(
                    Span(min(s.start for s in spans), max(s.stop for s in spans))
                    for spans in zip(*(tile.read for tile in members), strict=True)
                )
                self._held.append((hull, self._read(hull)))
                if hull in self.failures:
                    self.failures.update({tuple(tile.read): self.failures[hull] for tile in members})

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region (h, w, C); zeros where it cannot be read."""
        for hull, values in self._held:
            pairs = list(zip(hull, region, strict=True))
            if all(h.start <= r.start and r.stop <= h.stop for h, r in pairs):
                part: NDArray[Any] = values[
                    tuple(slice(r.start - h.start, r.stop - h.start) for h, r in pairs)
                ]
                return part
        return self._read(tuple(region))

    def _read(self, region: tuple[Span, ...]) -> NDArray[Any]:
        values = _attempted(partial(self._finite, region), self.attempts)
        if isinstance(values, Exception):
            self.failures[region] = first_line(values)
            return np.zeros((*(len(span) for span in region), self.channels), self.dtype)
        return values

    def _finite(self, region: tuple[Span, ...]) -> NDArray[Any]:
        values = self.source.read(region)
        peak = largest_magnitude(values)
        if not math.isfinite(peak):
            raise BadInput("it has values that are not finite")
        self.peak = max(self.peak, peak)
        return values


def read_or_none(source: ImageSource, region: Region) -> NDArray[Any] | None:
    """The pixels of a region, which is read again after an error; None where it cannot be read."""
    return attempted_or_none(partial(source.read, region))


def attempted_or_none(read: Callable[[], NDArray[Any]]) -> NDArray[Any] | None:
    """What `read` gives, tried again after an error; None where it cannot be read."""
    values = _attempted(read, ATTEMPTS)
    return None if isinstance(values, Exception) else values


def _attempted(read: Callable[[], NDArray[Any]], attempts: int) -> NDArray[Any] | Exception:
    """What `read` gives, tried again after an error; the last error where every attempt fails."""
    error: Exception = BadInput("it was not read")
    for _ in range(attempts):
        try:
            return read()
        except MemoryError:
            raise
        except Exception as caught:  # readers of damaged files raise errors of many types
            error = caught
    return error


def place(region: Region) -> str:
    """A region of pixels for messages.

    >>> place((Span(0, 10), Span(20, 50)))
    'rows 0 to 9, columns 20 to 49'
    """
    names = {1: ("samples",), 2: ("rows", "columns"), 3: ("slices", "rows", "columns")}[len(region)]
    return ", ".join(
        f"{name} {span.start} to {span.stop - 1}" for name, span in zip(names, region, strict=True)
    )
