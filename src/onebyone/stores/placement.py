"""Where pixels are: one convention of coordinates for every format, resolution level and score map.

A coordinate is a real number in pixels, and pixel i of an axis covers [i, i + 1): its centre is i + 1/2. On every
axis, the pixels of an opened level, or the positions of a score map, relate to the pixels of the full resolution
(level 0) by

    x₀ = offset + scale · x

so composing two placements, (o₁, s₁) after (o₂, s₂), gives (o₁ + s₁·o₂, s₁·s₂). A level of a pyramid covers the same
rectangle as level 0, so its scale is the actual ratio of the sizes, not a nominal power of two, unless the file states
a transform. Position i of a score map with stride s, window w and window offset o is the window
[i·s − o, i·s − o + w), whose centre is the centre of the position: offset = w/2 − o − s/2, scale = s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry

Affine = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Placement:
    """The place of pixels, per spatial axis (rows first), in pixels of level 0 and in the world.

    `microns_per_pixel` are those of level 0; None where they are not known. `transform` (a, b, c, d, e, f) maps
    (column, row) of level 0 to world coordinates (a·column + b·row + c, d·column + e·row + f) of the coordinate
    reference system `crs` (WKT), as GDAL and rasterio do; None for images without one.

    Raises
    ------
    BadInput
        for a scale or a pixel size that is not a positive finite number.

    Example
    -------
    >>> level_2 = Placement((0.0, 0.0), (4.0, 4.0), microns_per_pixel=(0.25, 0.25))
    >>> level_2.to_level_0((10.5, 3.0)), level_2.pixel_size
    ((42.0, 12.0), (1.0, 1.0))
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    microns_per_pixel: tuple[float, ...] | None = None
    transform: Affine | None = None
    crs: str | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "microns_per_pixel"):
            values = getattr(self, name)
            if values is not None and not all(math.isfinite(v) and v > 0 for v in values):
                raise BadInput(f"{name}={values}: expected positive finite numbers")
        if not all(map(math.isfinite, (*self.offset, *(self.transform or ())))):
            raise BadInput(f"offset={self.offset}, transform={self.transform}: expected finite numbers")
        if self.transform is not None:
            a, b, _, d, e, _ = self.transform
            if a * e - b * d == 0:
                raise BadInput(
                    f"transform={self.transform}: maps every pixel to one line; expected an invertible one"
                )

    @classmethod
    def identity(cls, axes: int = 2) -> Placement:
        """The placement of an image at full resolution of which nothing else is known."""
        return cls((0.0,) * axes, (1.0,) * axes)

    @property
    def pixel_size(self) -> tuple[float, ...] | None:
        """Microns per pixel of these pixels (not of level 0); None where they are not known."""
        if self.microns_per_pixel is None:
            return None
        return tuple(m * s for m, s in zip(self.microns_per_pixel, self.scale, strict=True))

    def to_level_0(self, point: Sequence[float]) -> tuple[float, ...]:
        """A point (rows first) of these pixels in pixels of level 0."""
        return tuple(o + s * x for o, s, x in zip(self.offset, self.scale, point, strict=True))

    def from_level_0(self, point: Sequence[float]) -> tuple[float, ...]:
        """The inverse of `to_level_0`."""
        return tuple((x - o) / s for o, s, x in zip(self.offset, self.scale, point, strict=True))

    def to_world(self, point: Sequence[float]) -> tuple[float, float]:
        """A point (row, column) of these pixels in world coordinates (x, y); those of level 0 without a transform.

        >>> Placement((0.0, 0.0), (2.0, 2.0), transform=(10, 0, 500, 0, -10, 900)).to_world((1, 3))
        (560.0, 880.0)
        """
        row, column = self.to_level_0(point)
        a, b, c, d, e, f = self.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
        return a * column + b * row + c, d * column + e * row + f

    @property
    def world_transform(self) -> Affine | None:
        """The transform from (column, row) of these pixels to world coordinates; None without one."""
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        (oy, ox), (sy, sx) = self.offset, self.scale
        return a * sx, b * sy, a * ox + b * oy + c, d * sx, e * sy, d * ox + e * oy + f

    def part(self, offset: Sequence[float], scale: Sequence[float]) -> Placement:
        """The placement of other pixels y, where x = offset + scale·y are pixels of this placement.

        >>> Placement((1.0,), (4.0,)).part((0.5,), (2.0,))
        Placement(offset=(3.0,), scale=(8.0,), microns_per_pixel=None, transform=None, crs=None)
        """
        return replace(
            self,
            offset=self.to_level_0(offset),
            scale=tuple(s * t for s, t in zip(self.scale, scale, strict=True)),
        )

    def of_map(self, geometry: Geometry) -> Placement:
        """The placement of the positions of a score map of an image with this placement.

        >>> g = Geometry((4, 4), (2, 2), (0, 0), (4, 4), (0, 0), True)
        >>> Placement.identity().of_map(g).to_level_0((0.5, 1.5))   # centres of the windows [0, 4) and [2, 6)
        (2.0, 4.0)
        """
        first = tuple(
            w / 2 - o - s / 2
            for w, o, s in zip(geometry.window, geometry.window_offset, geometry.stride, strict=True)
        )
        return self.part(first, geometry.stride)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "offset": list(self.offset),
            "scale": list(self.scale),
            "microns_per_pixel": None if self.microns_per_pixel is None else list(self.microns_per_pixel),
            "transform": None if self.transform is None else list(self.transform),
            "crs": self.crs,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Placement:
        """The placement that `to_dict` described. Raises BadInput where the data are not of that kind.

        >>> Placement.from_dict(Placement.identity().to_dict()) == Placement.identity()
        True
        """
        try:
            mpp, transform = data["microns_per_pixel"], data["transform"]
            return cls(
                tuple(float(v) for v in data["offset"]),
                tuple(float(v) for v in data["scale"]),
                None if mpp is None else tuple(float(v) for v in mpp),
                None if transform is None else _affine(transform),
                None if data["crs"] is None else str(data["crs"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"placement={data!r}: is not the description of a placement") from error


def _affine(values: Sequence[float]) -> Affine:
    a, b, c, d, e, f = (float(v) for v in values)
    return a, b, c, d, e, f


def placement_of(source: Any) -> Placement:
    """The placement that an image source states, or that of an image at full resolution."""
    stated = getattr(source, "placement", None)
    return stated if isinstance(stated, Placement) else Placement.identity(len(source.size))
