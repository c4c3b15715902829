"""Score sinks: where a scan writes its scores, region by region."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onebyone.stores.regions import Region


class ScoreSink(Protocol):
    """An array (channels, *positions) that is written by region.

    A scan writes or skips every position exactly once, in any order. Two regions may be written at the same time where
    they share no chunk. Positions that were skipped hold `fill`.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then positions per axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in which the scores are kept."""
        ...

    @property
    def fill(self) -> float:
        """The value of the positions that were not written."""
        ...

    @property
    def chunk(self) -> tuple[int, ...]:
        """Positions per axis that are stored together; 1 where every position can be written by itself."""
        ...

    def write(self, region: Region, values: NDArray[np.float32]) -> None:
        """Write `values` (channels, h, w) to a region of positions, one span per axis."""
        ...

    def skip(self, region: Region) -> None:
        """Leave a region at the fill value, and count its positions as written."""
        ...

    def durable(self, region: Region) -> bool:
        """Whether every position of a region survives the end of this process, so that it need not be written again.

        A sink keeps the positions of an incomplete chunk in memory; they become durable with the chunk.
        """
        ...

    def finish(self) -> None:
        """Complete the output after the last position: metadata, pyramid, and its place under its own name.

        Raises ValueError where a position was neither written nor skipped.
        """
        ...

    def close(self) -> None:
        """Release files and memory. Without `finish`, what is durable is kept, and the same scan can go on with it."""
        ...


class ArraySink:
    """Scores in memory: `values` (channels, *positions) float32, `fill` where nothing was written.

    >>> from onebyone.stores.regions import Span
    >>> sink = ArraySink((1, 4))
    >>> sink.write([Span(1, 4, 2)], np.ones((1, 2), np.float32))
    >>> sink.values.tolist()
    [[0.0, 1.0, 0.0, 1.0]]
    """

    def __init__(self, shape: tuple[int, ...], fill: float = 0.0) -> None:
        self.fill = fill
        # the operating system provides the zeros when a page is first written, so this costs no pass over memory
        self.values: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        if fill != 0:
            self.values[...] = fill

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then positions per axis."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type in which the scores are kept."""
        return self.values.dtype

    @property
    def chunk(self) -> tuple[int, ...]:
        """1 per axis: every position can be written by itself."""
        return (1,) * (self.values.ndim - 1)

    def write(self, region: Region, values: NDArray[np.float32]) -> None:
        """Write `values` (channels, h, w) to a region of positions, one span per axis."""
        target = self.values[:, *(span.slice for span in region)]
        if target.shape != values.shape:  # NumPy would repeat a single channel
            raise ValueError(f"values have the shape {values.shape} and the region {target.shape}")
        target[...] = values

    def skip(self, region: Region) -> None:
        """Nothing to do: the positions hold the fill value already."""

    def durable(self, region: Region) -> bool:
        """False: memory does not survive the process."""
        return False

    def finish(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
