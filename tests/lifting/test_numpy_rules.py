"""More rules on the NumPy front end: pools, reductions, norms, operators along axes, padding, signals, selections.

Each network is run on a larger image and on every crop. All arrays are float64, and no value is larger than about 10³
with at most 10² terms in a sum, so that rounding stays below 10⁻¹¹.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onebyone.errors import Refused
from onebyone.lifting.class_map import ClassMapStep, left_out_pool, window_of_class_map
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call
from onebyone.lifting.values import Cannot
from tests.lifting import numpy_emitter
from tests.lifting.numpy_front_end import Array, Op, any_size, every_crop

ROUNDING = 1e-11
CONV = Op("conv", "convolution", ("image", "kernel", "shift"))


def constants(**more: Array) -> dict[str, Array]:
    """A kernel of 3×3 from two to four channels, and others."""
    rng = np.random.default_rng(7)
    return {"kernel": rng.normal(size=(4, 2, 3, 3)), "shift": rng.normal(size=4), **more}


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def assert_equals_crops(
    network: list[Op],
    values: Mapping[str, Array],
    window: tuple[int, ...] = (6, 5),
    size: tuple[int, ...] = (10, 11),
) -> Lifter:
    """Every window of a larger image has the result of its crop."""
    image = normal(2, 2, *size)
    dense, stride, lifter = any_size(network, values, image, window, came_through=frozenset({"before"}))
    crops = every_crop(network, values, image, window, stride)
    assert not lifter.inexact
    assert dense.shape == crops.shape
    assert max(crops.shape[2:]) > 1
    assert np.abs(dense - crops).max() < ROUNDING
    return lifter


def head(features: int, source: str) -> list[Op]:
    """A flattened value and a linear layer on it, which tells its elements apart."""
    return [
        Op("flat", "reshape", (source,), {"shape": (features,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]


def with_head(features: int, **more: Array) -> dict[str, Array]:
    return constants(weight=normal(3, features), bias=normal(3), **more)


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min", "norm"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (1, 3), (2, 3), (1, 2, 3)])
def test_reductions(reduction: str, keep: bool, axes: tuple[int, ...]) -> None:
    """A map of 4 channels and 4×3 positions, over channels and positions."""
    settings = {"reduction": reduction, "axes": axes, "keep": keep}
    left = 48 // int(np.prod([(4, 4, 3)[a - 1] for a in axes]))
    lifter = assert_equals_crops(
        [CONV, Op("out", "reduce", ("conv",), settings), *head(left, "out")], with_head(left)
    )
    if axes == (2, 3):
        change = lifter.changes[0]
        assert (change.law, change.before, change.after, change.copied_bytes) == (
            "global pool = pool over the window", "pool over the map", "4×3 pool at stride 1", 0
        )  # fmt: skip


@pytest.mark.parametrize("reduction", ["sum", "norm", "max"])
def test_reductions_of_some_channels_and_of_every_second_position(reduction: str) -> None:
    every = slice(None)
    for window, left in (
        ((every, slice(1, 3)), 24),
        ((every, every, slice(None, None, 2)), 24),
        ((every, slice(None, None, -1), every, slice(1, 2)), 16),
    ):
        for axes in ((1,), (2,), (1, 2), (2, 3), (1, 2, 3)):
            shape = np.empty((4, 4, 3))[window[1:]].shape
            count = left // int(np.prod([shape[a - 1] for a in axes]))
            network = [
                CONV,
                Op("part", "slice", ("conv",), {"window": window}),
                Op("out", "reduce", ("part",), {"reduction": reduction, "axes": axes, "keep": left == 24}),
                *head(count, "out"),
            ]
            assert_equals_crops(network, with_head(count))


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [
    ((2, 2), (2, 2), (1, 1)), ((3, 2), (1, 2), (1, 1)), ((4, 3), (1, 1), (1, 1)), ((4, 3), (4, 3), (1, 1)),
    ((1, 3), (2, 1), (1, 1)), ((2, 2), (1, 1), (2, 1)), ((2, 2), (1, 1), (3, 2)),
])  # fmt: skip
def test_pools(reduction: str, kernel: Any, stride: Any, dilation: Any) -> None:
    """Over positions; kernels of the whole map of 4×3 positions are global pools."""
    if reduction == "mean" and dilation != (1, 1):
        return  # no framework has dilated means
    settings = {"reduction": reduction, "kernel": kernel, "stride": stride, "dilation": dilation}
    counts = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip((4, 3), kernel, stride, dilation, strict=True)
    ]
    features = 4 * int(np.prod(counts))
    lifter = assert_equals_crops(
        [CONV, Op("out", "pool", ("conv",), settings), *head(features, "out")], with_head(features)
    )
    assert (lifter.changes[0].law == "global pool = pool over the window") == (kernel == (4, 3))


@pytest.mark.parametrize("equation", ["nchw,w->nchw", "nchw,hwo->nco", "nchw,chw->nchw"])
def test_products_with_a_constant_by_position_are_refused(equation: str) -> None:
    shape = tuple({"c": 4, "h": 4, "w": 3, "o": 5}[c] for c in equation.split(",")[1].split("->")[0])
    network = [CONV, Op("out", "einsum", ("conv", "factor"), {"equation": equation})]
    with pytest.raises(Cannot, match=r"depends on the position|positions are mixed channel by channel"):
        any_size(network, constants(factor=normal(*shape)), normal(1, 2, 8, 8), (6, 5))


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("kernel", [(2, 1, 1), (2, 2, 1), (4, 4, 3), (3, 2, 3)])
def test_pools_over_channels_and_positions(reduction: str, kernel: tuple[int, ...]) -> None:
    """Three axes for an image of two: the channels are pooled too."""
    stride = (1, 2, 1)
    settings = {"reduction": reduction, "kernel": kernel, "stride": stride}
    counts = [(n - k) // s + 1 for n, k, s in zip((4, 4, 3), kernel, stride, strict=True)]
    features = int(np.prod(counts))
    network = [CONV, Op("out", "pool", ("conv",), settings), *head(features, "out")]
    assert_equals_crops(network, with_head(features))


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("bins", [(1, 1), (2, 1), (2, 3), (4, 3), (3, 2), (1, 2), (4, 1), (6, 3)])
def test_adaptive_pools(reduction: str, bins: tuple[int, int]) -> None:
    """Of 4×3 positions: bins of one size, bins that overlap, and more bins than positions."""
    features = 4 * int(np.prod(bins))
    network = [
        CONV,
        Op("out", "adaptive", ("conv",), {"reduction": reduction, "bins": bins}),
        *head(features, "out"),
    ]
    assert_equals_crops(network, with_head(features))


def test_adaptive_pools_over_other_axes_or_of_too_many_bins_are_refused() -> None:
    for bins, message in (
        ((2, 2, 2), "adaptive pooling over other axes than the image's 2"),
        ((200, 100), r"adaptive pooling from \(4, 3\) to \(200, 100\) positions, in bins of different sizes"),
    ):
        network = [CONV, Op("out", "adaptive", ("conv",), {"reduction": "max", "bins": bins})]
        with pytest.raises(Cannot, match=message):
            any_size(network, constants(), normal(1, 2, 8, 8), (6, 5))


@pytest.mark.parametrize("root_mean_square", [False, True])
@pytest.mark.parametrize(("order", "axes", "shape"), [
    ((0, 2, 3, 1), 1, (4,)), ((0, 1, 2, 3), 3, (4, 4, 3)), ((0, 3, 2, 1), 2, (4, 4)), ((0, 2, 1, 3), 2, (4, 3)),
])  # fmt: skip
def test_layer_norms(root_mean_square: bool, order: Any, axes: int, shape: tuple[int, ...]) -> None:
    """Over the channels of each position, over some of the positions, and over the whole window."""
    network = [
        CONV,
        Op("turned", "transpose", ("conv",), {"order": order}),
        Op(
            "out",
            "layer_norm",
            ("turned", "scale", "offset"),
            {"axes": axes, "root_mean_square": root_mean_square},
        ),
        *head(48, "out"),
    ]
    assert_equals_crops(network, with_head(48, scale=normal(*shape) + 2, offset=normal(*shape)))


@pytest.mark.parametrize("kind", ["softmax", "cumsum"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_operators_along_one_axis(kind: str, axis: int) -> None:
    assert_equals_crops([CONV, Op("out", kind, ("conv",), {"axis": axis}), *head(48, "out")], with_head(48))


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2), (2, 3), (1, 2, 3)])
def test_statistics_in_which_the_order_has_no_meaning(axes: tuple[int, ...]) -> None:
    left = 48 // int(np.prod([(4, 4, 3)[a - 1] for a in axes]))
    lifter = assert_equals_crops(
        [CONV, Op("out", "variance", ("conv",), {"axes": axes}), *head(left, "out")], with_head(left)
    )
    laws = [c.law for c in lifter.changes]
    assert ("global pool = pool over the window" in laws) == (axes != (1,))


def test_convolutions_with_dilation_and_groups() -> None:
    network = [
        CONV,
        Op("out", "dilated", ("conv", "kernel2", "shift2"), {"dilation": 2, "groups": 2}),
        *head(6 * 2, "out"),
    ]
    values = with_head(12, kernel2=normal(6, 2, 2, 2), shift2=normal(6))
    assert_equals_crops(network, values)


def test_a_kernel_over_the_whole_map_with_any_stride() -> None:
    network = [CONV, Op("last", "convolution", ("conv", "kernel2", "shift2"), {"stride": 3})]
    assert_equals_crops(network, constants(kernel2=normal(5, 4, 4, 4), shift2=normal(5)), (6, 6), (9, 10))


@pytest.mark.parametrize("axis", [1, 2, 3, 4])
def test_stacked_values(axis: int) -> None:
    """Of two maps, and of two parts of one."""
    other = Op("other", "convolution", ("image", "kernel2", "shift"))
    flipped = Op("flipped", "slice", ("conv",), {"window": (slice(None), slice(None, None, -1))})
    for second in (other, flipped):
        network = [
            CONV,
            second,
            Op("out", "stack", ("conv", second.result), {"axis": axis}),
            *head(96, "out"),
        ]
        assert_equals_crops(network, with_head(96, kernel2=normal(4, 2, 3, 3)))


@pytest.mark.parametrize(("axis", "index"), [(1, [2, 0, 2]), (2, [3, 1]), (3, [0, 0, 2, 1])])
def test_selected_elements(axis: int, index: list[int]) -> None:
    features = 48 // (4, 4, 3)[axis - 1] * len(index)
    network = [CONV, Op("out", "select", ("conv", "index"), {"axis": axis}), *head(features, "out")]
    assert_equals_crops(network, with_head(features, index=np.array(index)))


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 2), (1, 3)])
def test_padding_of_channels_puts_a_constant_beside_them(before: int, after: int) -> None:
    amounts = [(before, after), (0, 0), (0, 0)]
    features = (4 + before + after) * 12
    network = [CONV, Op("out", "pad", ("conv",), {"amounts": amounts, "number": 1.5}), *head(features, "out")]
    assert_equals_crops(network, with_head(features))


def test_padding_of_positions_is_not_exact() -> None:
    network = [CONV, Op("out", "pad", ("conv",), {"amounts": [(1, 1), (0, 2)]}), *head(4 * 6 * 5, "out")]
    image = normal(1, 2, 6, 5)
    dense, _, lifter = any_size(network, with_head(120), image, (6, 5))
    assert lifter.inexact == ["out (pad): padding 1×0+2 affects crops but not the interior of a larger image"]
    crops = every_crop(network, with_head(120), image, (6, 5), (1, 1))
    assert np.abs(dense - crops).max() < ROUNDING  # on an image of one window
    four = [CONV, Op("out", "pad", ("conv",), {"amounts": [(0, 0)] * 4})]
    with pytest.raises(Cannot, match="padding of the batch"):
        any_size(four, constants(), image, (6, 5))


def test_products_with_a_constant_on_the_left_or_of_several_axes() -> None:
    for equation, shape, features in (
        ("nchw,cko->nkohw", (4, 2, 3), 72),
        ("nchw,ch->nw", (4, 4), 3),
        ("nchw,c->nchw", (4,), 48),
        ("nchw,co->nowh", (4, 5), 60),
    ):
        network = [
            CONV,
            Op("out", "einsum", ("conv", "factor"), {"equation": equation}),
            *head(features, "out"),
        ]
        assert_equals_crops(network, with_head(features, factor=normal(*shape)))


def test_products_that_are_not_of_every_window_are_refused() -> None:
    for operands, equation, message in (
        (("conv",), "nccw->ncw", "takes a diagonal"),
        (("conv", "factor", "factor"), "nchw,co,op->nphw", "more than two operands"),
        (("conv", "factor"), "nchw,co->ohw", "the batch axis is summed over or moved"),
        (("conv", "factor"), "nchw,no->nchwo", "a constant made for each sample of the batch"),
        (("conv", "conv"), "nchw,nohw->nco", "attention|depend on the image"),
    ):
        network = [Op("conv", "reshape", ("image",), {"shape": (2, 2, 2)})]
        network += [Op("out", "einsum", operands, {"equation": equation})]
        values = {"factor": normal(2, 2)}
        with pytest.raises(Cannot, match=message):
            any_size(network, values, normal(1, 2, 4, 4), (2, 2))


def test_a_signal_with_a_second_axis_of_one_element() -> None:
    """Two-dimensional layers on a signal, as CREPE has them: a kernel of 3×1, and one of 3×3 on zeros."""
    for width, padding in ((1, 0), (3, 1)):
        network = [
            Op("wide", "reshape", ("image",), {"shape": (2, 12, 1)}),
            Op("conv", "wide_convolution", ("wide", "kernel", "shift"), {"padding": padding}),
            Op("pool", "pool", ("conv",), {"reduction": "max", "kernel": (2, 1), "stride": (2, 1)}),
            Op("mean", "pool", ("pool",), {"reduction": "mean", "kernel": (3, 1), "stride": (1, 1)}),
            *head(4 * 3, "mean"),
        ]
        values = with_head(12) | {"kernel": normal(4, 2, 3, width)}
        assert_equals_crops(network, values, (12,), (19,))


def test_a_linear_layer_whose_weight_is_transposed() -> None:
    network = [
        CONV,
        Op("turned", "transpose", ("conv",), {"order": (0, 2, 3, 1)}),
        Op("each", "linear_in", ("turned", "square")),
        *head(60, "each"),
    ]
    lifter = assert_equals_crops(network, with_head(60, square=normal(4, 5)))
    assert [layer.law for layer in lifter.linear_layers] == [
        "linear = pointwise convolution", "flatten∘linear = convolution without padding"
    ]  # fmt: skip
    assert [(layer.transposed, layer.axis) for layer in lifter.linear_layers] == [(True, -1), (False, -1)]


# class maps


def step(key: str, operands: list[str], affine: bool = True, result: str = "") -> ClassMapStep:
    return ClassMapStep(key, f"the {key}", operands, [result or key], lambda _after: affine)


def lifter_without(*pools: str, kernel: tuple[int, int] = (4, 3)) -> Lifter:
    made = Lifter(numpy_emitter, (8, 8), head="cam")  # type: ignore[arg-type]
    made.left_out = dict.fromkeys(pools, (kernel, (2, 2)))
    return made


CLASSIFIER = [step("conv", ["image"]), step("pool", ["conv"]), step("linear", ["pool"])]


def test_the_pool_that_a_class_map_leaves_out() -> None:
    assert left_out_pool(lifter_without("pool"), CLASSIFIER, ["linear"]) == ((4, 3), (), (2, 2))
    relu = [*CLASSIFIER, step("relu", ["linear"], affine=False), step("softmax", ["relu"], affine=False)]
    assert left_out_pool(lifter_without("pool"), relu, ["softmax", None])[1] == ("the relu", "the softmax")
    twice = [*relu, step("relu", ["softmax"], affine=False, result="again")]
    assert left_out_pool(lifter_without("pool"), twice, ["again"])[1] == ("the relu", "the softmax")
    before = [step("relu", ["image"], affine=False), *CLASSIFIER]
    assert left_out_pool(lifter_without("pool"), before, ["linear"])[1] == ()


def test_networks_without_a_class_map() -> None:
    none = lifter_without()
    excited = lifter_without("pool")
    excited.context_pools = {"pool"}
    two = lifter_without("pool")
    two.left_out["other"] = ((2, 2), (4, 4))
    beside = [*CLASSIFIER, step("sum", ["linear", "conv"])]
    for lifter, steps, outputs, message in (
        (none, CLASSIFIER, ["linear"], "the network has no average pool over several positions"),
        (excited, CLASSIFIER, ["linear"], "the network has no average pool over several positions"),
        (two, CLASSIFIER, ["linear"], "pools that differ: .*positions at stride.* and "),
        (lifter_without("pool"), beside, ["sum"],
         "at the sum the pooled map is combined with values that do not come through the pool"),
        (lifter_without("pool"), CLASSIFIER, ["linear", "conv"], "output 1 does not come through the average pool"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=message):
            left_out_pool(lifter, steps, outputs)
    with pytest.raises(Refused) as error:
        left_out_pool(none, CLASSIFIER, ["linear"])
    assert [(r.path, r.kind) for r in error.value.refusals] == [("", "head='cam'")]


def test_two_equal_pools_are_one_class_map() -> None:
    steps = [step("conv", ["image"]), step("a", ["conv"]), step("b", ["conv"]), step("sum", ["a", "b"])]
    assert left_out_pool(lifter_without("a", "b"), steps, ["sum"]) == ((4, 3), (), (2, 2))


def test_the_window_of_a_class_map() -> None:
    """One position of the pool's map: the window less the other positions of the pool."""
    assert window_of_class_map((4, 3), (2, 8), (2, 8), (30, 40)) == (24, 24)
    with pytest.raises(Refused, match="the outputs are at stride 4×8 and the pool's map at 2×8"):
        window_of_class_map((4, 3), (2, 8), (4, 8), (30, 40))


def test_refusals_and_reasons_are_recorded_once() -> None:
    lifter = lifter_without()
    call = Call("aten.pad", "head.0", "pad_1", ((1,),), np.float64, (), lambda: None)
    for _ in range(2):
        lifter.refuse("head.0", "aten.sort", "no meaning")
        lifter.not_exact(call, "because")
    assert [(r.path, r.kind, r.reason) for r in lifter.refused] == [("head.0", "aten.sort", "no meaning")]
    assert lifter.inexact == ["head.0 (aten.pad): because"]
