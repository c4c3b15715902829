"""Axes of arrays: which axis is rows, which columns and which channels, as the user or the file states them.

Axes are one letter each: Y and X (rows, columns), Z (slices, for volumes), C or S (channels, samples of a pixel), and
any other letter for an axis of length 1. `axes="CYX"` is a channels-first image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Region

SPATIAL = {1: "X", 2: "YX", 3: "ZYX"}
_CHANNEL = "CS"
#: Names of dimensions that xarray's readers and CF conventions use.
_NAMED_AXES = {
    **dict.fromkeys(("row", "rows", "height", "lat", "latitude", "northing"), "Y"),
    **dict.fromkeys(("col", "column", "columns", "width", "lon", "longitude", "easting"), "X"),
    **dict.fromkeys(("band", "bands", "channel", "channels"), "C"),
    **dict.fromkeys(("depth", "slice", "slices"), "Z"),
}
#: The largest region that is read at once, in bytes: a limit on what a damaged or hostile file can request.
MAX_REGION_BYTES = 2**33


@dataclass(frozen=True)
class AxisOrder:
    """Where the spatial axes and the channels of an array are; made by `axis_order`.

    `spatial` are the positions of the spatial axes, `channels` that of the channels (None: one channel), and `others`
    the axes of length 1.
    """

    spatial: tuple[int, ...]
    channels: int | None
    others: tuple[int, ...]

    def index(self, region: Region) -> tuple[Any, ...]:
        """The index of a region, for an array with these axes."""
        index: dict[int, Any] = dict.fromkeys(self.others, 0)
        index.update({axis: span.slice for axis, span in zip(self.spatial, region, strict=True)})
        if self.channels is not None:
            index[self.channels] = slice(None)
        return tuple(index[axis] for axis in range(len(index)))

    def arranged(self, values: NDArray[Any]) -> NDArray[Any]:
        """What `index` selected, as (…, h, w, channels)."""
        kept = sorted([*self.spatial, *([] if self.channels is None else [self.channels])])
        order = [kept.index(axis) for axis in self.spatial]
        if self.channels is None:
            return values.transpose(order)[..., None]
        return values.transpose([*order, kept.index(self.channels)])


def axis_order(shape: Sequence[int], axes: str | None, spatial: int = 2, *, name: str = "image") -> AxisOrder:
    """The order of the axes of an array of `shape`.

    `axes` names every axis of the array; None means the spatial axes, or these and then the channels.

    Raises BadInput where they do not fit the shape.

    Example
    -------
    >>> axis_order((3, 40, 50), "CYX").spatial, axis_order((40, 50, 3), None).channels
    ((1, 2), 2)
    """
    wanted = SPATIAL[spatial]
    if axes is None:
        if len(shape) not in (spatial, spatial + 1):
            raise BadInput(
                f"{name} has the shape {tuple(shape)}; expected {spatial} axes ({wanted}), or these and channels; "
                "axes= states another order, such as axes='CYX'"
            )
        axes = wanted + "C" * (len(shape) - spatial)
    letters = axes.upper()
    if len(letters) != len(shape) or len(set(letters)) != len(letters) or not letters.isalpha():
        raise BadInput(
            f"axes={axes!r}: {name} has the shape {tuple(shape)}; expected {len(shape)} different letters, one per axis"
        )
    channels = [letters.index(c) for c in _CHANNEL if c in letters]
    if any(letter not in letters for letter in wanted) or len(channels) > 1:
        raise BadInput(f"axes={axes!r}: expected {', '.join(wanted)}, and C (or S) for channels")
    positions = tuple(letters.index(letter) for letter in wanted)
    others = tuple(k for k in range(len(shape)) if k not in (*positions, *channels))
    for k in others:
        if shape[k] != 1:
            raise BadInput(
                f"axes={axes!r}: {name} has {shape[k]} entries on axis {letters[k]}; "
                "expected 1, or select one with page="
            )
    return AxisOrder(positions, channels[0] if channels else None, others)


class SlicedSource:
    """Anything with `shape`, `dtype` and slicing (a NumPy, Dask, Zarr, xarray or HDF5 array); an `ImageSource`.

    Only the region that is read is computed or loaded. `axes` are as for `axis_order`.

    >>> from onebyone.stores.regions import Span
    >>> source = SlicedSource(np.arange(24).reshape(2, 3, 4), "CYX")
    >>> source.size, source.channels, source.read((Span(2, 3), Span(0, 2))).tolist()
    ((3, 4), 2, [[[8, 20], [9, 21]]])
    """

    def __init__(
        self,
        values: Any,
        axes: str | None = None,
        *,
        spatial: int = 2,
        placement: Placement | None = None,
        name: str = "image",
        nodata: float | None = None,
    ) -> None:
        self._values, self._name = values, name
        shape = tuple(int(n) for n in values.shape)
        self._order = axis_order(shape, axes, spatial, name=name)
        self.size: tuple[int, ...] = tuple(shape[k] for k in self._order.spatial)
        self.channels = 1 if self._order.channels is None else shape[self._order.channels]
        self.dtype: np.dtype[Any] = np.dtype(values.dtype).newbyteorder("=")
        self.placement = placement or Placement.identity(spatial)
        self.nodata = nodata

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (h, w, channels). Raises BadInput where they cannot be read."""
        require_region(region, self.channels * self.dtype.itemsize, self._name)
        try:
            values = require_unmasked(self._values[self._order.index(region)], self._name)
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # libraries raise errors of many types on damaged chunks
            at = ", ".join(f"{s.start} to {s.stop}" for s in region)
            raise BadInput(f"{self._name} cannot be read at {at}: {short_reason(error)}") from error
        return self._order.arranged(values.astype(self.dtype, copy=False))


def require_unmasked(values: Any, name: str) -> NDArray[Any]:
    """The values as a plain array. Raises BadInput for a masked array in which pixels are masked."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise BadInput(
            f"{name} is a masked array with masked pixels; fill them with a value, and state it as nodata="
        )
    return np.asarray(values)


def axes_of_names(names: Sequence[object]) -> str | None:
    """The axes of an array from the names of its dimensions; None where a name is not known or two mean the same axis.

    Names of one letter are the letter of the axis.

    >>> axes_of_names(["band", "y", "x"]), axes_of_names(["lat", "lon"]), axes_of_names(["first", "second"])
    ('CYX', 'YX', None)
    """
    letters = [str(n).upper() if len(str(n)) == 1 else _NAMED_AXES.get(str(n).lower(), "") for n in names]
    return "".join(letters) if letters and all(letters) and len(set(letters)) == len(letters) else None


def require_region(region: Region, pixel_bytes: int, name: str) -> None:
    """Raise BadInput where a region is too large to be read at once."""
    size = prod(map(len, region)) * pixel_bytes
    if size > MAX_REGION_BYTES:
        raise BadInput(
            f"{name}: a region of {size:,} bytes was requested; at most {MAX_REGION_BYTES:,} are read at once"
        )


def short_reason(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none, shortened, because files can be hostile."""
    return first_line(error)[:200]
