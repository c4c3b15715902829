"""Values side by side: parts of one map and of several, single parts, constants, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onebyone.lifting.operators import Concatenation, Stack
from onebyone.lifting.rules.shape import concatenate, side_by_side, stack
from onebyone.lifting.rules.window_pools import image_wide
from onebyone.lifting.values import Cannot, Const, Lifted
from tests.lifting.test_forms import a_call, a_lifter, a_map
from tests.lifting.test_reduction_forms import chosen, elements

ZEROS = Const(np.zeros((2, 1, 3, 3)), (2, 1, 3, 3), known=np.zeros((2, 1, 3, 3)))


def test_parts_of_one_map_are_joined_by_their_indices_alone() -> None:
    value = a_map(4, 3, 2, more=0)
    parts = [chosen(value, value.indices()[c]) for c in ([3, 1], [1, 0, 2])]
    both = side_by_side(a_lifter(3, 2), parts, 0)
    assert both.handle is value.handle
    np.testing.assert_array_equal(elements(both), value.handle[:, [3, 1, 1, 0, 2]])


def test_a_single_part_is_joined_with_nothing() -> None:
    value = a_map(4, 3, 2, more=0)
    part = chosen(value, value.indices()[[3, 1], 1:])
    call = a_call(2, 2, 2)
    for axis in (0, 1, 2):
        alone = concatenate(a_lifter(3, 2), call, Concatenation([part], axis))
        np.testing.assert_array_equal(elements(alone), elements(part))
    alone = stack(a_lifter(3, 2), call, Stack([part], 1))
    np.testing.assert_array_equal(elements(alone), elements(part)[:, :, None])


def test_chosen_channels_are_gathered_before_they_are_joined_with_another_map() -> None:
    """Not all four, of which two would never be read."""
    one, two = a_map(4, 3, 2, more=0), a_map(3, 3, 2, more=0)
    both = side_by_side(a_lifter(3, 2), [chosen(one, one.indices()[[2, 0]]), two], 0)
    np.testing.assert_array_equal(both.handle, np.concatenate([one.handle[:, [2, 0]], two.handle], 1))
    assert both.index is None


def test_as_many_elements_as_the_map_has_are_not_gathered() -> None:
    """Two channels twice: all four are joined as they are, without a copy."""
    one, two = a_map(4, 3, 2, more=0), a_map(3, 3, 2, more=0)
    both = side_by_side(a_lifter(3, 2), [chosen(one, one.indices()[[2, 0, 0, 2]]), two], 0)
    np.testing.assert_array_equal(both.handle, np.concatenate([one.handle, two.handle], 1))
    expected = np.concatenate([one.handle[:, [2, 0, 0, 2]], two.handle], 1)
    np.testing.assert_array_equal(elements(both), expected)


def test_values_of_a_window_and_of_the_image_are_not_joined() -> None:
    one, two = a_map(2, 1, 1), a_map(2, 1, 1)
    wide = Lifted(two.handle, image_wide(two.grid))
    for parts in ([one, wide], [wide, one]):
        with pytest.raises(
            Cannot, match="a value of the whole image is concatenated with values of a window"
        ):
            concatenate(a_lifter(1, 1), a_call(4, 1, 1), Concatenation(parts, 0))


def test_constants_alone_or_in_the_batch_are_not_joined() -> None:
    """A constant of one number would be filled in beside a map, but not as another sample."""
    value = a_map(1, 3, 3)
    for parts, axis in (([ZEROS, ZEROS], 0), ([ZEROS], 1), ([value, ZEROS], -1), ([ZEROS, value], -1)):
        with pytest.raises(Cannot, match="a constant is concatenated with values that depend on the image"):
            concatenate(a_lifter(3, 3), a_call(2, 3, 3), Concatenation(parts, axis))


def test_a_constant_beside_a_value_with_a_pending_scale_is_refused() -> None:
    value = replace(a_map(1, 3, 3), affine=(np.ones(9), np.zeros(9)))
    with pytest.raises(Cannot, match="a constant is concatenated with values that depend on the image"):
        concatenate(a_lifter(3, 3), a_call(2, 3, 3), Concatenation([value, ZEROS], 0))


def test_values_that_become_further_samples_are_refused() -> None:
    one, two = a_map(2, 3, 3), a_map(2, 3, 3)
    for second in (one, two):
        with pytest.raises(Cannot, match="the batch axis is merged with another or moved"):
            concatenate(a_lifter(3, 3), a_call(2, 3, 3), Concatenation([one, second], -1))
