"""Where constants are stored: in the layout of their uses, and in one layout for all names of a tensor."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from onebyone.layout.operators import renamed_constants
from onebyone.layout.orders import UNIT, Layout
from onebyone.layout.products import MERGE_PENALTIES, ProductRule
from onebyone.layout.storage import choose_storage, weight_layouts
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram

MATRIX, OTHER = GraphValue("matrix", (5, 4)), GraphValue("other", (5, 4))


def chosen(
    demands: dict[GraphValue, dict[Layout, int]], weights: tuple[GraphValue, ...] = (), tied: bool = False
) -> dict[GraphValue, Layout]:
    counts = {value: Counter(layouts) for value, layouts in demands.items()}
    return choose_storage([MATRIX, OTHER], counts, weights, lambda v: "one" if tied else v)


def test_a_constant_is_reordered_only_if_no_use_needs_its_original_order() -> None:
    assert chosen({}) == {}
    assert chosen({MATRIX: {(0, 1): 1}}) == {}
    assert chosen({MATRIX: {(1, 0): 1}}) == {MATRIX: (1, 0)}
    assert chosen({MATRIX: {(1, 0): 9, (UNIT, 0, 1): 1}}) == {}
    assert chosen({MATRIX: {(1, 0): 1, (1, UNIT, 0): 2}, OTHER: {(0, 1): 1}}) == {MATRIX: (1, UNIT, 0)}


def test_a_weight_takes_the_layout_used_most_and_of_equals_the_one_with_most_dimensions() -> None:
    image = (0, 1, UNIT, UNIT)
    assert chosen({MATRIX: {image: 1}}) == {}
    assert chosen({MATRIX: {image: 1}}, (MATRIX,)) == {MATRIX: image}
    assert chosen({MATRIX: {image: 1, (0, 1): 1}}, (MATRIX,)) == {MATRIX: image}
    assert chosen({MATRIX: {image: 1, (0, 1): 2}}, (MATRIX,)) == {}
    assert chosen({MATRIX: {(1, 0): 5, image: 1}}, (MATRIX,)) == {MATRIX: image}
    assert chosen({MATRIX: {(1, 0): 5, (1, 0, UNIT): 1}}, (MATRIX,)) == {MATRIX: (1, 0)}
    assert chosen({}, (MATRIX,)) == {}


def test_all_names_of_a_tensor_share_one_layout() -> None:
    image = (0, 1, UNIT, UNIT)
    demands = {MATRIX: {image: 1}, OTHER: {(0, 1): 1}}
    assert chosen(demands, (MATRIX,)) == {MATRIX: image}
    assert chosen(demands, (MATRIX,), tied=True) == {MATRIX: image, OTHER: image}
    assert chosen({MATRIX: {(1, 0): 1}}, tied=True) == {MATRIX: (1, 0), OTHER: (1, 0)}
    assert chosen({MATRIX: {(1, 0): 1}, OTHER: {(0, 1): 1}}, tied=True) == {}


def program_with_weight(to: str, convert: bool = True) -> tuple[NumpyProgram, GraphValue, GraphValue]:
    """A product whose weight is a constant (4, 5), transposed."""
    program = NumpyProgram()
    x = program.input(2, 3, 4)
    result = program.product(x, 5, to=to, convert=convert)
    rule = program.rules.pop(result)
    assert isinstance(rule, ProductRule)
    source = program.constant(4, 5)
    weight = program.transpose(source, 1, 0)
    product = rule.product
    changed = type(product)(product.result, product.x, 2, 2, weight, 0, 1)
    program.rules[result] = ProductRule(result, changed.operands, changed, to, convert, 0.0005)
    return program, source, weight


@pytest.mark.parametrize(("to", "layout"), [("conv", (1, 0, UNIT, UNIT)), ("linear", (1, 0))])
def test_weights_are_followed_through_renamed_axes(to: str, layout: Layout) -> None:
    program, source, weight = program_with_weight(to)
    rules = [rule for rule in program.rules.values() if isinstance(rule, ProductRule)]
    renamed = renamed_constants(program.rules, program.constants)
    free = program.constants | renamed.keys()
    assert weight_layouts(rules, free, renamed) == {source: layout}
    assert weight_layouts(rules, set(), renamed) == {}
    kept, _, _ = program_with_weight(to, convert=False)
    rules = [rule for rule in kept.rules.values() if isinstance(rule, ProductRule)]
    assert weight_layouts(rules, kept.free_values(), renamed_constants(kept.rules, kept.constants)) == {}
    del weight


def test_products_that_are_kept_do_not_hide_those_after_them() -> None:
    """A kept product, one whose weight is computed, and a converted one."""
    program = NumpyProgram()
    x = program.input(2, 3, 4)
    kept, computed, converted = (
        program.rules[program.product(x, 5, to="conv", convert=n != 0)] for n in range(3)
    )
    assert isinstance(kept, ProductRule)
    assert isinstance(computed, ProductRule)
    assert isinstance(converted, ProductRule)
    free = program.constants - {computed.product.weight}
    assert weight_layouts([kept, computed, converted], free, {}).keys() == {converted.product.weight}


def test_a_linear_weight_that_is_stored_as_needed_is_left_out() -> None:
    program = NumpyProgram()
    rule = program.rules[program.product(program.input(2, 4), 5, to="linear")]
    assert isinstance(rule, ProductRule)
    assert weight_layouts([rule], program.constants, {}) == {}


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_stored_as_chosen_no_constant_is_permuted_at_run_time(to: str) -> None:
    """The demands of a first run choose the storage; with it, a second run makes no permute, and is right."""
    program, source, _ = program_with_weight(to)
    program.output(*(value for value in program.rules if isinstance(program.rules[value], ProductRule)))
    x = next(value for value in program.arrays if value not in program.constants)
    (right,) = [program.arrays[x] @ program.arrays[source]]
    plan, renamed = program.plan(), renamed_constants(program.rules, program.constants)
    storage: dict[GraphValue, Layout] = {}
    for permutes in (1, 0):
        emitter = NumpyEmitter(program)
        tensors: StoredTensors[Any] = StoredTensors(emitter, program.free_values(), renamed)
        for value, array in program.arrays.items():
            layout = storage.get(value, value.natural_layout)
            tensors.put(value, layout, stored(array, layout))
        for value, rule in program.rules.items():
            if value not in renamed:
                written, layout = rule.write(tensors, *plan.orders[value])
                tensors.put(value, layout, written)
        assert np.array_equal(tensors.natural(program.outputs[0]), right)
        assert emitter.permutes == permutes + plan.permutes
        storage = choose_storage(program.constants, tensors.demands, {source}, lambda v: v)


def test_penalties_go_from_the_plainest_products_to_the_fewest_permutes() -> None:
    assert list(MERGE_PENALTIES) == sorted(MERGE_PENALTIES, reverse=True)
    assert 2 > MERGE_PENALTIES[0] > 1 > MERGE_PENALTIES[1], "worth one permute, not two"
    assert 0.0003 < MERGE_PENALTIES[-1] < 0.01
