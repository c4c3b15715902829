"""Indices against the same thing done to arrays: gathers, stencils and windows, exhaustively on small maps."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import PERIOD, Grid
from onebyone.lifting.index import (
    Gather,
    Stencil,
    as_gather,
    as_groups,
    as_stencil,
    as_window,
    batched,
    decode,
    identity,
    in_layout_of,
    is_bijection,
    unbatched,
)

SHAPE = (4, 5, 6)
GRID = Grid.image(4, (5, 6))


def test_decode_reads_broadcast_views_rightly() -> None:
    grid = Grid.image(1, (128, 128))
    wide = np.broadcast_to(identity(grid.shape), (64, 128, 128))
    channel, place = decode(wide, grid)
    assert not channel.any()
    assert (place[0] == np.arange(128)[None, :, None]).all()
    assert (place[1] == np.arange(128)[None, None, :]).all()


@pytest.mark.parametrize(
    "where",
    list(
        product(
            (slice(None), slice(1, 3), slice(None, None, 2), slice(None, None, -1)),
            (slice(None), slice(1, None), slice(0, None, 2), slice(1, 2)),
            (slice(None), slice(2, 5), slice(1, None, 3)),
        )
    ),
)
def test_a_slice_is_the_gather_that_makes_it(where: tuple[slice, ...]) -> None:
    index = identity(SHAPE)[where]
    plan = as_gather(index, GRID)
    assert isinstance(plan, Gather)
    values = np.random.default_rng(0).normal(size=SHAPE)
    made = np.empty(index.shape)
    for k, y, x in np.ndindex(*index.shape):
        row, column = plan.starts[:, k] + np.array([y, x]) * plan.steps
        made[k, y, x] = values[plan.channels[k], row, column]
    assert (made == values[where]).all()
    grid = plan.grid(GRID)
    for axis in (1, 2):
        sizes = [len(range(size)[where[axis]]) for size in range(SHAPE[axis], SHAPE[axis] + PERIOD)]
        if where[axis].stop is None:  # an open end keeps up with the image
            assert grid.sizes[axis - 1] == tuple(sizes)
        assert grid.fields[axis - 1].start == (where[axis].start or 0)
        assert grid.fields[axis - 1].jump == (
            where[axis].step if index.shape[axis] > 1 and where[axis].step else 1
        )


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (identity(SHAPE)[:, ::-1], "reverse order"),
        (identity(SHAPE).transpose(1, 0, 2), "mixed"),
        (identity(SHAPE).reshape(4, 30), "not a map"),
        (identity(SHAPE)[:, [0, 1, 3]], "equally spaced"),
        (np.roll(identity(SHAPE), 2, axis=2), "equally spaced"),
        (identity(SHAPE).swapaxes(1, 2), "the map's axes are exchanged"),
        (np.rot90(identity(SHAPE), axes=(1, 2)), "the map's axes are exchanged"),
    ],
)
def test_the_reason_why_an_index_is_not_a_gather(index: np.ndarray, why: str) -> None:
    reason = as_gather(index, GRID)
    assert isinstance(reason, str)
    assert why in reason


@pytest.mark.parametrize(
    ("channels", "start", "steps", "nominal", "nothing"),
    [
        ([0, 1, 2, 3], 0, (1, 1), (5, 6), True),
        ([0, 1, 3, 2], 0, (1, 1), (5, 6), False),
        ([0, 1, 2], 0, (1, 1), (5, 6), False),
        ([0, 1, 2, 3], 1, (1, 1), (5, 6), False),
        ([0, 1, 2, 3], 0, (1, 2), (5, 6), False),
        ([0, 1, 2, 3], 0, (2, 2), (5, 6), False),
        ([0, 1, 2, 3], 0, (1, 1), (5, 5), False),
    ],
)
def test_a_gather_does_nothing_where_it_selects_everything_as_it_is(
    channels: list[int], start: int, steps: tuple[int, int], nominal: tuple[int, int], nothing: bool
) -> None:
    plan = Gather(np.array(channels), np.full((2, len(channels)), start), steps, nominal)
    assert plan.is_identity(GRID) == nothing


def test_one_position_for_all_is_gathered_once() -> None:
    """Of the last axis: row 1 on, position 2 of each row, three times."""
    index = identity(SHAPE)[:, 1:, [2, 2, 2]]
    plan = as_gather(index, GRID)
    assert isinstance(plan, Gather)
    assert (plan.steps, plan.nominal, plan.broadcast) == ((1, 1), (4, 1), (1,))
    assert plan.starts.tolist() == [[1] * 4, [2] * 4]
    every = as_gather(identity(SHAPE), GRID)
    assert isinstance(every, Gather)
    assert every.broadcast == ()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_a_flattened_map_in_any_order_is_one_stencil(order: tuple[int, ...]) -> None:
    stencil = as_stencil(identity(SHAPE).transpose(order).reshape(-1), GRID)
    assert not isinstance(stencil, str)
    assert (stencil.kernel, stencil.step, stencil.nominal, stencil.start) == ((5, 6), (1, 1), (1, 1), (0, 0))
    flat = np.ravel_multi_index((stencil.channels, *stencil.offsets), SHAPE)
    assert (flat == identity(SHAPE).transpose(order).reshape(-1)).all()


def test_patches_are_a_stencil_with_a_stride() -> None:
    grid = Grid.image(3, (4, 6))
    image = np.arange(3 * 4 * 6).reshape(3, 4, 6)
    patches = [image[:, y : y + 2, x : x + 2].reshape(-1) for y in (0, 2) for x in (0, 2, 4)]
    rows = np.stack(patches)  # (6 patches, 12 features)
    stencil = as_stencil(rows.reshape(2, 3, 12), grid)
    assert not isinstance(stencil, str)
    assert (stencil.kernel, stencil.step, stencil.nominal) == ((2, 2), (2, 2), (2, 3))
    assert (stencil.lead == np.arange(6).reshape(2, 3)).all()
    assert (stencil.out_index(2)[..., 1] == 6 + stencil.lead).all()


def test_rows_that_differ_are_not_a_stencil() -> None:
    rows = identity(SHAPE).reshape(4, 30)
    assert "different channels" in str(as_stencil(rows, GRID))
    assert "laid out differently" in str(as_stencil(np.array([[0, 1], [0, 2]]), GRID))


def test_features_in_the_opposite_order_are_the_same_stencil_with_its_features_reversed() -> None:
    """The first feature is then at the far corner of its patch, so that all others are at smaller offsets."""
    patches = np.stack([identity(SHAPE)[:, y : y + 2, 1:4].reshape(-1) for y in (1, 3)])
    forward, backward = as_stencil(patches, GRID), as_stencil(patches[:, ::-1], GRID)
    assert isinstance(forward, Stencil)
    assert isinstance(backward, Stencil)
    assert (forward.start, forward.step, forward.nominal, forward.kernel) == ((1, 1), (2, 1), (2, 1), (2, 3))
    assert (backward.start, backward.step, backward.nominal) == (forward.start, forward.step, forward.nominal)
    assert backward.channels.tolist() == forward.channels[::-1].tolist()
    assert backward.offsets.tolist() == forward.offsets[:, ::-1].tolist()
    assert forward.gather().broadcast == ()


def test_the_order_of_the_features_in_a_window() -> None:
    """Of a map of 2 channels and 1×3 positions: which of its 6 elements each feature is."""
    grid, elements = Grid.image(2, (1, 3)), np.random.default_rng(2).permutation(6)
    stencil = as_stencil(elements, grid)
    assert isinstance(stencil, Stencil)
    order, inverse = stencil.feature_order(2)
    assert order is not None
    assert inverse is not None
    assert order.tolist() == elements.tolist()
    assert elements[inverse].tolist() == list(range(6))
    own = as_stencil(np.arange(6), grid)
    assert isinstance(own, Stencil)
    assert own.feature_order(2) == (None, None)
    # elements that repeat or are missing leave no inverse
    for chosen in ([5, 0, 0, 3, 1, 2], [0, 5, 2], [0, 5, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 5]):
        stencil = as_stencil(np.array(chosen), grid)
        assert isinstance(stencil, Stencil)
        order, inverse = stencil.feature_order(2)
        assert order is not None
        assert order.tolist() == chosen
        assert inverse is None


def test_groups_whose_rows_are_laid_out_differently() -> None:
    """Rows of one group at equal distances, but their two features are at different distances from each other."""
    index = identity(SHAPE)
    rows = np.stack([index[0, 0, [0, 1]], index[0, 1, [0, 2]]])
    assert as_groups(rows, GRID) == "the features of different rows are laid out differently in the map"
    assert as_groups(rows[:0], GRID) == "a value without elements"


def test_only_full_rectangles_are_windows() -> None:
    window = as_window(identity(SHAPE).reshape(4, 30), GRID)
    assert not isinstance(window, str)
    assert window.kernel == (5, 6)
    assert (window.index == np.arange(4)).all()
    assert "rectangle" in str(as_window(identity(SHAPE).reshape(4, 30)[:, :-1], GRID))
    assert "mixes" in str(as_window(identity(SHAPE).transpose(1, 2, 0), GRID))


def test_the_elements_of_a_window_may_be_in_any_order() -> None:
    """One row or several, the first element at the near corner, at the far one, or in the middle."""
    grid, order = Grid.image(2, (4, 5)), np.random.default_rng(3)
    index = identity(grid.shape)
    for corners in ([(1, 2)], [(0, 0), (2, 1), (1, 3)]):
        rows = np.stack([index[1, y : y + 2, x : x + 2].reshape(-1) for y, x in corners])
        for chosen in (np.arange(4), np.arange(4)[::-1], order.permutation(4)):
            window = as_window(rows[:, chosen], grid)
            assert not isinstance(window, str)
            assert window.kernel == (2, 2)
            # the pooled map has 3×4 positions
            assert window.index.tolist() == [12 + y * 4 + x for y, x in corners]


def test_bijections_and_layouts() -> None:
    permuted = identity(SHAPE).transpose(1, 2, 0)
    assert is_bijection(permuted, GRID)
    assert not is_bijection(identity(SHAPE)[:, :, :5], GRID)
    assert not is_bijection(np.zeros(SHAPE, dtype=np.int64), GRID)
    values = np.random.default_rng(1).permutation(120).reshape(permuted.shape)
    rearranged = in_layout_of(values, permuted, GRID)
    assert (rearranged.transpose(1, 2, 0) == values).all()


def test_mixing_the_batch_is_seen() -> None:
    numbers = batched(identity(SHAPE), 120, 2)
    assert (unbatched(numbers.reshape(2, -1), 120, 2) == np.arange(120)).all()
    assert "moved" in str(unbatched(numbers.reshape(-1), 120, 2))
    assert "moved" in str(unbatched(numbers[0, 0, 0, 0], 120, 2))
    assert "mixed" in str(unbatched(numbers[::-1], 120, 2))
    assert "mixed" in str(unbatched(np.stack([numbers[0], numbers[1][::-1]]), 120, 2))
    # the last element of a sample, and the first one of the next
    for element, mixed in ((119, False), (120, True), (0, False), (-1, True)):
        result = unbatched(np.array([[element], [element + 120]]), 120, 2)
        assert ("mixed" in str(result)) == mixed


def test_one_element_of_each_sample_is_a_value_without_axes() -> None:
    one = unbatched(np.array([5, 125]), 120, 2)
    assert not isinstance(one, str)
    assert (one.shape, int(one)) == ((), 5)


@pytest.mark.parametrize(
    "op", [Sliding(3), Sliding(3, 2), Sliding(2, 2, pad_before=1), Sliding(3, 3, ceil_mode=True)]
)
def test_sizes_say_when_extents_can_differ(op: Sliding) -> None:
    grid = Grid.image(1, (12, 12)).through([op, op], 8)
    assert grid.shape == (8, op.out_size(12), op.out_size(12))
    assert grid.sizes[0] == tuple(op.out_size(n) for n in range(12, 12 + PERIOD))
    plain = Grid.image(1, (12, 12)).through([Sliding(op.kernel, op.stride)] * 2)
    joined = grid.joined(plain)
    assert joined is not None
    assert joined.sizes[0] == tuple(map(min, grid.sizes[0], plain.sizes[0]))
    assert grid.joined(Grid.image(1, (12, 12)).through([Sliding(1, 5)] * 2)) is None
