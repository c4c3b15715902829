"""Which pixels to read and which places of the map to write: integers only, decided before anything runs.

A plan cuts the map into blocks of output places. Every place belongs to one block and one shift, so it is
written once, by one tile, and no overlap is ever averaged. A tile reads its windows and, where padding
inside the network makes places look past their window, the halo too, so that a tiled pass equals the whole
one. For the places [a, b) of an axis it reads the pixels

    [s·max(0, a − ⌈(o + before) / s⌉), min(n, s·(b − 1) + w + max(0, after − o)))

with stride s, window w, window offset o, image size n, and (before, after) how far the receptive field
reaches beyond the window. Every read starts at a multiple of the stride; at the image's own edges it ends
where the image ends, so that the layers' own padding acts there and only there.

A map finer than the stride is made of k = `shifts` passes per axis; pass m runs over the image without its
first m·s/k pixels and fills every k-th place from m on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry

PerAxis = int | Sequence[int]


@dataclass(frozen=True)
class Span:
    """The integers start, start + step, … below stop, on one axis."""

    start: int
    stop: int
    step: int = 1

    @property
    def slice(self) -> slice:
        """The same as a Python slice."""
        return slice(self.start, self.stop, self.step)

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))


@dataclass(frozen=True)
class Strip:
    """One tile on one axis: the pixels to read, which of the places they give to keep, where those go."""

    read: Span
    keep: Span
    write: Span


@dataclass(frozen=True)
class Tile:
    """One read and one write: `read` pixels, `keep` of the places they give, `write` places; a span per axis.

    `block` says which block of the map it belongs to; the tiles of one block (one for each shift) come
    together.
    """

    block: tuple[int, ...]
    read: tuple[Span, ...]
    keep: tuple[Span, ...]
    write: tuple[Span, ...]

    @property
    def read_shape(self) -> tuple[int, ...]:
        """Pixels read, per axis."""
        return tuple(len(span) for span in self.read)


@dataclass(frozen=True)
class Plan:
    """Every tile of a scan, in order; made by :func:`plan_scan`.

    `network` is the network's own geometry, `geometry` the map's (a finer stride where there are shifts),
    `positions` the map's places per axis, `tile` the places of one block per axis.
    """

    network: Geometry
    geometry: Geometry
    image_size: tuple[int, ...]
    positions: tuple[int, ...]
    shifts: tuple[int, ...]
    tile: tuple[int, ...]
    strips: tuple[tuple[tuple[Strip, ...], ...], ...]  # axis, block, shift

    def __len__(self) -> int:
        """The number of tiles."""
        return prod(sum(len(block) for block in axis) for axis in self.strips)

    def __iter__(self) -> Iterator[Tile]:
        for block in product(*(range(len(axis)) for axis in self.strips)):
            per_axis = [axis[b] for axis, b in zip(self.strips, block, strict=True)]
            for strips in product(*per_axis):
                yield Tile(
                    block,
                    read=tuple(strip.read for strip in strips),
                    keep=tuple(strip.keep for strip in strips),
                    write=tuple(strip.write for strip in strips),
                )

    @property
    def pixels_read(self) -> int:
        """Pixels read over all tiles: what the scan costs, against the image's own number of pixels."""
        return prod(sum(len(strip.read) for block in axis for strip in block) for axis in self.strips)

    def to_dict(self) -> dict[str, Any]:
        """What determines the plan, as plain data: two plans with equal dicts are equal."""
        return {
            "geometry": self.network.to_dict(),
            "image_size": list(self.image_size),
            "shifts": list(self.shifts),
            "tile": list(self.tile),
        }


def plan_scan(
    geometry: Geometry, image_size: Sequence[int], *, shifts: PerAxis = 1, tile: PerAxis | None = None
) -> Plan:
    """Plan a scan of an image of `image_size` pixels (per axis) by a network of this geometry.

    `shifts` is the number of passes per axis, a divisor of the stride. `tile` is the size of a block in
    places of the finished map, per axis, rounded up to a multiple of `shifts`; None makes one block of all.

    Raises BadInput if the image is smaller than the window, shifts do not divide the stride, or tiles are
    asked for of a network each of whose answers sees the whole image.

    Example
    -------
    >>> from onebyone.laws.geometry import Geometry
    >>> g = Geometry(window=(28,), stride=(4,), window_offset=(0,), receptive_field=(28,),
    ...              receptive_field_offset=(0,), exact=True, inexact_because=())
    >>> for t in plan_scan(g, (64,), tile=4):
    ...     print(t.read[0], t.keep[0], t.write[0])
    Span(start=0, stop=40, step=1) Span(start=0, stop=4, step=1) Span(start=0, stop=4, step=1)
    Span(start=16, stop=56, step=1) Span(start=0, stop=4, step=1) Span(start=4, stop=8, step=1)
    Span(start=24, stop=64, step=1) Span(start=2, stop=4, step=1) Span(start=8, stop=10, step=1)
    """
    axes = len(geometry.window)
    size = tuple(int(n) for n in image_size)
    if len(size) != axes:
        raise BadInput(f"image_size {size} has {len(size)} axes and the network's window has {axes}")
    if geometry.image_wide and tile is not None:
        raise BadInput(
            f"tile is {tile!r}, but each answer of this network sees the whole image; None was expected"
        )
    passes = _per_axis("shifts", shifts, axes)
    fine = finer(geometry, passes)
    positions = tuple(fine.positions(size))
    wanted = positions if tile is None else _per_axis("tile", tile, axes)
    blocks = tuple(-(-min(t, p) // k) for t, p, k in zip(wanted, positions, passes, strict=True))
    strips = tuple(_axis(geometry, a, size[a], passes[a], positions[a], blocks[a]) for a in range(axes))
    tiles = tuple(b * k for b, k in zip(blocks, passes, strict=True))
    return Plan(geometry, fine, size, positions, passes, tiles, strips)


def finer(geometry: Geometry, shifts: PerAxis) -> Geometry:
    """The geometry of a map made of `shifts` passes per axis: the same windows at stride / shifts.

    Raises BadInput where shifts do not divide the stride, and says which numbers do.
    """
    passes = _per_axis("shifts", shifts, len(geometry.stride))
    for axis, (count, stride) in enumerate(zip(passes, geometry.stride, strict=True)):
        if stride % count:
            fitting = ", ".join(str(k) for k in range(1, stride + 1) if stride % k == 0)
            raise BadInput(
                f"shifts={count} does not divide the network's stride {stride} on axis {axis}; "
                f"these do: {fitting}"
            )
    return replace(geometry, stride=tuple(s // k for s, k in zip(geometry.stride, passes, strict=True)))


def tile_for(
    geometry: Geometry, image_size: Sequence[int], *, shifts: PerAxis = 1, least: int = 256, most: int = 2048
) -> tuple[int, ...]:
    """A good tile, in places of the map; the whole map where the image is no larger than one read.

    Neighbouring reads share window − stride + halo pixels per axis. A read is about 12 times as wide, so that
    computing those twice costs less than a fifth in two dimensions, within `least` (feature maps that stay
    in a processor's cache) and `most` pixels (feature maps that stay in memory).
    """
    passes = _per_axis("shifts", shifts, len(geometry.window))
    whole = finer(geometry, passes).positions(image_size)
    tile = []
    for axis, (size, stride, count) in enumerate(zip(image_size, geometry.stride, passes, strict=True)):
        shared = max(0, geometry.window[axis] - stride + sum(geometry.halo[axis]))
        side = min(max(least, 12 * shared), most)
        places = max(side - shared, shared, stride) // stride * count
        tile.append(whole[axis] if size <= side else min(places, whole[axis]))
    return tuple(tile)


@dataclass(frozen=True)
class _Pass:
    """One shifted pass on one axis: a view of `size` pixels that begins `skipped` into the image.

    It owns the places shift, shift + shifts, … of the map: `count` of them.
    """

    size: int
    skipped: int
    shift: int
    shifts: int
    count: int


def _axis(
    geometry: Geometry, axis: int, size: int, shifts: int, places: int, block: int
) -> tuple[tuple[Strip, ...], ...]:
    """The strips of one axis, by block and shift; `places` are the finished map's, `block` one pass's."""
    passes = []
    for shift in range(min(shifts, places)):
        skipped = shift * geometry.stride[axis] // shifts
        passes.append(_Pass(size - skipped, skipped, shift, shifts, (places - shift - 1) // shifts + 1))
    return tuple(
        tuple(_strip(geometry, axis, p, start, block) for p in passes if start < p.count)
        for start in range(0, passes[0].count, block)
    )


def _strip(geometry: Geometry, axis: int, one: _Pass, first: int, block: int) -> Strip:
    """The strip that owns places [first, first + block) of one pass, as far as it has them.

    The last strip computes a full block, ending where the pass ends, and keeps what no other strip owns.
    """
    last = min(first + block, one.count)
    begin, end = _read(geometry, axis, one.size, max(0, last - block), min(block, one.count))
    local = begin // geometry.stride[axis]
    return Strip(
        read=Span(begin + one.skipped, end + one.skipped),
        keep=Span(first - local, last - local),
        write=Span(one.shift + one.shifts * first, one.shift + one.shifts * (last - 1) + 1, one.shifts),
    )


def _read(geometry: Geometry, axis: int, size: int, first: int, count: int) -> tuple[int, int]:
    """Pixels to read for `count` places from `first` on; the equation at the top of this file.

    Near the far edge the read is moved back by whole strides rather than shortened, so that tiles keep their
    shape as far as the image's own size allows.
    """
    window, stride, offset = geometry.window[axis], geometry.stride[axis], geometry.window_offset[axis]
    before, after = geometry.halo[axis]
    lead = max(0, -(-(offset + before) // stride))  # whole strides read before the first place
    length = (lead + count - 1) * stride + window + max(0, after - offset)
    begin = max(0, first - lead) * stride
    if begin + length <= size:
        return begin, begin + length
    return max(0, (size - length) // stride * stride), size


def _per_axis(name: str, value: PerAxis, axes: int) -> tuple[int, ...]:
    """One positive integer per axis from an integer or a sequence of them."""
    given = (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)
    if len(given) != axes or any(v < 1 for v in given):
        raise BadInput(f"{name}={value!r}: expected a positive integer, or {axes} of them (one per axis)")
    return given
