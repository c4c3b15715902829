"""Grey pictures as RGB, and RGB pictures as grey, where a network takes the other; pixels without a number as 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.stores.regions import Region
from onebyone.stores.source import ImageSource, SourceProperties

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float64)  # ITU-R BT.601, as Pillow's convert("L")


def match_channels(values: NDArray[Any], channels: int | None) -> NDArray[Any]:
    """Pixels (…, C) with `channels` channels: grey repeated as RGB, or the luma of RGB; others unchanged.

    >>> match_channels(np.array([[[10, 20, 30]]], np.uint8), 1).tolist()
    [[[18]]]
    """
    if channels == 3 and values.shape[-1] == 1:
        return np.repeat(values, 3, axis=-1)
    if channels == 1 and values.shape[-1] == 3:
        grey = values.astype(np.float64) @ _LUMA
        return (np.rint(grey).astype(values.dtype) if values.dtype.kind == "u" else grey)[..., None]
    return values


@dataclass(frozen=True)
class MatchedSource(SourceProperties):
    """A source of grey or RGB pixels as the other, converted as they are read; an `ImageSource`."""

    source: ImageSource
    new_channels: int

    @property
    def channels(self) -> int:
        """Channels per pixel, after."""
        return self.new_channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values; the luma of floating-point RGB has 64 bits."""
        kind = self.source.dtype
        return np.dtype(np.float64) if kind.kind == "f" and self.channels == 1 else kind

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (h, w, channels)."""
        return match_channels(self.source.read(region), self.channels)


@dataclass(frozen=True)
class FilledSource(SourceProperties):
    """A source in which not-a-number is read as 0; an `ImageSource`. Windows with such pixels are not scored."""

    source: ImageSource

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (h, w, channels)."""
        values = self.source.read(region)
        return np.where(np.isnan(values), values.dtype.type(0), values)


def matched(source: ImageSource, channels: int | None) -> ImageSource:
    """The source itself where it has `channels` channels already or cannot be converted to them."""
    if (source.channels, channels) in ((1, 3), (3, 1)):
        return MatchedSource(source, channels or source.channels)
    return source
