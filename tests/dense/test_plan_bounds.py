"""Tile plans against the equations of their description: the pixels that are read, and the size that is chosen."""

from __future__ import annotations

import math
from itertools import product

import pytest

from onebyone.dense.plan import choose_tile, plan_scan
from onebyone.laws.geometry import Geometry

CASES = list(product((1, 4, 7), (1, 2, 3), (-2, 0, 1, 3), (0, 1, 5), (0, 1, 5)))


def one_axis(window: int, stride: int, offset: int, before: int, after: int) -> Geometry:
    field = window + before + after
    return Geometry((window,), (stride,), (offset,), (field,), (offset + before,), False)


@pytest.mark.parametrize(("window", "stride", "offset", "before", "after"), CASES)
def test_a_tile_reads_exactly_the_pixels_of_the_equation(
    window: int, stride: int, offset: int, before: int, after: int
) -> None:
    """With any window offset. The first tile starts at pixel 0, the last one ends where no other read could."""
    geometry = one_axis(window, stride, offset, before, after)
    assert geometry.halo == ((before, after),)
    lead, more = max(0, math.ceil((offset + before) / stride)), max(0, after - offset)
    for size, tile in product((window, window + 9, window + 30), (1, 3, 5)):
        plan = plan_scan(geometry, (size,), tile=tile)
        inner = plan.positions[0] - lead - more // stride  # the first and the last tile own the others
        blocks = max(1, math.ceil(inner / tile))
        assert plan.tile[0] == (plan.positions[0] if blocks == 1 else math.ceil(inner / blocks))
        assert len(plan) <= blocks
        length = (lead + plan.tile[0] - 1) * stride + window + more
        written = []
        for number, t in enumerate(plan):
            read, keep, write = t.read[0], t.keep[0], t.write[0]
            written += range(write.start, write.stop)
            # the network's position k on the tile is the window at read.start + k·stride − offset
            assert read.start + keep.start * stride == write.start * stride
            assert (read.start % stride, len(keep)) == (0, len(write))
            assert keep.start >= 0
            for position in range(write.start, write.stop):
                first, last = geometry.receptive_field_at((position,))[0]
                assert read.start <= max(0, min(first, position * stride - offset))
                assert read.stop >= min(size, max(last, position * stride - offset + window))
            begin = stride * max(0, write.start - lead)
            if number == 0:
                assert read.start == 0
            elif number < len(plan) - 1 and begin + length <= size:
                assert (read.start, read.stop) == (begin, begin + length)
            if len(plan) > 1:
                assert len(read) <= length + stride - 1
        assert written == list(range(plan.positions[0]))


@pytest.mark.parametrize(("window", "stride"), [(8, 1), (8, 3), (30, 7), (5, 5)])
@pytest.mark.parametrize("limits", [(2**6, 2**10), (2**9, 2**10), (2**6, 100), (1, 9)])
def test_a_signal_is_divided_into_the_fewest_tiles_within_the_target(
    window: int, stride: int, limits: tuple[int, int]
) -> None:
    """By trying every number of tiles: each owns at least as many pixels as it shares with its neighbour."""
    geometry = one_axis(window, stride, 0, 0, 0)
    min_pixels, max_pixels = limits
    limit = min(max(min_pixels, 6 * (window - stride)), max_pixels)
    for size in range(window, 1500, 37):
        count = (size - window) // stride + 1
        tiles = {b: count if b == 1 else math.ceil(count / b) for b in range(1, count + 1)}
        allowed = [t for b, t in tiles.items() if b == 1 or t * stride >= window - stride]
        widths = {t: min(size, (t - 1) * stride + window) for t in allowed}
        fitting = [t for t in allowed if widths[t] <= limit]
        expected = max(fitting) if fitting else min(allowed)
        assert choose_tile(geometry, (size,), min_pixels=min_pixels, max_pixels=max_pixels) == (expected,)


def test_a_tile_of_exactly_the_limit_is_not_divided() -> None:
    geometry = one_axis(8, 2, 0, 0, 0)
    assert choose_tile(geometry, (64,), min_pixels=64) == (29,)
    assert choose_tile(geometry, (66,), min_pixels=64) == (15,)  # 30 positions in two tiles
    assert choose_tile(geometry, (64,), min_pixels=2**16, max_pixels=63) == (15,)


def test_windows_side_by_side_share_nothing_so_the_smallest_tile_is_one_window() -> None:
    assert choose_tile(one_axis(2, 2, 0, 0, 0), (20,), min_pixels=1) == (1,)
    assert choose_tile(one_axis(3, 2, 0, 0, 0), (21,), min_pixels=1) == (
        2,
    )  # 6 times the one pixel they share


def test_positions_that_the_first_and_the_last_tile_own_together_are_not_divided() -> None:
    """With a halo of one stride before the window, the first tile owns one position more than an inner tile."""
    geometry = one_axis(2, 4, 0, 1, 0)
    assert len(plan_scan(geometry, (6,), tile=1)) == 1
    assert choose_tile(geometry, (6,), min_pixels=1, max_pixels=1) == (2,)
    assert len(plan_scan(geometry, (10,), tile=1)) == 2
    assert choose_tile(geometry, (10,), min_pixels=1, max_pixels=1) == (1,)


def test_the_default_limits() -> None:
    """A signal of 2^16 pixels is one tile; a window of 2^21 pixels has tiles of 2^23, less than 6 times its overlap."""
    geometry = one_axis(8, 1, 0, 0, 0)
    assert choose_tile(geometry, (2**16,)) == (2**16 - 7,)
    assert choose_tile(geometry, (2**16 + 1,)) == (2**15 - 3,)
    large = one_axis(2**21, 1, 0, 0, 0)
    assert choose_tile(large, (2**23,)) == (2**23 - 2**21 + 1,)
    assert choose_tile(large, (2**23 + 1,))[0] < 2**23 - 2**21


@pytest.mark.parametrize(("axes", "overlaps"), [(1, 6), (2, 12), (3, 20)])
def test_tiles_are_as_wide_as_their_target_on_every_axis(axes: int, overlaps: int) -> None:
    """Axes with different windows have different targets; each tile is within 10% of its target."""
    window = (90, 33, 17)[:axes]
    geometry = Geometry(window, (2,) * axes, (0,) * axes, window, (0,) * axes, True)
    size = tuple(n * 2000 for n in window)
    plan = plan_scan(geometry, size, tile=choose_tile(geometry, size, min_pixels=1, max_pixels=2**60))
    target = [overlaps * (w - 2) for w in window]
    widths = [max(len(part.read) for block in axis for part in block) for axis in plan.axis_tiles]
    assert math.prod(widths) <= math.prod(t + 1 for t in target)
    assert all(0.9 * t < width < 1.1 * t for t, width in zip(target, widths, strict=True))


def test_a_map_of_few_positions_is_not_given_a_larger_tile() -> None:
    geometry = Geometry((8, 8), (4, 4), (0, 0), (8, 8), (0, 0), True)
    assert choose_tile(geometry, (9, 9), shifts=4) == geometry_positions(geometry, (9, 9), 4)


def geometry_positions(geometry: Geometry, size: tuple[int, int], shifts: int) -> tuple[int, ...]:
    return tuple(
        (n - w) // (s // shifts) + 1 for n, w, s in zip(size, geometry.window, geometry.stride, strict=True)
    )
