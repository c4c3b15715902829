"""Reductions and pools: which form they take, what is recorded of them, and where grouping by channel is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onebyone.lifting.grid import PERIOD, Grid
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import AdaptivePool, Reduce
from onebyone.lifting.rules import reduce as rule
from onebyone.lifting.rules.reduce import adaptive_pool, by_channel, reduce
from onebyone.lifting.rules.window_pools import image_wide, pooled
from onebyone.lifting.values import Cannot, Lifted
from tests.lifting import numpy_emitter
from tests.lifting.numpy_front_end import Array, Op, any_size
from tests.lifting.test_forms import a_call, a_lifter, a_map
from tests.lifting.test_numpy_rules import ROUNDING, normal


def elements(value: Lifted) -> Array:
    """The elements of a value in the first window, `(N, *shape)`."""
    part = value.handle[(slice(None), slice(None), *map(slice, value.grid.nominal))]
    assert part.shape[1:] == value.grid.shape
    flat = part.reshape(len(part), -1)
    return np.asarray(flat[:, value.indices().ravel()].reshape(-1, *value.shape))


def chosen(value: Lifted, index: Any) -> Lifted:
    return value.with_index(np.ascontiguousarray(index))


def afters(lifter: Lifter) -> list[str]:
    return [change.after for change in lifter.changes]


# reductions


def test_the_mean_of_every_second_position_is_a_pool_of_the_window() -> None:
    """Of the map of these positions, so its value may be a context as that of all positions may be."""
    value, lifter = a_map(2, 5, 3, more=0), a_lifter(5, 3)
    result = reduce(lifter, a_call(2), Reduce(chosen(value, value.indices()[:, ::2]), "mean", (1, 2)))
    assert afters(lifter) == ["3×3 pool at stride 1"]
    assert (result.pooled, result.grid.jump, result.grid.channels) == ({"some"}, (2, 1), 2)
    np.testing.assert_allclose(elements(result), value.handle[:, :, ::2].mean((2, 3)), rtol=1e-12)


@pytest.mark.parametrize("axes", [(1, 2), (0, 1, 2), (2,)])
@pytest.mark.parametrize("reduction", ["sum", "norm", "max"])
def test_reductions_of_a_value_that_is_repeated_over_positions(axes: Sequence[int], reduction: Any) -> None:
    """Each repetition counts."""
    value = a_map(2, 1, 1, more=0)
    repeated = chosen(value, np.broadcast_to(value.indices(), (2, 3, 2)))
    shape = tuple(n for axis, n in enumerate((2, 3, 2)) if axis not in axes)
    result = reduce(a_lifter(1, 1), a_call(*shape), Reduce(repeated, reduction, axes))
    written = np.broadcast_to(value.handle, (1, 2, 3, 2))
    over = tuple(axis + 1 for axis in axes)
    expected = np.sqrt((written**2).sum(over)) if reduction == "norm" else getattr(written, reduction)(over)
    np.testing.assert_allclose(elements(result), expected, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean", "min", "norm"])
def test_two_positions_of_two_channels_are_pooled_before_the_channels(reduction: Any) -> None:
    value, lifter = a_map(2, 2, 1, more=0), a_lifter(2, 1)
    result = reduce(lifter, a_call(1), Reduce(value, reduction, (0, 1)))
    assert afters(lifter) == ["2×1 pool at stride 1"]
    over = value.handle.reshape(1, 4)
    expected = np.sqrt((over**2).sum(1)) if reduction == "norm" else getattr(over, reduction)(1)
    np.testing.assert_allclose(elements(result), expected.reshape(1, 1), rtol=1e-12)


def test_reductions_of_unequally_many_elements_of_each_channel() -> None:
    """Both positions of the first channel, and one of the second."""
    value = a_map(2, 2, 1, more=0)
    part = chosen(value, value.indices().reshape(1, 4)[:, :3])
    result = reduce(a_lifter(2, 1), a_call(1), Reduce(part, "sum", (1,)))
    np.testing.assert_allclose(elements(result), value.handle.reshape(1, 4)[:, :3].sum(1)[:, None])


@pytest.mark.parametrize("reduction", ["norm", "sum", "max"])
def test_the_norm_of_one_position_is_its_absolute_value(reduction: Any) -> None:
    """Every other reduction of one element is the element. No layer is re-expressed, and nothing is pooled."""
    value, lifter = a_map(4, 1, 1, more=0), a_lifter(1, 1)
    assert value.handle.min() < 0
    result = reduce(lifter, a_call(4), Reduce(value, reduction, (1, 2)))
    expected = np.abs(value.handle) if reduction == "norm" else value.handle
    np.testing.assert_array_equal(elements(result), expected.reshape(1, 4))
    assert not lifter.changes
    assert not result.pooled


def test_rows_split_by_channel_keep_the_order_of_their_elements() -> None:
    """So rows that are laid out alike are laid out alike in each channel. Long rows, which unstable sorts mix."""
    order = np.random.default_rng(3).permutation(120)
    grid = Grid.image(4, (40,))
    rows = np.stack([order, (order + 40) % 160])
    expected = [
        [[e for e in row if e // 40 == channel] for channel in sorted({*(row // 40)})] for row in rows
    ]
    np.testing.assert_array_equal(by_channel(rows, grid), expected)


@pytest.mark.parametrize(
    "rows",
    [[[0, 1, 40]], [[0, 1, 2, 40]], [[0, 1, 40, 41], [80, 81, 82, 83]], [[80, 81, 82, 83], [0, 1, 2, 40]]],
)
def test_rows_without_equally_many_elements_of_each_channel_are_not_split(rows: list[list[int]]) -> None:
    assert by_channel(np.array(rows), Grid.image(3, (40,))) is None


# adaptive pools


def bins_of(x: Array, bins: Sequence[int], reduction: str) -> Array:
    """Bin i of m over n positions is [⌊i·n/m⌋, ⌈(i+1)·n/m⌉)."""
    out = np.zeros((*x.shape[:2], *bins))
    for position in np.ndindex(*bins):
        spans = [
            slice(i * n // m, -(-(i + 1) * n // m))
            for i, n, m in zip(position, x.shape[2:], bins, strict=True)
        ]
        out[(..., *position)] = getattr(x[(..., *spans)], reduction)((2, 3))
    return out


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(
    ("nominal", "bins", "pool"),
    [((4, 4), (2, 2), "2×2"), ((6, 4), (3, 2), "2×2"), ((6, 4), (2, 4), "3×1"), ((5, 3), (2, 1), "3×3")],
)
def test_bins_of_one_size_are_read_from_one_pool(
    reduction: Any, nominal: tuple[int, int], bins: tuple[int, int], pool: str
) -> None:
    """The last ones overlap."""
    value, lifter = a_map(2, *nominal, more=0), a_lifter(*nominal)
    result = adaptive_pool(lifter, a_call(2, *bins), AdaptivePool(value, reduction, bins))
    assert afters(lifter) == [f"{pool} pool at stride 1"]
    assert (result.grid.channels, result.shape, result.pooled) == (2, (2, *bins), frozenset())
    np.testing.assert_allclose(elements(result), bins_of(value.handle, bins, reduction), rtol=1e-12)


def test_as_many_bins_as_positions_are_the_map() -> None:
    value, lifter = a_map(2, 4, 3), a_lifter(4, 3)
    assert adaptive_pool(lifter, a_call(2, 4, 3), AdaptivePool(value, "mean", [4, 3])) is value


def test_the_only_bin_is_a_pool_of_the_window() -> None:
    value = a_map(2, 4, 3, more=0)
    result = adaptive_pool(a_lifter(4, 3), a_call(2, 1, 1), AdaptivePool(value, "mean", (1, 1)))
    assert (result.index, result.pooled) == (None, {"some"})
    np.testing.assert_allclose(elements(result), value.handle.mean((2, 3), keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("head", ["window", "cam"])
def test_a_bin_that_happens_to_be_the_window_is_a_bin_as_the_others(head: str) -> None:
    """Three bins of two positions: the second has both. A class map cannot leave out one bin of nine."""
    value = replace(a_map(2, 2, 2, more=0), pooled=frozenset({"earlier"}))
    lifter = Lifter(numpy_emitter, (2, 2), head=head)  # type: ignore[arg-type]
    result = adaptive_pool(lifter, a_call(2, 3, 3), AdaptivePool(value, "mean", (3, 3)))
    assert not lifter.left_out
    assert result.pooled == {"earlier"}
    np.testing.assert_allclose(elements(result), bins_of(value.handle, (3, 3), "mean"), rtol=1e-12)


@pytest.mark.parametrize(("most", "fits"), [(8, True), (7, False)])
def test_as_many_bins_of_different_sizes_as_are_allowed(
    monkeypatch: pytest.MonkeyPatch, most: int, fits: bool
) -> None:
    """Four bins of three positions in each of two channels: eight pools."""
    monkeypatch.setattr(rule, "MOST_BINS", most)
    value, call = a_map(2, 3, 1, more=0), a_call(2, 4, 1)
    operator = AdaptivePool(value, "max", (4, 1))
    if fits:
        result = adaptive_pool(a_lifter(3, 1), call, operator)
        np.testing.assert_array_equal(elements(result), bins_of(value.handle, (4, 1), "max"))
        return
    with pytest.raises(Cannot, match=r"from \(3, 1\) to \(4, 1\) positions, in bins of different sizes"):
        adaptive_pool(a_lifter(3, 1), call, operator)


def test_one_bin_more_than_is_allowed_is_refused() -> None:
    with pytest.raises(Cannot, match=r"from \(2, 1\) to \(65537, 1\) positions, in bins of different sizes"):
        adaptive_pool(a_lifter(2, 1), a_call(1, 65537, 1), AdaptivePool(a_map(1, 2, 1), "max", (65537, 1)))


# pools of the window, of the image, and of class maps


def test_a_pool_gives_a_map_whatever_is_read_of_the_map_before_it() -> None:
    """And the value keeps the pools that it came through before."""
    value = replace(a_map(3, 2, 2), pooled=frozenset({"earlier"}))
    flipped = chosen(value, value.indices()[::-1])
    for kernel, nominal in (((1, 1), (2, 2)), ((2, 1), (1, 2)), ((2, 2), (1, 1))):
        result = pooled(a_lifter(2, 2), a_call(3, *nominal), flipped, kernel, "max")
        assert (result.index, result.grid.nominal) == (None, nominal)
        assert result.pooled == {"earlier"} | ({"some"} if kernel == (2, 2) else set())


def test_what_is_recorded_of_a_pool_that_a_class_map_leaves_out() -> None:
    lifter = Lifter(numpy_emitter, (4, 3), head="cam")  # type: ignore[arg-type]
    value = a_map(2, 4, 3)
    result = reduce(lifter, a_call(2), Reduce(value, "mean", (1, 2)))
    (change,) = lifter.changes
    assert (change.law, change.before, change.after) == (
        "average pool commutes with linear", "pool over the map", "left out (class map)"
    )  # fmt: skip
    assert lifter.left_out == {"some": ((4, 3), (1, 1))}
    np.testing.assert_array_equal(result.handle, value.handle)


@pytest.mark.parametrize("window", [(12,), (5, 6), (3, 4, 2)])
def test_a_map_of_the_image_has_one_position_whatever_the_image_is(window: tuple[int, ...]) -> None:
    grid = image_wide(Grid.image(2, window))
    assert (grid.image_wide, grid.sizes) == (True, ((1,) * PERIOD,) * len(window))


def test_the_mean_of_a_signal_as_its_context() -> None:
    network = [
        Op("context", "mean", ("image",), {"axes": (2,), "keep": True}),
        Op("less", "subtract", ("image", "context")),
        Op("last", "reduce", ("less",), {"reduction": "max", "axes": (2,)}),
    ]
    signal = normal(2, 3, 19)
    dense, _, _ = any_size(network, {}, signal, (12,), "image", image_wide=frozenset({"context"}))
    maxima = np.lib.stride_tricks.sliding_window_view(signal, 12, 2).max(3)
    assert np.abs(dense - (maxima - signal.mean(2, keepdims=True))).max() < ROUNDING


def test_a_padded_context_of_the_image_is_pooled_over_its_padding_too() -> None:
    """Zeros around one position: the mean of 3×3 positions is a ninth of the mean of the image."""
    network = [
        Op("context", "mean", ("image",), {"axes": (2, 3), "keep": True}),
        Op("padded", "pad", ("context",), {"amounts": [(0, 0), (1, 1), (1, 1)]}),
        Op("ninth", "mean", ("padded",), {"axes": (2, 3), "keep": True}),
        Op("less", "subtract", ("image", "ninth")),
        Op("last", "reduce", ("less",), {"reduction": "max", "axes": (2, 3)}),
    ]
    image = normal(1, 3, 8, 9)
    wide = frozenset({"context", "ninth"})
    dense, _, _ = any_size(network, {}, image, (6, 5), "image", image_wide=wide)
    maxima = np.lib.stride_tricks.sliding_window_view(image, (6, 5), (2, 3)).max((4, 5))
    assert np.abs(dense - (maxima - image.mean((2, 3), keepdims=True) / 9)).max() < ROUNDING
