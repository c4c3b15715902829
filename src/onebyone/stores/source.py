"""Image sources: images that are read by region, so that a scan never needs the whole image at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onebyone.stores.placement import Placement, placement_of
from onebyone.stores.regions import Region, Span

#: Pixels per block where a whole source is read in blocks.
_BLOCK_PIXELS = 2**22


@runtime_checkable
class ImageSource(Protocol):
    """An image that is read by region.

    Sizes and regions are in pixels of the resolution level at which the source was opened. `read` may be called from
    another thread than the one that made the source, one call at a time. A source may also have a `placement`
    (`stores.placement`), which relates its pixels to the full resolution and to the world; `placement_of` gives the
    identity for one that has none.
    """

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per spatial axis: (height, width), (samples,) or (depth, height, width)."""
        ...

    @property
    def channels(self) -> int:
        """Channels per pixel."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values: uint8, uint16 or floating point."""
        ...

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region, one span per axis, as (h, w, channels).

        The array may be a view of the source's own memory: the caller does not write into it.
        """
        ...


class SourceProperties:
    """Base class of what is made from an image `source`: its properties are those of the source unless overridden."""

    source: ImageSource

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per spatial axis."""
        return self.source.size

    @property
    def channels(self) -> int:
        """Channels per pixel."""
        return self.source.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        return self.source.dtype

    @property
    def placement(self) -> Placement:
        """The place of the pixels."""
        return placement_of(self.source)


@dataclass(frozen=True)
class ArraySource:
    """An image in memory or in a memory-mapped file: `values` (H, W, C), (T, C) or (D, H, W, C).

    >>> source = ArraySource(np.arange(12).reshape(2, 3, 2))
    >>> source.size, source.channels, source.read((Span(1, 2), Span(0, 2))).tolist()
    ((2, 3), 2, [[[6, 7], [8, 9]]])
    """

    values: NDArray[Any]

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per spatial axis."""
        return tuple(self.values.shape[:-1])

    @property
    def channels(self) -> int:
        """Channels per pixel."""
        return int(self.values.shape[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        return self.values.dtype.newbyteorder("=")

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region (h, w, C): a view, or a copy where their byte order is not the machine's."""
        view: NDArray[Any] = self.values[tuple(span.slice for span in region)]
        return view.astype(self.dtype, copy=False)


def whole_region(source: ImageSource) -> tuple[Span, ...]:
    """The region that covers a source."""
    return tuple(Span(0, n) for n in source.size)


def row_blocks(source: ImageSource) -> Iterator[tuple[Span, ...]]:
    """Regions that cover a source once, in the order of its rows, of about four million pixels each."""
    rows = max(1, _BLOCK_PIXELS // prod(source.size[1:]))
    first, *others = whole_region(source)
    for start in range(0, first.stop, rows):
        yield (Span(start, min(start + rows, first.stop)), *others)
