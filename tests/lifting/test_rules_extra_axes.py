"""Layers of more axes than the image has, which of a value's axes are the image's, and constants beside values.

All values are below 10³ with at most 10² terms in a sum, so that rounding stays below 10⁻¹¹ in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onebyone.lifting.operators import Convolution, Pool
from onebyone.lifting.rules.extra_axes import pool_other_axes, spatial_axes
from onebyone.lifting.rules.fill import fill_like
from onebyone.lifting.rules.sliding import convolution
from onebyone.lifting.values import Cannot, Const, Lifted
from tests.lifting.numpy_front_end import Array, Op, any_size, every_crop
from tests.lifting.test_forms import a_call, a_const, a_lifter, a_map
from tests.lifting.test_rules_elementwise import of_window
from tests.lifting.test_whole_window import ROUNDING, normal

CONSTANTS = {"kernel": normal(4, 2, 3), "shift": normal(4), "wide": normal(3, 2, 2, 2), "bias": normal(3)}
CONV = Op("conv", "convolution_1d", ("image", "kernel", "shift"))
WINDOW = (8,)  # 6 positions of the convolution


def equals_crops(network: list[Op], values: dict[str, Array]) -> None:
    image = normal(2, 2, 13)
    dense, stride, lifter = any_size(network, values, image, WINDOW)
    assert not lifter.inexact
    assert np.abs(dense - every_crop(network, values, image, WINDOW, stride)).max() < ROUNDING


# which axes are the image's


def test_axes_of_several_elements_are_not_extra() -> None:
    """Twelve positions as six pairs, or pairs of six: neither axis is the signal's."""
    signal = a_map(2, 12)
    for shape in ((2, 6, 2), (2, 2, 6), (2, 3, 4)):
        assert spatial_axes(a_lifter(12), signal.with_index(signal.indices().reshape(shape))) == ()


def test_axes_on_which_positions_are_reversed_or_repeated_are_not_the_images() -> None:
    signal = a_map(2, 6)
    backwards = signal.with_index(np.ascontiguousarray(signal.indices()[:, ::-1, None]))
    assert spatial_axes(a_lifter(6), backwards) == ()
    repeated = signal.with_index(np.ascontiguousarray(signal.indices()[:, [2] * 6, None]))
    assert spatial_axes(a_lifter(6), repeated) == ()
    assert spatial_axes(a_lifter(6), signal.with_index(signal.indices()[:, :, None])) == (1,)


# convolutions


def test_a_convolution_over_a_signal_that_is_folded_into_rows() -> None:
    """Six positions of four channels as 2 channels of 4×3: each window is a value of its own."""
    network = [
        CONV,
        Op("folded", "reshape", ("conv",), {"shape": (2, 4, 3)}),
        Op("out", "wide_convolution", ("folded", "wide", "bias")),
    ]
    equals_crops(network, CONSTANTS)


def extra(kernel: int, stride: int, padding: tuple[int, int], dilation: int, along: int = 0) -> Any:
    """A convolution over the six positions of a signal, and over a second axis of one element; its lifter too.

    `along` is the padding of the signal's own axis.
    """
    signal = a_map(2, 6)
    wide = replace(signal, pooled=frozenset({"pool"})).with_index(signal.indices().reshape(2, 6, 1))
    weight = a_const(4, 2, 3, kernel)
    operator = Convolution(wide, weight, a_const(4), (1, stride), [(along, along), padding], (1, dilation), 1)
    lifter = a_lifter(6)
    return convolution(lifter, a_call(4, 4 + 2 * along, 1), operator), lifter, signal, operator


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "tap"),
    [
        (3, 1, (1, 1), 1, 1),
        (2, 1, (1, 0), 1, 1),
        (2, 1, (0, 1), 1, 0),
        (3, 1, (2, 2), 2, 1),
        (1, 3, (0, 2), 1, 0),
    ],
)
def test_the_one_tap_that_reads_an_axis_of_one_element(
    kernel: int, stride: int, padding: tuple[int, int], dilation: int, tap: int
) -> None:
    result, _, signal, operator = extra(kernel, stride, padding, dilation)
    weight = operator.weight.handle[..., tap]
    windows = np.lib.stride_tricks.sliding_window_view(signal.handle, 3, 2)  # (1, 2, positions, 3)
    expected = np.einsum("ncpk,ock->nop", windows, weight) + operator.bias.handle[:, None]
    assert result.shape == (4, 4, 1)
    assert result.pooled == {"pool"}
    assert np.abs(result.handle - expected).max() < ROUNDING


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "reason"),
    [
        (2, 1, (1, 1), 1, "makes several positions of one"),
        (1, 1, (0, 1), 1, "makes several positions of one"),
        (1, 3, (1, 1), 1, "reads padding alone along an axis of one element"),
        (2, 1, (1, 1), 2, "reads padding alone along an axis of one element"),
    ],
)
def test_convolutions_that_do_not_read_an_axis_of_one_element_once_are_refused(
    kernel: int, stride: int, padding: tuple[int, int], dilation: int, reason: str
) -> None:
    """The third has a stride that only reaches the zeros before the element, the fourth taps on both sides of it."""
    with pytest.raises(Cannot, match=reason):
        extra(kernel, stride, padding, dilation)


def test_padding_of_the_signals_own_axis_is_named() -> None:
    _, lifter, _, _ = extra(3, 1, (1, 1), 1, along=1)
    assert lifter.inexact == [
        "some (aten.some): padding 1 affects crops but not the interior of a larger image"
    ]


# pools


def test_a_pool_of_pooled_features_is_at_each_position() -> None:
    """Pairs of the four means of a window."""
    network = [
        CONV,
        Op("pooled", "mean", ("conv",), {"axes": (2,)}),
        Op("square", "reshape", ("pooled",), {"shape": (1, 2, 2)}),
        Op("out", "pool", ("square",), {"reduction": "max", "kernel": (1, 2), "stride": (1, 2)}),
    ]
    equals_crops(network, CONSTANTS)


@pytest.mark.parametrize("settings", [
    {"padding": [(1, 0)]}, {"padding": [(0, 1)]}, {"ceil_mode": True}, {"divisor": 3}, {"dilation": (2,)},
    {"padding": [(1, 1)], "dilation": (2,)},
])  # fmt: skip
def test_pools_over_other_axes_have_neither_padding_nor_dilation(settings: dict[str, Any]) -> None:
    """Over the channels of each position."""
    value = a_map(4, 3, 3)
    tokens = value.with_index(np.ascontiguousarray(value.indices().reshape(4, 9).T))
    plain = Pool(tokens, "mean", (2,), (2,), [(0, 0)], (1,))
    pooled = pool_other_axes(a_lifter(3, 3), a_call(9, 2), plain)
    assert np.abs(of_window(pooled, 1, 2) - of_window(tokens, 1, 2).reshape(9, 2, 2).mean(2)).max() < ROUNDING
    with pytest.raises(Cannot, match="a pool over 1 axes of an image with 2, with padding or dilation"):
        pool_other_axes(a_lifter(3, 3), a_call(9, 2), replace(plain, **settings))


# constants beside values


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_constant_of_one_number_becomes_a_map(axis: int, kind: Any) -> None:
    """Of its own type and length along the axis; the value there may have a single element."""
    value = a_map(1, 3, 4)
    value = value.with_index(value.indices()[:, :1] if axis == 1 else value.indices())
    shape = [*value.shape]
    shape[axis] = 5
    constant = np.full((2, *shape), 3, dtype=kind)
    result = fill_like(a_lifter(3, 4), Const(constant, constant.shape, known=constant), value, axis)
    assert isinstance(result, Lifted)
    assert (result.shape, result.handle.dtype) == (tuple(shape), kind)
    assert np.array_equal(of_window(result, 1, 2), constant[0])


def test_constants_that_may_change_stay_constants() -> None:
    value, numbers = a_map(2, 3, 3), normal(1, 4, 3, 3)
    for constant in (Const(numbers, numbers.shape), Const(numbers, numbers.shape, known=numbers)):
        assert fill_like(a_lifter(3, 3), constant, value, 0) is constant
