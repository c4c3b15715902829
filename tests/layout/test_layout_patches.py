"""Convolutions on patches in every order of their input and result, and the number of layout operators of a plan."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest

from onebyone.layout.orders import order_of
from onebyone.layout.patches import PatchRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram

MAPS = [
    ((2, 3, 5), (2,)),
    ((3, 5), (2,)),
    ((2, 1, 6), (3,)),
    ((2, 3, 5, 7), (2, 3)),
    ((1, 3, 4, 4), (2, 2)),
    ((3, 4, 7), (4, 2)),  # without a batch, and one patch on an axis
    ((2, 3, 4, 6), (1, 3)),
    ((2, 2, 3, 2), (3, 2)),  # one patch
    ((2, 2, 4, 3), (3, 2)),  # one patch and a remainder
    ((2, 2, 4, 5, 3), (2, 2, 3)),
]


def check(program: NumpyProgram, value: GraphValue) -> int:
    """Write a convolution in every order that its rule allows; returns how often it was a linear layer."""
    rule = program.rules[value]
    assert isinstance(rule, PatchRule)
    program.output(value)
    (right,) = program.direct()
    linear = 0
    for order in permutations(rule.axes):
        for operand_orders in rule.operand_orders(order):
            emitter = NumpyEmitter(program)
            tensors: StoredTensors[Any] = StoredTensors(emitter, program.constants)
            x_order = operand_orders[0]
            assert sorted(x_order) == list(rule.x.axes)
            tensors.put(rule.x, x_order, stored(program.arrays[rule.x], x_order))
            for parameter in rule.operands[1:]:
                tensors.put(parameter, parameter.natural_layout, program.arrays[parameter])
            written, layout = rule.write(tensors, order, operand_orders)
            assert order_of(layout) == order
            assert np.array_equal(written, stored(right, layout))
            assert emitter.permutes == 0
            assert emitter.copies == rule.is_linear(order, operand_orders) == (value not in emitter.fused)
            linear += emitter.copies
    return linear


@pytest.mark.parametrize(("shape", "kernel"), MAPS, ids=str)
def test_written_in_every_order_it_is_the_same_convolution(shape, kernel) -> None:
    for outputs, bias in product((1, 3), (False, True)):
        program = NumpyProgram()
        assert check(program, program.patches(program.input(*shape), outputs, kernel, bias)) > 0


def plan_of(program: NumpyProgram, value: GraphValue, *outputs: GraphValue) -> tuple[bool, int]:
    """Whether the plan makes a convolution linear, and its layout operators; its numbers are checked."""
    program.output(*outputs)
    plan = program.plan()
    planned, emitter = program.planned(plan)
    for mine, right in zip(planned, program.direct(), strict=True):
        assert np.array_equal(mine, right)
    rule = program.rules[value]
    assert isinstance(rule, PatchRule)
    assert emitter.permutes + emitter.copies >= plan.permutes
    return rule.is_linear(*plan.orders[value]), plan.permutes


def test_tokens_with_their_channels_last_replace_the_transpose() -> None:
    program = NumpyProgram()
    y = program.patches(program.input(2, 3, 4, 6), 5, (2, 2), True)
    tokens = program.transpose(program.reshape(y, 2, 5, 6), 0, 2, 1)
    tokens = program.product(tokens, 4, to="linear", convert=False, penalty=1.01)
    assert plan_of(program, y, tokens) == (True, 1)


def test_a_map_that_stays_a_map_keeps_the_convolution() -> None:
    program = NumpyProgram()
    y = program.patches(program.input(2, 3, 4, 6), 5, (2, 2), True)
    assert plan_of(program, y, program.relu(y)) == (False, 0)


def test_one_complete_patch_is_a_view() -> None:
    program = NumpyProgram()
    y = program.patches(program.input(2, 3, 4, 6), 5, (4, 6))
    assert plan_of(program, y, program.reshape(y, 2, 5)) == (True, 0)


def test_one_patch_and_a_remainder_would_be_copied() -> None:
    program = NumpyProgram()
    y = program.patches(program.input(2, 3, 5, 6), 5, (4, 6))
    assert plan_of(program, y, program.reshape(y, 2, 5)) == (False, 0)


def test_between_values_that_have_their_channels_last_it_saves_both_permutes() -> None:
    """As in ConvNeXt: a map is normalised over its channels, reduced by a convolution, and normalised again."""
    program = NumpyProgram()
    x = program.transpose(program.input(2, 4, 6, 3), 0, 3, 1, 2)
    y = program.patches(x, 5, (2, 2))
    assert plan_of(program, y, program.transpose(y, 0, 2, 3, 1)) == (True, 1)


def test_orders_of_the_map_that_give_an_order_of_the_result() -> None:
    """The original order first, then the channels last, then anywhere between the positions."""
    program = NumpyProgram()
    rule = program.rules[program.patches(program.input(2, 3, 4, 6), 5, (2, 2))]

    def maps(*order: int) -> list[tuple[int, ...]]:
        return [operand_orders[0] for operand_orders in rule.operand_orders(order)]

    assert maps(0, 1, 2, 3) == [(0, 1, 2, 3)]
    assert maps(0, 2, 3, 1) == [(0, 1, 2, 3), (0, 2, 3, 1), (0, 2, 1, 3), (1, 0, 2, 3)]
    assert maps(3, 0, 2, 1) == [(3, 0, 2, 1), (3, 0, 1, 2), (3, 1, 0, 2), (1, 3, 0, 2)]
    assert maps(0, 1, 3, 2) == []


def test_costs_of_both_forms() -> None:
    """Patches that are no view are copied, and so is a kernel whose elements are stored in another order."""
    program = NumpyProgram()
    x, weight = program.input(2, 3, 4, 6), program.constant(5, 3, 4, 6)
    result = GraphValue("result", (2, 5))
    rows, kernel = ((0, 1, 2, 3), (0, 1, 2, 3)), (4, 6)
    for copies in (False, True):
        rule = PatchRule(result, (x, weight), x, weight, None, kernel, weight_copies=copies)
        assert rule.layout_operators((0, 1), rows) == copies
        assert rule.layout_operators((0, 1), ((0, 2, 1, 3), (0, 1, 2, 3))) == 1 + copies
    kept = program.rules[program.patches(x, 5, (2, 2))]
    assert kept.layout_operators((0, 1, 2, 3), rows) == 0
    assert 0 < kept.penalty((0, 1, 2, 3), rows) < 0.01, "decides only between equally many layout operators"
    assert kept.penalty((0, 2, 3, 1), rows) == 0


def test_orders_that_the_operands_suggest() -> None:
    """The map suggests its positions in their order with the channels last, and the natural order; the kernel none."""
    program = NumpyProgram()
    rule = program.rules[program.patches(program.input(2, 3, 4, 6), 5, (2, 2), True)]
    assert rule.result_orders(0, (0, 1, 2, 3)) == [(0, 2, 3, 1), (0, 1, 2, 3)]
    assert rule.result_orders(0, (0, 3, 2, 1)) == [(0, 3, 2, 1)]
    assert rule.result_orders(1, (0, 1, 2, 3)) == rule.result_orders(2, (0,)) == []
