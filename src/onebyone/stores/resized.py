"""Images at another scale, resized region by region as they are read.

Position k of the resized axis covers [k·s, (k + 1)·s) of the image, where s is the actual ratio of the two sizes, not
the nominal factor. Its value is the mean of the image's pixels weighted by a triangle of half-width max(1, s) around
its centre (k + 1/2)·s; pixels beyond the border have no weight. This is bilinear interpolation where the image is
enlarged, and antialiased where it is reduced, as in Pillow (`BILINEAR`) and in PyTorch (`antialias=True`). A pixel does
not depend on the region in which it is read, so a tiled scan of the resized image is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.stores.placement import Placement, placement_of
from onebyone.stores.regions import Region, Span
from onebyone.stores.source import ImageSource, SourceProperties

#: Pixels of the image that are in memory at a time while a region is resized.
_STRIP = 2**24


@dataclass(frozen=True)
class ResizedSource(SourceProperties):
    """An image at another size; an `ImageSource`. Made by `resized`.

    `original_size` is the size of `source`; a coordinate x of an axis is x · original_size / size there.
    """

    source: ImageSource
    new_size: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per spatial axis, after."""
        return self.new_size

    @property
    def original_size(self) -> tuple[int, ...]:
        """Pixels per axis before."""
        return self.source.size

    @property
    def placement(self) -> Placement:
        """That of the source, with the actual ratio of the sizes as its scale."""
        ratio = [f / n for f, n in zip(self.source.size, self.size, strict=True)]
        return placement_of(self.source).part((0.0,) * len(ratio), ratio)

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (…, channels), in strips of bounded memory."""
        rows = region[0]
        ratio = prod(f / n for f, n in zip(self.source.size, self.size, strict=True))
        across = prod(len(span) for span in region[1:]) * max(1.0, ratio)
        count = max(1, int(_STRIP / max(1.0, across)))
        parts = [
            self._read([Span(start, min(start + count * rows.step, rows.stop), rows.step), *region[1:]])
            for start in range(rows.start, rows.stop, count * rows.step)
        ]
        return np.concatenate(parts)

    def _read(self, region: Region) -> NDArray[Any]:
        taps = [_Taps.of(span, f, n) for span, f, n in zip(region, self.source.size, self.size, strict=True)]
        values = self.source.read([tap.read for tap in taps])
        for axis, tap in enumerate(taps):
            values = tap.apply(values, axis)
        if self.dtype.kind == "u":  # the type is kept
            values = np.rint(values)
        return values.astype(self.dtype)


@dataclass(frozen=True)
class _Taps:
    """The pixels to read on an axis, and for each resized one (K,) its neighbours (K, taps) with their weights."""

    read: Span
    index: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, span: Span, original: int, size: int) -> _Taps:
        scale = original / size
        reach = max(1.0, scale)
        centre = (np.arange(span.start, span.stop, span.step) + 0.5) * scale
        first = np.floor(centre - reach).astype(np.int64)
        index = first[:, None] + np.arange(ceil(2 * reach) + 1)
        weights = np.maximum(0, 1 - np.abs(index + 0.5 - centre[:, None]) / reach)
        weights[(index < 0) | (index >= original)] = 0
        weights /= weights.sum(axis=1, keepdims=True)
        index = np.clip(index, 0, original - 1)
        start, stop = int(index.min()), int(index.max()) + 1
        return cls(Span(start, stop), index - start, weights)

    def apply(self, values: NDArray[Any], axis: int) -> NDArray[np.float64]:
        """The weighted means along an axis."""
        shape = [1] * values.ndim
        shape[axis] = len(self.index)
        total = np.zeros([*values.shape[:axis], len(self.index), *values.shape[axis + 1 :]])
        for tap in range(self.index.shape[1]):
            total += values.take(self.index[:, tap], axis) * self.weights[:, tap].reshape(shape)
        return total


def resized(source: ImageSource, factor: float) -> ImageSource:
    """The image with each side multiplied by `factor` and rounded; `source` itself for 1.

    Raises BadInput for a factor that is not a positive number or leaves no pixel.

    >>> from onebyone.stores.source import ArraySource
    >>> half = resized(ArraySource(np.array([[0], [4], [8], [8], [8]], np.uint8)), 0.5)
    >>> half.size, half.read([Span(0, 2)]).ravel().tolist(), half.placement.scale
    ((2,), [4, 8], (2.5,))
    """
    if not (isfinite(factor) and factor > 0):
        raise BadInput(f"resize={factor}: expected a positive number")
    if factor == 1:
        return source
    size = tuple(round(n * factor) for n in source.size)
    if min(size) < 1:
        raise BadInput(f"resize={factor}: leaves no pixel of an image of {source.size}")
    return ResizedSource(source, size)
