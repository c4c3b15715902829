"""Values of a window that act on positions: which pixels each position reads, several contexts, group norms.

All values are below 10³ with at most 10² terms in a sum, so rounding stays below 10⁻¹¹ in float64; the variance of a
group norm loses three more digits by its formula E[x²] − E[x]².
"""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.lifting.operators import Call
from onebyone.lifting.rules.context import in_context
from onebyone.lifting.rules.each_position import at_each_position
from onebyone.lifting.rules.window_pools import pooled
from onebyone.lifting.values import Cannot
from tests.lifting.numpy_front_end import Array, Op, any_size, every_crop, run
from tests.lifting.test_forms import a_call, a_const, a_lifter, a_map
from tests.lifting.test_one_window import on_one_window
from tests.lifting.test_whole_window import CONSTANTS, CONV, NORM_ROUNDING, ROUNDING, WINDOW, normal


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (4, 5), (1, 2), (6, 1)])
def test_the_receptive_field_of_a_context_is_the_window_around_each_position(size: tuple[int, int]) -> None:
    """The mean of a window, at each pixel of an image: of the pixels in the field that the grid gives for it.

    At the edges it is that of the nearest window, so only positions whose field is inside of the image are compared.
    """
    image, lifter, call = a_map(2, *size, more=5), a_lifter(*size), a_call(2, 1, 1)
    lifter.context = "window"
    means = pooled(lifter, call, image, size, "mean")
    around = in_context(lifter, call, means, size)
    assert around.handle.shape == image.handle.shape
    assert (around.grid.nominal, around.grid.sizes) == (image.grid.nominal, image.grid.sizes)
    inside = 0
    for position in np.ndindex(*image.handle.shape[2:]):
        spans = [
            (q * f.jump + f.start, q * f.jump + f.start + f.size)
            for q, f in zip(position, around.grid.fields, strict=True)
        ]
        if all(low >= 0 and high <= n for (low, high), n in zip(spans, image.handle.shape[2:], strict=True)):
            pixels = image.handle[(..., *(slice(low, high) for low, high in spans))]
            assert all(low <= q < high for q, (low, high) in zip(position, spans, strict=True))
            assert np.abs(around.handle[(..., *position)] - pixels.mean((2, 3))).max() < ROUNDING
            inside += 1
    assert inside == 36  # windows of this size in the image, as it has five more pixels on each axis


def excitation(source: str, key: str) -> list[Op]:
    """A map less its mean over the window."""
    return [
        Op(f"{key}_mean", "mean", (source,), {"axes": (2, 3), "keep": True}),
        Op(key, "subtract", (source, f"{key}_mean")),
    ]


def test_all_pools_whose_values_act_on_positions_are_listed() -> None:
    """With context='image', these are taken over the image."""
    network = [
        CONV,
        *excitation("conv", "first"),
        Op("relu", "relu", ("first",)),
        *excitation("relu", "second"),
        Op("last", "reduce", ("second",), {"reduction": "max", "axes": (2, 3)}),
    ]
    lifter = on_one_window(network, CONSTANTS, "window")
    assert lifter.context_pools == {"first_mean", "second_mean"}


def test_a_norm_of_a_pooled_vector_is_context_too() -> None:
    network = [
        CONV,
        Op("pooled", "mean", ("conv",), {"axes": (2, 3)}),
        Op("norm", "group_norm", ("pooled", "scale", "offset"), {"groups": 2}),
        Op("wide", "reshape", ("norm",), {"shape": (4, 1, 1)}),
        Op("less", "subtract", ("conv", "wide")),
        Op("last", "mean", ("less",), {"axes": (2, 3)}),
    ]
    image = normal(2, 2, *WINDOW)
    dense, _, lifter = any_size(network, CONSTANTS, image, WINDOW, "window")
    expected = run(network, CONSTANTS, image)["last"].reshape(dense.shape)
    assert np.abs(dense - expected).max() < NORM_ROUNDING
    assert lifter.context_pools == {"pooled"}


def test_operands_that_do_not_depend_on_the_image_are_given_to_the_operator_as_they_are() -> None:
    """A constant by its handle, a number as it is."""
    value, weight = a_map(3, 1, 1), a_const(3, 1, 1)
    call = Call("aten.lerp", "", "lerp", ((3, 1, 1),), np.dtype(float), (weight, value, 0.25),
                lambda end, start, share: start + share * (end - start))  # fmt: skip
    result = at_each_position(a_lifter(1, 1), call)
    assert np.abs(result.handle - (value.handle + 0.25 * (weight.handle - value.handle))).max() < ROUNDING


# group norms


def equals_crops(network: list[Op], values: dict[str, Array], window: tuple[int, ...]) -> None:
    image = normal(2, 2, *(n + 4 for n in window))
    dense, stride, lifter = any_size(network, values, image, window)
    assert not lifter.inexact
    assert np.abs(dense - every_crop(network, values, image, window, stride)).max() < NORM_ROUNDING


def norm(source: str, groups: int | None) -> Op:
    return Op("norm", "group_norm", (source, "scale", "offset"), {"groups": groups})


@pytest.mark.parametrize("groups", [1, 2, 4, None])
def test_norms_of_one_position_that_is_not_pooled_are_exact(groups: int | None) -> None:
    """Windows of 3×3 pixels have one position of the convolution, whatever the groups are."""
    equals_crops([CONV, norm("conv", groups)], CONSTANTS, (3, 3))


def test_norms_of_a_flattened_map_are_exact() -> None:
    """Each window has a vector of its own."""
    network = [CONV, Op("flat", "reshape", ("conv",), {"shape": (80,)}), norm("flat", 2)]
    equals_crops(network, CONSTANTS | {"scale": normal(80) + 2, "offset": normal(80)}, WINDOW)


@pytest.mark.parametrize("groups", [2, None])
@pytest.mark.parametrize("window", [(4, 4), (4, 3), (3, 5)])
def test_norms_of_few_positions_need_a_context(groups: int | None, window: tuple[int, int]) -> None:
    """Two on each axis, or one on one axis and two or three on the other."""
    network = [CONV, norm("conv", groups), Op("last", "mean", ("norm",), {"axes": (2, 3)})]
    one = normal(2, 2, *window)
    with pytest.raises(Cannot, match="choose context='window'"):
        any_size(network, CONSTANTS, one, window)
    dense, _, lifter = any_size(network, CONSTANTS, one, window, "window")
    assert np.abs(dense - every_crop(network, CONSTANTS, one, window, (1, 1))).max() < NORM_ROUNDING
    assert lifter.context_pools == {"norm"}


def test_norms_of_a_signal_need_a_context() -> None:
    """Each value has two axes, channels and positions, and is no vector."""
    network = [
        Op("conv", "convolution_1d", ("image", "kernel1", "shift")),
        norm("conv", 2),
        Op("last", "mean", ("norm",), {"axes": (2,)}),
    ]
    values, one = CONSTANTS | {"kernel1": normal(4, 2, 3)}, normal(2, 2, 7)
    with pytest.raises(Cannot, match="choose context='window'"):
        any_size(network, values, one, (7,))
    dense, _, _ = any_size(network, values, one, (7,), "window")
    assert np.abs(dense - every_crop(network, values, one, (7,), (1,))).max() < NORM_ROUNDING


def test_norms_of_small_and_of_constant_channels() -> None:
    """Variances below one, and none at all: the result then is the shift."""
    kernel = 0.1 * CONSTANTS["kernel"]
    kernel[1] = 0
    values = CONSTANTS | {"kernel": kernel, "shift": 0.1 * CONSTANTS["shift"]}
    network = [
        CONV,
        norm("conv", None),
        Op("last", "reduce", ("norm",), {"reduction": "max", "axes": (2, 3)}),
    ]
    one = normal(2, 2, *WINDOW)
    assert run(network[:1], values, one)["conv"].var((2, 3)).max() < 1
    dense, _, _ = any_size(network, values, one, WINDOW, "window")
    assert np.abs(dense - every_crop(network, values, one, WINDOW, (1, 1))).max() < NORM_ROUNDING
    assert np.abs(dense[:, 1] - values["offset"][1]).max() < NORM_ROUNDING


def test_a_norm_after_a_context_has_its_pools() -> None:
    """So the mean of its columns, which acts on positions, is one of the context too."""
    network = [
        CONV,
        *excitation("conv", "less"),
        norm("less", None),
        Op("column", "mean", ("norm",), {"axes": (2,), "keep": True}),
        Op("without", "subtract", ("norm", "column")),
        Op("last", "reduce", ("without",), {"reduction": "max", "axes": (2, 3)}),
    ]
    one = normal(2, 2, *WINDOW)
    dense, _, lifter = any_size(network, CONSTANTS, one, WINDOW, "window")
    assert np.abs(dense - every_crop(network, CONSTANTS, one, WINDOW, (1, 1))).max() < NORM_ROUNDING
    assert lifter.context_pools == {"less_mean", "norm"}
