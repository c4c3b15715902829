"""Products with unusual shapes: scaled biases, axes of one element, symbolic sizes and strides."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import sympy

from onebyone.layout.orders import order_of
from onebyone.layout.products import ProductRule
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from onebyone.layout.weight_products import WeightProduct, product_of_factors
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram
from tests.layout.test_layout_products import check


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_the_channels_of_the_result_may_be_on_another_axis_than_those_of_the_input(to: str) -> None:
    """(2, 4, 1) to (2, 1, 5): the other axis of each has one element."""
    program = NumpyProgram()
    x, weight = program.input(2, 4, 1), program.constant(5, 4)

    def rule(result: GraphValue) -> ProductRule:
        matched = WeightProduct(result, x, 1, 2, weight, 0, 1)
        return ProductRule(result, matched.operands, matched, to, True, 0.0005)

    value = program._add([x, weight], lambda a, _: a[0].transpose(0, 2, 1) @ a[1].T, rule)
    assert value.shape == (2, 1, 5)
    assert program.rules[value].result_orders(0, (1, 0)) == [(2, 0)]
    assert program.rules[value].result_orders(0, (0, 1)) == [(0, 2)]
    assert (
        check(program, value) == 5
    )  # two orders, each with and without a unit dimension, and the natural layout


@pytest.mark.parametrize("shape", [(1, 4, 3, 3), (2, 1, 3, 3), (1, 1, 3, 3), (1, 4, 3, 1)])
def test_a_stride_that_leaves_one_position_beside_axes_of_one_element(shape: tuple[int, ...]) -> None:
    """A batch of one image, one input channel, or an image of one column; the channels keep their dimension."""
    program = NumpyProgram()
    value = program.product(program.input(*shape), 6, to="linear", channel=1, stride=(3, 1), bias=True)
    assert check(program, value) > 0


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (2.0, 0.0)])
@pytest.mark.parametrize("shape", [(3, 5), (5,), (3, 1), (1, 1), ()])
def test_scaled_and_broadcast_biases(shape: tuple[int, ...], alpha: float, beta: float) -> None:
    """alpha · x W + beta · bias, as addmm computes it, with the result in either order."""
    program = NumpyProgram()
    x, weight, bias = program.input(3, 4), program.constant(4, 5), program.constant(*shape)
    result = GraphValue("result", (3, 5))
    for to in ("conv", "linear"):
        matched = product_of_factors(result, x, weight, False, bias, alpha, beta)
        assert isinstance(matched, WeightProduct)
        assert matched.has_plain_bias == (alpha == beta == 1 and shape == (5,))
        rule = ProductRule(result, matched.operands, matched, to, True, 0.0005)
        arrays = program.arrays
        right = alpha * arrays[x] @ arrays[weight] + beta * np.broadcast_to(arrays[bias], (3, 5))
        for order in permutations((0, 1)):
            for operand_orders in rule.operand_orders(tuple(order)):
                tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
                for operand, x_order in zip(rule.operands, operand_orders, strict=True):
                    tensors.put(operand, x_order, stored(arrays[operand], x_order))
                written, layout = rule.write(tensors, tuple(order), operand_orders)
                assert order_of(layout) == order
                assert np.array_equal(written, stored(right, layout))


def test_a_scaled_bias_of_fewer_axes_has_the_order_of_its_own_axes() -> None:
    """2 · x W + 3 · bias, with a bias (3, 5) and a result (2, 3, 5) in every order: the bias is not permuted."""
    program = NumpyProgram()
    x, weight, bias = program.input(2, 3, 4), program.constant(4, 5), program.constant(3, 5)
    result = GraphValue("result", (2, 3, 5))
    matched = product_of_factors(result, x, weight, False, bias, 2.0, 3.0)
    assert isinstance(matched, WeightProduct)
    right = 2 * program.arrays[x] @ program.arrays[weight] + 3 * program.arrays[bias]
    for to, order in product(("conv", "linear"), permutations((0, 1, 2))):
        rule = ProductRule(result, matched.operands, matched, to, True, 0.0005)
        (operand_orders,) = rule.operand_orders(order)
        emitter = NumpyEmitter(program)
        tensors: StoredTensors[Any] = StoredTensors(emitter)
        for operand, x_order in zip(rule.operands, operand_orders, strict=True):
            tensors.put(operand, x_order, stored(program.arrays[operand], x_order))
        written, layout = rule.write(tensors, order, operand_orders)
        assert np.array_equal(written, stored(right, layout))
        assert emitter.permutes == 0


def test_a_vector_weight_leaves_no_channel_axis() -> None:
    program = NumpyProgram()
    x, weight = program.input(2, 3, 4), program.constant(4)
    result = GraphValue("result", (2, 3))
    matched = product_of_factors(result, x, weight, False)
    assert isinstance(matched, WeightProduct)
    assert (matched.inputs, matched.outputs, matched.out_channel, matched.weight_out) == (4, 1, None, None)
    for to in ("conv", "linear"):
        rule = ProductRule(result, matched.operands, matched, to, True, 0.0005)
        right = program.arrays[x] @ program.arrays[weight]
        orders = 0
        for order in permutations((0, 1)):
            assert rule.result_orders(0, (2, *order)) == [order]
            for operand_orders in rule.operand_orders(tuple(order)):
                tensors: StoredTensors[Any] = StoredTensors(NumpyEmitter(program))
                tensors.put(x, operand_orders[0], stored(program.arrays[x], operand_orders[0]))
                tensors.put(weight, (0,), program.arrays[weight])
                written, layout = rule.write(tensors, tuple(order), operand_orders)
                assert order_of(layout) == order
                assert np.array_equal(written, stored(right, layout))
                orders += 1
        assert orders == 6
        assert rule.preferred_orders() == [(0, 1)]


@pytest.mark.parametrize("stride", [(), (2,)])
def test_symbolic_sizes(stride: tuple[int, ...]) -> None:
    """Batch and length are symbols to the planner; merged and strided forms read the sizes from the tensor."""
    n, m = sympy.symbols("n m")
    for to in ("conv", "linear") if not stride else ("linear",):
        for groups in (1, 2) if to == "linear" else (1,):
            program = NumpyProgram()
            x = program.input(3, 4, 5, 7, symbolic={0: n, 3: m})
            steps = (1, *stride) if stride else ()
            length = sympy.floor((m - 1) / 2) + 1 if stride else m
            result = program.product(
                x, 6, to=to, channel=1, bias=True, groups=groups, stride=steps, shape=(n, 6, 5, length)
            )
            assert check(program, result) > 0


class ReadSizes(NumpyEmitter):
    """Records the sizes that are read from tensors, and those that are reduced by a stride."""

    def __init__(self, program: NumpyProgram) -> None:
        super().__init__(program)
        self.read: list[int] = []
        self.strided: list[tuple[int, int]] = []

    def size(self, x: Any, position: int) -> Any:
        self.read.append(position)
        return super().size(x, position)

    def strided_size(self, size: Any, step: int) -> Any:
        self.strided.append((size, step))
        return super().strided_size(size, step)


@pytest.mark.parametrize(("known", "stride", "read", "strided"), [
    (True, (), [], []),  # by the result, though not by the input
    (False, (), [0, 3], []),
    (False, (1, 2), [0, 3], [(7, 2)]),
])  # fmt: skip
def test_only_unknown_sizes_are_read_and_only_those_with_a_stride_reduced(
    known: bool, stride: tuple[int, ...], read: list[int], strided: list[tuple[int, int]]
) -> None:
    n, m = sympy.symbols("n m")
    program = NumpyProgram()
    x = program.input(3, 4, 5, 7, symbolic={0: n, 3: m})
    length = sympy.floor((m - 1) / 2) + 1 if stride else m
    shape = (3, 6, 5, 7) if known else (n, 6, 5, length)
    value = program.product(x, 6, to="linear", channel=1, stride=stride, shape=shape)
    program.output(value)
    rule, emitter = program.rules[value], ReadSizes(program)
    tensors: StoredTensors[Any] = StoredTensors(emitter)
    for operand in rule.operands:
        tensors.put(operand, operand.axes, program.arrays[operand])
    written, _ = rule.write(tensors, (0, 1, 2, 3), ((0, 1, 2, 3), (0, 1)))
    assert np.array_equal(written, program.direct()[0])
    assert (emitter.read, emitter.strided) == (read, strided)
