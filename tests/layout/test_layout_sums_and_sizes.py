"""Normalised sums, shapes of values and sizes of reshapes."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import sympy

from onebyone.layout import operators
from onebyone.layout.orders import UNIT, Layout
from onebyone.layout.reshape_rules import ReshapeRule
from onebyone.layout.shape_rule import ShapeRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram
from tests.layout.test_layout_rules import cases


def test_known_sizes_are_written_as_numbers() -> None:
    """Not read from tensors, nor left to be inferred; two unknown ones are each computed from their own axes."""

    class Recording(NumpyEmitter):
        def reshape(self, x: Any, sizes: Any) -> Any:
            recorded.append(tuple(sizes))
            return super().reshape(x, sizes)

        def size(self, x: Any, position: int) -> Any:
            read.append(position)
            return super().size(x, position)

    recorded: list[tuple[int, ...]] = []
    read: list[int] = []
    program = NumpyProgram()
    x = program.input(2, 6, 5)
    value = program.reshape(x, 2, -1, 3, 5)
    tensors: StoredTensors[Any] = StoredTensors(Recording(program))
    tensors.put(x, (0, 1, 2), program.arrays[x])
    program.rules[value].write(tensors, (0, 1, 2, 3), ((0, 1, 2),))
    assert recorded == [(2, 2, 3, 5)]
    assert tensors.size(x, 1) == 6
    assert read == []
    n, m = sympy.symbols("n m")
    y = program.input(2, 3, 4, 5, symbolic={0: n, 2: m})
    merged = GraphValue("merged", (3 * n, 5 * m))
    program.sizes[merged] = [None, None]
    rule = ReshapeRule(merged, (y,), (((0, 1), (0,)), ((2, 3), (1,))))
    tensors.put(y, (0, 1, 2, 3), program.arrays[y])
    written, _ = rule.write(tensors, (0, 1), ((0, 1, 2, 3),))
    assert recorded[-1] == (6, 20)
    assert written.shape == (6, 20)


@pytest.mark.parametrize(("named", "written"), [((3, 5), (3, 5)), ((None, 5), (-1, 5))])
def test_an_axis_that_is_split_has_the_sizes_that_the_operator_names(named: Any, written: Any) -> None:
    """As numbers, also where the planner does not know them; one that is not named is inferred."""

    class Recording(NumpyEmitter):
        def reshape(self, x: Any, sizes: Any) -> Any:
            recorded.append(tuple(sizes))
            return super().reshape(x, sizes)

    recorded: list[tuple[int, ...]] = []
    n = sympy.Symbol("n")
    program = NumpyProgram()
    x = program.input(15, symbolic={0: 5 * n})
    result = GraphValue("split", (n, 5))
    program.sizes[result] = list(named)
    rule = operators.reshape(result, x)
    assert rule is not None
    tensors: StoredTensors[Any] = StoredTensors(Recording(program))
    tensors.put(x, (0,), program.arrays[x])
    got, _ = rule.write(tensors, (0, 1), ((0,),))
    assert recorded == [written]
    assert np.array_equal(got, program.arrays[x].reshape(3, 5))


def test_normalised_sums_by_hand() -> None:
    """In the original order the operator stays fused; in others it costs a little, and addends follow the order."""
    p = NumpyProgram()
    value = p.normalise_sum(p.input(2, 3, 4), p.input(3, 1), p.input(2, 3, 4), scale=p.input(4))
    rule = p.rules[value]
    assert rule.operand_orders((2, 0, 1)) == [((2, 0, 1), (0,), (2, 0, 1), (0,))]
    assert rule.result_orders(0, (2, 0, 1)) == [(2, 0, 1)]
    assert rule.result_orders(1, (0,)) == rule.result_orders(3, (0,)) == [(0, 1, 2)]
    assert rule.penalty((0, 1, 2), ()) == 0
    assert 0 < rule.penalty((2, 0, 1), ()) < 0.01
    p.output(value)
    (expected,) = p.direct()
    fused = {}
    for order, _, emitter, written, layout in cases(p, value):
        assert np.array_equal(written, stored(expected, layout))
        fused[order] = value in emitter.fused
        assert emitter.normalised == ([] if fused[order] else [value])
    assert fused == {order: order == (0, 1, 2) for order in permutations((0, 1, 2))}


def test_sums_that_have_no_such_rule() -> None:
    """Where the addends are larger than the first operand, or parameters are not vectors, or a value occurs twice."""
    p = NumpyProgram()
    x, scale = p.input(2, 3, 4), p.input(4)
    result = GraphValue("r", (2, 3, 4))
    assert operators.normalise_sum(result, x, (p.input(2, 3, 4),), scale, None) is not None
    for none in (
        operators.normalise_sum(result, x, (x,), scale, None),
        operators.normalise_sum(result, x, (p.input(1, 2, 3, 4),), scale, None),
        operators.normalise_sum(result, x, (p.input(4),), p.input(1, 4), None),
        operators.normalise_sum(result, x, (GraphValue("unknown", None),), scale, None),
        operators.normalise_sum(result, p.input(3, 4), (p.input(2, 3, 4),), scale, None),
        operators.normalise_sum(GraphValue("r", (2, 3, 1)), p.input(2, 3, 1), (p.input(3, 1),), None, None),
    ):
        assert none is None


def test_the_shape_of_a_value_is_read_from_any_layout() -> None:
    class Shapes(NumpyEmitter):
        def shape_of(self, result: GraphValue, source: GraphValue, x: Any, layout: Layout) -> Any:
            return np.array([x.shape[layout.index(axis)] for axis in range(source.rank)])

    program = NumpyProgram()
    x = program.input(2, 3, 4)
    rule = ShapeRule(GraphValue("sizes", (3,)), (), x)
    assert rule.operand_orders((0,)) == [()]
    assert rule.preferred_orders() == rule.result_orders(0, (0,)) == [(0,)]
    for layout in ((0, 1, 2), (2, 0, 1), (1, UNIT, 2, 0)):
        tensors: StoredTensors[Any] = StoredTensors(Shapes(program))
        tensors.put(x, layout, stored(program.arrays[x], layout))
        written, result_layout = rule.write(tensors, (0,), ())
        assert written.tolist() == [2, 3, 4]
        assert result_layout == (0,)
    plain: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
    plain.put(x, (0, 1, 2), program.arrays[x])
    with pytest.raises(TypeError, match="sizes: the shape of input0 is no tensor"):
        rule.write(plain, (0,), ())


def test_a_shorter_operand_is_broadcast_as_it_is() -> None:
    """One operand has all dimensions of the result, so that the vector needs none but its own."""

    class Strict(NumpyEmitter):
        def unsqueeze(self, x: Any, position: int) -> Any:
            raise AssertionError("a dimension that broadcasting adds")

    program = NumpyProgram()
    x, vector = program.input(2, 3, 4), program.input(4)
    value = program.add(x, vector)
    expected = program.compute[value]([program.arrays[x], program.arrays[vector]], None)
    for order, vector_order in (((0, 1, 2), (0,)), ((1, 0, 2), (0,))):
        tensors: StoredTensors[Any] = StoredTensors(Strict(program))
        tensors.put(x, order, stored(program.arrays[x], order))
        tensors.put(vector, (0,), program.arrays[vector])
        written, layout = program.rules[value].write(tensors, order, (order, vector_order))
        assert np.array_equal(written, stored(expected, layout))
