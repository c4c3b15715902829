"""Rules that are exact on an image of one window, what is computed from pooled values, joins, and products.

All values are below 10³ with at most 10² terms in a sum, so rounding stays below 10⁻¹¹ in float64.
"""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import PERIOD, Grid
from onebyone.lifting.index import unbatched
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Rearrange
from onebyone.lifting.rules.einsum import einsum_terms, tensordot_terms
from onebyone.lifting.rules.shape import rearrange
from onebyone.lifting.values import Cannot, Const, Lifted
from tests.lifting.numpy_front_end import Array, Op, any_size, every_crop, run
from tests.lifting.test_whole_window import CONSTANTS, CONV, ROUNDING, WINDOW, normal


def on_one_window(network: list[Op], values: dict[str, Array], context: str | None = None) -> Lifter:
    """What is not exact on larger images is the network itself on an image of one window."""
    image = normal(2, 2, *WINDOW)
    dense, _, lifter = any_size(network, values, image, WINDOW, context)
    expected = run(network, values, image)[network[-1].result]
    assert np.abs(dense - expected.reshape(2, -1, 1, 1)).max() < ROUNDING
    return lifter


def flattened(source: str, features: int) -> tuple[list[Op], dict[str, Array]]:
    """A linear layer on all elements of a value, which tells them apart."""
    ops = [
        Op("flat", "reshape", (source,), {"shape": (features,)}),
        Op("out", "linear", ("flat", "wide", "bias")),
    ]
    return ops, CONSTANTS | {"wide": normal(3, features)}


def test_interpolation_to_twice_the_positions() -> None:
    coarse = Op("conv", "convolution", ("image", "kernel", "shift"), {"stride": 2})
    ops, values = flattened("fine", 4 * 6 * 4)
    lifter = on_one_window([coarse, Op("fine", "twice", ("conv",)), *ops], values)
    assert lifter.inexact == [
        "fine (twice): interpolation reads beyond the border of a crop, where a larger image has neighbours"
    ]
    for factor in (2, 3):  # a map of a position per pixel cannot become finer
        reason = r"from \(5, 4\) to .* positions: the distance of \(1, 1\) pixels, divided by the factor, is not whole"
        with pytest.raises(Cannot, match=reason):
            any_size(
                [CONV, Op("fine", "repeat", ("conv",), {"factor": factor})],
                CONSTANTS,
                normal(1, 2, 9, 9),
                WINDOW,
            )


@pytest.mark.parametrize(
    ("kernel", "stride", "partial"), [(2, 2, True), (2, 3, True), (3, 2, True), (3, 1, False)]
)
def test_pools_whose_last_position_is_partial(kernel: int, stride: int, partial: bool) -> None:
    pool = Op("pool", "ceil_max_pool", ("conv",), {"kernel": kernel, "stride": stride})
    features = int(np.prod([4, *(-(-(n - kernel) // stride) + 1 for n in (5, 4))]))
    ops, values = flattened("pool", features)
    lifter = on_one_window([CONV, pool, *ops], values)
    assert any("ceil_mode makes the last position partial" in text for text in lifter.inexact) == partial


def test_padding_of_a_convolution_is_named() -> None:
    padded = Op("conv", "wide_convolution", ("image", "kernel", "shift"), {"padding": 1})
    ops, values = flattened("conv", 4 * 5 * 6)
    lifter = on_one_window([padded, *ops], values)
    assert lifter.inexact == [
        "conv (wide_convolution): padding 0×1 affects crops but not the interior of a larger image"
    ]
    with pytest.raises(Cannot, match="the window is too small: no position is left"):
        any_size([CONV, Op("two", "convolution", ("conv", "large", "shift"))],
                 CONSTANTS | {"large": np.zeros((4, 4, 6, 1))}, normal(1, 2, 9, 9), (7, 6))  # fmt: skip


@pytest.mark.parametrize("between", [
    Op("context", "softmax", ("pooled",), {"axis": 1}),
    Op("context", "reduce", ("pooled",), {"reduction": "max", "axes": (1,), "keep": True}),
    Op("context", "layer_norm", ("pooled", "one", "one"), {"axes": 3}),
    Op("context", "select", ("pooled", "order"), {"axis": 1}),
    Op("context", "relu", ("pooled",)),
])  # fmt: skip
def test_what_is_computed_from_a_pooled_value_is_context_too(between: Op) -> None:
    network = [
        CONV,
        Op("pooled", "mean", ("conv",), {"axes": (2, 3), "keep": True}),
        between,
        Op("less", "subtract", ("conv", "context")),
        Op("last", "reduce", ("less",), {"reduction": "max", "axes": (2, 3)}),
    ]
    values = CONSTANTS | {"order": np.array([3, 1, 2, 0]), "one": np.ones((4, 1, 1))}
    with pytest.raises(Cannot, match="global context"):
        any_size(network, values, normal(1, 2, 9, 9), WINDOW)
    lifter = on_one_window(network, values, "window")
    assert lifter.context_pools == {"pooled"}


def test_a_value_of_one_position_that_is_not_pooled_is_no_context() -> None:
    corner = Op(
        "corner", "slice", ("conv",), {"window": (slice(None), slice(None), slice(0, 1), slice(0, 1))}
    )
    with pytest.raises(
        Cannot, match="a value of one position that is not pooled over the window is repeated"
    ):
        any_size(
            [CONV, corner, Op("less", "subtract", ("conv", "corner"))], CONSTANTS, normal(1, 2, 9, 9), WINDOW
        )


def exact(network: list[Op], values: dict[str, Array]) -> Lifter:
    """Every window of a larger image has the result of its crop; the stride is that of the windows' positions."""
    image = normal(2, 2, 12, 11)
    dense, stride, lifter = any_size(network, values, image, WINDOW, came_through=frozenset({"before"}))
    assert (stride, lifter.inexact) == ((1, 1), [])
    assert np.abs(dense - every_crop(network, values, image, WINDOW, stride)).max() < ROUNDING
    return lifter


def test_the_stride_of_a_kernel_over_the_whole_map_does_not_count() -> None:
    values = CONSTANTS | {"large": normal(2, 4, 4, 4), "two": normal(2)}
    square = Op("part", "slice", ("conv",), {"window": (slice(None), slice(None), slice(1, None))})
    exact([CONV, square, Op("last", "convolution", ("part", "large", "two"), {"stride": 3})], values)


def test_values_of_several_and_of_one_position_side_by_side() -> None:
    network = [
        CONV,
        Op("pooled", "mean", ("conv",), {"axes": (2, 3)}),
        Op("every", "reshape", ("conv",), {"shape": (80,)}),
        Op("both", "concatenate", ("pooled", "every"), {"axis": 1}),
    ]
    ops, values = flattened("both", 84)
    exact([*network, *ops], values)


@pytest.mark.parametrize(
    ("shape", "batch"), [((1, 4, 1, 1), False), ((4, 1, 1), False), ((2, 4, 1, 1), True)]
)
def test_constants_with_an_axis_for_the_batch(shape: tuple[int, ...], batch: bool) -> None:
    ops, values = flattened("sum", 80)
    network, values = [CONV, Op("sum", "add", ("conv", "one")), *ops], values | {"one": normal(*shape)}
    if batch:
        with pytest.raises(Cannot, match="a constant made for each sample of the batch"):
            any_size(network, values, normal(2, 2, 9, 9), WINDOW)
    else:
        exact(network, values)


def test_products_of_two_values_of_which_one_has_all_axes() -> None:
    one = Op("one", "slice", ("conv",), {"window": (slice(None), 2)})
    for first, second, equation, features in (
        ("conv", "one", "nchw,nhw->nwc", 16),
        ("one", "conv", "nhw,nchw->nchw", 80),
        ("conv", "turned", "nchw,nwh->nhc", 20),
    ):
        turned = Op("turned", "transpose", ("one",), {"order": (0, 2, 1)})
        ops, values = flattened("product", features)
        product = Op("product", "einsum", (first, second), {"equation": equation})
        exact([CONV, one, turned, product, *ops], values)


@pytest.mark.parametrize(("equation", "shape", "features"), [
    ("nchw,cok->nohw", (4, 5, 2), 100),  # k is summed over the constant alone
    ("nchw,cko->nohw", (4, 1, 5), 100),
    ("nchw,oc->nhwo", (5, 4), 100),
    ("nchw,kcw->nkhcw", (2, 4, 1), 160),  # one element along the width for all
    ("nchw,->nchw", (), 80),
    ("nchw,ck->nchw", (4, 1), 80),
    ("nchw,kco->nohw", (1, 4, 2), 40),
])  # fmt: skip
def test_factors_with_axes_of_their_own_or_of_one_element(
    equation: str, shape: tuple[int, ...], features: int
) -> None:
    ops, values = flattened("product", features)
    product = Op("product", "einsum", ("conv", "factor"), {"equation": equation})
    exact([CONV, product, *ops], values | {"factor": normal(*shape, 1)[..., 0]})


def test_the_number_that_fills_a_constant() -> None:
    assert Const("one", (1,), known=np.array([3.0])).single == 3.0
    assert Const("two", (2,), known=np.array([3.0, 4.0])).single is None
    assert Const("none", (0,), known=np.zeros(0)).single is None
    assert Const("learned", (1,)).single is None


@pytest.mark.parametrize(("equation", "shapes"), [
    ("bij,jk->bik", ((2, 3, 4), (4, 5))), ("b...c,oc->b...o", ((2, 3, 4, 5), (6, 5))), ("bij,jk", ((2, 3, 4), (4, 5))),
    ("b...c,oc", ((2, 3, 4, 5), (6, 5))), ("...i , ...i -> ...", ((2, 3, 4), (3, 4))), ("ij...->i...", ((2, 3, 4),)),
    ("...", ((2, 3),)), ("zij", ((2, 3, 4),)),
])  # fmt: skip
def test_the_letters_of_an_equation(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    """NumPy gives the same with the ellipsis and the result written out."""
    terms, result = einsum_terms(equation, [len(shape) for shape in shapes])
    arrays = [normal(*shape) for shape in shapes]
    written = ",".join(terms) + "->" + result
    assert "." not in written
    np.testing.assert_allclose(np.einsum(written, *arrays), np.einsum(equation, *arrays), rtol=1e-12)


def test_axes_have_letters_of_their_own() -> None:
    """Of 20 and 16 axes, the first of the one and the last of the other are summed over."""
    (first, second), result = tensordot_terms(20, 16, (0,), (-1,))
    assert (len(set(first)), len(set(second)), len(set(first + second))) == (20, 16, 35)
    assert second[-1] == first[0]
    assert result == first[1:] + second[:-1]


def test_a_shape_operator_with_several_results() -> None:
    value = Lifted("map", Grid.image(3, (4, 5)))
    first, second = rearrange(Rearrange(value, lambda numbers: [numbers[:, :1], numbers[:, 1:]]))
    assert (first.shape, second.shape) == ((1, 4, 5), (2, 4, 5))
    assert second.indices().ravel().tolist() == list(range(20, 60))
    with pytest.raises(Cannot, match="a constant is reshaped"):
        rearrange(Rearrange(Const("c", (2,)), lambda numbers: numbers))


@pytest.mark.parametrize("amounts", [[(-1, -2), (0, -1)], [(0, 0), (-2, 0)], [(-1, 0), (0, -2), (-1, -1)]])
def test_padding_by_negative_amounts_crops(amounts: list[tuple[int, int]]) -> None:
    shape = [4, 5, 4]
    for axis, (before, after) in enumerate(amounts, 3 - len(amounts)):
        shape[axis] += before + after
    ops, values = flattened("part", int(np.prod(shape)))
    exact([CONV, Op("part", "crop", ("conv",), {"amounts": amounts}), *ops], values)
    network = [CONV, Op("part", "crop", ("conv",), {"amounts": [(-1, 0), *[(0, 0)] * 3]})]
    with pytest.raises(Cannot, match="a crop of the batch"):
        any_size(network, CONSTANTS, normal(1, 2, 9, 9), WINDOW)


def test_the_extents_of_maps_of_large_strides_are_not_known() -> None:
    """Numbers of positions are known for the image sizes of one period."""
    for stride in (PERIOD, PERIOD + 1):
        grid = Grid.image(1, (2 * PERIOD, 8)).through([Sliding(1, stride), Sliding(1)])
        assert grid.extents_known == (stride == PERIOD)


def test_elements_of_another_sample_are_noticed() -> None:
    """Three elements a sample: numbers 0, 1, 2 and 3, 4, 5; the last of a row is the first of the next sample."""
    assert np.array_equal(unbatched(np.array([[0, 2], [3, 5]]), 3, 2), [0, 2])
    for numbers in ([[0, 3], [3, 6]], [[-1, 2], [2, 5]], [[0, 2], [3, 4]], [[3, 5], [0, 2]]):
        assert isinstance(unbatched(np.array(numbers), 3, 2), str)


def test_values_in_the_opposite_order_of_positions_are_not_combined() -> None:
    turned = Op("turned", "slice", ("conv",), {"window": (slice(None), slice(None), slice(None, None, -1))})
    with pytest.raises(
        Cannot, match="two values are combined whose elements are laid out differently in the image"
    ):
        any_size([CONV, turned, Op("sum", "add", ("conv", "turned"))], CONSTANTS, normal(1, 2, 9, 9), WINDOW)


def test_one_channel_times_a_factor_of_several_is_their_sum() -> None:
    """As PyTorch does, an axis of one element is broadcast to the constant's length before the sum."""
    one = Op("one", "slice", ("conv",), {"window": (slice(None), slice(0, 1))})
    ops, values = flattened("product", 40)
    product = Op("product", "einsum", ("one", "factor"), {"equation": "nchw,ck->nkhw"})
    exact([CONV, one, product, *ops], values | {"factor": normal(3, 2)})
