"""Einsums: letters, what they refuse, groups of channels at different positions, factors with axes of one element.

All values are below 10³ with at most 10² terms in a sum, so that rounding stays below 10⁻¹¹ in float64.
"""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.lifting.rules.einsum import _Factor, einsum_terms, tensordot_terms
from onebyone.lifting.values import Cannot
from tests.lifting.numpy_front_end import Op, any_size
from tests.lifting.test_forms import a_lifter
from tests.lifting.test_one_window import exact, flattened, on_one_window
from tests.lifting.test_whole_window import CONSTANTS, CONV, WINDOW, normal

EVERY = slice(None)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("bX,c", ((2, 3), (4,))), ("bX,Xc", ((2, 3), (3, 4))), ("bZ,aZ,X", ((2, 3), (4, 3), (5,)))],
)
def test_capital_letters_of_an_equation_without_a_result(
    equation: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    """NumPy gives the same with the result written out: capitals come first, and what occurs twice is summed."""
    terms, result = einsum_terms(equation, [len(shape) for shape in shapes])
    arrays = [normal(*shape) for shape in shapes]
    written = np.einsum(",".join(terms) + "->" + result, *arrays)
    np.testing.assert_allclose(written, np.einsum(equation, *arrays), rtol=1e-12)


def test_every_axis_has_a_letter_of_its_own() -> None:
    """Also where the equation uses all small letters but one, or operands have more than 26 axes together."""
    (term,), result = einsum_terms("abcdefghijklmnopqrstuvwxy...->...", (30,))
    assert (len(term), len(set(term)), len(result)) == (30, 30, 5)
    terms, result = tensordot_terms(20, 20, (0,), (0,))
    assert (len(set(terms[0] + terms[1])), len(set(result))) == (39, 38)


def test_a_second_value_that_is_summed_over_an_axis_of_its_own_is_refused() -> None:
    network = [
        CONV,
        Op("row", "slice", ("conv",), {"window": (EVERY, EVERY, 1, 2)}),
        Op("product", "einsum", ("conv", "row"), {"equation": "nchw,nk->nchw"}),
    ]
    with pytest.raises(Cannot, match="two values that depend on the image are multiplied as matrices"):
        any_size(network, CONSTANTS, normal(1, 2, 9, 9), WINDOW)


def test_a_product_whose_first_axis_is_summed_afterwards() -> None:
    """Rows of positions, times one number for each channel, which is the last axis."""
    ops, values = flattened("product", 16)
    network = [
        CONV,
        Op("turned", "transpose", ("conv",), {"order": (0, 2, 3, 1)}),
        Op("product", "einsum", ("turned", "factor"), {"equation": "nhwc,c->nwc"}),
    ]
    exact([*network, *ops], values | {"factor": normal(4)})


def test_groups_of_channels_at_different_positions_are_multiplied_group_by_group() -> None:
    """Two channels of the upper left part and two of the lower right: one matrix for both pairs."""
    ops, values = flattened("product", 2 * 3 * 4 * 3)
    network = [
        CONV,
        Op("near", "slice", ("conv",), {"window": (EVERY, slice(0, 2), slice(0, 4), slice(0, 3))}),
        Op("far", "slice", ("conv",), {"window": (EVERY, slice(2, 4), slice(1, 5), slice(1, 4))}),
        Op("both", "stack", ("near", "far"), {"axis": 1}),
        Op("product", "einsum", ("both", "factor"), {"equation": "ngchw,co->ngohw"}),
    ]
    exact([*network, *ops], values | {"factor": normal(2, 3)})


def test_products_of_groups_of_pooled_channels_are_context_too() -> None:
    network = [
        CONV,
        Op("pooled", "mean", ("conv",), {"axes": (2, 3)}),
        Op("pairs", "reshape", ("pooled",), {"shape": (2, 2)}),
        Op("product", "einsum", ("pairs", "factor"), {"equation": "ngc,gco->ngo"}),
        Op("wide", "reshape", ("product",), {"shape": (4, 1, 1)}),
        Op("less", "subtract", ("conv", "wide")),
        Op("last", "mean", ("less",), {"axes": (2, 3)}),
    ]
    lifter = on_one_window(network, CONSTANTS | {"factor": normal(2, 2, 2)}, "window")
    assert lifter.context_pools == {"pooled"}


def test_an_axis_of_one_element_is_removed_without_a_sum() -> None:
    """The factor is the same memory then, so no parameter is copied."""
    weight = normal(1, 4, 2)
    factor = _Factor(weight, "xco", {"x": 1, "c": 4, "o": 2}).without(a_lifter(3, 3), ["x"])
    assert (factor.letters, factor.handle.shape) == ("co", (4, 2))
    assert np.shares_memory(factor.handle, weight)
    summed = _Factor(weight, "xco", {"x": 1, "c": 4, "o": 2}).without(a_lifter(3, 3), ["x", "o"])
    assert summed.letters == "c"
    np.testing.assert_allclose(summed.handle, weight.sum((0, 2)), rtol=1e-12)


def test_a_factor_takes_any_order_of_its_axes() -> None:
    weight = normal(2, 3, 4)
    factor = _Factor(weight, "abc", {"a": 2, "b": 3, "c": 4})
    assert factor.ordered(a_lifter(3, 3), "abc") is weight
    for letters in ("cab", "bca", "acb"):
        np.testing.assert_array_equal(
            factor.ordered(a_lifter(3, 3), letters), np.einsum(f"abc->{letters}", weight)
        )
