"""Of forms that give the same numbers, the one that is made: maps stay maps, and nothing is copied without need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onebyone.lifting import lifter as lifter_module
from onebyone.lifting.grid import Grid
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import (
    AxisOperator,
    Call,
    Convolution,
    Elementwise,
    LayerNorm,
    Linear,
    Pad,
    Pool,
    Rearrange,
    Reduce,
)
from onebyone.lifting.rules.einsum import matmul_terms
from onebyone.lifting.rules.elementwise import _in_layout, combined
from onebyone.lifting.rules.extra_axes import pool_other_axes
from onebyone.lifting.rules.product import linear
from onebyone.lifting.rules.shape import rearrange, side_by_side
from onebyone.lifting.rules.sliding import convolution, pad, pool
from onebyone.lifting.values import Cannot, Const, Lifted
from tests.lifting import numpy_emitter
from tests.lifting.numpy_front_end import Array, Op, any_size
from tests.lifting.test_context import LESS_THE_MEAN, LESS_THE_MEAN_CONSTANTS
from tests.lifting.test_one_window import on_one_window
from tests.lifting.test_whole_window import CONSTANTS, CONV, normal


def a_call(*shape: int, apply: Callable[..., Any] = lambda *handles: handles[0]) -> Call:
    return Call("aten.some", "", "some", (shape,), np.dtype(float), (), apply)


def a_lifter(*window: int) -> Lifter:
    return Lifter(numpy_emitter, window)  # type: ignore[arg-type]


def a_map(channels: int, *nominal: int, more: int = 2) -> Lifted:
    """A map of one position per pixel, of an image a little larger than the window."""
    return Lifted(normal(1, channels, *(n + more for n in nominal)), Grid.image(channels, nominal))


def a_const(*shape: int) -> Const:
    array = normal(*shape)
    return Const(array, array.shape)


# values that are combined


def test_values_of_one_layout_are_combined_as_they_are() -> None:
    """Both choose the same two of four channels: all four are combined, and the choice is kept."""
    one, two = a_map(4, 3, 3), replaced(a_map(4, 3, 3))
    index = one.indices()[[2, 0]]
    both = combined(
        a_lifter(3, 3),
        a_call(2, 3, 3),
        Elementwise((one.with_index(index), two.with_index(index)), np.add),
        (2, 3, 3),
    )
    assert np.array_equal(both.indices(), index)
    assert np.array_equal(both.handle, one.handle + two.handle)


def replaced(value: Lifted) -> Lifted:
    return Lifted(value.handle * 2, value.grid)


def test_numbers_are_given_to_the_operator_as_they_are() -> None:
    value = a_map(2, 3, 3)
    for operands, expected in (((value, 2.5), value.handle - 2.5), ((2.5, value), 2.5 - value.handle)):
        result = combined(a_lifter(3, 3), a_call(2, 3, 3), Elementwise(operands, np.subtract), (2, 3, 3))
        assert np.array_equal(result.handle, expected)


def test_one_channel_for_all_is_gathered_once() -> None:
    value, anchor = a_map(4, 3, 3), a_map(5, 3, 3)
    one = value.with_index(value.indices()[2:3])
    placed = _in_layout(a_lifter(3, 3), a_call(5, 3, 3), one, anchor, (5, 3, 3))
    assert np.array_equal(placed.handle, value.handle[:, 2:3])
    two = value.with_index(value.indices()[[2, 1, 2, 1, 1]])
    placed = _in_layout(a_lifter(3, 3), a_call(5, 3, 3), two, anchor, (5, 3, 3))
    assert np.array_equal(placed.handle, value.handle[:, [2, 1, 2, 1, 1]])


def test_the_product_of_two_values_may_take_one_over_its_context() -> None:
    network = [
        CONV,
        Op("pooled", "mean", ("conv",), {"axes": (2, 3)}),
        Op("product", "einsum", ("conv", "pooled"), {"equation": "nchw,nc->nchw"}),
        Op("last", "mean", ("product",), {"axes": (2, 3)}),
    ]
    lifter = on_one_window(network, CONSTANTS, "window")
    assert lifter.context_pools == {"pooled"}
    assert lifter.inexact == [
        "product (einsum): global context, taken over the window: neighbouring windows share their positions"
    ]


def test_the_mean_of_a_column_is_no_context() -> None:
    network = [
        CONV,
        Op("column", "mean", ("conv",), {"axes": (2,), "keep": True}),
        Op("less", "subtract", ("conv", "column")),
    ]
    for context in (None, "window"):
        with pytest.raises(Cannot, match="not pooled over the window"):
            any_size(network, CONSTANTS, normal(1, 2, 9, 9), (7, 6), context)


# values side by side, and elements chosen of them


def test_repeated_elements_are_repeated_by_the_index_alone() -> None:
    one, two = a_map(2, 3, 3), a_map(3, 3, 3)
    repeated = one.with_index(one.indices()[[0, 1, 0, 1]])
    both = side_by_side(a_lifter(3, 3), [repeated, two], 0)
    assert both.shape == (7, 3, 3)
    assert both.handle.shape[1] == both.grid.channels == 5
    assert np.array_equal(both.handle, np.concatenate([one.handle, two.handle], 1))


def test_chosen_elements_are_compacted_along_the_axis_that_they_are_chosen_on() -> None:
    value = a_map(4, 2, 3)
    last = np.moveaxis(value.indices(), 0, -1).reshape(6, 4)[:, [3, 1]]
    compact = a_lifter(2, 3).compact(value.with_index(np.ascontiguousarray(last)))
    assert (compact.grid.channels, compact.grid.nominal, compact.shape) == (2, (2, 3), (6, 2))
    assert np.array_equal(compact.handle, value.handle[:, [3, 1]])
    first = value.indices()[[3, 1]].reshape(2, 6)
    compact = a_lifter(2, 3).compact(value.with_index(first))
    assert (compact.grid.channels, compact.grid.nominal, compact.shape) == (2, (2, 3), (2, 6))


def test_a_crop_and_every_second_position_of_a_map_stay_maps() -> None:
    value = a_map(4, 3, 4)
    for chosen, channels, nominal in (
        (value.indices()[:, 1:], 4, (2, 4)),
        (value.indices()[[3, 1], :, ::2], 2, (3, 2)),
        (value.indices()[2:3, 1:], 1, (2, 4)),
    ):
        compact = a_lifter(3, 4).compact(value.with_index(np.ascontiguousarray(chosen)))
        assert compact.index is None
        assert (compact.grid.channels, compact.grid.nominal) == (channels, nominal)


def test_shape_operators_that_mix_samples_are_refused() -> None:
    value = a_map(2, 3, 3)
    for operator, reason in (
        (lambda numbers: numbers.reshape(-1), "the batch axis is merged with another or moved"),
        (lambda numbers: numbers[::-1], "elements of different samples of the batch are mixed"),
    ):
        with pytest.raises(Cannot, match=reason):
            rearrange(Rearrange(value, operator))


@pytest.mark.parametrize(("most", "fits"), [(18, True), (17, False)])
def test_as_many_channels_as_are_allowed(monkeypatch: pytest.MonkeyPatch, most: int, fits: bool) -> None:
    """Of a map of 2 channels and 3×3 positions: its 18 elements at one position, or in one group."""
    monkeypatch.setattr(lifter_module, "MOST_CHANNELS", most)
    value = a_map(2, 3, 3)
    flat = value.with_index(value.indices().reshape(1, 18))
    if fits:
        assert a_lifter(3, 3).at_one_position(value).grid.channels == 18
        assert a_lifter(3, 3).with_groups(flat, (1,))[0].grid.channels == 18
        return
    with pytest.raises(Cannot, match="18 elements of different positions would each need a channel"):
        a_lifter(3, 3).at_one_position(value)
    with pytest.raises(Cannot, match="18 elements of a window would each need a channel"):
        a_lifter(3, 3).with_groups(flat, (1,))


# layers and pools


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_a_weight_is_copied_where_the_features_are_in_another_order(order: tuple[int, ...]) -> None:
    """Three outputs of 80 features in float64."""
    network = [
        CONV,
        Op("turned", "transpose", ("conv",), {"order": order}),
        Op("flat", "reshape", ("turned",), {"shape": (80,)}),
        Op("last", "linear", ("flat", "wide", "bias")),
    ]
    values = CONSTANTS | {"wide": normal(3, 80)}
    _, _, lifter = any_size(network, values, normal(1, 2, 9, 9), (7, 6))
    (change,) = lifter.changes
    assert change.copied_bytes == (0 if order == (0, 1, 2, 3) else 3 * 80 * 8)


def test_an_absorbed_scale_copies_the_weight_too() -> None:
    network = [
        CONV,
        Op("flat", "reshape", ("conv",), {"shape": (80,)}),
        Op("norm", "batch_norm", ("flat", "centre", "variance")),
        Op("last", "linear", ("norm", "wide", "bias")),
    ]
    values = CONSTANTS | {"wide": normal(3, 80), "centre": normal(80), "variance": normal(80) ** 2 + 1}
    _, _, lifter = any_size(network, values, normal(1, 2, 9, 9), (7, 6))
    assert [change.copied_bytes for change in lifter.changes] == [3 * 80 * 8]


@pytest.mark.parametrize(("weight", "bias"), [
    (a_const(3, 4), a_const(1, 3)), (a_const(3, 4), a_map(3, 2, 2)), (a_const(1, 3, 4), None), (a_const(4), None),
])  # fmt: skip
def test_weights_that_are_no_matrices_and_biases_that_are_no_vectors(weight: Const, bias: Any) -> None:
    value = a_map(2, 2, 1)
    flat = value.with_index(value.indices().reshape(4))
    with pytest.raises(Cannot, match="a weight that is not a matrix, or a bias that is not a vector"):
        linear(a_lifter(2, 1), a_call(3), Linear(flat, weight, bias))


def test_reductions_over_channels_and_positions_pool_the_positions_first() -> None:
    """So the pool is the one of the whole window, which a class map may leave out."""
    for axes in ((1, 2, 3), (2, 3)):
        network = [CONV, Op("out", "reduce", ("conv",), {"reduction": "mean", "axes": axes, "keep": True})]
        _, _, lifter = any_size(network, CONSTANTS, normal(1, 2, 9, 9), (7, 6))
        assert [c.after for c in lifter.changes] == ["5×4 pool at stride 1"]


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_a_kernel_larger_than_the_map_takes_the_whole_axis(reduction: Any) -> None:
    """ceil_mode allows it: 3 of 2 rows, and pairs of 4 columns; in an image of 4×6 each two rows are a window."""
    value = a_map(2, 2, 4)
    operator = Pool(value, reduction, (3, 2), (2, 2), [(0, 0)] * 2, (1, 1), ceil_mode=True)
    result = pool(a_lifter(2, 4), a_call(2, 1, 2), operator)
    assert (result.shape, result.grid.jump) == ((2, 1, 2), (1, 2))
    rows = np.stack([value.handle[:, :, i : i + 2].reshape(1, 2, 2, 3, 2) for i in range(3)], 2)
    expected = getattr(rows, reduction)((3, 5))
    assert result.handle.shape == expected.shape == (1, 2, 3, 3)
    assert np.abs(result.handle - expected).max() < 1e-12


def test_equal_padding_on_all_sides_is_named_once() -> None:
    for amounts, text in (([(1, 1), (1, 1)], "padding 1 affects"), ([(1, 1), (2, 2)], "padding 1×2 affects")):
        lifter = a_lifter(3, 3)
        pad(lifter, a_call(2, 5, 5), Pad(a_map(2, 3, 3), amounts))
        assert text in lifter.inexact[0]


def test_a_pool_that_a_class_map_would_leave_out_may_be_a_context() -> None:
    """The first reading tells that its value acts on positions; then it is no pool of the classifier."""
    _, _, lifter = any_size(
        LESS_THE_MEAN, LESS_THE_MEAN_CONSTANTS, normal(1, 2, 8, 8), (6, 6), "window", head="cam"
    )
    assert lifter.context_pools == {"mean"}


def test_what_an_operator_is_unless_told() -> None:
    """It is not known to be a statistic, to keep reduced axes, or to have other settings than the usual ones."""
    value = a_map(1, 2, 2)
    along = AxisOperator(value, (1,), lambda x, axes: [x], reduces=True, any_order=True)
    assert along.any_extent is False
    assert Reduce(value, "mean", (1,)).keep_axes is False
    assert LayerNorm(value, 1, None, None, None).root_mean_square is False
    assert (Pad(value, []).mode, Pad(value, []).number) == ("constant", 0.0)
    assert (Linear(value, None, None).transposed, Linear(value, None, None).axis) == (False, -1)
    plain = Pool(value, "max", (1,), (1,), [(0, 0)], (1,))
    assert (plain.ceil_mode, plain.count_padding, plain.divisor) == (False, True, None)


@pytest.mark.parametrize("positions", [2, 3])
def test_layers_of_more_axes_keep_a_map_of_several_positions(positions: int) -> None:
    """Its elements do not become channels of one position; those of a single position do, which costs nothing."""
    signal = a_map(2, positions)
    wide = signal.with_index(signal.indices().reshape(2, positions, 1))
    kernel, call = a_const(4, 2, 1, 1), a_call(4, positions, 1)
    result = convolution(
        a_lifter(positions), call, Convolution(wide, kernel, None, (1, 1), [(0, 0)] * 2, (1, 1), 1)
    )
    assert (result.grid.nominal, result.shape) == ((positions,), (4, positions, 1))
    image = a_map(4, positions, 1)
    rows = image.with_index(np.ascontiguousarray(image.indices().reshape(4, positions).T))
    pooled = pool_other_axes(
        a_lifter(positions, 1), a_call(positions, 2), Pool(rows, "max", (2,), (2,), [(0, 0)], (1,))
    )
    assert (pooled.grid.nominal, pooled.grid.channels, pooled.shape) == ((positions, 1), 2, (positions, 2))


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3), (4, 2), (2, 4)],
)
def test_the_letters_of_a_matrix_product(left: int, right: int) -> None:
    """NumPy gives the same with the letters; axes before the last two are broadcast."""
    first: Array = normal(*(5, 2, 3, 4)[4 - left :])
    second: Array = normal(4) if right == 1 else normal(*(5, 2, 4, 6)[4 - right :])
    terms, result = matmul_terms(left, right)
    np.testing.assert_allclose(
        np.einsum(f"{terms[0]},{terms[1]}->{result}", first, second), np.matmul(first, second), rtol=1e-12
    )
