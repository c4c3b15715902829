"""Values that are combined: of the window and of the image, chosen, repeated and broadcast elements, constants.

All values are below 10³ with at most 10² terms in a sum, so that rounding stays below 10⁻¹¹ in float64.
"""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.lifting.operators import Elementwise
from onebyone.lifting.rules.elementwise import _in_layout, combined
from onebyone.lifting.values import Cannot, Const, Lifted
from tests.lifting import numpy_emitter
from tests.lifting.numpy_front_end import Array, Op, any_size, run
from tests.lifting.test_forms import a_call, a_const, a_lifter, a_map
from tests.lifting.test_one_window import exact, flattened, on_one_window
from tests.lifting.test_whole_window import CONSTANTS, CONV, ROUNDING, WINDOW, normal

MEAN = Op("mean", "mean", ("conv",), {"axes": (2, 3), "keep": True})
TOP = Op("top", "reduce", ("conv",), {"reduction": "max", "axes": (2, 3), "keep": True})


def of_window(value: Lifted, *first: int) -> Array:
    """The value of the first sample in the window whose positions of the map begin at `first`."""
    part = tuple(slice(p, p + n) for p, n in zip(first, value.grid.nominal, strict=True))
    return value.handle[(0, slice(None), *part)].reshape(-1)[value.indices()]


# values of the whole image


def wide(network: list[Op], *pools: str, constants: dict[str, Array] = CONSTANTS) -> tuple[Array, Array]:
    """The network at every window, with some pools over the whole image; and the convolution's whole map."""
    image = normal(1, 2, 12, 11)
    dense, _, lifter = any_size(network, constants, image, WINDOW, "image", image_wide=frozenset(pools))
    assert lifter.last.handle.shape[:2] == dense.shape[:2]
    return dense, run([CONV], constants, image)["conv"]


def of_windows(conv: Array, reduction: str) -> Array:
    """Reduced over the 5×4 positions of every window."""
    windows = np.lib.stride_tricks.sliding_window_view(conv, (5, 4), (2, 3))
    reduced: Array = getattr(windows, reduction)((4, 5))
    return reduced


def test_two_values_of_the_image_are_combined_before_they_act_on_positions() -> None:
    """As in the channel attention of CBAM, which adds a mean and a maximum."""
    dense, conv = wide(
        [
            CONV,
            MEAN,
            TOP,
            Op("both", "add", ("mean", "top")),
            Op("less", "subtract", ("conv", "both")),
            Op("last", "mean", ("less",), {"axes": (2, 3)}),
        ],
        "mean",
        "top",
    )
    both = (conv.mean((2, 3)) + conv.max((2, 3)))[:, :, None, None]
    assert np.abs(dense - (of_windows(conv, "mean") - both)).max() < ROUNDING


@pytest.mark.parametrize("image_first", [True, False])
def test_features_of_the_window_are_compared_with_those_of_the_image(image_first: bool) -> None:
    operands = ("top", "mean") if image_first else ("mean", "top")
    dense, conv = wide([CONV, MEAN, TOP, Op("last", "subtract", operands)], "top")
    difference = of_windows(conv, "mean") - conv.max((2, 3))[:, :, None, None]
    assert np.abs(dense - (-difference if image_first else difference)).max() < ROUNDING


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize("pools", [("top",), ("mean", "top")])
def test_every_pair_of_a_feature_of_the_window_and_one_of_the_image(
    image_first: bool, pools: tuple[str, ...]
) -> None:
    """(4, 1) and (1, 4) elements, none of them of the shape of their sum; or both of the image."""
    rows, columns = ("mean", "top") if not image_first else ("top", "mean")
    dense, conv = wide(
        [
            CONV,
            MEAN,
            TOP,
            Op("rows", "reshape", (rows,), {"shape": (4, 1)}),
            Op("columns", "reshape", (columns,), {"shape": (1, 4)}),
            Op("last", "add", ("rows", "columns")),
        ],
        *pools,
    )
    top = np.broadcast_to(conv.max((2, 3))[:, :, None, None], (1, 4, 6, 6))
    mean = np.broadcast_to(conv.mean((2, 3))[:, :, None, None], (1, 4, 6, 6))
    mean = of_windows(conv, "mean") if len(pools) == 1 else mean
    first, second = (top, mean) if image_first else (mean, top)
    expected = (first[:, :, None] + second[:, None]).reshape(1, 16, 6, 6)
    assert np.abs(dense - expected[:, :, : dense.shape[2], : dense.shape[3]]).max() < ROUNDING


def test_a_number_of_the_window_cannot_be_added_to_all_features_of_the_image() -> None:
    number = Op("number", "mean", ("conv",), {"axes": (1, 2, 3), "keep": True})
    for operands in (("top", "number"), ("number", "top")):
        with pytest.raises(Cannot, match="a value of the whole image is broadcast over windows"):
            wide([CONV, TOP, number, Op("last", "add", operands)], "top")


# layouts


@pytest.mark.parametrize("order", [("spatial", "channel"), ("channel", "spatial")])
def test_a_value_per_channel_and_one_per_position_are_added_in_any_order(order: tuple[str, str]) -> None:
    """As in BAM: neither has the shape of the sum, whose layout is the map's."""
    network = [
        CONV,
        Op("channel", "mean", ("conv",), {"axes": (2, 3), "keep": True}),
        Op("spatial", "mean", ("conv",), {"axes": (1,), "keep": True}),
        Op("attention", "add", order),
        Op("less", "subtract", ("conv", "attention")),
        Op("last", "reduce", ("less",), {"reduction": "max", "axes": (2, 3)}),
    ]
    lifter = on_one_window(network, CONSTANTS, "window")
    assert lifter.context_pools == {"channel"}


def test_a_map_of_one_channel_is_broadcast_over_the_channels_of_another() -> None:
    """No operand has the shape of the sum: (1, 3, 3) and (4, 1, 3) elements of the same row of positions."""
    spatial, source = a_map(1, 3, 3), a_map(4, 3, 3)
    lifter = a_lifter(3, 3)
    total = combined(lifter, a_call(4, 3, 3), Elementwise((spatial, a_const(4, 1, 1)), np.add), (4, 3, 3))
    assert (total.shape, total.grid.channels, total.index) == ((4, 3, 3), 4, None)
    both = combined(lifter, a_call(4, 3, 3), Elementwise((spatial, source), np.add), (4, 3, 3))
    assert np.array_equal(both.handle, spatial.handle + source.handle)


def test_numbers_per_channel_are_added_to_repeated_channels() -> None:
    """A channel that occurs twice gets a number of its own each time."""
    value, numbers = a_map(2, 3, 3), a_const(4, 1, 1)
    repeated = value.with_index(value.indices()[[0, 1, 0, 1]])
    total = combined(a_lifter(3, 3), a_call(4, 3, 3), Elementwise((repeated, numbers), np.add), (4, 3, 3))
    for first in ((0, 0), (2, 1)):
        expected = of_window(value, *first)[[0, 1, 0, 1]] + numbers.handle
        assert np.array_equal(of_window(total, *first), expected)


@pytest.mark.parametrize(
    "number",
    [
        a_const(1),
        a_const(1, 1, 1),
        Const(2.5 * np.ones((2, 3, 3)), (2, 3, 3), known=2.5 * np.ones((2, 3, 3))),
    ],
)
def test_one_number_for_all_needs_no_other_layout(number: Const) -> None:
    """Two of four channels are chosen: the number is added to all four, and the choice is kept."""
    value = a_map(4, 3, 3)
    index = value.indices()[[2, 0]]
    total = combined(
        a_lifter(3, 3),
        a_call(2, 3, 3),
        Elementwise((value.with_index(index), number), np.add),
        (2, 3, 3),
    )
    assert np.array_equal(total.indices(), index)
    assert np.array_equal(total.handle, value.handle + number.handle.ravel()[0])


def test_one_number_is_added_to_one_element() -> None:
    value, number = a_map(1, 1, 1), a_const(1)
    total = combined(a_lifter(1, 1), a_call(1, 1, 1), Elementwise((value, number), np.add), (1, 1, 1))
    assert np.array_equal(total.handle, value.handle + number.handle)


def test_equal_choices_of_elements_are_one_layout() -> None:
    """Their indices are arrays of their own with the same numbers."""
    one, two = a_map(4, 3, 3), a_map(4, 3, 3)
    index = one.indices()[[2, 0]]
    operands = (one.with_index(index), two.with_index(index.copy()))
    both = combined(a_lifter(3, 3), a_call(2, 3, 3), Elementwise(operands, np.subtract), (2, 3, 3))
    assert np.array_equal(both.indices(), index)
    assert np.array_equal(both.handle, one.handle - two.handle)
    other = two.with_index(index[::-1].copy())
    both = combined(
        a_lifter(3, 3), a_call(2, 3, 3), Elementwise((operands[0], other), np.subtract), (2, 3, 3)
    )
    assert np.array_equal(of_window(both, 1, 2), of_window(one, 1, 2)[[2, 0]] - of_window(two, 1, 2)[[0, 2]])


def test_a_choice_of_channels_is_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[Array] = []
    gather = numpy_emitter.gather

    def counted(source: Array, *rest: object) -> Array:
        gathered.append(source)
        return gather(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(numpy_emitter, "gather", counted)
    value, numbers = a_map(4, 3, 3), a_const(2, 1, 1)
    chosen = value.with_index(value.indices()[[2, 0]])
    total = combined(a_lifter(3, 3), a_call(2, 3, 3), Elementwise((chosen, numbers), np.add), (2, 3, 3))
    assert len(gathered) == 1
    assert np.array_equal(total.handle, value.handle[:, [2, 0]] + numbers.handle)


def test_one_channel_of_several_is_laid_out_as_a_map_of_one() -> None:
    value, anchor = a_map(4, 3, 3), a_map(1, 3, 3)
    one = value.with_index(value.indices()[2:3])
    placed = _in_layout(a_lifter(3, 3), a_call(1, 3, 3), one, anchor, (1, 3, 3))
    assert (placed.index, placed.grid.channels) == (None, 1)
    assert np.array_equal(placed.handle, value.handle[:, 2:3])


def test_a_value_per_column_is_repeated_along_the_rows_alone() -> None:
    """What a window-wide value was subtracted from still is one of the context; its columns need no other extent."""
    column = Lifted(normal(1, 4, 1, 5), a_map(4, 3, 3).grid, pooled=frozenset({"mean"}))
    grid = column.grid.gathered(4, [(2, 2), (0, 0)], (1, 1), (1, 3))
    column = Lifted(normal(1, 4, 3, 5), grid, pooled=frozenset({"mean"}))
    lifter, anchor = a_lifter(3, 3), a_map(4, 3, 3)
    lifter.context = "window"
    placed = _in_layout(lifter, a_call(4, 3, 3), column, anchor, (4, 3, 3))
    assert placed.grid.nominal == (3, 3)
    assert placed.grid.sizes == anchor.grid.sizes
    assert placed.handle.shape == anchor.handle.shape
    assert np.array_equal(placed.handle[:, :, 1:4], column.handle)
    assert np.array_equal(placed.handle[:, :, [0, 4]], column.handle[:, :, [0, 2]])


# constants


@pytest.mark.parametrize("shape", [(4, 5, 4), (2, 4, 1, 1), (2, 4, 5, 4), (1, 4), ()])
def test_a_constant_that_one_number_fills_is_that_number(shape: tuple[int, ...]) -> None:
    """Whatever its shape is: for each position, and for each of the two samples of the example."""
    ops, values = flattened("sum", 80)
    exact([CONV, Op("sum", "add", ("conv", "known")), *ops], values | {"known": np.full(shape, 1.5)})
