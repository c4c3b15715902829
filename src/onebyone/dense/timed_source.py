"""Whether reading an image computes, or waits for a disk or a network."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onebyone.stores.regions import Region
from onebyone.stores.source import ImageSource, SourceProperties


@dataclass
class TimedSource(SourceProperties):
    """An image source that measures the time of its reads, and how much of it the reading thread spent computing.

    >>> import numpy as np
    >>> from onebyone.stores.regions import Span
    >>> from onebyone.stores.source import ArraySource
    >>> source = TimedSource(ArraySource(np.zeros((4, 4, 1))))
    >>> source.waits, source.read((Span(0, 2), Span(0, 2))).shape
    (False, (2, 2, 1))
    """

    source: ImageSource
    seconds: float = field(default=0.0, init=False)
    computing: float = field(default=0.0, init=False)

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region (h, w, C)."""
        start, computing = time.perf_counter(), time.thread_time()
        try:
            return self.source.read(region)
        finally:
            self.seconds += time.perf_counter() - start
            self.computing += time.thread_time() - computing

    @property
    def waits(self) -> bool:
        """Whether reading computed for less than half of its time, so that a thread can read while another computes."""
        return self.computing < self.seconds / 2
