"""Every rule, exhaustively: written on operands stored in every order that it allows, the operator gives the stored
result, and no permute is made for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import sympy

from onebyone.layout import operators
from onebyone.layout.normalisations import NormalisationRule, SumNormalisationRule
from onebyone.layout.orders import UNIT, Layout, Order, natural_layout, order_of
from onebyone.layout.reshape_rules import ExpandRule, ReshapeRule
from onebyone.layout.rules import (
    AxisRule,
    ChannelsSecondRule,
    ConcatenateRule,
    ElementRule,
    FixedRule,
    LayoutRule,
    PointwiseRule,
    RelabelRule,
)
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram

Build = Callable[[NumpyProgram], GraphValue]
OPERATORS: dict[str, tuple[type[LayoutRule], Build]] = {
    "relu": (PointwiseRule, lambda p: p.relu(p.input(2, 3, 4))),
    "add": (PointwiseRule, lambda p: p.add(p.input(2, 3, 4), p.input(2, 3, 4))),
    "add to itself": (PointwiseRule, lambda p: (lambda x: p.add(x, x))(p.input(2, 3, 4))),
    "add a vector": (PointwiseRule, lambda p: p.add(p.input(2, 3, 4), p.input(4))),
    "add to a vector": (PointwiseRule, lambda p: p.add(p.input(4), p.input(2, 3, 4))),
    "add an image of one channel": (PointwiseRule, lambda p: p.add(p.input(2, 3, 4), p.input(2, 1, 4))),
    "add a number": (PointwiseRule, lambda p: p.add(p.input(2, 3), p.input())),
    "add row and column": (PointwiseRule, lambda p: p.add(p.input(2, 3, 1), p.input(4))),
    "add column and row": (PointwiseRule, lambda p: p.add(p.input(1, 4), p.input(2, 3, 1))),
    "add with a unit axis": (PointwiseRule, lambda p: p.add(p.input(2, 1, 4), p.input(1, 4))),
    "transpose": (RelabelRule, lambda p: p.transpose(p.input(2, 3, 4), 2, 0, 1)),
    "transpose with a unit axis": (RelabelRule, lambda p: p.transpose(p.input(2, 1, 4), 2, 0, 1)),
    "unsqueeze": (RelabelRule, lambda p: p.unsqueeze(p.input(2, 3), 1)),
    "reshape that adds unit axes": (RelabelRule, lambda p: p.reshape(p.input(2, 3), 1, 2, 1, 3)),
    "softmax": (AxisRule, lambda p: p.softmax(p.input(2, 3, 4), 1)),
    "cumulative sum": (AxisRule, lambda p: p.cumsum(p.input(2, 3, 1, 4), 1)),
    "sum": (AxisRule, lambda p: p.sum(p.input(2, 3, 4), 1)),
    "sum over two": (AxisRule, lambda p: p.sum(p.input(2, 3, 4), 0, 2)),
    "sum that keeps its axes": (AxisRule, lambda p: p.sum(p.input(2, 3, 4), 2, 0, keepdims=True)),
    "flip": (AxisRule, lambda p: p.flip(p.input(2, 3, 4), 0, 2)),
    "slice": (AxisRule, lambda p: p.slice(p.input(2, 3, 4), 2, 3)),
    "slice of one": (AxisRule, lambda p: p.slice(p.input(2, 3, 4), 1, 1)),
    "select": (AxisRule, lambda p: p.select(p.input(2, 3, 4), 1, 2)),
    "take": (AxisRule, lambda p: p.take(p.input(2, 3, 4), 1, p.input(5))),
    "take with indices of a unit axis": (AxisRule, lambda p: p.take(p.input(2, 3, 4), 0, p.input(1, 3))),
    "concatenate": (ConcatenateRule, lambda p: p.concatenate(1, p.input(2, 3, 4), p.input(2, 2, 4))),
    "concatenate one row": (ConcatenateRule, lambda p: p.concatenate(1, p.input(2, 1, 4), p.input(2, 2, 4))),
    "concatenate rows": (ConcatenateRule, lambda p: p.concatenate(0, p.input(1, 3, 2), p.input(1, 3, 2))),
    "concatenate with itself": (
        ConcatenateRule,
        lambda p: (lambda x: p.concatenate(2, x, x))(p.input(2, 1, 3)),
    ),
    "expand": (ExpandRule, lambda p: p.expand(p.input(2, 1, 4), 2, 3, 4)),
    "expand to more axes": (ExpandRule, lambda p: p.expand(p.input(1, 4), 2, 3, 4)),
    "expand to another unit axis": (ExpandRule, lambda p: p.expand(p.input(4), 3, 1, 4)),
    "normalise": (NormalisationRule, lambda p: p.normalise(p.input(2, 3, 4), 1, p.input(4), p.input(4))),
    "normalise with an offset": (
        NormalisationRule,
        lambda p: p.normalise(p.input(2, 3, 4), 1, None, p.input(4)),
    ),
    "normalise over two": (NormalisationRule, lambda p: p.normalise(p.input(2, 3, 4), 2, p.input(3, 4))),
    "normalise a sum": (
        SumNormalisationRule,
        lambda p: p.normalise_sum(
            p.input(2, 3, 4), p.input(4), p.input(3, 1), scale=p.input(4), offset=p.input(4)
        ),
    ),
    "normalise a sum with an offset": (
        SumNormalisationRule,
        lambda p: p.normalise_sum(p.input(2, 1, 3, 4), p.input(4), offset=p.input(4)),
    ),
    "channel offset": (ChannelsSecondRule, lambda p: p.channel_offset(p.input(2, 3, 4, 2), p.input(3))),
    "channel offset of one image": (
        ChannelsSecondRule,
        lambda p: p.channel_offset(p.input(1, 3, 4, 2), p.input(3)),
    ),
    "channel offset of one channel": (
        ChannelsSecondRule,
        lambda p: p.channel_offset(p.input(2, 1, 4, 3), p.input(1)),
    ),
    "split axes": (ReshapeRule, lambda p: p.reshape(p.input(2, 6, 3), 2, 2, 3, 3)),
    "merge axes": (ReshapeRule, lambda p: p.reshape(p.input(2, 2, 3, 3), 2, 6, 3)),
    "regroup axes": (ReshapeRule, lambda p: p.reshape(p.input(4, 3, 2), 2, 6, 2)),
    "fixed": (FixedRule, lambda p: p.fixed(p.input(2, 3, 4))),
}


def with_units(order: Order, rank: int) -> Iterator[Layout]:
    """The order as a layout, with a unit dimension in every position, and in its natural layout where it has one."""
    yield order
    for position in range(len(order) + 1):
        yield (*order[:position], UNIT, *order[position:])
    if order == tuple(sorted(order)):
        yield natural_layout(rank, order)


def cases(program: NumpyProgram, value: GraphValue) -> Iterator[tuple[Order, Any, NumpyEmitter, Any, Layout]]:
    """Every order of the result and of the operands that the rule allows, written."""
    rule = program.rules[value]
    for order in permutations(rule.axes):
        for operand_orders in rule.operand_orders(tuple(order)):
            first = rule.operands[0]
            for layout in with_units(operand_orders[0], first.rank):
                emitter = NumpyEmitter(program)
                tensors: StoredTensors[Any] = StoredTensors(emitter)
                tensors.put(first, layout, stored(program.arrays[first], layout))
                for operand, x_order in zip(rule.operands[1:], operand_orders[1:], strict=True):
                    tensors.put(operand, x_order, stored(program.arrays[operand], x_order))
                written, result_layout = rule.write(tensors, tuple(order), operand_orders)
                yield tuple(order), operand_orders, emitter, written, result_layout


@pytest.mark.parametrize("name", OPERATORS)
def test_written_in_every_order_it_is_the_same_operator(name: str) -> None:
    kind, build = OPERATORS[name]
    program = NumpyProgram()
    value = build(program)
    assert type(program.rules[value]) is kind
    assert value.shape is not None
    program.output(value)
    (expected,) = program.direct()
    count = 0
    for order, _, emitter, written, layout in cases(program, value):
        assert order_of(layout) == order
        assert written.shape == stored(expected, layout).shape
        np.testing.assert_allclose(written, stored(expected, layout), rtol=1e-14)
        assert emitter.permutes == 0
        count += 1
    assert count > 1


@pytest.mark.parametrize("name", OPERATORS)
def test_both_directions_of_a_rule_agree(name: str) -> None:
    """Every result order that suits an operand in some order is one for which the rule offers the operand that order,
    where there is any such result order at all."""
    program = NumpyProgram()
    value = OPERATORS[name][1](program)
    rule = program.rules[value]
    assert sorted(rule.axes) == sorted(value.axes)
    for i, operand in enumerate(rule.operands):
        offered = {
            alternative[i]: tuple(order)
            for order in permutations(rule.axes)
            for alternative in rule.operand_orders(tuple(order))
        }
        for x_order in permutations(operand.axes):
            for order in rule.result_orders(i, tuple(x_order)):
                assert sorted(order) == sorted(rule.axes)
                alternatives = rule.operand_orders(order)
                assert alternatives
                if tuple(x_order) in offered and len(rule.operands[i].axes) > 1:
                    assert tuple(x_order) in [alternative[i] for alternative in alternatives]
    for order in rule.preferred_orders():
        assert rule.operand_orders(order)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("relu", 6),
        ("transpose", 6),
        ("softmax", 6),
        ("sum", 2),
        ("concatenate", 6),
        ("expand", 6),
        ("normalise", 6),
        ("normalise over two", 1),
        ("normalise a sum", 6),
        ("channel offset", 2),
        ("channel offset of one image", 2),
        ("channel offset of one channel", 2),
        ("split axes", 6),
        ("merge axes", 6),
        ("regroup axes", 2),
        ("fixed", 1),
    ],
)
def test_how_many_orders_of_the_result_are_possible(name: str, allowed: int) -> None:
    program = NumpyProgram()
    rule = program.rules[OPERATORS[name][1](program)]
    assert sum(bool(rule.operand_orders(tuple(order))) for order in permutations(rule.axes)) == allowed


def test_orders_by_hand() -> None:
    p = NumpyProgram()
    add = p.rules[p.add(p.input(2, 3, 4), p.input(3, 1))]
    assert add.operand_orders((2, 0, 1)) == [((2, 0, 1), (0,))]
    assert add.result_orders(0, (2, 0, 1)) == [(2, 0, 1)]
    assert add.result_orders(1, (0,)) == [(0, 2, 1)]
    assert add.preferred_orders() == []
    assert add.penalty((0, 1, 2), ((0, 1, 2), (0,))) == 0
    transpose = p.rules[p.transpose(p.input(2, 3, 4), 2, 0, 1)]
    assert transpose.operand_orders((0, 1, 2)) == [((2, 0, 1),)]
    assert transpose.result_orders(0, (0, 1, 2)) == [(1, 2, 0)]
    total = p.rules[p.sum(p.input(2, 3, 4), 1)]
    assert total.operand_orders((1, 0)) == [((2, 0, 1),), ((2, 1, 0),), ((1, 2, 0),)]
    assert total.result_orders(0, (2, 1, 0)) == [(1, 0)]
    take = p.rules[p.take(p.input(2, 3, 4), 0, p.input(5))]
    assert take.operand_orders((2, 1, 0)) == [((2, 1, 0), (0,))]
    assert take.result_orders(1, (0,)) == []
    joined = p.rules[p.concatenate(1, p.input(2, 1, 4), p.input(2, 2, 4))]
    assert joined.operand_orders((2, 1, 0)) == [((2, 0), (2, 1, 0))]
    assert joined.result_orders(0, (2, 0)) == [(1, 2, 0)]
    assert joined.result_orders(0, (0, 2)) == [(0, 1, 2)]
    assert joined.result_orders(1, (2, 1, 0)) == [(2, 1, 0)]
    expanded = p.rules[p.expand(p.input(3, 1, 4), 2, 3, 5, 4)]
    assert expanded.operand_orders((3, 2, 1, 0)) == expanded.operand_orders((3, 0, 1, 2)) == [((2, 0),)]
    assert expanded.result_orders(0, (2, 0)) == [(0, 2, 3, 1)]
    normalised = p.rules[p.normalise(p.input(2, 3, 4), 1, p.input(4))]
    assert normalised.operand_orders((2, 0, 1)) == [((2, 0, 1), (0,))]
    assert normalised.result_orders(0, (2, 0, 1)) == [(2, 0, 1)]
    assert normalised.result_orders(1, (0,)) == [(0, 1, 2)]
    assert normalised.penalty((0, 1, 2), ()) == 0
    assert 0 < normalised.penalty((2, 0, 1), ()) < 0.01
    over_two = p.rules[p.normalise(p.input(2, 3, 4), 2)]
    assert over_two.result_orders(0, (1, 2, 0)) == [(0, 1, 2)]
    channels = p.rules[p.channel_offset(p.input(2, 3, 4, 5), p.input(3))]
    assert channels.operand_orders((0, 1, 3, 2)) == [((0, 1, 3, 2), (0,))]
    assert channels.operand_orders((1, 0, 2, 3)) == channels.operand_orders((0, 2, 1, 3)) == []
    assert channels.result_orders(0, (0, 1, 3, 2)) == [(0, 1, 3, 2)]
    assert channels.result_orders(0, (0, 2, 3, 1)) == channels.result_orders(1, (0,)) == [(0, 1, 2, 3)]
    fixed = p.rules[p.fixed(p.input(2, 3))]
    assert fixed.operand_orders((0, 1)) == [((0, 1),)]
    assert fixed.operand_orders((1, 0)) == []
    assert fixed.result_orders(0, (1, 0)) == fixed.preferred_orders() == [(0, 1)]
    reshaped = p.rules[p.reshape(p.input(2, 6), 2, 2, 3)]
    assert reshaped.operand_orders((1, 2, 0)) == [((1, 0),)]
    assert reshaped.operand_orders((2, 1, 0)) == []
    merged = p.rules[p.reshape(p.input(2, 2, 3), 2, 6)]
    assert merged.result_orders(0, (2, 1, 0)) == [(0, 1)]
    assert merged.result_orders(0, (1, 2, 0)) == [(1, 0)]


def test_an_operand_of_a_concatenation_in_its_original_order_suggests_that_of_the_result() -> None:
    """Also where a model names a size that the operands know to be 1."""
    p = NumpyProgram()
    joined = operators.concatenate(
        GraphValue("joined", (2, 6, sympy.Symbol("n"))), (p.input(2, 3, 1), p.input(2, 3, 1)), 1
    )
    assert joined is not None
    assert joined.result_orders(0, (0, 1)) == joined.result_orders(1, (0, 1)) == [(0, 1, 2)]


def test_a_batch_normalisation_of_vectors_has_channels_but_no_positions() -> None:
    p = NumpyProgram()
    rule = p.rules[p.channel_offset(p.input(2, 3), p.input(3))]
    assert rule.operand_orders((0, 1)) == [((0, 1), (0,))]
    assert rule.operand_orders((1, 0)) == []
    assert isinstance(rule, ChannelsSecondRule)


def test_normalisation_stays_fused_where_its_axes_are_stored_last() -> None:
    program = NumpyProgram()
    value = program.normalise(program.input(2, 3, 4), 1, program.input(4), program.input(4))
    for order, _, emitter, _, layout in cases(program, value):
        assert (value in emitter.fused) == (order[-1] == 2) == (value not in emitter.normalised)
        assert (layout[-1] == 2) or value not in emitter.fused


@pytest.mark.parametrize(("axis", "sizes"), [(1, (2, 3)), (2, (1, 3)), (0, (1, 1))])
def test_the_pieces_of_a_split_are_stored_as_the_list_is(axis: int, sizes: tuple[int, ...]) -> None:
    shape = [2, 5, 4]
    program = NumpyProgram()
    x = program.input(*shape)
    parts = program.split(x, axis, *sizes)
    _check_pieces(program, x, parts)


def test_the_pieces_of_an_unbind_are_stored_as_the_list_is() -> None:
    program = NumpyProgram()
    x = program.input(3, 2, 4)
    _check_pieces(program, x, program.unbind(x, 0))


def _check_pieces(program: NumpyProgram, x: GraphValue, parts: list[GraphValue]) -> None:
    """Every order of the list, and every piece of it; a list keeps the dimensions of the tensor it is made of."""
    program.output(*parts)
    expected = program.direct()
    pieces = program.operands[parts[0]][0]
    list_rule = program.rules[pieces]
    assert pieces.shape is None
    for order in permutations(list_rule.axes):
        for operand_orders in list_rule.operand_orders(tuple(order)):
            emitter = NumpyEmitter(program)
            tensors: StoredTensors[Any] = StoredTensors(emitter)
            layout = (UNIT, *operand_orders[0])
            tensors.put(x, layout, stored(program.arrays[x], layout))
            written, layout = list_rule.write(tensors, tuple(order), operand_orders)
            assert order_of(layout) == order
            tensors.put(pieces, layout, written)
            for value, right in zip(parts, expected, strict=True):
                rule = program.rules[value]
                assert isinstance(rule, ElementRule)
                (x_order,) = rule.result_orders(0, tuple(order))
                assert (tuple(order),) in rule.operand_orders(x_order)
                piece, piece_layout = rule.write(tensors, x_order, (tuple(order),))
                assert order_of(piece_layout) == x_order
                assert np.array_equal(piece, stored(right, piece_layout))
            assert emitter.permutes == 0


@pytest.mark.parametrize(
    "none",
    [
        lambda p, r: operators.pointwise(r, (p.input(2, 3), GraphValue("pieces", None))),
        lambda p, r: operators.pointwise(r, ()),
        lambda p, r: operators.pointwise(GraphValue("pieces", None), (p.input(2, 3),)),
        lambda p, r: operators.pointwise(r, (p.input(3),)),  # no operand has the result's rank
        lambda p, r: operators.keep_axes(r, p.input(2, 3, 4)),
        lambda p, r: operators.keep_axes(r, GraphValue("unknown", None)),
        lambda p, r: operators.reshape(r, GraphValue("unknown", None)),
        lambda p, r: operators.reshape(GraphValue("unknown", None), p.input(6)),
        lambda p, r: operators.along_axes(r, (p.input(2, 1),), (1,), drops=False),  # an axis of size 1
        lambda p, r: operators.along_axes(r, (p.input(2, 3),), (), drops=False),
        lambda p, r: operators.along_axes(r, (GraphValue("unknown", None),), (0,), drops=False),
        lambda p, r: operators.along_axes(GraphValue("list", None), (p.input(2, 3),), (0,), drops=False),
        lambda p, r: operators.concatenate(r, (p.input(2, 3), p.input(3)), 0),
        lambda p, r: operators.concatenate(GraphValue("result", (1, 3)), (p.input(1, 3),), 0),
        lambda p, r: operators.concatenate(GraphValue("result", None), (p.input(1, 3),), 0),
        lambda p, r: operators.concatenate(r, (GraphValue("unknown", None),), 0),
        lambda p, r: operators.expand(r, GraphValue("unknown", None)),
        lambda p, r: operators.expand(GraphValue("unknown", None), p.input(3)),
        lambda p, r: operators.normalise(r, p.input(2, 1), 1),
        lambda p, r: operators.normalise(r, GraphValue("unknown", None), 1),
        lambda p, r: operators.channels_second(r, (p.input(3),)),
        lambda p, r: operators.channels_second(r, (GraphValue("unknown", None),)),
    ],
)
def test_conditions_that_do_not_hold_give_no_rule(none: Callable[[NumpyProgram, GraphValue], Any]) -> None:
    assert none(NumpyProgram(), GraphValue("result", (2, 3))) is None


def test_symbolic_sizes_are_read_from_the_tensor_or_named_by_the_operator() -> None:
    """The batch is n to the planner and 5 when the program runs."""
    n = sympy.Symbol("n")
    program = NumpyProgram()
    x = program.input(5, 6, 4, symbolic={0: n})
    split = program.reshape(x, -1, 2, 3, 4, symbolic={0: n})
    merged = program.reshape(split, -1, 3, 4, symbolic={0: 2 * n})  # not named: left to be inferred
    named = program.reshape(merged, 5, 2, 3, 4, symbolic={0: n})
    flat = program.reshape(named, -1, 24, symbolic={0: n})
    program.output(split, merged, named, flat)
    for value, right in zip(program.outputs, program.direct(), strict=True):
        rule = program.rules[value]
        assert isinstance(rule, ReshapeRule)
        operand = rule.operands[0]
        for order in permutations(value.axes):
            for (x_order,) in rule.operand_orders(tuple(order)):
                tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
                source = dict(zip(program.outputs, program.direct(), strict=True)) | program.arrays
                tensors.put(operand, x_order, stored(source[operand], x_order))
                written, layout = rule.write(tensors, tuple(order), (x_order,))
                assert np.array_equal(written, stored(right, layout))


def test_expand_to_a_symbolic_size_uses_the_size_that_the_operator_names() -> None:
    n = sympy.Symbol("n")
    program = NumpyProgram()
    x = program.input(1, 4)
    result = GraphValue("expanded", (n, 4))
    program.sizes[result] = [7, -1]
    tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
    tensors.put(x, (1,), program.arrays[x].ravel())
    rule = operators.expand(result, x)
    assert rule is not None
    written, layout = rule.write(tensors, (1, 0), ((1,),))
    assert layout == (1, 0)
    assert np.array_equal(written, np.repeat(program.arrays[x].T, 7, 1))
    rows, unknown = program.input(6, 1, symbolic={0: n}), GraphValue("rows", (n, 5))
    program.sizes[unknown] = [None, 5]
    tensors.put(rows, (0,), program.arrays[rows].ravel())
    widened = operators.expand(unknown, rows)
    assert widened is not None
    written, layout = widened.write(tensors, (0, 1), ((0,),))
    assert layout == (0, 1)
    assert np.array_equal(written, np.repeat(program.arrays[rows], 5, 1)), "an axis that x has keeps its size"
    program.sizes[result] = [None, None]
    with pytest.raises(AssertionError, match="expanded: axis 0 has no size"):
        rule.write(tensors, (1, 0), ((1,),))
