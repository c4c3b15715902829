"""Operators along axes: rows that are no rectangles, several results, results over a window that keep an axis.

All values are below 10³ with at most 10² terms in a sum, so that rounding stays below 10⁻¹¹ in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from onebyone.lifting.operators import AxisOperator
from onebyone.lifting.rules.along_axes import along_axes
from tests.lifting.numpy_front_end import Array, Op
from tests.lifting.test_forms import a_call, a_lifter, a_map
from tests.lifting.test_one_window import exact
from tests.lifting.test_rules_elementwise import of_window
from tests.lifting.test_whole_window import CONSTANTS, CONV, ROUNDING

EVERY = slice(None)


@pytest.mark.parametrize("elements", [
    slice(0, 23),  # a channel of 20 positions, and three of the next one
    slice(0, 40, 3),  # every third position of two channels, which is no rectangle
])  # fmt: skip
def test_a_variance_of_elements_that_are_no_rectangle_of_positions(elements: slice) -> None:
    network = [
        CONV,
        Op("flat", "reshape", ("conv",), {"shape": (80,)}),
        Op("part", "slice", ("flat",), {"window": (EVERY, elements)}),
        Op("row", "reshape", ("part",), {"shape": (1, len(range(*elements.indices(80))))}),
        Op("last", "variance", ("row",), {"axes": (2,)}),
    ]
    lifter = exact(network, CONSTANTS)
    assert not lifter.changes


def of_sorted(handle: Array, axes: Sequence[int], count: int) -> Array:
    """The `count` largest elements over some axes, as the first of these axes."""
    last = np.moveaxis(handle, axes, range(-len(axes), 0))
    rows = np.sort(last.reshape(*last.shape[: -len(axes)], -1))[..., ::-1]
    return np.moveaxis(rows[..., :count], -1, axes[0])


def test_the_largest_elements_over_the_positions_of_a_window() -> None:
    """Their order in the window has no meaning, and the result keeps an axis, of other elements."""
    signal = a_map(3, 5, more=4)
    operator = AxisOperator(
        signal, (1,), lambda x, axes: [of_sorted(x, axes, 2)], reduces=False, any_order=True
    )
    call = replace(a_call(3, 2), name="aten.topk")
    lifter = a_lifter(5)
    largest = along_axes(lifter, call, operator)
    for first in range(5):
        part = np.sort(signal.handle[0, :, first : first + 5])[:, ::-1][:, :2]
        assert np.array_equal(of_window(largest, first), part)
    (change,) = lifter.changes
    assert (change.kind, change.law, change.before, change.after) == (
        "aten.topk", "global pool = pool over the window", "topk over the map", "topk over 5"
    )  # fmt: skip


@pytest.mark.parametrize("axes", [(0,), (1, 2)])
def test_an_operator_with_several_results(axes: tuple[int, ...]) -> None:
    """A variance and a mean, over channels and over positions."""
    value = a_map(3, 2, 4)
    operator = AxisOperator(
        value, axes, lambda x, over: [x.var(tuple(over)), x.mean(tuple(over))], reduces=True, any_order=True
    )
    shape = tuple(n for axis, n in enumerate((3, 2, 4)) if axis not in axes)
    spread, mean = along_axes(a_lifter(2, 4), replace(a_call(*shape), shapes=(shape, shape)), operator)
    for first in ((0, 0), (2, 1)):
        part = of_window(value, *first)
        assert np.abs(of_window(spread, *first) - part.var(axes)).max() < ROUNDING
        assert np.abs(of_window(mean, *first) - part.mean(axes)).max() < ROUNDING


def test_a_single_result_is_no_tuple() -> None:
    value = a_map(3, 2, 4)
    operator = AxisOperator(value, (0,), lambda x, over: [x.cumsum(over[0])], reduces=False, any_order=False)
    result = along_axes(a_lifter(2, 4), a_call(3, 2, 4), operator)
    assert np.abs(of_window(result, 1, 2) - of_window(value, 1, 2).cumsum(0)).max() < ROUNDING
