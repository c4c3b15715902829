"""Operators take tensors with the unit dimensions that they have: nothing is squeezed or unsqueezed for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import sympy

from onebyone.layout.orders import UNIT, Layout, order_of
from onebyone.layout.rules import PointwiseRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, UntouchedTensors, stored
from tests.layout.numpy_program import NumpyProgram

Build = Callable[[NumpyProgram], GraphValue]

#: An operator, the layouts of its operands, and the layout of its result.
TAKEN_AS_STORED: dict[str, tuple[Build, tuple[Layout, ...], Layout]] = {
    "transpose": (
        lambda p: p.transpose(p.input(2, 1, 3, 4), 3, 0, 1, 2),
        ((0, UNIT, 2, 3),),
        (1, UNIT, 3, 0),
    ),
    "along an axis": (
        lambda p: p.subtract_maximum(p.input(2, 3, 4), 1),
        ((UNIT, 2, 0, 1),),
        (UNIT, 2, 0, 1),
    ),
    "sum": (lambda p: p.sum(p.input(2, 3, 4), 1), ((0, UNIT, 1, 2),), (0, UNIT, 1)),
    "concatenate": (
        lambda p: p.concatenate(1, p.input(2, 3, 4), p.input(2, 2, 4)),
        ((0, UNIT, 1, 2), (0, UNIT, 1, 2)),
        (0, UNIT, 1, 2),
    ),
    "channels second": (
        lambda p: p.channel_offset(p.input(2, 3, 4), p.input(3)),
        ((0, 1, UNIT, 2), (0,)),
        (0, 1, UNIT, 2),
    ),
    "fused normalisation": (
        lambda p: p.normalise(p.input(2, 3, 4), 1, p.input(4)),
        ((0, UNIT, 1, 2), (0,)),
        (0, UNIT, 1, 2),
    ),
    "elementary normalisation": (
        lambda p: p.normalise(p.input(2, 3, 4), 1, p.input(4), p.input(4)),
        ((UNIT, 2, 0, 1), (0, UNIT, UNIT), (UNIT, 0, UNIT, UNIT)),
        (UNIT, 2, 0, 1),
    ),
    "normalised sum": (
        lambda p: p.normalise_sum(p.input(2, 3, 4), p.input(1, 3, 4)),
        ((0, UNIT, 2, 1), (UNIT, UNIT, 2, 1)),
        (0, UNIT, 2, 1),
    ),
    "reshape": (lambda p: p.reshape(p.input(2, 6, 3), 2, 2, 3, 3), ((0, 1, UNIT, 2),), (0, 1, 2, 3)),
    "sum of two": (
        lambda p: p.add(p.input(2, 3, 4), p.input(1, 3, 4)),
        ((0, 1, 2), (UNIT, 1, 2)),
        (0, 1, 2),
    ),
}


@pytest.mark.parametrize("name", TAKEN_AS_STORED)
def test_an_operator_takes_its_operands_as_they_are_stored(name: str) -> None:
    build, layouts, expected = TAKEN_AS_STORED[name]
    program = NumpyProgram()
    value = build(program)
    program.output(value)
    rule = program.rules[value]
    tensors: StoredTensors[Any] = StoredTensors(UntouchedTensors(program))
    for operand, layout in zip(rule.operands, layouts, strict=True):
        tensors.put(operand, layout, stored(program.arrays[operand], layout))
    operand_orders = tuple(map(order_of, layouts))
    order = next(o for o in permutations(rule.axes) if operand_orders in rule.operand_orders(o))
    written, layout = rule.write(tensors, order, operand_orders)
    assert layout == expected
    assert np.array_equal(written, stored(program.direct()[0], layout))


# elementwise operators


def test_a_sum_is_written_in_the_layout_of_most_operands_under_the_axes_of_the_result() -> None:
    program = NumpyProgram()
    x, y = program.input(3, 4), program.input(1, 3, 4)
    rule = program.rules[program.add(x, y)]
    assert isinstance(rule, PointwiseRule)
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
    tensors.put(x, (0, 1), program.arrays[x])
    tensors.put(y, (1, 2), program.arrays[y][0])
    assert rule._layout(tensors, (1, 2), ((0, 1), (1, 2))) == ((1, 2), x)


def test_an_operand_in_another_order_keeps_its_unit_dimensions_in_one_permute() -> None:
    class OnlyPermutes(UntouchedTensors):
        def permute(self, x: Any, permutation: Any) -> Any:
            return NumpyEmitter.permute(self, x, permutation)

    program = NumpyProgram()
    x = program.input(2, 1, 4)
    rule = program.rules[program.relu(x)]
    emitter = OnlyPermutes(program)
    tensors: StoredTensors[Any] = StoredTensors(emitter)
    tensors.put(x, (0, UNIT, 2), program.arrays[x])
    written, layout = rule.write(tensors, (2, 0), ((2, 0),))
    assert layout == (2, UNIT, 0)
    assert np.array_equal(written, np.maximum(program.arrays[x].transpose(2, 1, 0), 0))
    assert emitter.permutes == 1


def test_a_constant_with_all_axes_gives_the_result_its_leading_dimension() -> None:
    """Although constants are otherwise stored without it: the other operand, a number, has no dimensions."""
    program = NumpyProgram()
    constant, number = program.constant(1, 3, 4), program.input()
    value = program.add(constant, number)
    program.output(value)
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program), program.constants)
    for operand in (constant, number):
        tensors.put(operand, operand.natural_layout, program.arrays[operand])
    written, layout = program.rules[value].write(tensors, (2, 1), ((2, 1), ()))
    assert order_of(layout) == (2, 1)
    assert np.array_equal(written, stored(program.direct()[0], layout))


def test_a_number_has_no_dimensions_where_no_operand_has_all_axes() -> None:
    program = NumpyProgram()
    row, column, number = program.input(1, 4), program.input(3, 1), program.input()
    result = GraphValue("result", (3, 4))
    program.operands[result] = (row, column, number)
    program.compute[result] = lambda a, _: a[0] + a[1] + a[2]
    tensors: StoredTensors[Any] = StoredTensors(UntouchedTensors(program))
    for operand in program.operands[result]:
        tensors.put(operand, operand.natural_layout, program.arrays[operand])
    rule = PointwiseRule(result, (row, column, number))
    written, layout = rule.write(tensors, (0, 1), ((1,), (0,), ()))
    assert layout == (0, 1)
    assert np.array_equal(written, sum(program.arrays[x] for x in rule.operands))


def test_an_axis_that_no_operand_is_known_to_have_is_a_dimension_of_the_result() -> None:
    """A model may name a size that its operands know to be 1. Constants then keep their leading dimension."""
    program = NumpyProgram()
    x, y = program.constant(1, 4), program.constant(1, 4)
    value = program.add(x, y, shape=(sympy.Symbol("n"), 4))
    program.output(value)
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program), program.constants)
    for operand in (x, y):
        tensors.put(operand, (1,), program.arrays[operand][0])
    written, layout = program.rules[value].write(tensors, (0, 1), ((1,), (1,)))
    assert layout == (0, 1)
    assert np.array_equal(written, program.direct()[0])


# the layout of an operand


def test_the_nearest_layout_depends_on_the_unit_dimensions_that_a_value_has() -> None:
    value, array = GraphValue("x", (1, 2, 3)), np.arange(6.0).reshape(1, 2, 3)
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(NumpyProgram()))
    tensors.put(value, (1, UNIT, 2), stored(array, (1, UNIT, 2)))
    assert tensors.nearest(value, (UNIT, 1, UNIT, 2)) == (1, UNIT, 2), "it has no leading one"


def test_a_constant_of_one_element_is_stored_without_dimensions() -> None:
    program = NumpyProgram()
    number = program.constant()
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program), program.constants)
    tensors.put(number, (), program.arrays[number])
    assert tensors.nearest(number, (UNIT, UNIT)) == ()
    assert tensors.nearest(number, (UNIT, UNIT), last=1) == (UNIT,)
