"""Whole-slide images through OpenSlide: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, Zeiss, DICOM and others.

Memory: the region itself, and OpenSlide's cache of 32 MiB. Pixels that no scanner wrote are transparent in the file and
get the slide's background colour, or white.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput, MissingExtra
from onebyone.stores.axes import require_region, short_reason
from onebyone.stores.levels import chosen_level
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Region

#: Suffixes of formats that OpenSlide reads.
SUFFIXES = (".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")


class SlideSource:
    """One level of a whole slide as RGB; an `ImageSource`.

    The scale of a level is the actual ratio of the sizes. Raises BadInput where OpenSlide cannot read the file.
    """

    def __init__(self, path: Path, level: int | None = None, mpp: float | None = None) -> None:
        try:
            import openslide
        except ImportError as error:
            raise MissingExtra("openslide", "slides", f"{path}: reading a whole slide") from error
        self._path, self._error = path, openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise BadInput(f"{path} cannot be read by OpenSlide: {short_reason(error)}") from error
        sizes = [(height, width) for width, height in self._slide.level_dimensions]
        if not sizes or min(min(size) for size in sizes) < 1:
            raise BadInput(f"{path}: its levels have the sizes {sizes}; expected at least one pixel")
        scales = [tuple(a / b for a, b in zip(sizes[0], size, strict=True)) for size in sizes]
        properties = self._slide.properties
        microns = tuple(_positive(properties.get(f"openslide.mpp-{axis}")) for axis in "yx")
        stated = (microns[0], microns[1]) if microns[0] and microns[1] else None
        self._level = chosen_level(str(path), scales, stated, level, mpp)
        self.size: tuple[int, ...] = sizes[self._level]
        # OpenSlide uses one scale for both axes, the mean of theirs, to find a pixel of the level
        self._downsample = float(self._slide.level_downsamples[self._level])
        self.channels, self.dtype = 3, np.dtype(np.uint8)
        self.placement = Placement((0.0, 0.0), scales[self._level], stated)
        background = properties.get("openslide.background-color", "FFFFFF")
        self._background = tuple(bytes.fromhex(background))

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (h, w, 3) uint8. Raises BadInput where the file is damaged there."""
        rows, columns = region
        require_region(region, 4, str(self._path))
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        # OpenSlide takes the corner in whole pixels of level 0. The nearest one may be a fraction of a pixel of this
        # level away, by which OpenSlide would blend pixels, so one that is at a whole pixel of the level is used.
        top, left = (self._corner(span.start) for span in region)
        y0, x0 = rows.start - top[1], columns.start - left[1]
        try:
            picture = self._slide.read_region(
                (left[0], top[0]), self._level, (out.shape[1] + x0, out.shape[0] + y0)
            )
        except self._error as error:
            raise BadInput(
                f"{self._path} cannot be read at rows {rows.start} to {rows.stop}, columns {columns.start} to "
                f"{columns.stop} of level {self._level}: {short_reason(error)}"
            ) from error
        values = np.asarray(picture)[y0:, x0:]
        alpha = values[..., 3:] / np.float32(255)
        if values[..., 3].min() == 255:
            out[...] = values[..., :3]
        else:
            out[...] = np.rint(values[..., :3] * alpha + np.array(self._background, np.float32) * (1 - alpha))
        return out[:: rows.step, :: columns.step]

    def _corner(self, start: int) -> tuple[int, int]:
        """(pixel of level 0, pixel of this level) at or before `start`, the first of them nearly whole."""
        scale = self._downsample
        for pixel in range(start, max(-1, start - 64), -1):
            if abs(pixel * scale - round(pixel * scale)) < 1e-3:
                return round(pixel * scale), pixel
        return round(start * scale), start


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
