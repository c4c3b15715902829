"""The plan on integers: who writes what, what each tile reads, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebyone.dense.plan import Plan, finer, plan_scan, tile_for
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry

small = st.integers(0, 9)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of one or two axes with any halo, shifts and tile."""
    axes = draw(st.integers(1, 2))
    per_axis = []
    for _ in range(axes):
        shifts = draw(st.integers(1, 3))
        stride = shifts * draw(st.integers(1, 4))
        window = draw(st.integers(1, 12))
        before, after = draw(small), draw(small)
        size = window + draw(st.integers(0, 40))
        per_axis.append((window, stride, before, after, size, shifts, draw(st.integers(1, 14))))
    window, stride, before, after, size, shifts, tile = (tuple(v) for v in zip(*per_axis, strict=True))
    field = tuple(w + b + a for w, b, a in zip(window, before, after, strict=True))
    geometry = Geometry(window, stride, (0,) * axes, field, before, not any(before + after))
    return plan_scan(geometry, size, shifts=shifts, tile=draw(st.sampled_from([tile, None])))


@given(plans())
def test_every_place_is_written_once(plan: Plan) -> None:
    written = np.zeros(plan.positions, dtype=int)
    for tile in plan:
        written[tuple(s.slice for s in tile.write)] += 1
        assert [len(s) for s in tile.keep] == [len(s) for s in tile.write]
    assert (written == 1).all()
    assert len(plan) == len(list(plan))


@given(plans())
def test_a_tile_reads_what_its_places_see_and_keeps_the_right_ones(plan: Plan) -> None:
    for tile in plan:
        for axis, (read, keep, write) in enumerate(zip(tile.read, tile.keep, tile.write, strict=True)):
            stride, size = plan.network.stride[axis], plan.image_size[axis]
            assert 0 <= read.start < read.stop <= size
            phase = (write.start % plan.shifts[axis]) * plan.geometry.stride[axis]
            assert (read.start - phase) % stride == 0  # origins are multiples of the total stride
            for local, place in zip(range(keep.start, keep.stop), range(size)[write.slice], strict=True):
                index = [0] * len(plan.positions)
                index[axis] = place
                window = plan.geometry.window_at(index)[axis]
                field = plan.geometry.receptive_field_at(index)[axis]
                assert read.start + local * stride == window[0]
                assert read.start <= window[0]
                assert window[1] <= read.stop
                assert read.start <= max(field[0], phase)
                assert read.stop >= min(field[1], size)
                assert local < (len(read) - plan.network.window[axis]) // stride + 1


@given(plans())
def test_pixels_read_are_counted(plan: Plan) -> None:
    assert plan.pixels_read == sum(int(np.prod(tile.read_shape)) for tile in plan)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 60), st.integers(1, 9))
def test_exact_networks_have_one_tile_shape(window: int, stride: int, more: int, tile: int) -> None:
    geometry = Geometry((window,), (stride,), (0,), (window,), (0,), True)
    assert len({t.read_shape for t in plan_scan(geometry, (window + more,), tile=tile)}) == 1


@given(plans())
def test_padded_networks_have_few_tile_shapes(plan: Plan) -> None:
    """On each axis and shift: inner tiles alike, and one more shape where the image's end is off the grid."""
    for axis, blocks in enumerate(plan.strips):
        for shift in range(plan.shifts[axis]):
            shapes = {
                len(s.read) for block in blocks for s in block if s.write.start % plan.shifts[axis] == shift
            }
            assert len(shapes) <= 2


def test_the_last_tile_is_moved_back_not_cut() -> None:
    geometry = Geometry((4,), (2,), (0,), (4,), (0,), True)
    last = list(plan_scan(geometry, (20,), tile=4))[-1]
    assert (last.read[0].start, last.read[0].stop) == (10, 20)
    assert (last.keep[0].start, last.write[0].start) == (3, 8)


def test_a_shift_that_has_no_window_left_is_left_out() -> None:
    geometry = Geometry((8,), (4,), (0,), (8,), (0,), True)
    assert len(plan_scan(geometry, (9,), shifts=4)) == 2  # starts 0 and 1; at 2 and 3 no window fits


def test_shifts_must_divide_the_stride() -> None:
    geometry = Geometry((8, 8), (6, 6), (0, 0), (8, 8), (0, 0), True)
    with pytest.raises(
        BadInput, match=r"^shifts=4 does not divide the network's stride 6 on axis 1; these do: 1, 2, 3, 6$"
    ):
        plan_scan(geometry, (20, 20), shifts=(3, 4))
    assert finer(geometry, (2, 3)).stride == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, r"tile=0: expected a positive integer"),
        ({"shifts": (1, 2, 3)}, r"shifts=\(1, 2, 3\): expected a positive integer, or 2 of them"),
        ({"image_size": (7, 20)}, r"7×20 pixels, smaller than the window of 8×8"),
        ({"image_size": (20,)}, r"has 1 axes"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments: dict, message: str) -> None:
    geometry = Geometry((8, 8), (2, 2), (0, 0), (8, 8), (0, 0), True)
    with pytest.raises(BadInput, match=message):
        plan_scan(geometry, **{"image_size": (20, 20), **arguments})


def test_chosen_tiles_bound_both_memory_and_waste() -> None:
    small_field = Geometry((28, 28), (4, 4), (0, 0), (28, 28), (0, 0), True)
    wide_field = Geometry((224, 224), (32, 32), (0, 0), (483, 483), (130, 130), False, ("padding",))
    assert tile_for(small_field, (200, 200)) == small_field.positions((200, 200))
    for geometry, most in ((small_field, 300), (wide_field, 2048)):
        plan = plan_scan(geometry, (50_000, 60_000), tile=tile_for(geometry, (50_000, 60_000)))
        assert (
            max(max(t.read_shape) for _, t in zip(range(50), plan, strict=False)) <= most + geometry.stride[0]
        )
        assert plan.pixels_read < 2 * 50_000 * 60_000


def test_plans_are_told_apart_by_what_made_them() -> None:
    geometry = Geometry((8,), (2,), (0,), (8,), (0,), True)
    same, other = plan_scan(geometry, (40,), tile=4), plan_scan(geometry, (40,), tile=6)
    assert same.to_dict() == plan_scan(geometry, (40,), tile=4).to_dict() != other.to_dict()


def test_what_sees_the_whole_image_is_not_tiled() -> None:
    wide = Geometry((8, 8), (2, 2), (0, 0), (8, 8), (0, 0), False, ("1: context",), image_wide=True)
    assert len(list(plan_scan(wide, (40, 40)))) == 1
    with pytest.raises(BadInput, match="sees the whole image"):
        plan_scan(wide, (40, 40), tile=4)
