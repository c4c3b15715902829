"""The algebra of orders and layouts, against NumPy's transpose, squeeze and expand_dims on small shapes."""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
import pytest

from onebyone.layout.emitter import LayoutEmitter
from onebyone.layout.orders import (
    UNIT,
    Layout,
    insertions,
    natural_layout,
    operand_layout,
    operand_order,
    order_of,
    permutation_between,
    renamed,
    significant_axes,
    unit_changes,
    without_leading_units,
)
from onebyone.layout.values import GraphValue
from tests.layout.numpy_emitter import NumpyEmitter, stored
from tests.layout.numpy_program import NumpyProgram


def layouts(axes: tuple[int, ...], most_units: int = 2) -> list[Layout]:
    """Every layout of these axes with up to `most_units` unit dimensions."""
    result = set()
    for order in permutations(axes):
        for units in range(most_units + 1):
            for positions in combinations(range(len(order) + units), units):
                rest = iter(order)
                result.add(tuple(UNIT if i in positions else next(rest) for i in range(len(order) + units)))
    return sorted(result)


def test_significant_axes_and_natural_layout() -> None:
    for shape in product((1, 2, 5), repeat=3):
        axes = significant_axes(shape)
        assert [shape[a] for a in axes] == [s for s in shape if s != 1]
        layout = natural_layout(3, axes)
        assert order_of(layout) == axes
        assert [a == UNIT for a in layout] == [s == 1 for s in shape]
        value = GraphValue("x", shape)
        assert (value.axes, value.natural_layout, value.rank) == (axes, layout, 3)
        assert [value.size(axis) for axis in range(3)] == list(shape)


def test_a_symbolic_size_is_significant_even_where_it_may_be_one() -> None:
    sympy = pytest.importorskip("sympy")
    assert significant_axes((sympy.Symbol("n"), 1, 2)) == (0, 2)


def test_a_list_or_a_tensor_of_unknown_rank_has_no_axes() -> None:
    value = GraphValue("pieces", None)
    assert value.axes == value.natural_layout == ()
    with pytest.raises(AssertionError, match="pieces has no known rank"):
        value.size(0)
    with pytest.raises(AssertionError, match="pieces has no known rank"):
        assert value.rank


def test_values_are_compared_by_identity() -> None:
    assert GraphValue("x", (2,)) != GraphValue("x", (2,))
    assert len({GraphValue("x", (2,)), GraphValue("x", (2,))}) == 2


def test_the_text_of_a_value_leaves_out_the_object_of_the_front_end() -> None:
    """Which may be a node that prints its whole graph."""
    assert repr(GraphValue("x", (2,), "a graph")) == repr(GraphValue("x", (2,)))
    assert "a graph" not in repr(GraphValue("x", (2,), "a graph"))


def test_unit_changes_turn_one_layout_into_another_with_the_fewest_steps() -> None:
    array = np.arange(6.0).reshape(2, 3)
    emitter = NumpyEmitter(NumpyProgram())
    all_layouts = layouts((0, 1))
    for have, want in product(all_layouts, all_layouts):
        if order_of(have) != order_of(want):
            with pytest.raises((ValueError, AssertionError, IndexError)):
                assert order_of(have) == order_of(want)
            continue
        squeeze, unsqueeze = unit_changes(have, want)
        changed = emitter.change_units(stored(array, have), have, want)
        assert np.array_equal(changed, stored(array, want))
        gaps_have = [len(g) for g in "".join("u" if a == UNIT else "|" for a in have).split("|")]
        gaps_want = [len(g) for g in "".join("u" if a == UNIT else "|" for a in want).split("|")]
        assert len(squeeze) == sum(max(0, h - w) for h, w in zip(gaps_have, gaps_want, strict=True))
        assert len(unsqueeze) == sum(max(0, w - h) for h, w in zip(gaps_have, gaps_want, strict=True))


def test_reorder_is_one_permute_between_any_two_layouts() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    all_layouts = layouts((0, 1, 2), 1)
    for have, want in product(all_layouts, all_layouts):
        emitter = NumpyEmitter(NumpyProgram())
        moved = LayoutEmitter.reorder(emitter, stored(array, have), have, want)
        assert np.array_equal(moved, stored(array, want))
        assert emitter.permutes == 1


def test_permutation_between_is_transpose() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    for have, want in product(permutations(range(3)), repeat=2):
        moved = stored(array, have).transpose(permutation_between(have, want))
        assert np.array_equal(moved, stored(array, want))
    assert permutation_between((UNIT, 0, UNIT), (UNIT, UNIT, 0)) == (0, 2, 1)


def test_operands_broadcast_in_any_layout_of_the_result() -> None:
    """For every shape that broadcasts to (2, 3, 4): adding in the stored layout is storing the sum."""
    whole = np.arange(24.0).reshape(2, 3, 4)
    for rank in range(4):
        for ones in product((False, True), repeat=rank):
            shape = tuple(1 if one else size for one, size in zip(ones, (2, 3, 4)[3 - rank :], strict=True))
            array = np.arange(np.prod(shape, dtype=int)).reshape(shape) * 100.0
            axes, shift = significant_axes(shape), 3 - rank
            for layout in layouts((0, 1, 2), 1):
                x_layout = operand_layout(layout, axes, shift)
                assert len(x_layout) == len(layout)
                assert order_of(x_layout) == operand_order(order_of(layout), axes, shift)
                for used in (x_layout, without_leading_units(x_layout)):
                    total = stored(whole, layout) + stored(array, used)
                    assert np.array_equal(total, stored(whole + array, layout))


def test_without_leading_units() -> None:
    assert without_leading_units((UNIT, UNIT)) == ()
    assert without_leading_units((0, UNIT)) == (0, UNIT)
    assert without_leading_units((UNIT, 1, UNIT, 0)) == (1, UNIT, 0)


def test_renamed_and_insertions() -> None:
    assert renamed((UNIT, 2, 0), {0: 5, 2: 7}) == (UNIT, 7, 5)
    assert insertions((3, 1), ()) == [(3, 1)]
    assert insertions((3, 1), (0, 2)) == [(3, 1, 0, 2), (3, 0, 2, 1), (0, 2, 3, 1)]
    assert insertions((), (4,)) == [(4,)]
