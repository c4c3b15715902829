"""Products with a constant weight, written in every order, as convolutions and as linear layers."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import sympy

from onebyone.layout.orders import UNIT, natural_layout, order_of
from onebyone.layout.products import CHANNEL, ProductRule, image_layout
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.token_axis import TokenAxis
from onebyone.layout.values import GraphValue
from onebyone.layout.weight_products import WeightProduct, product_of_factors
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram

SHAPES = [(4,), (2, 4), (2, 3, 4), (2, 1, 4), (1, 3, 4), (2, 3, 2, 4), (2, 1, 3, 4), (2, 3, 2, 2, 4)]


def check(program: NumpyProgram, value: GraphValue) -> int:
    """Write a product in every order that its rule allows; returns how many there were."""
    rule = program.rules[value]
    assert isinstance(rule, ProductRule)
    program.output(value)
    (right,) = program.direct()
    x = rule.product.x
    count = 0
    for order in permutations(rule.axes):
        for operand_orders in rule.operand_orders(tuple(order)):
            layouts = [operand_orders[0], (UNIT, *operand_orders[0])]
            if operand_orders[0] == x.axes:
                layouts.append(natural_layout(x.rank, x.axes))
            for layout in layouts:
                emitter = NumpyEmitter(program)
                tensors: StoredTensors[Any] = StoredTensors(emitter, program.constants)
                tensors.put(x, layout, stored(program.arrays[x], layout))
                for parameter in rule.operands[1:]:
                    tensors.put(parameter, parameter.natural_layout, program.arrays[parameter])
                    emitter.not_counted.append(program.arrays[parameter])
                written, result_layout = rule.write(tensors, tuple(order), operand_orders)
                assert order_of(result_layout) == order
                assert np.array_equal(written, stored(right, result_layout))
                assert emitter.permutes == 0
                assert emitter.reshapes == rule.reshapes(tuple(order), operand_orders)
                count += 1
    return count


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("to", ["conv", "linear"])
@pytest.mark.parametrize("shape", SHAPES)
def test_written_in_every_order_it_is_the_same_product(
    shape: tuple[int, ...], to: str, convert: bool
) -> None:
    """Of as many Reshapes as the rule says; a product that is not converted has none in its original order."""
    for channel, bias in product(range(-len(shape), 0), (False, True)):
        program = NumpyProgram()
        x = program.input(*shape)
        value = program.product(x, 3, to=to, channel=channel, bias=bias, convert=convert)
        assert check(program, value) > 0


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_axes_of_size_one(to: str) -> None:
    """One input channel, one output channel, or both: the channel axis is in no order then.

    A product that is not converted is repeated only where its input has the original order too.
    """
    for (inputs, outputs), convert in product(((1, 3), (3, 1), (1, 1)), (True, False)):
        for shape, channel in (((2, 3, inputs), 2), ((2, inputs, 3), 1), ((inputs, 5), 0)):
            program = NumpyProgram()
            x = program.input(*shape)
            value = program.product(x, outputs, to=to, channel=channel, bias=True, convert=convert)
            assert check(program, value) > 0


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_groups_and_strides_as_linear(spatial: int) -> None:
    size = (4, 3, 5)[:spatial]
    for groups, batch, step in product((1, 2), ((), (2,), (1,)), (1, 2, 3)):
        program = NumpyProgram()
        stride = tuple(step if i % 2 == 0 else 1 for i in range(spatial))
        channel = -1 - spatial
        x = program.input(*batch, 4, *size)
        value = program.product(x, 6, to="linear", channel=channel, bias=True, groups=groups, stride=stride)
        assert check(program, value) > 0


@pytest.mark.parametrize("step", [3, 5])
def test_a_stride_that_leaves_one_position_keeps_the_original_order(step: int) -> None:
    program = NumpyProgram()
    x = program.input(2, 4, 3, 3)
    value = program.product(x, 6, to="linear", channel=1, stride=(step, 1), bias=True)
    rule = program.rules[value]
    assert value.shape == (2, 6, 1, 3)
    assert rule.axes == (0, 1, 3)
    assert [order for order in permutations(rule.axes) if rule.operand_orders(tuple(order))] == [(0, 1, 3)]
    assert rule.result_orders(0, (3, 2, 1, 0)) == rule.preferred_orders() == [(0, 1, 3)]
    assert check(program, value) > 0


def test_a_product_that_has_its_form_is_repeated_in_its_natural_order() -> None:
    program = NumpyProgram()
    value = program.product(program.input(2, 3, 4), 5, to="linear", convert=False)
    rule = program.rules[value]
    assert isinstance(rule, ProductRule)
    x, weight = rule.operands
    for x_order, fused in (((0, 1, 2), True), ((1, 0, 2), False)):
        emitter = NumpyEmitter(program)
        tensors: StoredTensors[Any] = StoredTensors(emitter)
        tensors.put(x, x_order, stored(program.arrays[x], x_order))
        tensors.put(weight, (0, 1), program.arrays[weight])
        rule.write(tensors, x_order, (x_order, (0, 1)))
        assert (value in emitter.fused) == fused


def test_a_converted_product_is_never_repeated() -> None:
    program = NumpyProgram()
    value = program.product(program.input(2, 3, 4), 5, to="conv")
    rule = program.rules[value]
    assert isinstance(rule, ProductRule)
    emitter = NumpyEmitter(program)
    tensors: StoredTensors[Any] = StoredTensors(emitter)
    for operand in rule.operands:
        tensors.put(operand, operand.axes, program.arrays[operand])
    rule.write(tensors, (0, 1, 2), ((0, 1, 2), (0, 1)))
    assert emitter.fused == []


def value(*shape: Any) -> GraphValue:
    return GraphValue("v", shape)


def test_the_axes_of_a_product_of_two_factors() -> None:
    right = product_of_factors(value(2, 3, 5), value(2, 3, 4), value(4, 5), False)
    assert isinstance(right, WeightProduct)
    assert (right.x_channel, right.out_channel, right.weight_out, right.weight_in) == (2, 2, 1, 0)
    assert (right.inputs, right.outputs) == (4, 5)
    left = product_of_factors(value(2, 5, 3), value(2, 4, 3), value(5, 4), True)
    assert isinstance(left, WeightProduct)
    assert (left.x_channel, left.out_channel, left.weight_out, left.weight_in) == (1, 1, 0, 1)
    batched = product_of_factors(value(2, 5, 3), value(2, 4, 3), value(1, 5, 4), True)
    assert isinstance(batched, WeightProduct)
    assert (batched.weight_out, batched.weight_in) == (1, 2)
    vector = product_of_factors(value(5), value(4), value(5, 4), True)
    assert isinstance(vector, WeightProduct)
    assert (vector.x_channel, vector.out_channel) == (0, 0)
    assert right.operands == (right.x, right.weight)
    assert right.has_plain_bias


def test_products_that_are_not_layers_have_a_reason() -> None:
    assert product_of_factors(value(3), value(4, 3), value(4), True) == (
        "a vector weight on the left leaves no channels"
    )
    assert product_of_factors(value(1, 3, 5), value(3, 4), value(1, 4, 5), False) == (
        "the weight has more axes than the input"
    )
    n = sympy.Symbol("n")
    assert product_of_factors(value(n, 3, 5), value(1, 3, 4), value(1, 4, 5), False) == (
        "the weight broadcasts the input"
    )
    assert product_of_factors(value(5, n), value(4, 1), value(5, 4), True) == (
        "the weight broadcasts the input"
    ), "the axis after the channels counts too"


def test_images_have_a_batch_and_two_spatial_dimensions() -> None:
    assert image_layout((CHANNEL,)) == (UNIT, CHANNEL, UNIT, UNIT)
    assert image_layout((0, CHANNEL)) == (0, CHANNEL, UNIT, UNIT)
    assert image_layout((0, CHANNEL, 1)) == (0, CHANNEL, UNIT, 1)
    assert image_layout((CHANNEL, 1)) == (UNIT, CHANNEL, UNIT, 1)
    assert image_layout((0, CHANNEL, 3, 1)) == (0, CHANNEL, 3, 1)
    assert image_layout((0, CHANNEL, 3, 1, 2)) == (0, CHANNEL, 3, 1, 2)


def test_preferred_orders_and_penalties() -> None:
    def rule(shape: tuple[int, ...], to: str, channel: int = -1, **settings: Any) -> ProductRule:
        program = NumpyProgram()
        made = program.rules[
            program.product(program.input(*shape), 6, to=to, channel=channel, penalty=0.25, **settings)
        ]
        assert isinstance(made, ProductRule)
        return made

    conv = rule((2, 3, 4), "conv")
    assert conv.preferred_orders() == [(0, 2, 1), (0, 1, 2)]
    assert conv.penalty((0, 2, 1), ((0, 2, 1),)) == conv.penalty((2, 0, 1), ((2, 0, 1),)) == 0
    assert conv.penalty((0, 1, 2), ((0, 1, 2),)) == 0.25
    one_before = conv.penalty((1, 2, 0), ((1, 2, 0),))
    assert 0 < one_before < 0.001
    more_before = rule((2, 3, 5, 4), "conv").penalty((0, 1, 3, 2), ((0, 1, 3, 2),))
    assert one_before < more_before < 0.001
    linear = rule((2, 4, 3), "linear", channel=1)
    assert linear.preferred_orders() == [(0, 2, 1), (0, 1, 2)]
    assert linear.penalty((0, 2, 1), ((0, 2, 1),)) == 0
    assert linear.penalty((0, 1, 2), ((0, 1, 2),)) == 0.25
    assert rule((2, 4, 3), "linear", channel=1, groups=2).penalty((0, 1, 2), ((0, 1, 2),)) == 0
    assert rule((1, 3, 4), "conv").preferred_orders() == [(2, 1), (1, 2)]
    assert rule((4,), "conv").preferred_orders() == [(0,), (0,)]
    rows = rule((2, 4), "conv")
    assert rows.preferred_orders() == [(0, 1), (0, 1)], "rows may be in the batch axis"
    assert rows.penalty((0, 1), ((0, 1),)) == 0


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_a_product_with_one_output_prefers_the_original_order(to: str) -> None:
    program = NumpyProgram()
    rule = program.rules[program.product(program.input(2, 3, 4), 1, to=to)]
    assert rule.preferred_orders() == [(0, 1)]


def test_result_orders() -> None:
    program = NumpyProgram()
    rule = program.rules[program.product(program.input(2, 3, 4), 5, to="conv", bias=True)]
    assert rule.result_orders(0, (1, 2, 0)) == [(1, 2, 0)]
    assert rule.result_orders(1, (0, 1)) == rule.result_orders(2, (0,)) == []
    widened = program.rules[program.product(program.input(2, 3, 1), 5, to="conv")]
    assert widened.result_orders(0, (1, 0)) == [(2, 1, 0), (1, 2, 0), (1, 0, 2)]
    narrowed = program.rules[program.product(program.input(2, 3, 4), 1, to="conv")]
    assert narrowed.result_orders(0, (1, 2, 0)) == [(1, 0)]
    assert narrowed.operand_orders((1, 0)) == [
        ((1, 0, 2), (1,)),
        ((1, 2, 0), (1,)),
        ((2, 1, 0), (1,)),
    ]


def test_weight_layouts_have_a_unit_dimension_for_each_missing_axis() -> None:
    program = NumpyProgram()
    rule = program.rules[program.product(program.input(2, 4), 5, to="conv")]
    assert isinstance(rule, ProductRule)
    assert rule.weight_layout(0) == (0, 1)
    assert rule.weight_layout(2) == (0, 1, UNIT, UNIT)
    one = program.rules[program.product(program.input(2, 4), 1, to="conv")]
    assert isinstance(one, ProductRule)
    assert one.weight_layout(2) == (UNIT, 1, UNIT, UNIT)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (5, 4)])
def test_the_bias_and_its_factors_belong_to_the_product(shape: tuple[int, ...]) -> None:
    """Of vectors and matrices, on either side."""
    left = shape == (5, 4)
    x, weight, bias = value(3, 4) if not left else value(4, 3), value(*shape), value(5)
    result = value(3) if len(shape) == 1 else value(5, 3) if left else value(3, 5)
    matched = product_of_factors(result, x, weight, left, bias, 2.0, 3.0)
    assert isinstance(matched, WeightProduct)
    assert (matched.bias, matched.alpha, matched.beta) == (bias, 2.0, 3.0)
    assert (matched.result, matched.x, matched.weight) == (result, x, weight)
    plain = product_of_factors(result, x, weight, left)
    assert isinstance(plain, WeightProduct)
    assert (plain.bias, plain.alpha, plain.beta) == (None, 1.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((2, 3, 4, 5, 6), (6, 4, 5, 6)),
        ((2, 3, 4, 5, 6, 7), (6, 4, 5, 6, 7)),
        ((2, 3, 4, 5), (6, 4, 5, 1)),
        ((2, 4, 3, 5, 6, 7), (2, 4, 630, 1)),
    ],
)
def test_only_too_many_axes_are_merged(shape: tuple[int, ...], image: tuple[int, ...]) -> None:
    """The axes before the channels become one; those after them stay, unless there are more than three."""
    program = NumpyProgram()
    x = program.input(*shape)
    value = program.product(x, 3, to="conv", channel=shape.index(4) - len(shape), bias=False)
    program.output(value)
    rule = program.rules[value]
    order = tuple(range(len(shape)))
    emitter = NumpyEmitter(program)
    tensors: StoredTensors[Any] = StoredTensors(emitter, program.constants)
    tensors.put(x, x.axes, program.arrays[x])
    tensors.put(rule.operands[1], rule.operands[1].natural_layout, program.arrays[rule.operands[1]])
    (orders,) = rule.operand_orders(order)
    written, _ = rule.write(tensors, order, orders)
    assert emitter.images == [image]
    assert np.array_equal(written, program.direct()[0])


def test_positions_in_the_batch_axis() -> None:
    """A convolution then takes its channels last, in one form of no cost; a linear layer does not change."""
    for to, orders in (("conv", 2), ("linear", 6)):
        program = NumpyProgram()
        value = program.product(program.input(2, 3, 4), 5, to=to, tokens=TokenAxis.BATCH)
        rule = program.rules[value]
        allowed = [order for order in permutations(rule.axes) if rule.operand_orders(tuple(order))]
        assert len(allowed) == orders
        assert rule.preferred_orders() == [(0, 1, 2), (0, 1, 2)]
        assert [rule.penalty(order, ((0, 1, 2),)) for order in allowed[:1]] == [0.0]


def test_rows_in_the_batch_axis_have_a_cost_where_they_could_be_positions() -> None:
    def rule(*shape: int, channel: int = -1) -> Any:
        program = NumpyProgram()
        x = program.input(*shape)
        return program.rules[program.product(x, 6, to="conv", channel=channel, row_penalty=0.125)]

    assert rule(2, 4).preferred_orders() == [(1, 0), (0, 1)]
    assert rule(2, 4).penalty((0, 1), ((0, 1),)) == 0.125
    assert rule(2, 4).penalty((1, 0), ((1, 0),)) == 0
    assert rule(2, 3, 4).preferred_orders() == [(0, 2, 1), (0, 1, 2)]
    assert rule(2, 3, 4).penalty((0, 2, 1), ((0, 2, 1),)) == 0
    assert rule(4, 3, channel=0).penalty((0, 1), ((0, 1),)) == 0


def test_a_product_is_kept_where_its_form_would_be_less_plain() -> None:
    """A weight that multiplies from the left, or Reshapes; the cost is that of keeping it."""

    def rule(to: str, *shape: int, channel: int) -> Any:
        program = NumpyProgram()
        return program.rules[
            program.product(program.input(*shape), 6, to=to, channel=channel, keep_cost=0.25)
        ]

    for to, shape, channel, kept in (
        ("linear", (2, 4, 3), 1, True),  # from the left
        ("linear", (2, 3, 4), 2, False),
        ("conv", (2, 4, 3), 1, False),
        ("conv", (2, 3, 4), 2, True),  # Reshapes
    ):
        natural = rule(to, *shape, channel=channel)
        assert natural.is_kept((0, 1, 2), ((0, 1, 2),)) == kept
        assert (natural.penalty((0, 1, 2), ((0, 1, 2),)) == 0.25) == kept
        assert not natural.is_kept((1, 0, 2), ((1, 0, 2),))
