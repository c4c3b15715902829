"""Matrix products of two computed values, written in every order that their rule allows."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from onebyone.layout.input_products import matrix_product
from onebyone.layout.orders import UNIT, Layout, order_of
from onebyone.layout.rules import LayoutRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, UntouchedTensors, stored
from tests.layout.numpy_program import NumpyProgram

#: Shapes of both factors, and how many (order, form) pairs the rule must allow: the orders of the batch axes longer
#: than 1, times the two forms.
SHAPES = [
    ((3, 4), (4, 5), 2),
    ((2, 3, 4), (2, 4, 5), 2),
    ((2, 3, 4), (4, 5), 2),
    ((3, 4), (2, 4, 5), 2),
    ((2, 3, 4, 5), (2, 3, 5, 6), 4),
    ((2, 3, 4, 5), (3, 5, 6), 4),
    ((2, 1, 4, 5), (1, 3, 5, 6), 4),
    ((2, 7, 3, 4, 5), (7, 1, 5, 6), 12),
    ((2, 1, 4), (2, 4, 5), 2),  # one row: both forms
    ((2, 3, 4), (2, 4, 1), 2),
    ((2, 3, 1), (1, 5), 2),  # one inner element, in a factor without a batch axis
    ((2, 3, 4, 5, 6), (3, 4, 6, 2), 12),  # two of three batch axes
    ((2, 3, 1), (2, 1, 5), 2),
]


#: Every test of products runs on all of them.
each_product = pytest.mark.parametrize(("first", "second", "count"), SHAPES)


def product(
    first: tuple[int, ...], second: tuple[int, ...]
) -> tuple[NumpyProgram, GraphValue, GraphValue, np.ndarray, LayoutRule]:
    """A program with two inputs, both of them, their product in NumPy, and its rule."""
    program = NumpyProgram()
    a, b = program.input(*first), program.input(*second)
    right = program.arrays[a] @ program.arrays[b]
    rule = matrix_product(GraphValue("result", right.shape), a, b)
    assert rule is not None
    return program, a, b, right, rule


@each_product
def test_written_in_every_order_it_is_the_same_product(
    first: tuple[int, ...], second: tuple[int, ...], count: int
) -> None:
    program, a, b, right, rule = product(first, second)
    written_forms = 0
    for order in permutations(rule.axes):
        for operand_orders in rule.operand_orders(tuple(order)):
            emitter = NumpyEmitter(program)
            tensors: StoredTensors[Any] = StoredTensors(emitter)
            for value, axes in zip((a, b), operand_orders, strict=True):
                assert sorted(axes) == sorted(value.axes)
                tensors.put(value, axes, stored(program.arrays[value], axes))
            written, layout = rule.write(tensors, tuple(order), operand_orders)
            assert order_of(layout) == order
            assert np.array_equal(written, stored(right, layout))
            assert emitter.permutes == 0
            written_forms += 1
    assert written_forms == count


@each_product
def test_the_orders_that_an_operand_suggests_keep_it_as_it_is_stored(
    first: tuple[int, ...], second: tuple[int, ...], count: int
) -> None:
    """Where its last two axes are its matrix, in either order; and both forms are suggested."""
    _, a, b, _, rule = product(first, second)
    for number, value in enumerate((a, b)):
        for order in permutations(value.axes):
            suggested = rule.result_orders(number, tuple(order))
            assert suggested
            assert all(sorted(s) == sorted(rule.axes) for s in suggested)
            ends = [axis for axis in order if axis >= value.rank - 2]
            if list(order[len(order) - len(ends) :]) == ends:
                kept = [s for s in suggested if order in {o[number] for o in rule.operand_orders(s)}]
                assert kept


@each_product
def test_the_natural_order_is_the_product_itself(
    first: tuple[int, ...], second: tuple[int, ...], count: int
) -> None:
    _, a, b, _, rule = product(first, second)
    assert (a.axes, b.axes) in rule.operand_orders(rule.axes)


@pytest.mark.parametrize(("shape", "layout"), [
    ((4, 5), (0, 1)), ((1, 4, 5), (UNIT, 1, 2)), ((1, 4, 5), (1, 2)),
])  # fmt: skip
def test_a_factor_without_the_batch_axis_is_multiplied_as_it_is_stored(
    shape: tuple[int, ...], layout: Layout
) -> None:
    """Whether it has a unit dimension there or none: the other factor has the batch axis."""
    program, a, b, right, rule = product((2, 3, 4), shape)
    tensors: StoredTensors[Any] = StoredTensors(UntouchedTensors(program))
    tensors.put(a, (0, 1, 2), program.arrays[a])
    tensors.put(b, layout, stored(program.arrays[b], layout))
    written, result_layout = rule.write(tensors, (0, 1, 2), ((0, 1, 2), order_of(layout)))
    assert result_layout == (0, 1, 2)
    assert np.array_equal(written, right)


@pytest.mark.parametrize(("first", "second", "result"), [
    ((4,), (4, 5), (5,)), ((3, 4), (4,), (3,)), (None, (4, 5), (3, 5)), ((3, 4), None, (3, 5)),
    ((3, 4), (4, 5), None), ((3, 4), (4, 5), (1, 3, 5)),
])  # fmt: skip
def test_products_of_vectors_or_of_unknown_shapes_have_no_rule(first: Any, second: Any, result: Any) -> None:
    assert matrix_product(GraphValue("c", result), GraphValue("a", first), GraphValue("b", second)) is None


def test_the_square_of_a_value_has_no_rule() -> None:
    """Its two uses would need two orders."""
    a = GraphValue("a", (4, 4))
    assert matrix_product(GraphValue("c", (4, 4)), a, a) is None
    assert matrix_product(GraphValue("c", (4, 4)), a, GraphValue("b", (4, 4))) is not None
