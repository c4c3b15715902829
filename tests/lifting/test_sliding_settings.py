"""Convolutions, pools and padding in settings that few networks have, and what they keep and record of a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import Grid
from onebyone.lifting.lifter import PARTIAL
from onebyone.lifting.operators import Call, Convolution, Linear, Pad, Pool
from onebyone.lifting.rules.product import linear
from onebyone.lifting.rules.sliding import convolution, pad, pool
from onebyone.lifting.values import Cannot, Lifted
from tests.lifting import numpy_emitter
from tests.lifting.numpy_front_end import Array, Op
from tests.lifting.test_forms import a_call, a_const, a_lifter, a_map
from tests.lifting.test_numpy_rules import CONV, assert_equals_crops, normal, with_head
from tests.lifting.test_reduction_forms import afters, chosen, elements

NONE = [(0, 0)] * 2


def pooling(value: Lifted, reduction: Any, kernel: Sequence[int], **settings: Any) -> Pool:
    """A pool at stride 1 without padding or dilation, where nothing else is given."""
    axes = len(kernel)
    usual = {"stride": (1,) * axes, "padding": [(0, 0)] * axes, "dilation": (1,) * axes}
    return Pool(value, reduction, kernel, **(usual | settings))


def as_signal(value: Lifted) -> Lifted:
    """A signal of channels and positions with a further axis of one element."""
    return chosen(value, value.indices()[..., None])


# convolutions


@pytest.mark.parametrize(
    ("kernel", "stride", "positions", "as_linear"),
    [
        ((1, 1), 1, 2, True),
        ((1, 1), 1, 1, True),
        ((1, 1), 2, 1, True),  # the stride has no effect
        ((1, 1), 2, 2, False),
        ((1, 1), 2, 3, False),
        ((1, 1), 3, 2, False),
        ((2, 2), 1, 2, False),
        ((2, 1), 1, 3, False),
    ],
)
def test_convolutions_of_patches_that_were_made_channels(
    kernel: tuple[int, int], stride: int, positions: int, as_linear: bool
) -> None:
    """Patches of 2×2 positions. A kernel of one position is a linear layer on them, which needs no such channels."""
    size = 2 * positions
    counts = [(positions - k) // stride + 1 for k in kernel]
    features = 5 * counts[0] * counts[1]
    network = [
        CONV,
        Op("parts", "reshape", ("conv",), {"shape": (4, positions, 2, positions, 2)}),
        Op("turned", "transpose", ("parts",), {"order": (0, 1, 3, 5, 2, 4)}),
        Op("patches", "reshape", ("turned",), {"shape": (16, positions, positions)}),
        Op("out", "convolution", ("patches", "kernel2", "shift2"), {"stride": stride}),
        Op("flat", "reshape", ("out",), {"shape": (features,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    values = with_head(features, kernel2=normal(5, 16, *kernel), shift2=normal(5))
    lifter = assert_equals_crops(network, values, (size + 2,) * 2, (size + 8, size + 7))
    layers = [layer.weight.name for layer in lifter.linear_layers]
    assert layers == (["kernel2"] if as_linear else []) + ["weight"]


def test_a_convolution_of_chosen_channels_stays_one() -> None:
    value, lifter = a_map(4, 3, 2, more=0), a_lifter(3, 2)
    weight = a_const(5, 3, 1, 1)
    part = chosen(value, value.indices()[[2, 0, 3]])
    result = convolution(lifter, a_call(5, 3, 2), Convolution(part, weight, None, (1, 1), NONE, (1, 1), 1))
    assert not lifter.linear_layers
    expected = np.einsum("nchw,oc->nohw", value.handle[:, [2, 0, 3]], weight.handle[:, :, 0, 0])
    np.testing.assert_allclose(elements(result), expected, rtol=1e-12)


def test_a_convolution_whose_channels_are_rows_is_refused() -> None:
    value = a_map(2, 3, 2)
    rows = chosen(value, value.indices().swapaxes(0, 1))
    operator = Convolution(rows, a_const(5, 3, 1, 1), None, (1, 1), NONE, (1, 1), 1)
    with pytest.raises(Cannot, match="channels and positions are mixed"):
        convolution(a_lifter(3, 2), a_call(5, 2, 2), operator)


def test_a_convolution_may_make_several_positions_of_the_only_one() -> None:
    """Of a mean, with an axis of one element that is padded: exact, since each window has its own mean."""
    network = [
        Op("mean", "mean", ("image",), {"axes": (2,), "keep": True}),
        Op("wide", "reshape", ("mean",), {"shape": (2, 1, 1)}),
        Op("out", "wide_convolution", ("wide", "kernel2", "shift"), {"padding": 1}),
        Op("flat", "reshape", ("out",), {"shape": (12,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    assert_equals_crops(network, with_head(12, kernel2=normal(4, 2, 1, 1)), (12,), (19,))


def test_padding_of_a_signal_with_a_further_axis_is_named() -> None:
    signal, kernel = as_signal(a_map(2, 12, more=0)), a_const(4, 2, 3, 1)
    lifter = a_lifter(12)
    operator = Convolution(signal, kernel, None, (1, 1), [(1, 1), (0, 0)], (1, 1), 1)
    result = convolution(lifter, a_call(4, 12, 1), operator)
    assert lifter.inexact == [
        "some (aten.some): padding 1 affects crops but not the interior of a larger image"
    ]
    padded = np.pad(signal.handle, [(0, 0), (0, 0), (1, 1)])
    parts = np.lib.stride_tricks.sliding_window_view(padded, 3, 2)
    expected = np.einsum("nclk,ock->nol", parts, kernel.handle[..., 0])
    np.testing.assert_allclose(elements(result)[..., 0], expected, rtol=1e-11)


# pools of values with more axes than the image


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_dilated_or_strided_pools_of_a_signal_with_a_further_axis(reduction: str) -> None:
    for order, shape in (((0, 1), (2, 12, 1)), ((1, 0), (2, 1, 12))):
        for kernel, stride, dilation, count in ((2, 2, 1, 6), (2, 1, 3, 9), (3, 3, 1, 4)):
            if reduction == "mean" and dilation > 1:
                continue  # no framework has dilated means
            settings = {
                name: tuple((number, 1)[axis] for axis in order)
                for name, number in (("kernel", kernel), ("stride", stride), ("dilation", dilation))
            }
            network = [
                Op("wide", "reshape", ("image",), {"shape": shape}),
                Op("out", "pool", ("wide",), {"reduction": reduction, **settings}),
                Op("flat", "reshape", ("out",), {"shape": (2 * count,)}),
                Op("last", "linear", ("flat", "weight", "bias")),
            ]
            assert_equals_crops(network, with_head(2 * count), (12,), (19,))


def test_a_pool_over_a_signal_with_a_further_axis_is_one_of_the_window() -> None:
    lifter, signal = a_lifter(12), as_signal(a_map(2, 12, more=0))
    result = pool(lifter, a_call(2, 1, 1), pooling(signal, "mean", (12, 1)))
    assert [c.law for c in lifter.changes] == ["global pool = pool over the window"]
    assert afters(lifter) == ["12 pool at stride 1"]
    assert (result.pooled, result.shape) == ({"some"}, (2, 1, 1))
    np.testing.assert_allclose(elements(result)[..., 0], signal.handle.mean(2, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(("kernel", "padding"), [(3, (1, 1)), (2, (1, 0)), (2, (0, 1)), (2, (1, 1))])
def test_pools_that_reach_past_the_only_element_of_a_further_axis_are_refused(
    reduction: str, kernel: int, padding: tuple[int, int]
) -> None:
    signal = as_signal(a_map(2, 12))
    operator = pooling(signal, reduction, (2, kernel), padding=[(0, 0), padding])
    with pytest.raises(Cannot, match="a pool over 2 axes of an image with 1, with padding or dilation"):
        pool(a_lifter(12), a_call(2, 11, 1), operator)


# pools of maps, on an image of one window


def over_each(
    x: Array, reduction: str, kernel: int, stride: int, padding: tuple[int, int], count: int
) -> Array:
    """Both axes alike, position by position; what is outside of the map is left out."""
    out = np.zeros((*x.shape[:2], count, count))
    for i, j in np.ndindex(count, count):
        rows, columns = (
            slice(max(0, p * stride - padding[0]), p * stride - padding[0] + kernel) for p in (i, j)
        )
        out[:, :, i, j] = getattr(x[:, :, rows, columns], reduction)((2, 3))
    return out


@pytest.mark.parametrize(
    ("nominal", "kernel", "stride", "padding", "count"),
    [
        (4, 3, 2, (1, 1), 3),
        (6, 3, 2, (1, 0), 3),
        (7, 3, 3, (1, 0), 3),
        (5, 4, 3, (2, 1), 3),
        (4, 3, 2, (0, 1), 2),
        (6, 2, 4, (1, 1), 2),
    ],
)
def test_maxima_with_padding_whose_last_position_may_be_partial(
    nominal: int, kernel: int, stride: int, padding: tuple[int, int], count: int
) -> None:
    """No further position appears: the map of one window has those of the network."""
    value, lifter = a_map(2, nominal, nominal, more=0), a_lifter(nominal, nominal)
    operator = pooling(
        value, "max", (kernel,) * 2, stride=(stride,) * 2, padding=[padding] * 2, ceil_mode=True
    )
    result = pool(lifter, a_call(2, count, count), operator)
    assert result.shape == result.handle.shape[1:] == (2, count, count)
    expected = over_each(value.handle, "max", kernel, stride, padding, count)
    np.testing.assert_array_equal(elements(result), expected)
    before, after = padding
    partial = (count - 1) * stride - before + kernel > nominal + after
    sides = before if before == after else f"{before}+{after}"
    reasons = [f"padding {sides} affects crops but not the interior of a larger image", PARTIAL]
    assert lifter.inexact == [f"some (aten.some): {reason}" for reason in reasons[: 1 + partial]]


@pytest.mark.parametrize(("ceil_mode", "stride"), [(False, 1), (True, 2)])
def test_a_kernel_larger_than_the_map_that_padding_makes_room_for(ceil_mode: bool, stride: int) -> None:
    """Three of two positions with one more on each side: the kernel is not shortened."""
    value = a_map(2, 2, 2, more=0)
    operator = pooling(value, "max", (3, 3), stride=(stride,) * 2, padding=[(1, 1)] * 2, ceil_mode=ceil_mode)
    result = pool(a_lifter(2, 2), a_call(2, 2, 2), operator)
    np.testing.assert_array_equal(elements(result), over_each(value.handle, "max", 3, stride, (1, 1), 2))


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_a_kernel_larger_than_the_map_is_refused_without_ceil_mode(reduction: str) -> None:
    operator = pooling(a_map(2, 2, 4), reduction, (3, 2))
    with pytest.raises(Cannot, match="the window is too small: no position is left"):
        pool(a_lifter(2, 4), a_call(2, 0, 3), operator)


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_pool_over_the_whole_map_is_one_of_the_window(reduction: str, ceil_mode: bool) -> None:
    """Whatever its stride, and whether or not a partial position would be allowed."""
    value, lifter = a_map(2, 4, 3, more=0), a_lifter(4, 3)
    operator = pooling(value, reduction, (4, 3), stride=(4, 3), ceil_mode=ceil_mode)
    result = pool(lifter, a_call(2, 1, 1), operator)
    assert afters(lifter) == ["4×3 pool at stride 1"]
    assert (result.pooled, result.grid.jump) == ({"some"}, (1, 1))
    expected = getattr(value.handle, reduction)((2, 3), keepdims=True)
    np.testing.assert_allclose(elements(result), expected, rtol=1e-12)


@pytest.mark.parametrize("divisor", [None, 3, 4])
@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
def test_means_with_padding_and_a_divisor(divisor: int | None, count_padding: bool, padding: int) -> None:
    """Of 2×2 positions at stride 2: sums over the divisor, or over the number of positions that count."""
    value, lifter = a_map(2, 4, 4, more=0), a_lifter(4, 4)
    operator = pooling(
        value, "mean", (2, 2), stride=(2, 2), padding=[(padding, padding)] * 2,
        count_padding=count_padding, divisor=divisor,
    )  # fmt: skip
    count = 2 + padding
    result = pool(lifter, a_call(2, count, count), operator)
    sums = over_each(value.handle, "sum", 2, 2, (padding, padding), count)
    inside = over_each(np.ones_like(value.handle), "sum", 2, 2, (padding, padding), count)
    expected = sums / (divisor or (4 if count_padding else inside))
    np.testing.assert_allclose(elements(result), expected, rtol=1e-12)
    reason = "some (aten.some): padding 1 affects crops but not the interior of a larger image"
    assert lifter.inexact == [reason] * padding


@pytest.mark.parametrize("divisor", [None, 5])
def test_a_mean_that_fits_is_emitted_without_ceil_mode(
    monkeypatch: pytest.MonkeyPatch, divisor: int | None
) -> None:
    given: list[Any] = []

    def mean_pool(source: Array, *settings: Any) -> Array:
        given.append(settings)
        return source[:, :, ::2, ::2]

    monkeypatch.setattr(numpy_emitter, "mean_pool", mean_pool)
    value = a_map(2, 4, 4, more=0)
    operator = pooling(value, "mean", (2, 2), stride=(2, 2), ceil_mode=True, divisor=divisor)
    pool(a_lifter(4, 4), a_call(2, 2, 2), operator)
    assert given == [([Sliding(2, 2)] * 2, True, divisor)]


# padding


def test_positions_are_padded_by_the_number() -> None:
    value = a_map(2, 3, 4, more=0)
    padded = pad(a_lifter(3, 4), a_call(2, 6, 4), Pad(value, [(1, 2), (0, 0)], "constant", 1.5))
    np.testing.assert_array_equal(
        elements(padded), np.pad(value.handle, [(0, 0), (0, 0), (1, 2), (0, 0)], constant_values=1.5)
    )
    assert padded.grid.fields[0].start == -1
    assert padded.grid.sizes[0][:2] == (6, 7)  # of images of 3 and 4 rows


def test_amounts_that_crop_on_one_side_and_pad_on_the_other() -> None:
    value = a_map(2, 4, 4, more=0)
    for (before, after), rows in (((-1, 1), slice(1, 5)), ((2, -2), slice(0, 4)), ((-2, 3), slice(2, 7))):
        padded = pad(a_lifter(4, 4), a_call(2, 4, 4), Pad(value, [(before, after), (0, -1)]))
        written = np.pad(value.handle, [(0, 0), (0, 0), (max(0, before), max(0, after)), (0, 0)])
        np.testing.assert_array_equal(elements(padded), written[:, :, rows, :3])


def test_constant_channels_have_the_type_of_the_result() -> None:
    """Not that of the map: a half beside whole numbers."""
    value = Lifted(np.arange(18).reshape(1, 2, 3, 3), Grid.image(2, (3, 3)))
    call = a_call(3, 3, 3)
    padded = pad(a_lifter(3, 3), call, Pad(value, [(0, 1), (0, 0), (0, 0)], "constant", 0.5))
    assert call.dtype == padded.handle.dtype
    np.testing.assert_array_equal(elements(padded)[0, 2], np.full((3, 3), 0.5))


# what is kept


def rules_that_keep_pools(value: Lifted, call: Call) -> list[Lifted]:
    """Of a value of four channels and one position, with one more channel or position where a rule adds any."""
    lifter = a_lifter(1, 1)
    vector = chosen(value, value.indices().reshape(4))
    padding = {"padding": [(1, 1)] * 2}
    return [
        convolution(lifter, call, Convolution(value, a_const(5, 4, 1, 1), None, (1, 1), NONE, (1, 1), 1)),
        linear(lifter, call, Linear(vector, a_const(5, 4), None)),
        pool(lifter, call, pooling(value, "max", (3, 3), **padding)),
        pool(lifter, call, pooling(value, "mean", (3, 3), **padding)),
        pad(lifter, call, Pad(value, [(1, 1), (1, 1)])),
        pad(lifter, call, Pad(value, [(1, 0), (0, 0), (0, 0)])),
    ]


def test_the_pools_that_a_value_came_through_are_kept() -> None:
    """So a value that is computed from a pooled one is known to be a context, too."""
    value = replace(a_map(4, 1, 1), pooled=frozenset({"earlier"}))
    for number, result in enumerate(rules_that_keep_pools(value, a_call(4, 1, 1))):
        assert result.pooled == {"earlier"}, number
