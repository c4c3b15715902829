"""Tensors in several layouts: made once, kept, and with no more permutes than there are orders."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import sympy

from onebyone.layout.orders import UNIT
from onebyone.layout.rules import PointwiseRule
from onebyone.layout.stored_tensors import RenamedConstant, StoredTensors
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram


def tensors_with(value: GraphValue, array: np.ndarray) -> tuple[StoredTensors[Any], NumpyEmitter]:
    emitter = NumpyEmitter(NumpyProgram())
    tensors: StoredTensors[Any] = StoredTensors(emitter)
    tensors.put(value, value.natural_layout, array)
    return tensors, emitter


def test_layouts_are_made_once_and_each_order_takes_one_permute() -> None:
    value, array = GraphValue("x", (2, 1, 3, 4)), np.arange(24.0).reshape(2, 1, 3, 4)
    tensors, emitter = tensors_with(value, array)
    for count, order in enumerate(permutations((0, 2, 3))):
        for layout in (order, (UNIT, *order), (*order, UNIT, UNIT)):
            got = tensors.get(value, layout)
            assert np.array_equal(got, stored(array, layout))
            assert tensors.get(value, layout) is got
        assert emitter.permutes == count  # the first order is the original one
    assert tensors.natural(value) is array


def test_a_shorter_operand_stays_as_it_is_beside_one_of_full_rank() -> None:
    program = NumpyProgram()
    x, vector = program.input(2, 3, 4), program.input(4)
    rule = program.rules[program.add(x, vector)]
    assert isinstance(rule, PointwiseRule)
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
    for value in (x, vector):
        tensors.put(value, value.natural_layout, program.arrays[value])
    assert rule._layout(tensors, (0, 1, 2), ((0, 1, 2), (0,))) == ((0, 1, 2), x)
    rule.write(tensors, (0, 1, 2), ((0, 1, 2), (0,)))
    assert list(tensors.available(vector)) == [(0,)], "no unit dimensions were made"


def test_the_layout_of_a_sum_is_the_one_that_most_operands_have() -> None:
    """Of all layouts that an operand is available in; where two are equally frequent, the one of more dimensions."""
    program = NumpyProgram()
    x, y = program.input(2, 3), program.input(2, 3)
    rule = program.rules[program.add(x, y)]
    assert isinstance(rule, PointwiseRule)
    for layouts, chosen in (
        ([(0, UNIT, 1), (0, 1)], (0, 1)),
        ([(0, 1), (0, UNIT, 1)], (0, 1)),
        ([(0, UNIT, 1)], (0, UNIT, 1)),
    ):
        tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
        tensors.put(x, layouts[0], stored(program.arrays[x], layouts[0]))
        for layout in layouts[1:]:
            tensors.get(x, layout)
        tensors.put(y, (0, 1), program.arrays[y])
        assert rule._layout(tensors, (0, 1), ((0, 1), (0, 1)))[0] == chosen


def test_the_nearest_layout_is_an_available_one_or_the_shorter_for_constants() -> None:
    program = NumpyProgram()
    value, constant = program.input(2, 3), program.constant(3)
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program), {constant})
    for each in (value, constant):
        tensors.put(each, each.natural_layout, program.arrays[each])
    assert tensors.nearest(value, (UNIT, 0, 1)) == (0, 1), "which takes no unsqueeze"
    tensors.get(value, (UNIT, 0, 1))
    assert tensors.nearest(value, (UNIT, 0, 1)) == (UNIT, 0, 1), "both are available"
    assert tensors.nearest(value, (UNIT, 1, 0)) == (1, 0)
    assert tensors.nearest(constant, (UNIT, UNIT, 0, UNIT)) == (0, UNIT)
    assert tensors.nearest(constant, (UNIT, UNIT, 0), last=2) == (UNIT, 0)
    tensors.get(constant, (UNIT, 0, UNIT))
    assert tensors.nearest(constant, (UNIT, 0, UNIT)) == (UNIT, 0, UNIT), "a constant is stored once"


def test_an_available_layout_of_an_order_is_preferred() -> None:
    value, array = GraphValue("x", (2, 1, 3)), np.arange(6.0).reshape(2, 1, 3)
    tensors, _ = tensors_with(value, array)
    assert tensors.layout_with(value, (0, 2)) == (0, UNIT, 2)
    assert tensors.layout_with(value, (2, 0)) == (2, UNIT, 0), "one permute of all dimensions"
    tensors.get(value, (2, 0))
    assert tensors.layout_with(value, (2, 0)) == (2, 0)
    assert tensors.layout_with(GraphValue("other", (2,)), (0,)) == (0,)


def test_a_permute_takes_at_most_one_squeeze_or_unsqueeze() -> None:
    value, array = GraphValue("x", (2, 1, 3)), np.arange(6.0).reshape(2, 1, 3)
    for layout, others in (
        ((2, UNIT, 0), 0),
        ((2, 0), 1),
        ((UNIT, 2, UNIT, 0), 1),
        ((UNIT, UNIT, 2, UNIT, 0), 2),
    ):
        tensors, emitter = tensors_with(value, array)
        calls: list[str] = []
        for name in ("squeeze", "unsqueeze"):
            setattr(emitter, name, recorded(getattr(emitter, name), name, calls))
        assert np.array_equal(tensors.get(value, layout), stored(array, layout))
        assert emitter.permutes == 1
        assert len(calls) == others


def test_the_nearest_layout_takes_the_fewest_squeezes_and_unsqueezes() -> None:
    value, array = GraphValue("x", (1, 2, 3)), np.arange(6.0).reshape(1, 2, 3)
    tensors, _ = tensors_with(value, array)
    assert tensors.nearest(value, (UNIT, 1, 2)) == (UNIT, 1, 2), "there"
    assert tensors.nearest(value, (UNIT, 1, UNIT, 2)) == (UNIT, 1, UNIT, 2), (
        "one unsqueeze, where (1, UNIT, 2) takes two"
    )
    assert tensors.nearest(value, (UNIT, UNIT, 1, 2)) in ((UNIT, UNIT, 1, 2), (1, 2)), "one of either"


def recorded(function: Any, name: str, calls: list[str]) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    return call


def test_sizes_are_integers_or_read_from_the_tensor() -> None:
    value = GraphValue("x", (sympy.Symbol("n"), 3))
    emitter = NumpyEmitter(NumpyProgram())
    tensors: StoredTensors[Any] = StoredTensors(emitter)
    tensors.put(value, (1, UNIT, 0), np.zeros((3, 1, 7)))
    assert (tensors.size(value, 0), tensors.size(value, 1)) == (7, 3)


def test_lists_and_tensors_of_unknown_rank_are_given_as_they_are() -> None:
    pieces = GraphValue("pieces", None)
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(NumpyProgram()))
    content = (np.zeros(2), np.zeros(3))
    tensors.put(pieces, (0, 1), content)
    assert tensors.natural(pieces) is content
    assert tensors.get(pieces, (0, 1)) is content


def test_demands_of_constants_are_counted_in_the_layout_of_their_source() -> None:
    constant, view, other = (GraphValue(name, (2, 3)) for name in ("constant", "view", "other"))
    emitter = NumpyEmitter(NumpyProgram())
    axes = {0: 1, 1: 0}
    tensors: StoredTensors[Any] = StoredTensors(
        emitter, {constant, view}, {view: RenamedConstant(constant, axes)}
    )
    array = np.arange(6.0).reshape(2, 3)
    tensors.put(constant, (0, 1), array)
    tensors.put(other, (0, 1), array)
    tensors.get(constant, (0, 1))
    assert np.array_equal(tensors.get(view, (UNIT, 1, 0)), array[None])
    assert np.array_equal(tensors.get(view, (0, 1)), array.T)
    layout, natural = tensors.any_layout(view)
    assert layout == (0, 1)
    assert np.array_equal(natural, array.T)
    assert np.array_equal(tensors.get(constant, (1, 0)), array.T)
    tensors.get(other, (1, 0))
    assert tensors.demands == {constant: Counter({(1, 0): 3, (0, 1): 1, (UNIT, 0, 1): 1})}
