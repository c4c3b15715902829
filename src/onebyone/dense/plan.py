"""Tile plans: which pixels each tile reads and which positions of the score map it writes, as integers.

The plan is made before anything runs and depends on the geometry and the sizes only.

It divides the positions of the map into blocks. Every position belongs to exactly one block and one shift, so it is
written once, by one tile, and overlapping results are never averaged. A tile reads the windows of its positions. Where
padding inside the network extends the receptive field beyond the window, it reads that halo too, so that a tiled pass
equals one pass over the whole image. For the positions [a, b) of an axis it reads the pixels

    [s·max(0, a − ⌈(o + before) / s⌉), min(n, s·(b − 1) + w + max(0, after − o)))

with stride s, window w, window offset o, image size n, and (before, after) the pixels by which the receptive field
extends beyond the window. Every read starts at a multiple of the stride. Reads end at the image's own edges, so that
the padding of the layers acts there and nowhere else.

All reads of an axis have the same length, as far as the size of the image allows, because libraries choose a
convolution algorithm by the shape of its input. The first and the last tile need no halo beyond the edge of the image,
so they own more positions than the inner tiles, which all own the same number. Every pixel is then read once, except
the window − stride + halo pixels that two neighbouring tiles share, which are read twice.

Where the map is stored in chunks, the blocks are `aligned`: every block begins at a multiple of the block's size, so
that it is one chunk, with one writer. The first tile then owns as many positions as the others, and its read extends
further into the image instead.

A map finer than the stride takes k = `shifts` passes per axis. Pass m skips the first m·s/k pixels of the image and
computes every k-th position, starting with position m.
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
from onebyone.stores.regions import Span

PerAxis = int | Sequence[int]

#: Width of a tile, in multiples of the pixels that neighbouring tiles share, by the number of axes. A tile n times as
#: wide reads (n / (n − 1))^axes times the image: at most 1.2 times with these numbers.
_WIDTH_IN_OVERLAPS = {1: 6, 2: 12, 3: 20}


@dataclass(frozen=True)
class AxisTile:
    """One tile on one axis: pixels to read, positions of the network's output to keep, positions to write."""

    read: Span
    keep: Span
    write: Span


@dataclass(frozen=True)
class Tile:
    """One read and one write, with one span per axis.

    `read` are pixels of the image, `keep` positions of what the network computes from them, and `write` the positions
    of the map where these go. `block` identifies the block of the map; the tiles of one block, one for each shift,
    follow each other.
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
    """All tiles of a scan, in order. Made by :func:`plan_scan`.

    `network` is the geometry of the network, `geometry` that of the map, whose stride is finer where there are shifts.
    `positions` is the size of the map per axis, `tile` the positions of an inner block per axis.
    """

    network: Geometry
    geometry: Geometry
    image_size: tuple[int, ...]
    positions: tuple[int, ...]
    shifts: tuple[int, ...]
    tile: tuple[int, ...]
    axis_tiles: tuple[tuple[tuple[AxisTile, ...], ...], ...]  # indexed by axis, block and shift
    aligned: bool

    def __len__(self) -> int:
        """The number of tiles."""
        return prod(sum(len(block) for block in axis) for axis in self.axis_tiles)

    def __iter__(self) -> Iterator[Tile]:
        for block in product(*(range(len(axis)) for axis in self.axis_tiles)):
            per_axis = [axis[b] for axis, b in zip(self.axis_tiles, block, strict=True)]
            for parts in product(*per_axis):
                yield Tile(
                    block,
                    read=tuple(part.read for part in parts),
                    keep=tuple(part.keep for part in parts),
                    write=tuple(part.write for part in parts),
                )

    @property
    def pixels_read(self) -> int:
        """Pixels read over all tiles. Divided by the pixels of the image, it is the cost of tiling."""
        return prod(sum(len(part.read) for block in axis for part in block) for axis in self.axis_tiles)

    def to_dict(self) -> dict[str, Any]:
        """What determines the plan, as plain data: two plans with equal dictionaries are equal."""
        return {
            "geometry": self.network.to_dict(),
            "image_size": list(self.image_size),
            "shifts": list(self.shifts),
            "tile": list(self.tile),
            "aligned": self.aligned,
        }

    def block_region(self, block: Sequence[int]) -> tuple[Span, ...]:
        """The positions that a block covers: those of all its tiles together."""
        return tuple(
            Span(min(part.write.start for part in axis[b]), max(part.write.stop for part in axis[b]))
            for axis, b in zip(self.axis_tiles, block, strict=True)
        )


def plan_scan(
    geometry: Geometry,
    image_size: Sequence[int],
    *,
    shifts: PerAxis = 1,
    tile: PerAxis | None = None,
    aligned: bool = False,
) -> ScanPlan:
    """Plan the scan of an image by a network.

    The positions are divided into as few blocks as `tile` allows, all of nearly equal size. Blocks of the largest
    size and a remainder would cost more: tiles keep one shape, so the remainder would be computed as a whole block.

    Parameters
    ----------
    geometry
        the network's.
    image_size
        pixels per axis.
    shifts
        passes per axis, a divisor of the stride.
    tile
        the largest size of a block, in positions of the finished map per axis, rounded up to a multiple of `shifts`.
        None makes one block of the whole map.
    aligned
        whether every block begins at a multiple of the block's size, as the chunks of a store do.

    Raises
    ------
    BadInput
        where the image is smaller than the window, shifts do not divide the stride, or `tile` is given for a network
        whose every prediction depends on the whole image.

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
            f"tile={tile!r}: expected None, because every prediction of this network depends on the whole image"
        )
    passes = _per_axis("shifts", shifts, axes)
    map_geometry = finer_geometry(geometry, passes)
    positions = tuple(map_geometry.positions(size))
    largest = positions if tile is None else _per_axis("tile", tile, axes)
    blocks = tuple(
        _balanced_block(geometry, a, -(-positions[a] // passes[a]), -(-largest[a] // passes[a]), aligned)
        for a in range(axes)
    )
    axis_tiles = tuple(
        _axis_tiles(geometry, a, size[a], passes[a], positions[a], blocks[a], aligned) for a in range(axes)
    )
    tiles = tuple(b * k for b, k in zip(blocks, passes, strict=True))
    return ScanPlan(geometry, map_geometry, size, positions, passes, tiles, axis_tiles, aligned)


def finer_geometry(geometry: Geometry, shifts: PerAxis) -> Geometry:
    """The geometry of a map made of `shifts` passes per axis: the same windows at stride / shifts.

    Raises BadInput where shifts do not divide the stride; the message lists the divisors.
    """
    passes = _per_axis("shifts", shifts, len(geometry.stride))
    for axis, (count, stride) in enumerate(zip(passes, geometry.stride, strict=True)):
        if stride % count:
            divisors = ", ".join(str(k) for k in range(1, stride + 1) if stride % k == 0)
            raise BadInput(
                f"shifts={count} does not divide the network's stride {stride} on axis {axis}; "
                f"expected one of {divisors}"
            )
    return replace(geometry, stride=tuple(s // k for s, k in zip(geometry.stride, passes, strict=True)))


def choose_tile(
    geometry: Geometry,
    image_size: Sequence[int],
    *,
    shifts: PerAxis = 1,
    min_pixels: int = 2**16,
    max_pixels: int = 2**23,
) -> tuple[int, ...]:
    """Choose the size of a tile, in positions of the map per axis, by what it costs.

    Neighbouring tiles both read window − stride + halo pixels per axis. A tile 6, 12 or 20 times as wide, in one, two
    or three dimensions, reads at most 1.2 times the image, and this is the target size: a larger tile would save
    little, and its feature maps would not fit the processor's caches. The target has at least `min_pixels` pixels
    over all axes together, because a smaller tile spends its time on calls, and at most `max_pixels`, which bounds the
    memory. Starting from one tile for the whole image, the axis whose tile is the widest in proportion to the target
    is divided into one more block, all of nearly equal size, until the tile is no larger than the target. Where
    `max_pixels` prevents the target, more pixels are read twice.

    Raises BadInput as :func:`plan_scan` does.

    Example
    -------
    >>> from onebyone.laws.geometry import Geometry
    >>> g = Geometry(window=(64, 64), stride=(4, 4), window_offset=(0, 0), receptive_field=(64, 64),
    ...              receptive_field_offset=(0, 0), exact=True, inexact_because=())
    >>> plan = plan_scan(g, (724, 724), tile=choose_tile(g, (724, 724)))
    >>> plan.tile, round(plan.pixels_read / 724**2, 3)
    ((83, 166), 1.083)
    """
    axes = len(geometry.window)
    passes = _per_axis("shifts", shifts, axes)
    positions = finer_geometry(geometry, passes).positions(image_size)
    counts = [-(-p // k) for p, k in zip(positions, passes, strict=True)]  # positions of one pass
    reaches = [_Reach.of(geometry, a) for a in range(axes)]
    target = [
        max(round(min_pixels ** (1 / axes)), _WIDTH_IN_OVERLAPS[axes] * reach.shared) for reach in reaches
    ]
    limit = min(prod(target), max_pixels)
    blocks = [1] * axes

    def width(axis: int) -> int:
        """Pixels that a tile reads on an axis."""
        return min(image_size[axis], reaches[axis].length(reaches[axis].block(counts[axis], blocks[axis])))

    while prod(width(a) for a in range(axes)) > limit:
        # a tile that owned fewer pixels than it shares would read each pixel four times or more
        divisible = [a for a in range(axes) if reaches[a].divides(counts[a], blocks[a] + 1)]
        if not divisible:
            break
        blocks[max(divisible, key=lambda a: Fraction(width(a), target[a]))] += 1
    tile = (reaches[a].block(counts[a], blocks[a]) * passes[a] for a in range(axes))
    return tuple(min(t, p) for t, p in zip(tile, positions, strict=True))


@dataclass(frozen=True)
class _Reach:
    """How far a tile reads beyond the windows it owns, on one axis: `lead` strides before, `after` pixels after."""

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
        """Positions that the first and the last tile own beyond those of an inner tile."""
        return self.lead + self.after // self.stride

    def length(self, block: int) -> int:
        """Pixels that an inner tile reads to own `block` positions."""
        return (self.lead + block - 1) * self.stride + self.window + self.after

    def blocks(self, count: int, largest: int) -> int:
        """The number of tiles for `count` positions if no inner tile owns more than `largest`."""
        return max(1, -(-(count - self.edges) // largest))

    def block(self, count: int, blocks: int) -> int:
        """The positions of an inner tile where `count` positions are divided into at most `blocks` tiles."""
        return count if blocks == 1 else max(1, -(-(count - self.edges) // blocks))

    def divides(self, count: int, blocks: int) -> bool:
        """Whether each of so many tiles owns a position and at least as many pixels as it shares with a neighbour."""
        return blocks <= count - self.edges and self.block(count, blocks) * self.stride >= self.shared


@dataclass(frozen=True)
class _ShiftedPass:
    """One shifted pass on one axis: a view of `size` pixels that begins `skipped` pixels into the image.

    It owns `count` positions of the map: shift, shift + shifts, …
    """

    size: int
    skipped: int
    shift: int
    shifts: int
    count: int


def _axis_tiles(
    geometry: Geometry, axis: int, size: int, shifts: int, positions: int, block: int, aligned: bool
) -> tuple[tuple[AxisTile, ...], ...]:
    """The tiles of one axis, by block and shift. `positions` counts the finished map's, `block` those of one pass."""
    passes = []
    for shift in range(min(shifts, positions)):
        skipped = shift * geometry.stride[axis] // shifts
        count = (positions - shift - 1) // shifts + 1
        passes.append(_ShiftedPass(size - skipped, skipped, shift, shifts, count))
    reach = _Reach.of(geometry, axis)
    longest = passes[0].count
    if aligned:
        starts = list(range(0, longest, block))
    else:
        starts = [0, *range(reach.lead + block, longest, block)]
        # the read of the last tile covers more positions than its block, and it owns them all
        starts = starts[: reach.blocks(longest, block)]
    stops = [*starts[1:], longest]
    return tuple(
        tuple(
            _axis_tile(geometry, axis, p, start, min(stop, p.count), block) for p in passes if start < p.count
        )
        for start, stop in zip(starts, stops, strict=True)
    )


def _balanced_block(geometry: Geometry, axis: int, count: int, largest: int, aligned: bool) -> int:
    """The positions of one pass that an inner tile owns: at most `largest`, and nearly equal over all tiles."""
    if aligned:
        return -(-count // -(-count // largest))
    reach = _Reach.of(geometry, axis)
    return reach.block(count, reach.blocks(count, largest))


def _axis_tile(
    geometry: Geometry, axis: int, one: _ShiftedPass, first: int, last: int, block: int
) -> AxisTile:
    """The tile that owns the positions [first, last) of one pass.

    It reads what a full block that ends at `last` reads. The last tile ends where the pass ends and keeps the
    positions that no other tile owns.
    """
    begin, end = _read(geometry, axis, one.size, max(0, last - block), min(block, one.count))
    local = begin // geometry.stride[axis]
    return AxisTile(
        read=Span(begin + one.skipped, end + one.skipped),
        keep=Span(first - local, last - local),
        write=Span(one.shift + one.shifts * first, one.shift + one.shifts * (last - 1) + 1, one.shifts),
    )


def _read(geometry: Geometry, axis: int, size: int, first: int, count: int) -> tuple[int, int]:
    """Pixels to read for `count` positions from `first` on, by the equation at the top of this file.

    Near the far edge the read is moved back by whole strides instead of being shortened, so that tiles keep their
    shape as far as the size of the image allows.
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
