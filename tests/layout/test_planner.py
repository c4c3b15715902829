"""Planned programs compute what they did, with as many permutes as planned, which are as few as possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onebyone.layout import planner
from onebyone.layout.orders import Order
from onebyone.layout.planner import _last_uses, _preferences, choose_orders
from onebyone.layout.rules import FixedRule, LayoutRule
from onebyone.layout.values import GraphValue
from tests.layout.numpy_program import NumpyProgram


def check(program: NumpyProgram, minimal: bool = True) -> int:
    """Plan and write a program, and compare it with direct evaluation; returns the number of permutes."""
    plan = program.plan()
    written, emitter = program.planned(plan)
    assert emitter.permutes == plan.permutes
    for got, right in zip(written, program.direct(), strict=True):
        assert got.shape == right.shape
        assert np.array_equal(got, right)  # all operators are exact on integers
    if minimal:
        assert plan.permutes == fewest_permutes(program)
    return plan.permutes


def fewest_permutes(program: NumpyProgram) -> int:
    """The smallest number of permutes over all orders of all values, by exhaustive search."""
    rules, free = list(program.rules.values()), program.free_values()
    best = len(rules) * 4

    def search(i: int, available: dict[GraphValue, frozenset[Order]], cost: int) -> None:
        nonlocal best
        if cost >= best:
            return
        if i == len(rules):
            best = cost
            return
        rule = rules[i]
        orders = permutations(rule.axes) if not isinstance(rule, FixedRule) else [rule.axes]
        for order in orders:
            for operand_orders in rule.operand_orders(tuple(order)):
                longer, more = dict(available), 0
                for operand, needed in zip(rule.operands, operand_orders, strict=True):
                    have = longer.get(operand, frozenset({operand.axes}))
                    if operand not in free and needed not in have:
                        more += 100 if operand.shape is None else 1
                        longer[operand] = have | {needed}
                longer[rule.result] = frozenset({tuple(order)})
                search(i + 1, longer, cost + more)

    search(0, {}, 0)
    return best


# -- exhaustive: all chains of three operators on one (2, 3, 4) tensor

Step = Callable[[NumpyProgram, GraphValue], GraphValue]
STEPS: dict[str, Step] = {
    "relu": lambda p, x: p.relu(x),
    "swap the last two": lambda p, x: p.transpose(x, 0, 2, 1),
    "rotate": lambda p, x: p.transpose(x, 1, 2, 0),
    "subtract the maximum": lambda p, x: p.subtract_maximum(x, 1),
    "add a vector": lambda p, x: p.add(x, p.constant(x.size(2))),
    "fixed": lambda p, x: p.fixed(x),
    "swap the parts of a split": lambda p, x: p.concatenate(2, *p.split(x, 2, 1, x.size(2) - 1)[::-1]),
    "flatten and back": lambda p, x: p.reshape(p.reshape(x, x.size(0), -1), *x.shape),
    "regroup": lambda p, x: p.reshape(x, x.size(0), x.size(2), x.size(1)),
    "to conv": lambda p, x: p.product(x, 4, to="conv"),
    "to linear": lambda p, x: p.product(x, 2, to="linear", channel=1),
}


@pytest.mark.parametrize("first", STEPS)
def test_all_chains_of_three_operators(first: str) -> None:
    for second, third in product(STEPS.values(), repeat=2):
        program = NumpyProgram()
        x = program.input(2, 3, 4)
        for step in (STEPS[first], second, third):
            x = step(program, x)
        program.output(x)
        check(program)


# -- hypothesis: random graphs


@st.composite
def programs(draw: st.DrawFn, most: int) -> NumpyProgram:
    """A random program; every value that nothing uses is an output."""
    program = NumpyProgram(draw(st.integers(0, 9)))
    values = [program.input(*draw(st.lists(st.integers(1, 3), min_size=2, max_size=3)))]
    for _ in range(draw(st.integers(1, most))):
        values.extend(_random_step(draw, program, values))
    used = {x for operands in program.operands.values() for x in operands}
    program.output(*(v for v in values if v not in used))
    return program


def _random_step(draw: st.DrawFn, program: NumpyProgram, values: Sequence[GraphValue]) -> list[GraphValue]:
    x = draw(st.sampled_from(values))
    rank = x.rank
    shape = tuple(x.size(axis) for axis in range(rank))
    axis = draw(st.integers(0, rank - 1)) if rank else 0
    same_shape = [v for v in values if v.shape == x.shape]
    choices: dict[str, Callable[[], GraphValue | list[GraphValue]]] = {
        "relu": lambda: program.relu(x),
        "add": lambda: program.add(x, draw(st.sampled_from(same_shape))),
        "fixed": lambda: program.fixed(x),
    }
    if rank:
        choices |= {
            "transpose": lambda: program.transpose(x, *draw(st.permutations(range(rank)))),
            "subtract the maximum": lambda: program.subtract_maximum(x, axis),
            "flip": lambda: program.flip(x, axis),
            "sum": lambda: program.sum(x, axis, keepdims=draw(st.booleans())),
            "select": lambda: program.select(x, axis, shape[axis] - 1),
            "slice": lambda: program.slice(x, axis, max(1, shape[axis] - 1)),
            "add a constant": lambda: program.add(x, program.constant(*shape[axis:])),
            "concatenate": lambda: program.concatenate(axis, x, draw(st.sampled_from(same_shape))),
            "flatten": lambda: program.reshape(x, int(np.prod(shape[: axis + 1])), *shape[axis + 1 :]),
            "normalise": lambda: program.normalise(x, 1, program.constant(shape[-1])),
            "to linear": lambda: program.product(x, 2, to="linear", channel=axis),
            "to conv": lambda: program.product(x, 3, to="conv", channel=axis, bias=True),
        }
        if shape[axis] > 1:
            choices["split"] = lambda: program.split(x, axis, 1, shape[axis] - 1)
            choices["unbind"] = lambda: program.unbind(x, axis)
    if rank < 4:
        choices["unsqueeze"] = lambda: program.unsqueeze(x, axis)
    made = choices[draw(st.sampled_from(sorted(choices)))]()
    return made if isinstance(made, list) else [made]


@settings(max_examples=300, deadline=None)
@given(programs(10))
def test_random_programs_compute_what_they_did(program: NumpyProgram) -> None:
    assume(all(np.abs(array).max() < 2**40 for array in program.direct()))  # so that all sums are exact
    check(program, minimal=False)


@settings(max_examples=200, deadline=None)
@given(programs(4))
def test_random_small_programs_have_the_fewest_permutes(program: NumpyProgram) -> None:
    check(program)


# -- by hand


def test_transposes_around_a_token_wise_region_cancel() -> None:
    """An image is permuted to tokens, through linear layers and a normalisation, and back: no permute is left."""
    program = NumpyProgram()
    x = program.input(2, 4, 3, 5)
    y = program.normalise(program.transpose(x, 0, 2, 3, 1), 1, program.constant(4), program.constant(4))
    y = program.product(program.relu(program.product(y, 8, to="conv")), 4, to="conv")
    program.output(program.add(x, program.transpose(y, 0, 3, 1, 2)))
    assert check(program, minimal=False) == 0


def test_one_permute_before_a_split_instead_of_one_after_each_piece() -> None:
    program = NumpyProgram()
    x = program.fixed(program.input(2, 3, 6))
    parts = program.split(program.transpose(x, 2, 0, 1), 0, 2, 2, 2)
    program.output(*(program.fixed(part) for part in parts))
    assert check(program, minimal=False) == 1


def test_a_residual_stream_is_permuted_once() -> None:
    """Every block wants the channels second: the stream is kept that way, with a permute at either end."""
    program = NumpyProgram()
    x = program.fixed(program.input(2, 3, 4))
    for _ in range(4):
        y = program.product(program.relu(x), 4, to="conv", penalty=1.01)
        x = program.add(x, y)
    program.output(program.fixed(x))
    assert check(program, minimal=False) == 2


def test_softmax_and_concatenation_of_permuted_values() -> None:
    """A softmax over another axis, as in attention weights; sums of four numbers may be in another order."""
    program = NumpyProgram()
    x = program.transpose(program.input(2, 3, 4), 0, 2, 1)
    y = program.softmax(x, 1)
    program.output(program.transpose(program.concatenate(2, y, program.relu(x)), 0, 2, 1))
    plan = program.plan()
    (got,), emitter = program.planned(plan)
    assert plan.permutes == emitter.permutes == 0
    # exp and a quotient err by a few units, a sum of four positive numbers by at most three
    np.testing.assert_allclose(got, program.direct()[0], rtol=16 * 2**-53)


def test_a_permute_that_is_used_twice_is_made_once() -> None:
    program = NumpyProgram()
    x = program.transpose(program.input(2, 3, 4), 2, 1, 0)
    program.output(program.fixed(x), program.fixed(program.fixed(x)))
    assert check(program) == 1


def test_constants_are_stored_in_any_order_for_nothing() -> None:
    """A transposed constant that is added to a transposed value needs no permute at run time."""
    program = NumpyProgram()
    x, constant = program.input(2, 3), program.constant(3, 2)
    y = program.add(x, program.transpose(constant, 1, 0))
    program.output(program.fixed(y))
    assert check(program) == 0
    assert len(program.free_values()) == 2
    twice = NumpyProgram()
    renamed = twice.transpose(twice.transpose(twice.constant(2, 3, 4), 1, 2, 0), 0, 2, 1)
    twice.output(twice.fixed(twice.add(twice.input(3, 2, 4), renamed)))
    assert check(twice) == 0
    assert len(twice.free_values()) == 3


def test_the_order_of_a_list_cannot_be_changed() -> None:
    """The pieces of a split are permuted, or its operand; never the list."""
    program = NumpyProgram()
    x = program.fixed(program.input(2, 3, 4))
    first, second = program.split(x, 2, 2, 2)
    program.output(program.fixed(program.transpose(first, 2, 1, 0)), program.fixed(second))
    assert check(program) == 1


def test_penalties_decide_between_plans_of_equally_many_permutes() -> None:
    """A product that may be a merged convolution, or follow a permute: the penalty says which."""
    for penalty, permutes in ((0.0005, 0), (1.01, 1)):
        program = NumpyProgram()
        x = program.fixed(program.input(2, 3, 4))
        program.output(program.sum(program.product(x, 5, to="conv", penalty=penalty), 1))
        assert check(program, minimal=False) == permutes


def test_a_program_without_operators_needs_nothing() -> None:
    assert choose_orders({}, set()).permutes == 0
    program = NumpyProgram()
    program.output(program.input(2, 3))
    assert check(program) == 0


def test_a_sum_of_constants_that_nothing_reads_keeps_its_order() -> None:
    """Constants suggest no order, and there is no operator that prefers one."""
    program = NumpyProgram()
    unused = program.add(program.constant(2, 3), program.constant(2, 3))
    program.output(program.relu(program.input(2, 3)))
    assert program.plan().orders[unused] == ((0, 1), ((0, 1), (0, 1)))
    assert check(program) == 0


def test_values_that_nothing_reads_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that differ in them only are one plan, so that the time does not grow with the length of a program."""
    program = NumpyProgram()
    x, starts = program.input(2, 3, 4), []
    for _ in range(3):
        starts.append(program.relu(x))
        x = program.fixed(program.product(starts[-1], 4, to="conv"))
    program.output(x)
    plans: Counter[GraphValue] = Counter()
    extensions = planner._extensions

    def counted(plan: Any, rule: LayoutRule, *arguments: Any) -> Any:
        plans[rule.result] += 1
        return extensions(plan, rule, *arguments)

    monkeypatch.setattr(planner, "_extensions", counted)
    program.plan()
    assert [plans[start] for start in starts] == [1, 1, 1], (
        "of the value before it only one order is possible"
    )
    assert max(plans.values()) > 1


def test_the_last_use_of_a_value() -> None:
    program = NumpyProgram()
    x = program.input(2, 3)
    first = program.relu(x)
    unused = program.relu(first)
    last = program.add(first, x)
    assert {value: set(ended) for value, ended in _last_uses(program.rules).items()} == {
        last: {x, first, last},
        unused: {unused},
    }


def test_at_most_six_orders_of_a_value_are_remembered() -> None:
    """Those that operators after it prefer; the time of the search grows with their number."""
    program = NumpyProgram()
    value = program.relu(program.input(2, 3, 4, 5))
    wanted = list(permutations(range(4)))[:9]
    for axes in wanted:
        program.fixed(program.transpose(value, *axes))
    remembered = _preferences(program.rules)[value]
    assert len(remembered) == 6
    assert set(remembered) < set(wanted)


def test_every_permutation_of_a_returned_value_costs_one_permute() -> None:
    for axes in permutations(range(3)):
        program = NumpyProgram()
        program.output(program.transpose(program.fixed(program.input(2, 3, 4)), *axes))
        assert check(program) == (axes != (0, 1, 2))


def test_a_symbolic_size_that_can_only_be_one_keeps_its_axis() -> None:
    """(1, n) reshaped to (1,): n is 1, though the planner cannot see it, so the stored axis must not get lost."""
    program = NumpyProgram()
    x = program.input(1, 1, symbolic={1: sympy.Symbol("n", integer=True, positive=True)})
    program.output(program.relu(program.reshape(program.relu(x), 1)))
    check(program, minimal=False)
