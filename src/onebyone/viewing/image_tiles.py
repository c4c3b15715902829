"""Tiles of an image for a viewer: 8-bit RGB, from the resolution level of the file that has just enough pixels."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.images import open_image, open_levels
from onebyone.errors import BadInput
from onebyone.records import by
from onebyone.stores.pictures import pillow
from onebyone.stores.placement import placement_of
from onebyone.stores.regions import Span
from onebyone.stores.resized import ResizedSource
from onebyone.stores.source import ImageSource
from onebyone.viewing.tile_grid import TileGrid

#: A tile averages at most this many pixels of the file; beyond that it takes every n-th.
MAX_PIXELS = 2**24


class ImageTiles:
    """The tiles of an image. Calls from several threads are served one after another, because sources require it.

    Of a file with resolution levels, the finest one shown is the one that was scanned: that of `size`. Crops have the
    `channels` of a network, as in a scan by it; None leaves those of the file. They are taken from the image resized to
    `scanned`, if the scan resized it.

    Raises
    ------
    BadInput
        if the image cannot be opened or has no resolution level of `size` (height, width).
    """

    def __init__(
        self,
        image: Any,
        size: tuple[int, int],
        channels: int | None = None,
        scanned: tuple[int, ...] | None = None,
    ) -> None:
        levels = open_levels(image)
        sizes = [level.size for level in levels]
        if size not in sizes:
            raise BadInput(f"the image has {' or '.join(map(by, sizes))} pixels; the scan is of {by(size)}")
        level = sizes.index(size)
        self._levels = levels[level:]
        full = open_image(image, channels=channels, level=level or None)
        self._crops = full if scanned is None or scanned == size else ResizedSource(full, scanned)
        self._lock = threading.Lock()
        self.grid = TileGrid(size)
        self._top = self._largest_value()

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """One tile as (h, w, 3); tiles at the right and bottom border are smaller."""
        region = self.grid.region(level, column, row)
        step = self.grid.step(level)
        source, scale = self._source_for(step)
        spans = [_span(span, factor, n) for span, factor, n in zip(region, scale, source.size, strict=True)]
        count = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
        if count > MAX_PIXELS:
            skip = max(1, int(step / max(scale)))
            spans = [Span(span.start, span.stop, skip) for span in spans]
        with self._lock:
            values = source.read(spans)
        rows, columns = self.grid.pixels(level, region)
        ratios = [step / factor / spans[0].step for factor in scale]
        picture = pillow("the viewer").fromarray(_padded(self._rgb(values), (rows, columns), ratios))
        resized = picture.resize((columns, rows), resample=4 if step > 1 else 0)  # 4 is Image.BOX: the mean
        return np.asarray(resized)

    def crop(self, region: tuple[Span, Span]) -> NDArray[Any]:
        """The pixels of a region of the image that was scanned (h, w, C), as the scan reads them."""
        with self._lock:
            return np.array(self._crops.read(region))

    def _source_for(self, step: int) -> tuple[ImageSource, tuple[float, ...]]:
        """The coarsest level with at least one pixel per tile pixel, and its scale."""
        scaled = [(source, _scale(source, self._levels[0])) for source in self._levels]
        fitting = [(source, scale) for source, scale in scaled if max(scale) <= step * 1.01]
        return max(fitting or scaled[:1], key=lambda item: max(item[1]))

    def _rgb(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if values.dtype == np.uint16:
            values = (values // 257).astype(np.uint8)
        elif values.dtype != np.uint8:
            values = np.rint(np.clip(np.nan_to_num(values) / self._top, 0, 1) * 255).astype(np.uint8)
        if values.shape[2] not in (1, 3):
            values = values[:, :, :3] if values.shape[2] > 3 else values[:, :, :1]
        return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))

    def _largest_value(self) -> float:
        """The value shown as white, for floating-point images: 1, or 255 where a sample has values above 1."""
        source = self._levels[-1]
        if source.dtype.kind != "f":
            return 1.0
        sample = source.read([Span(0, n, max(1, n // 512)) for n in source.size])
        return 255.0 if np.nanmax(sample, initial=0.0) > 1 else 1.0


def _padded(pixels: NDArray[np.uint8], shape: tuple[int, int], ratios: list[float]) -> NDArray[np.uint8]:
    """Pixels that a last row and column of tile pixels lack at the image's border, repeated from its edge."""
    missing = [max(0, round(n * r) - have) for n, r, have in zip(shape, ratios, pixels.shape, strict=False)]
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")


def _scale(source: ImageSource, finest: ImageSource) -> tuple[float, ...]:
    """Pixels of the finest level per pixel of a source, per axis."""
    scale, first = placement_of(source).scale, placement_of(finest).scale
    return tuple(s / f for s, f in zip(scale, first, strict=True))


def _span(span: Span, scale: float, size: int) -> Span:
    """A span of the finest level in pixels of a coarser one; at least one pixel, inside the level."""
    start = min(int(span.start / scale), size - 1)
    stop = min(max(start + 1, round(span.stop / scale)), size)
    return Span(start, stop)
