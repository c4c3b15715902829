"""The lifter's state, its limits, and the operations that rules share, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from onebyone.errors import Refused
from onebyone.laws.geometry import Sliding
from onebyone.lifting.class_map import left_out_pool
from onebyone.lifting.grid import PERIOD, Grid
from onebyone.lifting.index import Gather
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, axes_without_batch
from onebyone.lifting.values import Cannot, Const, Deferred, Lifted, handle_or_none
from onebyone.records import Change
from tests.lifting import numpy_emitter


def a_lifter(*window: int) -> Lifter:
    return Lifter(numpy_emitter, window)  # type: ignore[arg-type]


def a_call(name: str = "aten.some") -> Call:
    return Call(name, "head.0", "some", ((1,),), np.dtype(float), (), lambda *handles: handles[0])


def a_map(channels: int, *nominal: int, more: int = 2) -> Lifted:
    """A map of one position per pixel, of an image a little larger than the window."""
    numbers = np.random.default_rng(channels).normal(size=(1, channels, *(n + more for n in nominal)))
    return Lifted(numbers, Grid.image(channels, nominal))


def strided(value: Lifted, *steps: int) -> Lifted:
    """The map at a larger stride, one position per window."""
    grid = value.grid.through([Sliding(n, s) for n, s in zip(value.grid.nominal, steps, strict=True)])
    return Lifted(value.handle[:, :, :: steps[0], :: steps[1]], grid)


# values


def test_a_handle_is_made_when_it_is_first_used_and_only_once() -> None:
    made: list[str] = []

    def make() -> str:
        made.append("made")
        return f"handle {len(made)}"

    constant = Const(Deferred(make), (2,))
    assert made == []
    assert [constant.handle, constant.handle, handle_or_none(constant)] == ["handle 1"] * 3
    assert made == ["made"]
    assert Const("given", (2,)).handle == "given"
    assert Const("given", (2,)).name is None


def test_weights_and_biases_that_depend_on_the_image_are_refused() -> None:
    assert handle_or_none(None) is None
    assert handle_or_none(2.5) == 2.5
    with pytest.raises(Cannot, match="a weight or a bias that depends on the image"):
        handle_or_none(a_map(1, 2, 2))


class OwnArray(np.ndarray):
    """Refuses what arrays of other libraries refuse: a negative size other than -1."""

    def reshape(self, size: int) -> np.ndarray:  # type: ignore[override]
        assert size >= -1
        return super().reshape(size)


def test_known_numbers_may_be_in_an_array_of_the_front_end() -> None:
    assert Const("c", (2, 2), known=np.full((2, 2), 4.0).view(OwnArray)).single == 4.0


# settings, and what is recorded


def test_a_lifter_converts_the_window_without_context_unless_told() -> None:
    lifter = a_lifter(3, 4)
    assert (lifter.head, lifter.context, lifter.axes) == ("window", None, 2)


def test_a_change_names_the_layer() -> None:
    lifter = a_lifter(3, 3)
    lifter.change(a_call(), "law", "before", "after", 12)
    assert lifter.changes == [Change("head.0", "aten.some", "law", "before", "after", 12)]


def test_padding_of_a_signal_and_of_a_volume_is_named() -> None:
    for amounts, text in (
        ([(2, 2)], "padding 2 affects"),
        ([(0, 1)], "padding 0+1 affects"),
        ([(1, 1)] * 3, "padding 1 affects"),
        ([(1, 1), (1, 1), (1, 0)], "padding 1×1×1+0 affects"),
    ):
        lifter = a_lifter(*(4 for _ in amounts))
        grid = Grid.image(1, lifter.window)
        lifter.slid(a_call(), grid, [Sliding(1, 1, 1, before, after) for before, after in amounts])
        assert lifter.inexact == [f"head.0 (aten.some): {text} crops but not the interior of a larger image"]


def test_no_axes_are_all_axes_and_the_batch_is_among_them() -> None:
    for axes in (None, (), (0, 1), -3):
        with pytest.raises(Cannot, match="a reduction over the batch"):
            axes_without_batch(axes, 3)
    assert axes_without_batch((2, -2), 3) == (0, 1)


def test_a_network_without_a_class_map_is_refused_as_such() -> None:
    with pytest.raises(Refused) as error:
        left_out_pool(a_lifter(3, 3), [], [])
    assert error.value.what == "the network has no class map"


# one value in another form


def test_a_value_that_is_gathered_as_it_is_loses_its_index_alone() -> None:
    """A vector on a map of one position: the same map, and its channels are the vector's elements."""
    value = a_map(4, 1, 1)
    vector = value.with_index(value.indices().reshape(4))
    for result in (a_lifter(1, 1).at_one_position(vector), a_lifter(1, 1).at_one_position(value)):
        assert result.index is None
        assert result.handle is value.handle


def test_what_is_not_a_map_is_refused_with_the_reason() -> None:
    value = a_map(2, 3, 3)
    turned = value.with_index(np.ascontiguousarray(value.indices().swapaxes(1, 2)))
    with pytest.raises(Cannot, match="the map's axes are exchanged"):
        a_lifter(3, 3).as_map(turned)
    repeated = value.with_index(np.ascontiguousarray(value.indices()[:, [0, 0, 0]]))
    with pytest.raises(Cannot, match="a value per window is repeated over positions"):
        a_lifter(3, 3).as_map(repeated)


def test_values_without_elements_and_rows_that_differ_are_refused() -> None:
    value, lifter = a_map(2, 3, 3), a_lifter(3, 3)
    with pytest.raises(Cannot, match="a value without elements"):
        lifter.at_one_position(value.with_index(value.indices()[:0]))
    rows = value.indices().reshape(2, 9)[:, [0, 1, 3, 5]].reshape(2, 2, 2)
    for operation in (lifter.with_groups, lifter.with_channels):
        with pytest.raises(Cannot, match="the features of different rows are"):
            operation(value.with_index(rows), (2,))


def test_a_window_of_more_elements_than_may_be_channels() -> None:
    value = Lifted("map", Grid.image(1, (1, 65537)))
    with pytest.raises(Cannot, match="65537 elements of different positions would each need a channel"):
        a_lifter(1, 65537).at_one_position(value)
    rows = value.with_index(value.indices().reshape(1, 65537))
    with pytest.raises(Cannot, match="65537 elements of a window would each need a channel"):
        a_lifter(1, 65537).with_groups(rows, (1,))


def test_what_holds_each_element_once_is_compact_already() -> None:
    value, lifter = a_map(2, 3, 3), a_lifter(3, 3)
    turned = value.with_index(np.ascontiguousarray(value.indices().transpose(1, 2, 0)))
    for compact in (value, turned):
        assert lifter.compact(compact) is compact


def test_elements_are_not_made_channels_along_an_axis_of_one_element() -> None:
    """The six positions of one channel, with a second axis: the channels of one position."""
    value = a_map(4, 2, 3)
    column = value.with_index(value.indices()[2].reshape(6, 1))
    compact = a_lifter(2, 3).compact(column)
    assert (compact.grid.channels, compact.grid.nominal, compact.shape) == (6, (1, 1), (6, 1))


# maps that are combined


def test_maps_of_one_extent_are_combined_as_they_are() -> None:
    for first, second in (
        (a_map(2, 3, 3), a_map(3, 3, 3)),
        (strided(a_map(2, 3, 3), 2, 2), strided(a_map(3, 3, 3), 2, 2)),
    ):
        maps, grid = a_lifter(3, 3).aligned([first, second])
        assert all(m.handle is v.handle for m, v in zip(maps, (first, second), strict=True))
        assert grid == first.grid


def test_maps_whose_extents_are_not_known_are_cropped() -> None:
    """Their numbers of positions are equal over the sizes of one period, and differ beyond."""
    value = a_map(1, 2, 2)
    grid = replace(value.grid, align=(PERIOD + 1, 1))
    first, second = Lifted(value.handle[:, :, :-1], grid), Lifted(value.handle[:, :, :, :-1], grid)
    maps, _ = a_lifter(2, 2).aligned([first, second])
    assert [m.handle.shape for m in maps] == [(1, 1, 3, 3)] * 2


@pytest.mark.parametrize("nominal", [(2, 1), (1, 2), (2, 2), (3, 1)])
def test_maps_of_different_strides_are_combined_only_where_they_have_one_position(
    nominal: tuple[int, int],
) -> None:
    def at(steps: Sequence[int]) -> Lifted:
        value = a_map(1, 12, 12)
        grid = value.grid.gathered(1, [(0, 0)] * 2, steps, nominal)
        return Lifted(value.handle[:, :, :: steps[0], :: steps[1]], grid)

    with pytest.raises(Cannot, match=r"maps of different strides are combined: \(4, 4\) and \(6, 6\) pixels"):
        a_lifter(12, 12).aligned([at((4, 4)), at((6, 6))])


def test_maps_of_different_strides_meet_at_the_least_common_multiple() -> None:
    """Each keeps the pixels that its position reads: those of the windows at multiples of both strides."""
    first, second = (strided(a_map(1, 5, 5, more=30), *steps) for steps in ((4, 2), (6, 3)))
    maps, grid = a_lifter(5, 5).aligned([first, second])
    assert grid.jump == (12, 6)
    for made, value, steps in zip(maps, (first, second), ((3, 3), (2, 2)), strict=True):
        assert [(f.start, f.size) for f in made.grid.fields] == [(0, 5)] * 2
        np.testing.assert_array_equal(made.handle, value.handle[:, :, :: steps[0], :: steps[1]])


def test_maps_side_by_side_come_through_the_pools_of_both() -> None:
    one, two = (replace(a_map(2, 1, 1), pooled=frozenset({key})) for key in "ab")
    assert a_lifter(1, 1).concatenated([one, two]).pooled == {"a", "b"}
    plan = Gather(np.array([1]), np.zeros((2, 1), dtype=np.int64), (1, 1), (1, 1))
    assert a_lifter(1, 1).gathered(one, plan).pooled == {"a"}
