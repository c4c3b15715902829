"""The layouts in which operators read their operands best, so that unit dimensions are written once and never moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import sympy

from onebyone.layout.input_products import MatrixProductRule
from onebyone.layout.operators import expand, normalise_sum
from onebyone.layout.orders import UNIT, Layout
from onebyone.layout.planner import LayoutPlan, _candidates, _PartialPlan, best_layouts
from onebyone.layout.products import ProductRule
from onebyone.layout.rules import LayoutRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.token_axis import TokenAxis
from onebyone.layout.values import GraphValue
from onebyone.layout.weight_products import WeightProduct
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram


def wanted(rule: LayoutRule, layout: Layout | None, order: Layout | None = None) -> tuple[Layout | None, ...]:
    """What a rule wants of its operands, where the operators after it want `layout` of its result."""
    order = tuple(axis for axis in layout if axis != UNIT) if order is None and layout is not None else order
    assert order is not None
    return rule.operand_layouts(order, rule.operand_orders(order)[0], layout)


def rule_of(program: NumpyProgram, value: GraphValue) -> LayoutRule:
    return program.rules[value]


def test_operators_that_keep_the_original_order_read_the_original_layout() -> None:
    p = NumpyProgram()
    rule = rule_of(p, p.fixed(p.input(2, 1, 3)))
    assert wanted(rule, (0, UNIT, 2)) == wanted(rule, None, (0, 2)) == ((0, UNIT, 2),)


def test_elementwise_operators_pass_the_layout_on() -> None:
    """Except to operands that have not all of the axes: those broadcast as they are."""
    p = NumpyProgram()
    rule = rule_of(p, p.add(p.input(2, 3, 4), p.input(4)))
    assert wanted(rule, (0, 2, UNIT, 1)) == ((0, 2, UNIT, 1), None)
    assert wanted(rule, None, (0, 2, 1)) == (None, None)
    rule = rule_of(p, p.add(p.input(3, 4), p.input(1, 3, 4)))
    assert wanted(rule, (UNIT, 2, 1)) == ((UNIT, 1, 0), (UNIT, 2, 1)), "by the axes of each operand"


def test_permutes_pass_the_layout_on_under_the_names_before_them() -> None:
    p = NumpyProgram()
    rule = rule_of(p, p.transpose(p.input(2, 3, 4), 2, 0, 1))
    assert wanted(rule, (0, UNIT, 1, 2)) == ((2, UNIT, 0, 1),)
    assert wanted(rule, None, (0, 1, 2)) == (None,)


def test_operators_along_axes_pass_the_layout_on_where_they_keep_all_axes() -> None:
    p = NumpyProgram()
    x = p.input(2, 3, 4)
    assert wanted(rule_of(p, p.softmax(x, 1)), (2, UNIT, 0, 1)) == ((2, UNIT, 0, 1),)
    assert wanted(rule_of(p, p.softmax(x, 1)), None, (2, 0, 1)) == (None,)
    for value in (p.sum(x, 1), p.sum(x, 1, keepdims=True), p.select(x, 0, 1)):
        rule = rule_of(p, value)
        assert wanted(rule, rule.axes) == (None,), "which unit dimension the ended axis would be is not known"
    rule = rule_of(p, p.take(x, 1, p.input(1, 5)))
    assert wanted(rule, (2, 0, 1)) == ((2, 0, 1), (UNIT, 1)), "indices are read in their original layout"
    assert wanted(rule, None, (2, 0, 1)) == (None, (UNIT, 1))


def test_pieces_of_a_list_pass_the_layout_on_where_they_have_all_axes() -> None:
    p = NumpyProgram()
    one, two = p.split(p.input(2, 3, 4), 1, 1, 2)
    assert wanted(rule_of(p, two), (2, UNIT, 0, 1)) == ((2, UNIT, 0, 1),)
    assert wanted(rule_of(p, one), (2, UNIT, 0)) == (None,)


def test_concatenations_have_a_unit_dimension_for_an_axis_of_one_element() -> None:
    p = NumpyProgram()
    rule = rule_of(p, p.concatenate(1, p.input(2, 3, 4), p.input(2, 1, 4)))
    assert wanted(rule, (2, 0, UNIT, 1)) == ((2, 0, UNIT, 1), (2, 0, UNIT, UNIT))
    assert wanted(rule, None, (2, 0, 1)) == (None, None)


def test_normalisations() -> None:
    p = NumpyProgram()
    rule = rule_of(p, p.channel_offset(p.input(2, 3, 4), p.input(3)))
    assert wanted(rule, (0, 1, UNIT, 2)) == ((0, 1, UNIT, 2), (0,))
    assert wanted(rule, None, (0, 1, 2)) == (None, (0,))
    rule = rule_of(p, p.normalise(p.input(2, 3, 4), 1, p.input(4)))
    assert wanted(rule, (0, UNIT, 1, 2)) == ((0, UNIT, 1, 2), None)
    assert wanted(rule, (2, 0, 1, UNIT)) == ((2, 0, 1, UNIT), None)
    assert wanted(rule, (0, 1, 2, UNIT)) == (None, None), "the fused operator needs the axis last"
    assert wanted(rule, None, (0, 1, 2)) == (None, None)


def test_the_normalisation_of_a_sum_is_fused_in_the_original_layout() -> None:
    p = NumpyProgram()
    x, addend, scale = p.input(2, 1, 3, 4), p.input(4), p.input(4)
    rule = normalise_sum(GraphValue("s", (2, 1, 3, 4)), x, (addend,), scale, None)
    assert rule is not None
    assert wanted(rule, (0, 2, 3)) == wanted(rule, None, (0, 2, 3)) == ((0, UNIT, 2, 3), None, None)
    assert wanted(rule, (3, 0, UNIT, 2)) == ((3, 0, UNIT, 2), None, None)


def test_matrix_products_of_two_values() -> None:
    """The last two dimensions must be the matrix, as it is or transposed."""
    first, second = GraphValue("a", (2, 3, 4)), GraphValue("b", (2, 4, 5))
    rule = MatrixProductRule(GraphValue("c", (2, 3, 5)), (first, second))
    assert wanted(rule, (0, UNIT, 1, 2)) == ((0, UNIT, 1, 2), (0, UNIT, 1, 2))
    assert wanted(rule, (UNIT, 0, 2, 1)) == ((UNIT, 0, 2, 1), (UNIT, 0, 2, 1))
    for layout in ((0, 1, 2), (0, UNIT, UNIT, 1, 2)):
        assert wanted(rule, layout) == (layout, layout)
    for layout in ((0, 1, 2, UNIT), (0, 1, UNIT, 2)):
        assert wanted(rule, layout) == (None, None)
    assert wanted(rule, None, (0, 1, 2)) == (None, None)
    shared = MatrixProductRule(GraphValue("c", (2, 3, 5)), (first, GraphValue("b", (4, 5))))
    assert wanted(shared, (0, UNIT, 1, 2)) == ((0, UNIT, 1, 2), (UNIT, UNIT, 0, 1))


def test_products_with_a_weight() -> None:
    p = NumpyProgram()

    def rule(*shape: int, channel: int = -1, **settings: Any) -> LayoutRule:
        return p.rules[p.product(p.input(*shape), 5, channel=channel, **{"to": "conv"} | settings)]

    image = rule(2, 3, 4)
    assert wanted(image, None, (0, 2, 1)) == ((0, 2, UNIT, 1), None)
    assert wanted(image, (0, 2, 1)) == ((0, 2, UNIT, 1), None), "whatever comes after it"
    assert wanted(rule(2, 3, 4, tokens=TokenAxis.HEIGHT), None, (0, 2, 1)) == ((0, 2, 1, UNIT), None)
    assert wanted(rule(4, bias=True), None, (0,)) == ((UNIT, 0, UNIT, UNIT), None, None)
    assert wanted(rule(2, 3, 1), None, (0, 2, 1)) == ((0, UNIT, UNIT, 1), None), "one input channel"
    assert wanted(image, None, (0, 1, 2)) == ((0, 1, 2), None), "leading axes are merged by a Reshape"
    assert wanted(rule(2, 3, 4, to="linear"), None, (0, 1, 2)) == ((0, 1, 2), None)
    assert wanted(rule(2, 1, 4, convert=False), None, (0, 2)) == ((0, UNIT, 2), None)
    assert wanted(rule(2, 1, 4, convert=False), None, (2, 0)) == ((UNIT, 2, UNIT, 0), None)
    strided = rule(2, 4, 3, 1, channel=1, to="linear", stride=(3, 1))
    assert wanted(strided, None, (0, 1)) == ((0, 1, 2, UNIT), None), "a stride that leaves one position"


def test_operators_that_write_any_unit_dimensions_want_none() -> None:
    p = NumpyProgram()
    assert wanted(rule_of(p, p.reshape(p.input(2, 6), 2, 2, 3)), (0, UNIT, 1, 2)) == (None,)
    broadcast = expand(GraphValue("e", (2, 3)), p.input(1, 3))
    assert broadcast is not None
    assert wanted(broadcast, (0, UNIT, 1)) == (None,)


# the layouts of a whole program


def plan_of(rules: Mapping[GraphValue, LayoutRule]) -> LayoutPlan:
    """Every value in its original order."""
    return LayoutPlan({v: (r.axes, r.operand_orders(r.axes)[0]) for v, r in rules.items()}, 0)


@pytest.mark.parametrize("convolution_first", [True, False])
def test_of_several_operators_the_first_says_which_layout_is_best(convolution_first: bool) -> None:
    p = NumpyProgram()
    x = p.input(2, 4, 3)
    for convolution in (convolution_first, not convolution_first):
        _ = p.product(x, 5, to="conv", channel=1) if convolution else p.fixed(x)
    best = best_layouts(p.rules, plan_of(p.rules))
    assert best[x] == ((0, 1, UNIT, 2) if convolution_first else (0, 1, 2))


def test_a_layout_is_passed_on_through_operators_and_not_to_lists() -> None:
    p = NumpyProgram()
    x = p.input(2, 8, 3)
    first, second = p.split(x, 1, 4, 4)
    active = p.relu(second)
    p.product(active, 5, to="conv", channel=1)
    best = best_layouts(p.rules, plan_of(p.rules))
    assert best[active] == best[second] == (0, 1, UNIT, 2)
    assert first not in best
    assert all(value.shape is not None for value in best)


@pytest.mark.parametrize("between", [0, 1])
def test_a_reshape_writes_the_unit_dimension_of_the_image(between: int) -> None:
    """Nothing is inserted afterwards; at the end it is removed once."""
    p = NumpyProgram()
    value = p.reshape(p.input(2, 12), 2, 4, 3)
    for _ in range(between):
        value = p.relu(value)
    p.output(p.product(value, 5, to="conv", channel=1))
    calls: list[str] = []

    class Counting(NumpyEmitter):
        def squeeze(self, x: Any, positions: Any) -> Any:
            calls.append("squeeze")
            return super().squeeze(x, positions)

        def unsqueeze(self, x: Any, position: int) -> Any:
            calls.append("unsqueeze")
            return super().unsqueeze(x, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.layout.numpy_program.NumpyEmitter", Counting)
        (got,), emitter = p.planned(p.plan())
    assert np.array_equal(got, p.direct()[0])
    assert emitter.images == [(2, 4, 1, 3)]
    assert [c for c in calls if c == "squeeze"] == ["squeeze"]
    assert calls.count("unsqueeze") == 2, "of the weight (O, I), which is a constant"


def test_an_expand_writes_the_unit_dimension_of_the_image() -> None:
    p = NumpyProgram()
    x = p.input(1, 4, 3)
    p.output(p.product(p.expand(x, 2, 4, 3), 5, to="conv", channel=1))
    expanded: list[int] = []

    class Recording(NumpyEmitter):
        def expand(self, x: Any, sizes: Any) -> Any:
            expanded.append(len(sizes))
            return super().expand(x, sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.layout.numpy_program.NumpyEmitter", Recording)
        (got,), emitter = p.planned(p.plan())
    assert np.array_equal(got, p.direct()[0])
    assert expanded == [4]
    assert emitter.images == [(2, 4, 1, 3)]


# where the positions of a product are


@pytest.mark.parametrize(
    ("tokens", "shape"), [(TokenAxis.LAST, (2, 4, 1, 3)), (TokenAxis.HEIGHT, (2, 4, 3, 1))]
)
def test_positions_are_stored_last_or_in_the_height(tokens: TokenAxis, shape: tuple[int, ...]) -> None:
    p = NumpyProgram()
    value = p.product(p.input(2, 4, 3), 5, to="conv", channel=1, bias=True, tokens=tokens)
    p.output(value)
    (got,), emitter = p.planned(p.plan())
    assert emitter.images == [shape]
    assert np.array_equal(got, p.direct()[0])


def test_the_names_of_places_for_positions_are_those_that_users_give() -> None:
    """`onebyone.onnx` takes them as texts, and its messages name them."""
    assert [str(place) for place in TokenAxis] == ["last", "height", "batch"]


def test_a_strided_image_is_told_from_other_layouts() -> None:
    """A pool can subsample (N, C, H, W) and (C, H, W) only, with an axis of one element wherever it belongs."""
    p = NumpyProgram()

    def rule(*shape: int) -> ProductRule:
        made = p.rules[p.product(p.input(*shape), 6, to="linear", channel=1, stride=(2, 1))]
        assert isinstance(made, ProductRule)
        return made

    image = rule(2, 4, 3, 5)
    for layout, is_image in (
        ((0, 1, 2, 3), True),
        ((1, 2, 3), True),
        ((1, 0, 2, 3), True),
        ((0, 1, 3, 2), False),
        ((0, 2, 3, 1), False),
        ((2, 3), False),
        ((UNIT, 0, 1, 2, 3), False),
        ((0, 1, 2, 3, UNIT), False),
        ((0, 2, UNIT, 3), False),
    ):
        assert image._is_image(layout) == is_image, layout
    thin = rule(2, 4, 3, 1)
    assert thin._is_image((0, 1, 2, UNIT))
    assert not thin._is_image((0, 1, UNIT, 2))


@pytest.mark.parametrize(("x_order", "steps", "image_axes"), [
    ((0, 1, 2, 3), {2: 2}, 2), ((0, 2, 3, 1), {1: 2}, 0), ((2, 0, 3, 1), {0: 2}, 0),
])  # fmt: skip
def test_strides_are_taken_where_their_axis_is_stored(
    x_order: tuple[int, ...], steps: dict[int, int], image_axes: int
) -> None:
    p = NumpyProgram()
    value = p.product(p.input(2, 4, 3, 5), 6, to="linear", channel=1, stride=(2, 1))
    rule, taken = p.rules[value], []
    emitter = NumpyEmitter(p)
    subsample = emitter.subsample

    def recorded(x: Any, steps: Mapping[int, int], image_axes: int) -> Any:
        taken.append((dict(steps), image_axes))
        return subsample(x, steps, image_axes)

    emitter.subsample = recorded  # type: ignore[method-assign]
    x, weight = rule.operands
    tensors: StoredTensors[Any] = StoredTensors(emitter)
    tensors.put(x, x_order, p.arrays[x].transpose(x_order))
    tensors.put(weight, (0, 1), p.arrays[weight])
    rule.write(tensors, x_order, (x_order, (0, 1)))
    assert taken == [(steps, image_axes)]


def test_a_matrix_product_keeps_the_unit_dimensions_that_its_operands_have() -> None:
    """As far as the result does not get more dimensions than it has axes."""
    p = NumpyProgram()
    first, second = p.input(2, 1, 3, 4), p.input(2, 1, 4, 5)
    rule = MatrixProductRule(GraphValue("c", (2, 1, 3, 5)), (first, second))
    for layouts, expected in (
        (((0, UNIT, 2, 3), (0, UNIT, 2, 3)), (0, UNIT, 2, 3)),
        (((0, 2, 3), (0, UNIT, 2, 3)), (0, 2, 3)),
        (((0, UNIT, UNIT, 2, 3), (UNIT, 0, 2, 3)), (UNIT, 0, 2, 3)),
        (((0, UNIT, 3, 2), (0, UNIT, 3, 2)), (0, UNIT, 3, 2)),
    ):
        tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(p))
        for x, layout in zip((first, second), layouts, strict=True):
            tensors.put(x, layout, stored(p.arrays[x], layout))
        order = tuple(axis for axis in expected if axis != UNIT)
        written, layout = rule.write(tensors, order, rule.operand_orders(order)[0])
        assert layout == expected
        assert np.array_equal(written, stored(p.arrays[first] @ p.arrays[second], layout))


def test_addends_of_fewer_axes_are_read_by_their_own_axes() -> None:
    p = NumpyProgram()
    x, addend = p.input(2, 1, 3, 4), p.input(3, 4)
    rule = normalise_sum(GraphValue("s", (2, 1, 3, 4)), x, (addend,), None, None)
    assert rule is not None
    assert rule.operand_orders((3, 0, 2)) == [((3, 0, 2), (1, 0))]


def test_the_number_of_inputs_is_that_of_the_weight_where_it_is_not_known() -> None:
    n = sympy.Symbol("n")
    x, weight = GraphValue("x", (2, n, 3)), GraphValue("w", (6, 4))
    for groups in (1, 2):
        matched = WeightProduct(GraphValue("y", (2, 6, 3)), x, 1, 1, weight, 0, 1, groups=groups)
        assert (matched.inputs, matched.outputs) == (4 * groups, 6)
    known = WeightProduct(GraphValue("y", (2, 6, 3)), GraphValue("x", (2, 8, 3)), 1, 1, weight, 0, 1)
    assert known.inputs == 8


def test_the_orders_that_operands_suggest() -> None:
    """A constant alone suggests its own; of several operands, those that are no constants."""
    p = NumpyProgram()
    x, constant = p.input(2, 3), p.constant(2, 3)
    start = _PartialPlan(0.0, 0, {x: frozenset({(1, 0)})}, None)

    def candidates(value: GraphValue, *preferences: tuple[int, ...]) -> list[tuple[int, ...]]:
        return _candidates(start, p.rules[value], preferences, p.constants)

    assert candidates(p.relu(constant)) == [(0, 1)]
    assert candidates(p.add(constant, p.constant(2, 3))) == []
    assert candidates(p.add(constant, x)) == candidates(p.relu(x)) == [(1, 0)]
    assert candidates(p.add(constant, x), (0, 1), (1, 0)) == [(1, 0), (0, 1)]
