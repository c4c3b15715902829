"""Statistics of a window or an image, class maps, operators on one position, and constants beside values.

All values are below 10³ with at most 10² terms in a sum, so rounding stays below 10⁻¹¹ in float64; the variance of a
group norm loses three more digits by its formula E[x²] − E[x]².
"""

from __future__ import annotations

import numpy as np
import pytest

from onebyone.laws.geometry import Geometry
from onebyone.lifting.grid import Grid
from onebyone.lifting.inexact import far_advice
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.output_geometry import output_map
from onebyone.lifting.values import Cannot, Const, Lifted, Unknown
from tests.lifting import numpy_emitter
from tests.lifting.numpy_front_end import Array, Op, any_size, every_crop, run

ROUNDING, NORM_ROUNDING = 1e-11, 1e-8
CONV = Op("conv", "convolution", ("image", "kernel", "shift"))


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape)


CONSTANTS = {
    "kernel": normal(4, 2, 3, 3), "shift": normal(4), "scale": normal(4) + 2, "offset": normal(4),
    "weight": normal(3, 4), "bias": normal(3),
}  # fmt: skip
WINDOW = (7, 6)


def normed(groups: int | None) -> list[Op]:
    """A group norm before the pool of the head."""
    return [
        CONV,
        Op("norm", "group_norm", ("conv", "scale", "offset"), {"groups": groups}),
        Op("relu", "relu", ("norm",)),
        Op("pooled", "mean", ("relu",), {"axes": (2, 3)}),
        Op("last", "linear", ("pooled", "weight", "bias")),
    ]


@pytest.mark.parametrize("groups", [None, 1, 2])
def test_group_norms_over_the_window_or_the_image(groups: int | None) -> None:
    """Refused without a choice. On an image of one window, both choices are the network itself."""
    network, one = normed(groups), normal(2, 2, *WINDOW)
    with pytest.raises(Cannot, match="choose context='window'"):
        any_size(network, CONSTANTS, one, WINDOW)
    expected = every_crop(network, CONSTANTS, one, WINDOW, (1, 1))
    dense, _, lifter = any_size(network, CONSTANTS, one, WINDOW, "window")
    assert np.abs(dense - expected).max() < NORM_ROUNDING
    assert lifter.context_pools == {"norm"}
    assert "taken over the window: neighbouring windows share their positions" in lifter.inexact[0]
    wide = {"image_wide": frozenset({"norm"})}
    dense, _, lifter = any_size(network, CONSTANTS, one, WINDOW, "image", **wide)
    assert np.abs(dense - expected).max() < NORM_ROUNDING

    image = normal(1, 2, 12, 11)  # the statistics of the whole map, then the means of each window
    dense, _, _ = any_size(network, CONSTANTS, image, WINDOW, "image", **wide)
    active = run(network[:3], CONSTANTS, image)["relu"]
    means = np.lib.stride_tricks.sliding_window_view(active, (5, 4), (2, 3)).mean((4, 5))
    expected = np.einsum("nchw,oc->nohw", means, CONSTANTS["weight"]) + CONSTANTS["bias"][:, None, None]
    assert dense.shape == expected.shape == (1, 3, 6, 6)
    assert np.abs(dense - expected).max() < NORM_ROUNDING


def test_group_norms_of_one_position_run_on_each() -> None:
    """On vectors, and on maps whose window has one position; groups of channels there."""
    pooled = Op("pooled", "mean", ("conv",), {"axes": (2, 3)})
    network = [CONV, pooled, Op("norm", "group_norm", ("pooled", "scale", "offset"), {"groups": 2})]
    image = normal(2, 2, 12, 11)
    dense, stride, lifter = any_size(network, CONSTANTS, image, WINDOW)
    assert not lifter.inexact
    assert np.abs(dense - every_crop(network, CONSTANTS, image, WINDOW, stride)).max() < NORM_ROUNDING


@pytest.mark.parametrize("reduction", ["max", "min", "mean", "sum", "norm"])
def test_pools_over_the_image(reduction: str) -> None:
    """Sums and norms count as many positions as a window has, so that they are those of windows."""
    network = [
        CONV,
        Op("context", "reduce", ("conv",), {"reduction": reduction, "axes": (2, 3), "keep": True}),
        Op("less", "subtract", ("conv", "context")),
        Op("pooled", "mean", ("less",), {"axes": (2, 3)}),
    ]
    image = normal(1, 2, 12, 11)
    dense, _, _ = any_size(network, CONSTANTS, image, WINDOW, "image", image_wide=frozenset({"context"}))
    conv = run(network[:1], CONSTANTS, image)["conv"]
    positions, share = conv.shape[2] * conv.shape[3], 5 * 4
    whole = {
        "max": conv.max((2, 3)),
        "min": conv.min((2, 3)),
        "mean": conv.mean((2, 3)),
        "sum": conv.sum((2, 3)) * share / positions,
        "norm": np.sqrt((conv**2).sum((2, 3)) * share / positions),
    }[reduction]
    means = np.lib.stride_tricks.sliding_window_view(conv, (5, 4), (2, 3)).mean((4, 5))
    assert np.abs(dense - (means - whole[:, :, None, None])).max() < ROUNDING


def test_a_class_map_leaves_the_pool_out() -> None:
    """The classifier at each position of the map; its means over a window are the window's results."""
    network = [
        CONV,
        Op("relu", "relu", ("conv",)),
        Op("pooled", "mean", ("relu",), {"axes": (2, 3)}),
        Op("last", "linear", ("pooled", "weight", "bias")),
    ]
    image = normal(2, 2, 12, 11)
    _, _, plain = any_size(network, CONSTANTS, image, WINDOW)
    assert not plain.left_out
    classes = numpy_map(network, image, head="cam")
    assert classes.shape == (2, 3, 10, 9)
    assert (
        np.abs(
            classes[:, :, :5, :4].mean((2, 3)) - run(network, CONSTANTS, image[:, :, :7, :6])["last"]
        ).max()
        < ROUNDING
    )
    maxima = [CONV, Op("pooled", "reduce", ("conv",), {"reduction": "max", "axes": (2, 3)})]
    dense, _, lifter = any_size(maxima, CONSTANTS, image, WINDOW, head="cam")
    assert not lifter.left_out  # a maximum does not commute with the classifier
    assert dense.shape == (2, 4, 6, 6)
    with pytest.raises(Cannot, match="head='cam' needs an average pool before the classifier, not variance"):
        any_size(
            [CONV, Op("v", "variance", ("conv",), {"axes": (2, 3)})], CONSTANTS, image, WINDOW, head="cam"
        )


def numpy_map(network: list[Op], image: Array, **settings: str) -> Array:
    """The whole map of the last value; `any_size` crops it to whole windows."""
    larger = np.pad(image, [(0, 0), (0, 0), (0, 4), (0, 3)])
    dense, _, lifter = any_size(network, CONSTANTS, larger, WINDOW, **settings)
    assert lifter.left_out == {"pooled": ((5, 4), (1, 1))}
    assert lifter.changes[0].after == "left out (class map)"
    return dense


def test_an_operator_of_fewer_axes_runs_on_each_position() -> None:
    """A one-dimensional convolution of pooled features, made a signal of two channels and four elements."""
    network = [
        Op("conv", "convolution", ("image", "kernel8", "shift8")),
        Op("pooled", "mean", ("conv",), {"axes": (2, 3)}),
        Op("signal", "reshape", ("pooled",), {"shape": (2, 4)}),
        Op("out", "convolution_1d", ("signal", "kernel1", "shift1")),
        Op("flat", "reshape", ("out",), {"shape": (9,)}),
    ]
    values = {
        "kernel8": normal(8, 2, 3, 3), "shift8": normal(8), "kernel1": normal(3, 2, 2), "shift1": normal(3),
    }  # fmt: skip
    image = normal(2, 2, 12, 11)
    dense, stride, lifter = any_size(network, values, image, WINDOW)
    assert not lifter.inexact
    assert np.abs(dense - every_crop(network, values, image, WINDOW, stride)).max() < ROUNDING


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("first", [False, True])
def test_constants_of_one_number_beside_a_map(axis: int, first: bool) -> None:
    shape = [2, 4, 5, 4]
    shape[axis] = 2
    parts = ("known", "conv") if first else ("conv", "known")
    features = 80 // (4, 5, 4)[axis - 1] * ((4, 5, 4)[axis - 1] + 2)
    network = [
        CONV,
        Op("both", "concatenate", parts, {"axis": axis}),
        Op("flat", "reshape", ("both",), {"shape": (features,)}),
        Op("last", "linear", ("flat", "wide", "bias")),
    ]
    values = CONSTANTS | {"known": np.full(shape, 1.5), "wide": normal(3, features)}
    image = normal(2, 2, 12, 11)
    dense, stride, lifter = any_size(network, values, image, WINDOW)
    assert not lifter.inexact
    assert np.abs(dense - every_crop(network, values, image, WINDOW, stride)).max() < ROUNDING
    for name, number in (("learned", np.full(shape, 1.5)), ("known_others", normal(*shape))):
        other = [CONV, Op("both", "concatenate", ("conv", name), {"axis": axis})]
        with pytest.raises(Cannot, match="a constant is concatenated with values that depend on the image"):
            any_size(other, values | {name: number}, image, WINDOW)


def test_a_batch_norm_by_position_needs_a_linear_layer_after_it() -> None:
    flat = [CONV, Op("flat", "reshape", ("conv",), {"shape": (80,)})]
    norm = Op("norm", "batch_norm", ("flat", "centre", "variance"))
    values = CONSTANTS | {"centre": normal(80), "variance": normal(80) ** 2 + 1, "two": np.asarray(2.0)}
    image = normal(1, 2, 12, 11)
    rearranged = Op("turned", "slice", ("norm",), {"window": (slice(None), slice(None, None, -1))})
    message = "a vector with constants that depend on the position is rearranged"
    with pytest.raises(Cannot, match=message):
        any_size([*flat, norm, rearranged], values, image, WINDOW)
    for after in (Op("relu", "relu", ("norm",)), Op("sum", "add", ("norm", "two"))):
        with pytest.raises(
            Cannot, match="only a linear layer can absorb constants that depend on the position"
        ):
            any_size([*flat, norm, after], values, image, WINDOW)
    joined = Op("both", "concatenate", ("norm", "flat"), {"axis": 1})
    with pytest.raises(Cannot, match="a constant is concatenated"):
        any_size([*flat, norm, joined], values, image, WINDOW)


def test_outputs_that_are_not_vectors_of_windows_are_refused() -> None:
    grid = Grid.image(3, (6, 5))
    for value, reason in (
        (Lifted("map", grid), "gives a map of 6×5 positions for one window, not a vector"),
        (Const("number", ()), "does not depend on the position in the image"),
        (Lifted("map", grid, affine=("a", "b")), "does not depend on the position in the image"),
    ):
        lifter = Lifter(numpy_emitter, (6, 5))  # type: ignore[arg-type]
        output_map(lifter, 1, value)
        assert [(r.path, r.kind, r.reason) for r in lifter.refused] == [("", "output 1", reason)]
    unknown = Lifter(numpy_emitter, (6, 5))  # type: ignore[arg-type]
    output_map(unknown, 0, Unknown())  # its reason was recorded where it arose
    assert not unknown.refused


@pytest.mark.parametrize(
    ("field", "said"), [((40, 20), False), ((41, 20), True), ((20, 81), True), ((10, 80), False)]
)
def test_advice_where_the_receptive_field_is_far_larger_than_the_window(
    field: tuple[int, int], said: bool
) -> None:
    """More than four windows on one axis; an exact network needs none."""
    geometry = Geometry((10, 20), (2, 2), (0, 0), field, (0, 0), False, ("padding",))
    advice = far_advice(geometry)
    assert bool(advice) == said
    if said:
        ratio = max(field[0] / 10, field[1] / 20)
        assert (
            f"{field[0]}×{field[1]} pixels is {ratio:.3g} times the window of 10×20 (more than 4)"
            in advice[0]
        )
        assert "Measure that with verify; mode='windows' of scan crops every window instead" in advice[0]
    assert far_advice(Geometry((10, 20), (2, 2), (0, 0), field, (0, 0), True)) == ()


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
        with pytest.raises(
            Cannot, match=r"interpolation from \(5, 4\) to .* positions, which is not a whole factor"
        ):
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
    dense, stride, lifter = any_size(network, values, image, WINDOW)
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
