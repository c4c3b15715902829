"""Grids: what is known about a map whose size is not known.

A window that begins at pixel i·stride owns the positions [i·stride/jump, + nominal) of a map, on each axis. So maps of
equal jump align position by position, whatever their receptive fields are, and only their extents can differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onebyone.laws.geometry import Field, Sliding

Integers = NDArray[np.int64]

#: Image sizes, from the window up, at which extents are compared. A chain with jump j gives one more position for j
#: more pixels, so equal extents over one jump are equal at every size; maps of larger jumps are cropped in any case.
PERIOD = 512


@dataclass(frozen=True)
class Grid:
    """A map of `channels` channels: `nominal` positions per axis in one window, the `fields` of its positions, and its
    `sizes`, the number of positions per axis at image sizes window, window + 1, …, window + PERIOD - 1.

    `image_wide` marks a map of one position, which is computed from the whole image. Windows must lie at multiples of
    `align` pixels as well as of the jump, because an interpolated map is finer than the map it was made from.
    """

    channels: int
    nominal: tuple[int, ...]
    fields: tuple[Field, ...]
    sizes: tuple[tuple[int, ...], ...]
    align: tuple[int, ...]
    image_wide: bool = False

    @classmethod
    def image(cls, channels: int, window: Sequence[int]) -> Grid:
        """The image itself: one position per pixel."""
        sizes = tuple(tuple(range(size, size + PERIOD)) for size in window)
        return cls(channels, tuple(window), (Field(),) * len(window), sizes, (1,) * len(window))

    @property
    def jump(self) -> tuple[int, ...]:
        """Pixels per position, on each axis."""
        return tuple(f.jump for f in self.fields)

    @property
    def extents_known(self) -> bool:
        """Whether `sizes` tell how the map's extent compares with another's at every image size."""
        return max(*self.jump, *self.align) <= PERIOD

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *nominal): the window's part."""
        return (self.channels, *self.nominal)

    def through(self, ops: Sequence[Sliding], channels: int | None = None) -> Grid:
        """The grid after one sliding operator per axis."""
        return replace(
            self,
            channels=self.channels if channels is None else channels,
            nominal=tuple(op.out_size(n) for op, n in zip(ops, self.nominal, strict=True)),
            fields=tuple(f.through(op) for op, f in zip(ops, self.fields, strict=True)),
            sizes=tuple(tuple(op.out_size(n) for n in s) for op, s in zip(ops, self.sizes, strict=True)),
        )

    def gathered(
        self, channels: int, starts: Sequence[tuple[int, int]], steps: Sequence[int], nominal: Sequence[int]
    ) -> Grid:
        """The grid of every `steps`-th position from `starts` on (lowest and highest start over the channels)."""
        fields = []
        for f, (low, high), step in zip(self.fields, starts, steps, strict=True):
            hull = replace(f, start=f.start + low * f.jump, size=f.size + (high - low) * f.jump)
            fields.append(hull.strided(step))
        sizes = tuple(
            tuple(max(0, -((high - n) // step)) for n in s)
            for s, (_, high), step in zip(self.sizes, starts, steps, strict=True)
        )
        return replace(self, channels=channels, nominal=tuple(nominal), fields=tuple(fields), sizes=sizes)

    def joined(self, other: Grid) -> Grid | None:
        """The grid of two maps that are combined position by position; None where the jumps differ.

        The extent is the smaller one at every image size, the fields are hulls, and windows are aligned with both."""
        fields = []
        for a, b in zip(self.fields, other.fields, strict=True):
            field = a.join(b)
            if field is None:
                return None
            fields.append(field)
        sizes = tuple(tuple(map(min, a, b)) for a, b in zip(self.sizes, other.sizes, strict=True))
        align = tuple(map(math.lcm, self.align, other.align))
        return replace(self, fields=tuple(fields), sizes=sizes, align=align)
