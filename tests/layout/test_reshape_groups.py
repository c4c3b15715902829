"""Groups of reshapes: minimal, complete, and right for stored tensors; with integers and with symbols."""

from __future__ import annotations

from itertools import permutations, product
from math import prod

import numpy as np
import pytest
import sympy

from onebyone.layout import sizes
from onebyone.layout.orders import significant_axes
from onebyone.layout.reshape_groups import order_after_reshape, reshape_groups
from tests.layout.numpy_emitter import stored

N, M = sympy.symbols("n m")


def factorisations(number: int, length: int) -> list[tuple[int, ...]]:
    """Every shape of this many axes and this many elements."""
    return [shape for shape in product(range(1, number + 1), repeat=length) if prod(shape) == number]


SHAPES = [shape for length in (1, 2, 3) for shape in factorisations(12, length)]


def test_groups_are_complete_equal_and_minimal() -> None:
    for before, after in product(SHAPES, SHAPES):
        groups = reshape_groups(before, after)
        assert sum((g[0] for g in groups), ()) == significant_axes(before)
        assert sum((g[1] for g in groups), ()) == significant_axes(after)
        for left, right in groups:
            assert prod(before[a] for a in left) == prod(after[a] for a in right)
            heads = {prod(before[a] for a in left[:i]) for i in range(1, len(left))}
            assert not heads & {prod(after[a] for a in right[:i]) for i in range(1, len(right))}


def test_the_order_after_a_reshape_is_that_of_the_reshaped_stored_array() -> None:
    """A stored array reshaped to the stored shape of the result is the stored result, where the order says so; and
    where it says that there is none, no order of the result's axes is reached by a reshape."""
    array = np.arange(12.0)
    for before, after in product(SHAPES, SHAPES):
        groups = reshape_groups(before, after)
        results = {
            tuple(order): stored(array.reshape(after), tuple(order))
            for order in permutations(significant_axes(after))
        }
        for order in permutations(significant_axes(before)):
            flat = stored(array.reshape(before), tuple(order)).ravel()
            reached = {order for order, result in results.items() if np.array_equal(result.ravel(), flat)}
            predicted = order_after_reshape(tuple(order), groups)
            assert predicted in reached if predicted is not None else not reached


def test_an_order_that_interleaves_groups_has_no_order_after() -> None:
    groups = reshape_groups((2, 6, 5), (2, 2, 3, 5))
    assert order_after_reshape((1, 0, 2), groups) == (1, 2, 0, 3)
    back = tuple((after, before) for before, after in groups)
    assert order_after_reshape((1, 2, 0, 3), back) == (1, 0, 2)
    assert order_after_reshape((2, 1, 0, 3), back) is None
    assert order_after_reshape((1, 0, 2, 3), back) is None


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ((N, 12), (N, 3, 4), (((0,), (0,)), ((1,), (1, 2)))),
        ((N, 3, 4), (N, 12), (((0,), (0,)), ((1, 2), (1,)))),
        ((N, 4, 3), (4 * N, 3), (((0, 1), (0,)), ((2,), (1,)))),
        ((4 * N, 3), (4, N, 3), (((0,), (0, 1)), ((1,), (2,)))),
        ((N, M, 6), (N * M, 2, 3), (((0, 1), (0,)), ((2,), (1, 2)))),
        ((N * M,), (M, N), (((0,), (0, 1)),)),
        ((N, 2), (M, 3), (((0, 1), (0, 1)),)),  # cannot be compared: one group
        ((N, 1, 2), (1, N, 2), (((0,), (1,)), ((2,), (2,)))),
        ((1, 1), (1,), ()),
        ((), (), ()),
        ((2, 3), (N,), (((0, 1), (0,)),)),
        ((2,), (2, N), (((0,), (0, 1)),)),  # N can only be 1, and belongs to the last group
        ((2, N), (2,), (((0, 1), (0,)),)),
    ],
)
def test_symbolic_sizes(before: tuple, after: tuple, groups: tuple) -> None:
    assert reshape_groups(before, after) == groups


def test_sizes_of_integers_and_symbols() -> None:
    assert sizes.product([]) == 1
    assert sizes.product([2, 3]) == 6
    assert isinstance(sizes.product([2, 3]), int)
    assert sizes.product([N + 1, 2]) == 2 * N + 2
    assert sizes.same_product([N + 1, 2], [2 * N + 2])
    assert not sizes.same_product([N], [M])
    assert not sizes.same_product([N], [1])
    assert sizes.same_product([4, 3], [2, 6])
    assert [sizes.smaller_product([a], [b]) for a, b in ((2, 3), (3, 3), (3, 2))] == [True, False, False]
    assert sizes.smaller_product([N], [N, M])
    assert not sizes.smaller_product([N, M], [N])
    assert not sizes.smaller_product([N], [M])
    assert sizes.smaller_product([3], [3 * N])
