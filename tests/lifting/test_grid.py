"""Grids: what is known of the join of two maps, against the definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import PERIOD, Grid

IMAGE = Grid.image(3, (24, 24))


def test_an_image_has_a_position_per_pixel_at_512_sizes() -> None:
    assert IMAGE.sizes == (tuple(range(24, 24 + 512)),) * 2
    assert (IMAGE.jump, IMAGE.align, IMAGE.shape) == ((1, 1), (1, 1), (3, 24, 24))
    assert IMAGE.image_wide is False


@pytest.mark.parametrize(
    ("align", "known"), [((1, 1), True), ((512, 512), True), ((513, 1), False), ((1, 513), False)]
)
def test_extents_of_maps_that_are_aligned_with_large_strides_are_not_known(
    align: tuple[int, int], known: bool
) -> None:
    assert replace(IMAGE, align=align).extents_known == known


def test_a_gather_beyond_the_smallest_images_has_no_positions_there() -> None:
    """From position 3 on, every second one, of images of 2, 3, 4, … pixels."""
    grid = Grid.image(1, (2,)).gathered(1, [(3, 3)], (2,), (1,))
    assert grid.sizes[0][:7] == tuple(len(range(3, size, 2)) for size in range(2, 9)) == (0, 0, 1, 1, 2, 2, 3)


def test_the_extent_of_a_join_is_the_smaller_one_at_every_image_size() -> None:
    convolution = IMAGE.through([Sliding(3, 2)] * 2, 5)
    pool = IMAGE.through([Sliding(2, 2)] * 2, 5)
    for first, second in ((convolution, pool), (pool, convolution)):
        joined = first.joined(second)
        assert joined is not None
        for axis in range(2):
            expected = [min((n - 3) // 2 + 1, n // 2) for n in range(24, 24 + PERIOD)]
            assert list(joined.sizes[axis]) == expected
            assert joined.fields[axis].start == 0
            assert joined.fields[axis].size == 3


def test_the_field_of_a_join_is_the_hull() -> None:
    near = IMAGE.gathered(3, [(0, 0)] * 2, (1, 1), (20, 20))
    far = IMAGE.gathered(3, [(4, 4)] * 2, (1, 1), (20, 20))
    for first, second in ((near, far), (far, near)):
        joined = first.joined(second)
        assert joined is not None
        assert [(f.start, f.size) for f in joined.fields] == [(0, 5)] * 2


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [((4, 1), (6, 5), (12, 5)), ((6, 5), (4, 1), (12, 5)), ((2, 8), (4, 8), (4, 8))],
)
def test_the_alignment_of_a_join_is_the_least_common_multiple(
    first: tuple[int, int], second: tuple[int, int], both: tuple[int, int]
) -> None:
    """Windows must lie at multiples of both alignments, on each axis by itself."""
    joined = replace(IMAGE, align=first).joined(replace(IMAGE, align=second))
    assert joined is not None
    assert joined.align == both


def test_maps_of_different_jumps_do_not_join() -> None:
    assert IMAGE.joined(IMAGE.through([Sliding(1, 1), Sliding(1, 2)])) is None
