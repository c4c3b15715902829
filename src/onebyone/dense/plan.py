"""Which pixels to read and which places of the map to write: integers only, decided before anything runs.

A plan cuts the map into blocks of output places. Every place belongs to one block and one shift, so it is
written once, by one tile, and no overlap is ever averaged. A tile reads its windows and, where padding
inside the network makes places look past their window, the halo too, so that a tiled pass equals the whole
one. For the places [a, b) of an axis it reads the pixels

    [s·max(0, a − ⌈(o + before) / s⌉), min(n, s·(b − 1) + w + max(0, after − o)))

with stride s, window w, window offset o, image size n, and (before, after) how far the receptive field
reaches beyond the window. Every read starts at a multiple of the stride; at the image's own edges it ends
where the image ends, so that the layers' own padding acts there and only there.

All reads of an axis have one length, as far as the image's size allows, because libraries choose a convolution's
algorithm by its shape. The first and the last tile need no halo beyond the image's edge, so they own more places
than the tiles between them, which all own the same number: then every pixel is read once, and the
window − stride + halo pixels that two neighbours share twice.

A map finer than the stride is made of k = `shifts` passes per axis; pass m runs over the image without its
first m·s/k pixels and fills every k-th place from m on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry

PerAxis = int | Sequence[int]

# by the number of axes: a tile this many times as wide as what neighbours share reads (n / (n − 1))^axes ≤ 1.2 times
# the image, less where blocks round up to whole strides
_AIM = {1: 6, 2: 12, 3: 20}


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
class ScanPlan:
    """Every tile of a scan, in order; made by :func:`plan_scan`.

    `network` is the network's own geometry, `geometry` the map's (a finer stride where there are shifts),
    `positions` the map's places per axis, `tile` the places of one block per axis (balanced).
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
) -> ScanPlan:
    """Plan a scan of an image of `image_size` pixels (per axis) by a network of this geometry.

    `shifts` is the number of passes per axis, a divisor of the stride. `tile` is the largest size of a block in
    places of the finished map, per axis, rounded up to a multiple of `shifts`; None makes one block of all. The
    places are cut into as few blocks as that allows, all of nearly equal size: blocks of the largest size and a
    remainder would compute a whole block for the remainder, since tiles keep one shape.

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
    blocks = tuple(
        _block(geometry, a, -(-positions[a] // passes[a]), -(-wanted[a] // passes[a])) for a in range(axes)
    )
    strips = tuple(_axis(geometry, a, size[a], passes[a], positions[a], blocks[a]) for a in range(axes))
    tiles = tuple(b * k for b, k in zip(blocks, passes, strict=True))
    return ScanPlan(geometry, fine, size, positions, passes, tiles, strips)


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
    geometry: Geometry,
    image_size: Sequence[int],
    *,
    shifts: PerAxis = 1,
    least: int = 2**16,
    most: int = 2**23,
) -> tuple[int, ...]:
    """Choose the size of a tile, in places of the map per axis, by what it costs.

    Neighbouring tiles read window − stride + halo pixels per axis twice. A tile 6, 12 or 20 times as wide as that, in
    one, two or three dimensions, reads up to 1.2 times the image, and this is the size aimed at: a larger tile would
    save little, and its feature maps leave the processor's caches. It has at least `least` pixels (a smaller one
    spends its time on calls) and at most `most` (memory), over all axes together. From one tile for the whole image,
    the axis whose tile is the widest in proportion to this aim is cut into one more block, all of nearly equal size,
    until the tile is no larger than the aim. Where `most` prevents the aim, more pixels are read twice.

    Raises BadInput as :func:`plan_scan` does.

    Example
    -------
    >>> from onebyone.laws.geometry import Geometry
    >>> g = Geometry(window=(64, 64), stride=(4, 4), window_offset=(0, 0), receptive_field=(64, 64),
    ...              receptive_field_offset=(0, 0), exact=True, inexact_because=())
    >>> plan = plan_scan(g, (724, 724), tile=tile_for(g, (724, 724)))
    >>> plan.tile, round(plan.pixels_read / 724**2, 3)
    ((83, 166), 1.083)
    """
    axes = len(geometry.window)
    passes = _per_axis("shifts", shifts, axes)
    positions = finer(geometry, passes).positions(image_size)
    counts = [-(-p // k) for p, k in zip(positions, passes, strict=True)]  # places of one pass
    reaches = [_Reach.of(geometry, a) for a in range(axes)]
    aim = [max(round(least ** (1 / axes)), _AIM[axes] * reach.shared) for reach in reaches]
    limit = min(prod(aim), most)
    blocks = [1] * axes

    def side(axis: int) -> int:
        """Pixels that a tile reads on an axis."""
        return min(image_size[axis], reaches[axis].length(reaches[axis].block(counts[axis], blocks[axis])))

    while prod(side(a) for a in range(axes)) > limit:
        # a tile that owned fewer pixels than it shares would read each pixel four times and more
        divisible = [a for a in range(axes) if reaches[a].divides(counts[a], blocks[a] + 1)]
        if not divisible:
            break
        blocks[max(divisible, key=lambda a: Fraction(side(a), aim[a]))] += 1
    tile = (reaches[a].block(counts[a], blocks[a]) * passes[a] for a in range(axes))
    return tuple(min(t, p) for t, p in zip(tile, positions, strict=True))


@dataclass(frozen=True)
class _Reach:
    """How far a tile reads beyond the windows it owns, on one axis: `lead` whole strides before, `after` pixels."""

    stride: int
    window: int
    lead: int
    after: int

    @classmethod
    def of(cls, geometry: Geometry, axis: int) -> _Reach:
        """The reach of a network's tiles on an axis."""
        stride, offset = geometry.stride[axis], geometry.window_offset[axis]
        before, after = geometry.halo[axis]
        return cls(
            stride, geometry.window[axis], max(0, -(-(offset + before) // stride)), max(0, after - offset)
        )

    @property
    def shared(self) -> int:
        """Pixels that two neighbouring tiles both read."""
        return max(0, self.length(1) - self.stride)

    @property
    def edges(self) -> int:
        """Places that the first and the last tile own beyond what a tile between them owns."""
        return self.lead + self.after // self.stride

    def length(self, block: int) -> int:
        """Pixels that a tile reads to own `block` places between others."""
        return (self.lead + block - 1) * self.stride + self.window + self.after

    def blocks(self, count: int, largest: int) -> int:
        """How many tiles `count` places need if none between others owns more than `largest`."""
        return max(1, -(-(count - self.edges) // largest))

    def block(self, count: int, blocks: int) -> int:
        """The places of a tile between others where `count` places are cut into at most `blocks` tiles."""
        return count if blocks == 1 else max(1, -(-(count - self.edges) // blocks))

    def divides(self, count: int, blocks: int) -> bool:
        """Whether so many tiles each own at least as many pixels as they share, and none is left without places."""
        return blocks <= count - self.edges and self.block(count, blocks) * self.stride >= self.shared


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
    lead = _Reach.of(geometry, axis).lead
    most = passes[0].count
    starts = [0, *range(lead + block, most, block)] if block < most else [0]
    # the last tile owns what its read covers beyond a block
    starts = starts[: _Reach.of(geometry, axis).blocks(most, block)]
    stops = [*starts[1:], most]
    return tuple(
        tuple(_strip(geometry, axis, p, start, min(stop, p.count), block) for p in passes if start < p.count)
        for start, stop in zip(starts, stops, strict=True)
    )


def _block(geometry: Geometry, axis: int, count: int, largest: int) -> int:
    """The places of one pass that a tile owns, at most `largest` and all tiles' nearly equal."""
    reach = _Reach.of(geometry, axis)
    return reach.block(count, reach.blocks(count, largest))


def _strip(geometry: Geometry, axis: int, one: _Pass, first: int, last: int, block: int) -> Strip:
    """The strip that owns places [first, last) of one pass.

    It reads what a full block ending at `last` reads; the last strip ends where the pass ends, and keeps what no
    other strip owns.
    """
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
    reach = _Reach.of(geometry, axis)
    length = reach.length(count)
    begin = max(0, first - reach.lead) * reach.stride
    if begin + length <= size:
        return begin, begin + length
    return max(0, (size - length) // reach.stride * reach.stride), size


def _per_axis(name: str, value: PerAxis, axes: int) -> tuple[int, ...]:
    """One positive integer per axis from an integer or a sequence of them."""
    given = (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)
    if len(given) != axes or any(v < 1 for v in given):
        raise BadInput(f"{name}={value!r}: expected a positive integer, or {axes} of them (one per axis)")
    return given
