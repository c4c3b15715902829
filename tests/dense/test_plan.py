"""Tile plans on integers: which tile writes which positions, the pixels it reads, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebyone.dense.plan import ScanPlan, choose_tile, finer_geometry, plan_scan
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry

small = st.integers(0, 9)


@st.composite
def plans(draw: st.DrawFn) -> ScanPlan:
    """Plans of one or two axes with any halo, shifts and tile, aligned or not."""
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
    tile = draw(st.sampled_from([tile, None]))
    return plan_scan(geometry, size, shifts=shifts, tile=tile, aligned=draw(st.booleans()))


@given(plans())
def test_every_position_is_written_once(plan: ScanPlan) -> None:
    written = np.zeros(plan.positions, dtype=int)
    for tile in plan:
        written[tuple(s.slice for s in tile.write)] += 1
        assert [len(s) for s in tile.keep] == [len(s) for s in tile.write]
        assert all(len(s) for s in tile.write)
    assert (written == 1).all()
    assert len(plan) == len(list(plan))


@given(plans())
def test_a_tile_reads_the_receptive_fields_of_its_positions_and_keeps_the_right_ones(plan: ScanPlan) -> None:
    for tile in plan:
        for axis, (read, keep, write) in enumerate(zip(tile.read, tile.keep, tile.write, strict=True)):
            stride, size = plan.network.stride[axis], plan.image_size[axis]
            assert 0 <= read.start < read.stop <= size
            phase = (write.start % plan.shifts[axis]) * plan.geometry.stride[axis]
            assert (read.start - phase) % stride == 0  # origins are multiples of the total stride
            for local, position in zip(range(keep.start, keep.stop), range(size)[write.slice], strict=True):
                index = [0] * len(plan.positions)
                index[axis] = position
                window = plan.geometry.window_at(index)[axis]
                field = plan.geometry.receptive_field_at(index)[axis]
                assert read.start + local * stride == window[0]
                assert read.start <= window[0]
                assert window[1] <= read.stop
                assert read.start <= max(field[0], phase)
                assert read.stop >= min(field[1], size)
                assert local < (len(read) - plan.network.window[axis]) // stride + 1


@given(plans())
def test_pixels_read_are_counted(plan: ScanPlan) -> None:
    assert plan.pixels_read == sum(int(np.prod(tile.read_shape)) for tile in plan)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 60), st.integers(1, 9))
def test_exact_networks_have_one_tile_shape(window: int, stride: int, more: int, tile: int) -> None:
    geometry = Geometry((window,), (stride,), (0,), (window,), (0,), True)
    assert len({t.read_shape for t in plan_scan(geometry, (window + more,), tile=tile)}) == 1


@given(plans())
def test_padded_networks_have_few_tile_shapes(plan: ScanPlan) -> None:
    """On each axis and shift: one shape of inner tiles, and one more where the image ends off the grid of strides."""
    for axis, blocks in enumerate(plan.axis_tiles):
        for shift in range(plan.shifts[axis]):
            shapes = {
                len(s.read) for block in blocks for s in block if s.write.start % plan.shifts[axis] == shift
            }
            assert len(shapes) <= 2


def test_the_last_tile_is_moved_back_not_cut() -> None:
    geometry = Geometry((4,), (2,), (0,), (4,), (0,), True)
    last = list(plan_scan(geometry, (22,), tile=4))[-1]
    assert (last.read[0].start, last.read[0].stop) == (12, 22)
    assert (last.keep[0].start, last.write[0].start) == (2, 8)


def test_a_shift_that_has_no_window_left_is_left_out() -> None:
    geometry = Geometry((8,), (4,), (0,), (8,), (0,), True)
    assert len(plan_scan(geometry, (9,), shifts=4)) == 2  # windows start at 0 and 1; none fits at 2 and 3


def test_shifts_must_divide_the_stride() -> None:
    geometry = Geometry((8, 8), (6, 6), (0, 0), (8, 8), (0, 0), True)
    with pytest.raises(
        BadInput,
        match=r"^shifts=4 does not divide the network's stride 6 on axis 1; expected one of 1, 2, 3, 6$",
    ):
        plan_scan(geometry, (20, 20), shifts=(3, 4))
    assert finer_geometry(geometry, (2, 3)).stride == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, r"tile=0: expected a positive integer"),
        ({"shifts": (1, 2, 3)}, r"shifts=\(1, 2, 3\): expected a positive integer, or 2 of them"),
        ({"image_size": (7, 20)}, r"7×20 pixels, smaller than the window of 8×8"),
        ({"image_size": (20,)}, r"has 1 axes"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    geometry = Geometry((8, 8), (2, 2), (0, 0), (8, 8), (0, 0), True)
    with pytest.raises(BadInput, match=message):
        plan_scan(geometry, **{"image_size": (20, 20), **arguments})


def test_chosen_tiles_bound_both_memory_and_waste() -> None:
    small_field = Geometry((28, 28), (4, 4), (0, 0), (28, 28), (0, 0), True)
    wide_field = Geometry((224, 224), (32, 32), (0, 0), (483, 483), (130, 130), False, ("padding",))
    assert choose_tile(small_field, (200, 200)) == small_field.positions((200, 200))
    for geometry, most in ((small_field, 300**2), (wide_field, 2**23)):
        plan = plan_scan(geometry, (50_000, 60_000), tile=choose_tile(geometry, (50_000, 60_000)))
        rows, columns = (max(len(s.read) for block in axis for s in block) for axis in plan.axis_tiles)
        rest = geometry.stride[0] - 1  # the image may end off the grid of strides
        assert (rows - rest) * (columns - rest) <= most
        assert plan.pixels_read < 2 * 50_000 * 60_000


def _geometry(window: int, stride: int, before: int = 0, after: int = 0, axes: int = 2) -> Geometry:
    field = (window + before + after,) * axes
    exact = not before + after
    return Geometry((window,) * axes, (stride,) * axes, (0,) * axes, field, (before,) * axes, exact)


KINDS = {
    "window 64, stride 4": (_geometry(64, 4), 1),
    "two shifts": (_geometry(64, 4), 2),
    "windows side by side": (_geometry(8, 8), 1),
    "a small window": (_geometry(3, 1), 1),
    "ResNet-18": (_geometry(224, 32, 130, 129), 1),
    "ResNet-18, four shifts": (_geometry(224, 32, 130, 129), 4),
    "a halo on one side": (_geometry(32, 8, 0, 90), 1),
    "a signal": (_geometry(1024, 64, 8000, 8132, axes=1), 1),
    "a volume": (_geometry(16, 8, axes=3), 1),
}


def _most_read(geometry: Geometry, size: tuple[int, ...]) -> float:
    """1.3 times the image, and the frame of one halo around it."""
    halo = [sum(h) for h in geometry.halo]
    image = int(np.prod(size))
    return 1.3 * image + int(np.prod([n + h for n, h in zip(size, halo, strict=True)])) - image


def _reads_little(geometry: Geometry, shifts: int, size: tuple[int, ...]) -> bool:
    plan = plan_scan(geometry, size, shifts=shifts, tile=choose_tile(geometry, size, shifts=shifts))
    # every shifted pass is a pass over the image
    return plan.pixels_read <= shifts ** len(size) * _most_read(geometry, size)


@pytest.mark.parametrize("kind", KINDS)
def test_no_size_reads_much_more_than_the_image(kind: str) -> None:
    geometry, shifts = KINDS[kind]
    axes, window = len(geometry.window), geometry.window[0]
    top = 600 if axes == 3 else 6_000
    sizes = {*range(window, top, 61), *(n for n in (720, 721, 724, 2048, 2080) if window <= n < top), top}
    assert [n for n in sorted(sizes) if not _reads_little(geometry, shifts, (n,) * axes)] == []
    for wide in range(window, top, 977):
        assert _reads_little(geometry, shifts, (window, *(wide,) * (axes - 1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_size_at_all_reads_much_more_than_the_image(kind: str) -> None:
    geometry, shifts = KINDS[kind]
    axes = len(geometry.window)
    sizes = range(geometry.window[0], 600 if axes == 3 else 6_001)
    assert [n for n in sizes if not _reads_little(geometry, shifts, (n,) * axes)] == []


@given(plans())
def test_inner_tiles_own_the_same_number_of_positions(plan: ScanPlan) -> None:
    """Blocks are of equal size: no tile computes a whole block for a remainder of a few positions."""
    for axis, blocks in enumerate(plan.axis_tiles):
        owned = [len(block[0].write) for block in blocks]
        if plan.aligned:
            assert all(n == plan.tile[axis] // plan.shifts[axis] for n in owned[:-1])
            continue
        assert all(n == plan.tile[axis] // plan.shifts[axis] for n in owned[1:-1])
        if len(owned) > 2 and plan.network.exact:
            assert owned[0] - owned[-1] < len(owned)


def test_a_tile_size_that_was_given_is_balanced_too() -> None:
    plan = plan_scan(_geometry(64, 4), (724, 724), tile=165)  # 166 positions per axis
    assert [[len(block[0].write) for block in axis] for axis in plan.axis_tiles] == [[83, 83]] * 2
    assert plan.pixels_read == (2 * (82 * 4 + 64)) ** 2
    assert plan_scan(_geometry(64, 4), (724, 724), tile=plan.tile).to_dict() == plan.to_dict()


@pytest.mark.parametrize("shifts", [1, 2])
def test_aligned_blocks_begin_at_multiples_of_their_size(shifts: int) -> None:
    """By trying every size: the fewest blocks of at most `tile` positions of a pass, as equal as they can be."""
    geometry = Geometry((8,), (2,), (0,), (14,), (3,), False)
    for size in range(8, 60):
        positions = (size - 8) // (2 // shifts) + 1
        count = -(-positions // shifts)
        for tile in range(shifts, 12, shifts):
            plan = plan_scan(geometry, (size,), shifts=shifts, tile=tile, aligned=True)
            blocks = min(n for n in range(1, count + 1) if n * (tile // shifts) >= count)
            block = shifts * min(n for n in range(1, count + 1) if n * blocks >= count)
            assert (plan.aligned, plan.tile, plan.positions) == (True, (block,), (positions,))
            starts = [plan.block_region((b,))[0].start for b in range(len(plan.axis_tiles[0]))]
            assert starts == list(range(0, positions, block))
            parts = [part for blocks in plan.axis_tiles[0] for part in blocks]
            assert all(part.keep.start >= 0 and len(part.write) > 0 for part in parts)


def test_block_regions_are_all_positions_of_a_block() -> None:
    geometry = Geometry((4, 4), (2, 3), (0, 0), (4, 4), (0, 0), True)
    plan = plan_scan(geometry, (23, 31), shifts=(2, 3), tile=(4, 6))
    written: dict[tuple[int, ...], set[tuple[int, int]]] = {}
    for tile in plan:
        rows, columns = (range(n)[s.slice] for n, s in zip(plan.positions, tile.write, strict=True))
        written.setdefault(tile.block, set()).update((i, j) for i in rows for j in columns)
    for block, positions in written.items():
        rows, columns = (
            range(n)[s.slice] for n, s in zip(plan.positions, plan.block_region(block), strict=True)
        )
        assert {(i, j) for i in rows for j in columns} == positions
    assert {b[0] for b in written} == set(range(len(plan.axis_tiles[0])))
    assert list(written) == sorted(written)  # the tiles of a block follow each other


def test_a_plan_as_plain_data() -> None:
    geometry = Geometry((8,), (2,), (0,), (8,), (0,), True)
    plan = plan_scan(geometry, [40], shifts=2, tile=5, aligned=True)
    assert plan.to_dict() == {
        "geometry": geometry.to_dict(),
        "image_size": [40],
        "shifts": [2],
        "tile": [
            6
        ],  # five are rounded up to a multiple of the shifts, and 33 positions divided into six blocks
        "aligned": True,
    }
    assert not plan_scan(geometry, (40,)).aligned
    assert plan_scan(geometry, (40,)).to_dict()["aligned"] is False
    assert (plan.network.stride, plan.geometry.stride) == ((2,), (1,))


def test_shifts_are_named_wherever_they_are_given() -> None:
    geometry = Geometry((8,), (2,), (0,), (8,), (0,), True)
    for call in (
        lambda: plan_scan(geometry, (20,), shifts=0),
        lambda: finer_geometry(geometry, 0),
        lambda: choose_tile(geometry, (20,), shifts=0),
    ):
        with pytest.raises(BadInput, match=r"^shifts=0: expected a positive integer, or 1 of them"):
            call()


def test_plans_differ_where_their_arguments_do() -> None:
    geometry = Geometry((8,), (2,), (0,), (8,), (0,), True)
    same, other = plan_scan(geometry, (40,), tile=4), plan_scan(geometry, (40,), tile=6)
    assert same.to_dict() == plan_scan(geometry, (40,), tile=4).to_dict() != other.to_dict()


def test_a_network_with_image_wide_context_is_not_tiled() -> None:
    wide = Geometry((8, 8), (2, 2), (0, 0), (8, 8), (0, 0), False, ("1: context",), image_wide=True)
    assert len(list(plan_scan(wide, (40, 40)))) == 1
    with pytest.raises(BadInput, match="depends on the whole image"):
        plan_scan(wide, (40, 40), tile=4)
