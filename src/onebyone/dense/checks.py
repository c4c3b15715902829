"""Checks of pixel values that see one tile at a time and accumulate what only all tiles together can show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.records import Labels
from onebyone.stores.source import ImageSource, row_blocks

_AXIS_NAMES = {1: ("sample",), 2: ("row", "column"), 3: ("slice", "row", "column")}

#: A scale of at most this is meant for values up to 255; 1/255 is the usual one.
_SCALE_FOR_BYTES = 1 / 128


class PixelCheck:
    """Checks floating-point pixels as they are read: that they are finite, and that their range fits the labels.

    `add` takes the pixels of each tile. `finish` is called once after the last tile. `peak` is the largest absolute
    value so far; the peak of several checks of one image is the largest of theirs.

    >>> from onebyone.stores.source import ArraySource
    >>> source = ArraySource(np.full((2, 2, 1), 0.5))
    >>> check = PixelCheck(source, Labels(scale=1 / 255))
    >>> check.add(source.values)
    >>> check.peak
    0.5
    """

    def __init__(self, source: ImageSource, labels: Labels) -> None:
        self._source = source
        self._scale = labels.scale
        self.peak = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Check the pixels (h, w, C) of one tile.

        Raises BadInput where a value is not finite; the message counts such values in the whole image.
        """
        peak = largest_magnitude(values)
        if not math.isfinite(peak):
            raise _not_finite(self._source)
        self.peak = max(self.peak, peak)

    def finish(self) -> None:
        """Raise BadInput where all values lie in [-1, 1] and the labels' scale is meant for values up to 255."""
        # 8-bit preprocessing of an image that was scaled already would make everything nearly black
        if 0 < self._scale <= _SCALE_FOR_BYTES and 0 < self.peak <= 1:
            raise BadInput(
                f"image is floating point with values up to {self.peak:.3g}, and scale={self._scale:.3g} is meant "
                "for values up to 255: multiply the image by 255, or give labels with scale=1"
            )


def largest_magnitude(values: NDArray[Any]) -> float:
    """The largest absolute value of floating-point pixels, not finite where one of them is not; 0 for integers.

    >>> largest_magnitude(np.array([0.5, -2.0])), largest_magnitude(np.array([1.0, np.nan]))
    (2.0, nan)
    """
    if values.dtype.kind != "f" or not values.size:
        return 0.0
    low, high = float(values.min()), float(values.max())  # NaN where one of the values is
    return max(-low, high) if not math.isnan(low) else low


def check_whole(source: ImageSource, labels: Labels) -> None:
    """Check all pixels of an image, block by block. Raises BadInput as `PixelCheck` does."""
    if source.dtype.kind != "f":
        return
    check = PixelCheck(source, labels)
    for region in row_blocks(source):
        check.add(source.read(region))
    check.finish()


def _not_finite(source: ImageSource) -> BadInput:
    """The error for an image with values that are not finite: how many there are, and the first in row order."""
    count, first = 0, ""
    for region in row_blocks(source):
        values = source.read(region)
        finite = np.isfinite(values)
        count += values.size - int(np.count_nonzero(finite))
        if not first and not finite.all():
            index = np.unravel_index(int(np.argmin(finite)), values.shape)
            offsets = (*(span.start for span in region), 0)
            names = (*_AXIS_NAMES[values.ndim - 1], "channel")
            at = ", ".join(f"{name} {i + o}" for name, i, o in zip(names, index, offsets, strict=True))
            first = f"{values[index]} at {at}"
    return BadInput(f"image has {count} value(s) that are not finite, the first {first}")
