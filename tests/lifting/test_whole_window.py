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
        assert output_map(lifter, 1, value) is None
        assert [(r.path, r.kind, r.reason) for r in lifter.refused] == [("", "output 1", reason)]
    unknown = Lifter(numpy_emitter, (6, 5))  # type: ignore[arg-type]
    assert output_map(unknown, 0, Unknown()) is None  # its reason was recorded where it arose
    assert not unknown.refused


@pytest.mark.parametrize(
    ("field", "said"),
    [((40, 20), False), ((41, 20), True), ((20, 81), True), ((10, 80), False), ((41, 50), True)],
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
