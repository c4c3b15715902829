"""Rules in uses that few networks have: axes of one element, constants of one channel, settings that are left out.

All values are below 10³ with at most 10² terms in a sum, so that rounding stays below 10⁻¹¹ in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from onebyone.lifting.class_map import ClassMapStep, left_out_pool
from onebyone.lifting.grid import Grid
from onebyone.lifting.index import unbatched
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Concatenation, LayerNorm, Pool
from onebyone.lifting.rules.extra_axes import spatial_axes, with_extra_axes, without_extra_axes
from onebyone.lifting.rules.normalisation import layer_norm
from onebyone.lifting.rules.shape import concatenate
from onebyone.lifting.rules.sliding import pool
from onebyone.lifting.values import Cannot, Lifted
from tests.lifting import numpy_emitter
from tests.lifting.numpy_front_end import Array, Op, any_size, run
from tests.lifting.test_numpy_rules import (
    CONV,
    ROUNDING,
    assert_equals_crops,
    constants,
    head,
    lifter_without,
    normal,
    step,
    with_head,
)

WINDOW = (6, 5)  # 4×3 positions of the convolution, of four channels


def a_call(shape: tuple[int, ...]) -> Call:
    return Call("aten.some", "", "some", (shape,), np.dtype(float), (), lambda *handles: handles[0])


def a_lifter(window: tuple[int, ...]) -> Lifter:
    return Lifter(numpy_emitter, window)  # type: ignore[arg-type]


# products with a constant


@pytest.mark.parametrize(
    ("equation", "shape", "features"),
    [
        ("nchw,xoc->nohw", (1, 5, 4), 60),  # an axis of one element that is summed over
        ("nchw,xcy->nchw", (1, 4, 1), 48),
        ("nchw,xock->nohw", (1, 5, 4, 2), 60),  # and one of several, which the constant alone has
        ("nchw,cz->nzhw", (4, 1), 12),  # one output
        ("nchw,czo->nzohw", (4, 1, 5), 60),
        ("nchw,hco->nhwo", (4, 4, 5), 60),  # a matrix for each row of positions
    ],
)
def test_products_with_axes_of_one_element(equation: str, shape: tuple[int, ...], features: int) -> None:
    network = [CONV, Op("out", "einsum", ("conv", "factor"), {"equation": equation})]
    assert_equals_crops([*network, *head(features, "out")], with_head(features, factor=normal(*shape)))


def test_one_channel_is_broadcast_to_those_of_the_constant() -> None:
    network = [
        CONV,
        Op("part", "slice", ("conv",), {"window": (slice(None), slice(2, 3))}),
        Op("out", "einsum", ("part", "factor"), {"equation": "nchw,c->nchw"}),
        *head(36, "out"),
    ]
    assert_equals_crops(network, with_head(36, factor=normal(3)))


# combined maps


def test_maps_that_are_laid_out_differently_are_not_combined() -> None:
    network = [
        Op("turned", "transpose", ("image",), {"order": (0, 1, 3, 2)}),
        Op("both", "add", ("image", "turned")),
    ]
    with pytest.raises(Cannot, match="two values are combined whose elements are laid out differently"):
        any_size(network, {}, normal(1, 2, 7, 7), (4, 4))


def test_maps_as_they_are_stay_maps_side_by_side() -> None:
    """Also a map beside itself: no element is moved afterwards."""
    image = normal(2, 2, 5, 6)
    value = Lifted(image, Grid.image(2, (3, 3)))
    both = concatenate(a_lifter((3, 3)), a_call((4, 3, 3)), Concatenation([value, value], 0))
    assert both.index is None
    np.testing.assert_array_equal(both.handle, np.concatenate([image, image], 1))


def test_elements_of_the_next_sample_are_mixed_samples() -> None:
    """Four elements per sample: number 4 is the first of the second one."""
    assert isinstance(unbatched(np.array([[4], [8]]), 4, 2), str)
    assert isinstance(unbatched(np.array([[-1], [3]]), 4, 2), str)
    assert unbatched(np.array([[3], [7]]), 4, 2).tolist() == [3]  # type: ignore[union-attr]


# statistics of some positions, or of the image


def test_a_statistic_of_a_column_is_not_one_of_the_window() -> None:
    """So it is no global context, whatever the context is."""
    network = [
        CONV,
        Op("column", "variance", ("conv",), {"axes": (2,)}),
        Op("wide", "reshape", ("column",), {"shape": (4, 1, 3)}),
        Op("less", "subtract", ("conv", "wide")),
    ]
    for context in (None, "window"):
        with pytest.raises(Cannot, match="not pooled over the window"):
            any_size(network, constants(), normal(1, 2, 8, 8), WINDOW, context)


def test_a_statistic_of_the_image() -> None:
    """A variance does not depend on the number of positions, so it is that of the whole map."""
    network = [
        CONV,
        Op("spread", "variance", ("conv",), {"axes": (2, 3)}),
        Op("wide", "reshape", ("spread",), {"shape": (4, 1, 1)}),
        Op("less", "subtract", ("conv", "wide")),
        Op("last", "mean", ("less",), {"axes": (2, 3)}),
    ]
    image = normal(1, 2, 10, 9)
    dense, _, lifter = any_size(
        network, constants(), image, WINDOW, "image", image_wide=frozenset({"spread"})
    )
    assert lifter.context_pools == {"spread"}
    conv = run(network[:1], constants(), image)["conv"]
    means = np.lib.stride_tricks.sliding_window_view(conv, (4, 3), (2, 3)).mean((4, 5))
    expected = means - conv.var((2, 3))[:, :, None, None]
    assert dense.shape == expected.shape == (1, 4, 5, 5)
    assert np.abs(dense - expected).max() < ROUNDING


def test_means_of_every_second_position_keep_their_axes() -> None:
    """The front end compares the shape of each value with the network's."""
    every = slice(None)
    network = [
        CONV,
        Op("part", "slice", ("conv",), {"window": (every, every, slice(None, None, 2))}),
        Op("out", "mean", ("part",), {"axes": (2, 3), "keep": True}),
        *head(4, "out"),
    ]
    assert_equals_crops(network, with_head(4))


# what a position reads

EVERY = slice(None)
RANGES: dict[str, tuple[list[Op], int]] = {
    "a convolution and a linear layer": ([CONV], 48),
    "a strided convolution": ([Op("conv", "convolution", ("image", "kernel", "shift"), {"stride": 2})], 16),
    "a pool": ([CONV, Op("out", "max_pool", ("conv",), {"size": 2})], 8),
    "two branches": ([
        CONV,
        Op("near", "slice", ("conv",), {"window": (EVERY, EVERY, slice(0, 2), slice(0, 1))}),
        Op("far", "slice", ("conv",), {"window": (EVERY, EVERY, slice(2, 4), slice(2, 3))}),
        Op("out", "add", ("near", "far")),
    ], 8),
    "every second position": ([
        CONV, Op("out", "slice", ("conv",), {"window": (EVERY, EVERY, slice(1, None, 2), slice(1, 2))}),
    ], 8),
    "the mean of a row": ([CONV, Op("out", "mean", ("conv",), {"axes": (3,)})], 16),
    "channels at different positions": ([
        CONV,
        Op("a", "slice", ("conv",), {"window": (EVERY, slice(0, 2), slice(0, 3), slice(1, 3))}),
        Op("b", "slice", ("conv",), {"window": (EVERY, slice(2, 4), slice(1, 4), slice(0, 2))}),
        Op("out", "concatenate", ("a", "b"), {"axis": 1}),
    ], 24),
}  # fmt: skip


def reads(
    network: Sequence[Op], constants: Mapping[str, Array], size: Sequence[int], window: tuple[int, ...]
) -> None:
    """Every position of the last value depends on the pixels of its receptive field, and on no others.

    NaN in the image reaches whatever depends on it. The field is the hull, so only its first and last pixels must be
    read on each axis.
    """
    channels = constants["kernel"].shape[1]
    clean = np.random.default_rng(0).normal(size=(1, channels, *size))
    _, _, lifter = any_size(network, constants, clean, window)
    fields = lifter.last.grid.fields
    corner = tuple(s - 1 for s in lifter.last.handle.shape[2:])
    for position in ((0,) * len(size), corner):
        spans = [
            (q * f.jump + f.start, q * f.jump + f.start + f.size)
            for q, f in zip(position, fields, strict=True)
        ]
        inside = tuple(slice(low, high) for low, high in spans)
        image = np.full_like(clean, np.nan)
        image[(..., *inside)] = clean[(..., *inside)]
        where = (0, slice(None), *position)
        assert not np.isnan(_last(network, constants, image, window)[where]).any()
        for axis, (low, high) in enumerate(spans):
            for edge in (low, high - 1):
                image = clean.copy()
                image[(slice(None), slice(None), *(slice(None),) * axis, edge)] = np.nan
                assert np.isnan(_last(network, constants, image, window)[where]).any()


def _last(
    network: Sequence[Op], constants: Mapping[str, Array], image: Array, window: tuple[int, ...]
) -> Array:
    last: Array = any_size(network, constants, image, window)[2].last.handle
    return last


@pytest.mark.parametrize("name", RANGES)
def test_a_position_reads_its_receptive_field_and_no_other_pixel(name: str) -> None:
    operators, features = RANGES[name]
    network = [*operators, *head(features, operators[-1].result)]
    reads(network, with_head(features), (11, 10), WINDOW)
    if operators[-1].result != "conv":
        reads(operators, constants(), (11, 10), WINDOW)


# axes that are not the image's


def test_a_signal_with_an_axis_of_one_element_before_its_own() -> None:
    for width, features in ((1, 48), (3, 40)):
        network = [
            Op("wide", "reshape", ("image",), {"shape": (2, 1, 12)}),
            Op("conv", "wide_convolution", ("wide", "kernel", "shift")),
            *head(features, "conv"),
        ]
        values = with_head(features) | {"kernel": normal(4, 2, 1, width)}
        assert_equals_crops(network, values, (12,), (19,))


@pytest.mark.parametrize(("kept", "shape"), [((2,), (2, 1, 12)), ((1,), (2, 12, 1))])
def test_axes_of_one_element_are_put_back(kept: tuple[int, ...], shape: Sequence[int]) -> None:
    """And the image's own axis is found, wherever it is."""
    signal = Lifted(np.zeros((1, 2, 12)), Grid.image(2, (12,)))
    wide = with_extra_axes(signal, kept, 3)
    assert wide.shape == shape
    assert without_extra_axes(wide, kept).index is None
    assert spatial_axes(a_lifter((12,)), wide) == kept


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("kernel", [1, 2])
def test_pools_over_the_features_of_tokens(kernel: int, reduction: str) -> None:
    """One axis for an image of two: the channels of each position, or every second of them."""
    network = [
        CONV,
        Op("flat", "reshape", ("conv",), {"shape": (4, 12)}),
        Op("tokens", "transpose", ("flat",), {"order": (0, 2, 1)}),
        Op("out", "pool", ("tokens",), {"reduction": reduction, "kernel": (kernel,), "stride": (2,)}),
        Op("all", "reshape", ("out",), {"shape": (24,)}),
        Op("last", "linear", ("all", "weight", "bias")),
    ]
    assert_equals_crops(network, with_head(24))


# settings that are left out, or have no effect in one window


def test_layer_norms_without_constants() -> None:
    image = normal(2, 3, 4, 5)
    value = Lifted(image, Grid.image(3, (4, 5)))
    value = value.with_index(np.moveaxis(value.indices(), 0, -1))
    normed = layer_norm(a_lifter((4, 5)), a_call((4, 5, 3)), LayerNorm(value, 1, None, None, 1e-5))
    centred = image - image.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    assert normed.shape == (4, 5, 3)
    assert np.abs(normed.handle - expected).max() < ROUNDING


def test_a_mean_pool_that_fits_has_no_partial_last_position_on_a_larger_image() -> None:
    """ceil_mode adds nothing in a window of 4×4 pixels; in an image of 5×7 it would add a row and a column."""
    image = normal(1, 2, 5, 7)
    value = Lifted(image, Grid.image(2, (4, 4)))
    operator = Pool(value, "mean", (2, 2), (2, 2), [(0, 0)] * 2, (1, 1), ceil_mode=True)
    pooled = pool(a_lifter((4, 4)), a_call((2, 2, 2)), operator)
    expected = image[:, :, :4, :6].reshape(1, 2, 2, 2, 3, 2).mean((3, 5))
    assert pooled.handle.shape == expected.shape
    assert np.abs(pooled.handle - expected).max() < ROUNDING
    assert pooled.grid.sizes[0][:3] == (2, 2, 3)  # at 4, 5 and 6 pixels


# class maps


def test_what_is_affine_is_asked_about_the_values_after_the_pool() -> None:
    """A product is affine if one factor alone comes through the pool."""

    def product(key: str, factors: list[str]) -> ClassMapStep:
        return ClassMapStep(
            key, f"the {key}", factors, [key], lambda after: sum(f in after for f in factors) < 2
        )

    steps = [step("conv", ["image"]), step("pool", ["conv"]), step("linear", ["pool"])]
    for factors, nonlinear in ((["linear", "pool"], ("the product",)), (["linear"], ())):
        assert left_out_pool(lifter_without("pool"), [*steps, product("product", factors)], ["product"]) == (
            (4, 3), nonlinear, (2, 2)
        )  # fmt: skip
    asked: list[set[object]] = []
    last = ClassMapStep("last", "the last", ["linear"], ["last"], lambda a: asked.append(set(a)) is None)
    left_out_pool(lifter_without("pool"), [*steps, last], ["last"])
    assert asked == [{"pool", "linear", "last"}]
