"""The rules on a NumPy front end, without any framework: every window of a larger image gives what its crop gives.

All arrays are float64, and no value is larger than about 10³ with at most 10² terms in a sum, so that rounding stays
below 10³ · 10² · 2⁻⁵³ ≈ 10⁻¹¹. A wrong operand, channel or position changes results by more than 10⁻³.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tests.lifting.numpy_front_end import Array, Op, any_size, every_crop

ROUNDING = 1e-11
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape)


def assert_equals_crops(
    network: Sequence[Op],
    constants: Mapping[str, Array],
    window: tuple[int, int],
    size: tuple[int, int],
    channels: int = 2,
) -> tuple[int, ...]:
    """The any-size network against each crop; gives the stride."""
    image = normal(2, channels, *size)
    dense, stride, lifter = any_size(network, constants, image, window, came_through=frozenset({"before"}))
    assert not lifter.inexact
    crops = every_crop(network, constants, image, window, stride)
    assert dense.shape == crops.shape
    assert min(crops.shape[2:]) > 1
    assert np.abs(dense - crops).max() < ROUNDING
    return stride


PLAIN = [
    Op("conv", "convolution", ("image", "kernel", "shift")),
    Op("relu", "relu", ("conv",)),
    Op("pool", "max_pool", ("relu",), {"size": 2}),
    Op("turned", "transpose", ("pool",), {"order": (0, 2, 3, 1)}),
    Op("flat", "reshape", ("turned",), {"shape": (36,)}),
    Op("first", "linear", ("flat", "weight", "bias")),
    Op("active", "relu", ("first",)),
    Op("last", "linear", ("active", "weight2", "bias2")),
]
RESIDUAL = [
    Op("conv", "convolution", ("image", "kernel", "shift"), {"stride": 2}),
    Op("body", "convolution", ("conv", "kernel2", "shift2")),
    Op("crop", "slice", ("conv",), {"window": (slice(None), slice(None), slice(1, -1), slice(1, -1))}),
    Op("sum", "add", ("crop", "body")),
    Op("flat", "reshape", ("sum",), {"shape": (4 * 9,)}),
    Op("last", "linear", ("flat", "weight", "bias")),
]
POOLED = [
    Op("conv", "convolution", ("image", "kernel", "shift"), {"stride": 2}),
    Op("relu", "relu", ("conv",)),
    Op("pooled", "mean", ("relu",), {"axes": (2, 3)}),
    Op("last", "linear", ("pooled", "weight", "bias")),
]
FIRST = {"kernel": normal(4, 2, 3, 3), "shift": normal(4)}


def test_convolutions_flatten_and_linear_layers() -> None:
    head = {"weight": normal(7, 36), "bias": normal(7), "weight2": normal(3, 7), "bias2": normal(3)}
    assert assert_equals_crops(PLAIN, FIRST | head, (8, 8), (15, 12)) == (2, 2)


def test_a_pointwise_convolution_of_a_flattened_map_is_one_convolution_on_windows() -> None:
    """As `convert` writes a linear layer: the map has no channel for each of the 36 elements that it reads."""
    flat = Op("flat", "reshape", ("turned",), {"shape": (36, 1, 1)})
    network = [*PLAIN[:4], flat, Op("last", "convolution", ("flat", "kernel2", "shift2"))]
    head = {"kernel2": normal(5, 36, 1, 1), "shift2": normal(5)}
    assert assert_equals_crops(network, FIRST | head, (8, 8), (15, 12)) == (2, 2)
    _, _, lifter = any_size(network, FIRST | head, normal(1, 2, 15, 12), (8, 8))
    assert [(c.law, c.before, c.after) for c in lifter.changes] == [
        (
            "flatten∘linear = convolution without padding",
            "1×1 convolution (5, 36)",
            "3×3 convolution (5, 4, 3, 3)",
        )
    ]


def test_a_pointwise_convolution_of_patches_keeps_their_positions() -> None:
    """Patches of 2×3 become channels by a reshape, then a 1×1 convolution maps them, then a linear layer all four."""
    network = [
        Op("split", "reshape", ("image",), {"shape": (2, 2, 2, 2, 3)}),
        Op("turned", "transpose", ("split",), {"order": (0, 1, 3, 5, 2, 4)}),
        Op("patches", "reshape", ("turned",), {"shape": (12, 2, 2)}),
        Op("mapped", "convolution", ("patches", "kernel", "shift")),
        Op("flat", "reshape", ("mapped",), {"shape": (20,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = {
        "kernel": normal(5, 12, 1, 1), "shift": normal(5), "weight": normal(3, 20), "bias": normal(3)
    }  # fmt: skip
    assert assert_equals_crops(network, constants, (4, 6), (10, 15)) == (2, 3)


def test_a_residual_connection() -> None:
    body = {"kernel2": normal(4, 4, 3, 3), "shift2": normal(4), "weight": normal(3, 36), "bias": normal(3)}
    assert assert_equals_crops(RESIDUAL, FIRST | body, (11, 11), (18, 16)) == (2, 2)


def test_a_pooled_head() -> None:
    head = {"weight": normal(3, 4), "bias": normal(3)}
    assert assert_equals_crops(POOLED, FIRST | head, (9, 7), (17, 12)) == (2, 2)


# which operand is which


CHANNEL, POSITIVE = np.array([0.5, 1.5])[:, None, None], [Op("x", "relu", ("image",))]
OPERATORS = ("subtract", "divide", "power", "greater")


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize(
    "constant", [np.asarray(1.7), np.full((1, 1, 1), 1.7), CHANNEL], ids=lambda c: str(c.shape)
)
def test_operands_of_a_map_and_a_constant_keep_their_order(
    kind: str, constant_first: bool, constant: Array
) -> None:
    operands = ("constant", "away") if constant_first else ("away", "constant")
    network = [
        Op("x", "relu", ("image",)),
        Op("away", "add", ("x", "one")),  # at least 1, so that quotients and powers stay small
        Op("both", kind, operands),
        Op("flat", "reshape", ("both",), {"shape": (2 * 9,)}),
    ]
    assert_equals_crops(network, {"constant": constant, "one": np.asarray(1.0)}, (3, 3), (5, 6))


#: How the second of two maps is made from the first.
PAIRS: dict[str, list[Op]] = {
    "the image and what is computed from it": [Op("b", "max_pool", ("one",), {"size": 1})],
    "channels in the opposite order": [
        Op("b", "slice", ("one",), {"window": (slice(None), slice(None, None, -1))})
    ],
    "one channel for all": [Op("b", "slice", ("one",), {"window": (slice(None), slice(0, 1))})],
}


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_operands_of_two_maps_keep_their_order(kind: str, swapped: bool, pair: str) -> None:
    network = [
        Op("relu", "relu", ("image",)),
        Op("one", "add", ("relu", "one_number")),
        *PAIRS[pair],
        Op("a", "add", ("one", "half")),
        Op("both", kind, ("b", "a") if swapped else ("a", "b")),
        Op("flat", "reshape", ("both",), {"shape": (2 * 9,)}),
    ]
    constants = {"one_number": np.asarray(1.0), "half": np.asarray(0.5)}
    assert_equals_crops(network, constants, (3, 3), (5, 6))


@pytest.mark.parametrize("swapped", [False, True])
def test_maps_of_different_extents_keep_their_order(swapped: bool) -> None:
    """Branches with different receptive fields: a 3×3 convolution, and the image cropped at its near edge."""
    crop = {"window": (slice(None), slice(None), slice(2, None), slice(2, None))}
    network = [
        Op("conv", "convolution", ("image", "kernel", "shift")),
        Op("near", "slice", ("image",), crop),
        Op("both", "subtract", ("near", "conv") if swapped else ("conv", "near")),
        Op("flat", "reshape", ("both",), {"shape": (2 * 9,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = {
        "kernel": normal(2, 2, 3, 3), "shift": normal(2), "weight": normal(3, 18), "bias": normal(3),
    }  # fmt: skip
    assert_equals_crops(network, constants, (5, 5), (8, 9))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("size", [(7, 8), (8, 9), (9, 11)])
def test_maps_whose_extents_differ_at_some_image_sizes(swapped: bool, size: tuple[int, int]) -> None:
    """⌊(n - 3) / 2⌋ + 1 positions of a convolution, and ⌊n / 2⌋ of a pool: one more where n is even."""
    network = [
        Op("conv", "convolution", ("image", "kernel", "shift"), {"stride": 2}),
        Op("pool", "max_pool", ("image",), {"size": 2}),
        Op("near", "slice", ("pool",), {"window": (slice(None), slice(None), slice(2), slice(2))}),
        Op("both", "subtract", ("near", "conv") if swapped else ("conv", "near")),
        Op("flat", "reshape", ("both",), {"shape": (2 * 4,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = {
        "kernel": normal(2, 2, 3, 3), "shift": normal(2), "weight": normal(3, 8), "bias": normal(3),
    }  # fmt: skip
    image = normal(2, 2, *size)
    dense, stride, _ = any_size(network, constants, image, (6, 6))
    crops = every_crop(network, constants, image, (6, 6), stride)
    assert dense.shape == crops.shape
    assert np.abs(dense - crops).max() < ROUNDING


@pytest.mark.parametrize("constant_first", [False, True])
def test_the_side_of_a_matrix_product(constant_first: bool) -> None:
    """W·X mixes the rows of X, X·W its columns; both are square here, so that a swap would keep every shape."""
    network = [
        Op("conv", "convolution", ("image", "kernel", "shift")),
        Op("pooled", "mean", ("conv",), {"axes": (2, 3)}),
        Op("matrix", "reshape", ("pooled",), {"shape": (2, 2)}),
        Op("last", "matmul", ("weight", "matrix") if constant_first else ("matrix", "weight")),
    ]
    constants = FIRST | {"weight": normal(2, 2)}
    assert_equals_crops(network, constants, (5, 5), (7, 8))


# layouts


CONVOLVED = [
    Op("conv", "convolution", ("image", "kernel", "shift")),
    Op("other", "convolution", ("image", "kernel2", "shift2")),
]
CONVOLVED_CONSTANTS = FIRST | {"kernel2": normal(6, 2, 3, 3), "shift2": normal(6)}


def test_maps_of_different_layouts() -> None:
    """Channels last, from a map of four channels and from four channels of six."""
    every = slice(None)
    network = [
        *CONVOLVED,
        Op("a", "transpose", ("conv",), {"order": (0, 2, 3, 1)}),
        Op("four", "slice", ("other",), {"window": (every, slice(1, 5))}),
        Op("b", "transpose", ("four",), {"order": (0, 2, 3, 1)}),
        Op("both", "subtract", ("a", "b")),
        Op("flat", "reshape", ("both",), {"shape": (3 * 2 * 4,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = CONVOLVED_CONSTANTS | {"weight": normal(3, 24), "bias": normal(3)}
    assert_equals_crops(network, constants, (5, 4), (8, 9))


def test_flattened_maps_side_by_side() -> None:
    network = [
        *CONVOLVED,
        Op("turned", "transpose", ("conv",), {"order": (0, 3, 1, 2)}),
        Op("a", "reshape", ("turned",), {"shape": (24,)}),
        Op("b", "reshape", ("other",), {"shape": (36,)}),
        Op("both", "concatenate", ("b", "a"), {"axis": 1}),
        Op("last", "linear", ("both", "weight", "bias")),
    ]
    constants = CONVOLVED_CONSTANTS | {"weight": normal(3, 60), "bias": normal(3)}
    assert_equals_crops(network, constants, (5, 4), (8, 9))


def test_maps_one_above_the_other() -> None:
    """Along the height: the rows of each window's two maps are features of the linear layer, not a larger map."""
    network = [
        *CONVOLVED,
        Op("four", "slice", ("other",), {"window": (slice(None), slice(1, 5))}),
        Op("both", "concatenate", ("four", "conv"), {"axis": 2}),
        Op("flat", "reshape", ("both",), {"shape": (4 * 6 * 2,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = CONVOLVED_CONSTANTS | {"weight": normal(3, 48), "bias": normal(3)}
    assert_equals_crops(network, constants, (5, 4), (8, 9))


@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (1, 3), (1, 2, 3)])
def test_means_over_channels_and_positions(axes: tuple[int, ...]) -> None:
    network = [
        Op("conv", "convolution", ("image", "kernel", "shift")),
        Op("mean", "mean", ("conv",), {"axes": axes}),
        Op("flat", "reshape", ("mean",), {"shape": (24 // np.prod([(4, 3, 2)[a - 1] for a in axes]),)}),
    ]
    assert_equals_crops(network, FIRST, (5, 4), (8, 9))


def test_a_product_within_groups_of_channels() -> None:
    network = [
        Op("conv", "convolution", ("image", "kernel", "shift")),
        Op("groups", "reshape", ("conv",), {"shape": (2, 2, 3, 2)}),
        Op("both", "einsum", ("groups", "weight"), {"equation": "ngchw,gco->ngohw"}),
        Op("flat", "reshape", ("both",), {"shape": (2 * 3 * 6,)}),
    ]
    assert_equals_crops(network, FIRST | {"weight": normal(2, 2, 3)}, (5, 4), (8, 9))


@pytest.mark.parametrize("affine", [(), ("factor", "offset")], ids=["plain", "affine"])
def test_a_batch_norm_by_position_is_absorbed_by_the_linear_layer(affine: tuple[str, ...]) -> None:
    network = [
        Op("conv", "convolution", ("image", "kernel", "shift")),
        Op("flat", "reshape", ("conv",), {"shape": (24,)}),
        Op("norm", "batch_norm", ("flat", "centre", "variance", *affine)),
        Op("last", "linear", ("norm", "weight", "bias")),
    ]
    constants = FIRST | {
        "centre": normal(24), "variance": normal(24) ** 2 + 0.5, "weight": normal(3, 24), "bias": normal(3),
        "factor": normal(24) + 2, "offset": 3 - normal(24),
    }  # fmt: skip
    assert_equals_crops(network, constants, (5, 4), (8, 9))


# how the alignments of two maps join


def pyramid(stride: int) -> list[Op]:
    """A map of a position every `stride` pixels, and its positions repeated until there is one every 2 pixels."""
    return [
        Op(f"coarse{stride}", "convolution", ("image", f"kernel{stride}", "shift"), {"stride": stride}),
        Op(f"fine{stride}", "repeat", (f"coarse{stride}",), {"factor": stride // 2}),
    ]


def pyramid_constants(*strides: int) -> dict[str, Array]:
    return {"shift": normal(3), **{f"kernel{s}": normal(3, 2, s, s) for s in strides}}


def test_maps_of_different_alignment_are_valid_where_both_are() -> None:
    """Positions repeated from every 4 and from every 6 pixels: only windows at multiples of 12 pixels see both."""
    network = [
        *pyramid(4),
        *pyramid(6),
        Op("both", "subtract", ("fine4", "fine6")),
        Op("flat", "reshape", ("both",), {"shape": (3 * 36,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = pyramid_constants(4, 6) | {"weight": normal(2, 108), "bias": normal(2)}
    assert assert_equals_crops(network, constants, (12, 12), (37, 25)) == (12, 12)
    image = normal(1, 2, 37, 25)
    dense, _, _ = any_size(network, constants, image, (12, 12))
    for shift in (4, 6):  # the stride of one map alone would be wrong: its windows give other numbers
        crops = every_crop(network, constants, image, (12, 12), (shift, shift))
        assert np.abs(crops[:, :, : dense.shape[2], : dense.shape[3]] - dense).max() > 1e-3


@pytest.mark.parametrize("first", ["plain", "fine4"])
def test_an_aligned_map_and_one_without_alignment(first: str) -> None:
    second = "plain" if first == "fine4" else "fine4"
    network = [
        *pyramid(4),
        Op("plain", "convolution", ("image", "kernel2", "shift"), {"stride": 2}),
        Op("both", "subtract", (first, second)),
        Op("flat", "reshape", ("both",), {"shape": (3 * 16,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = pyramid_constants(2, 4) | {"weight": normal(2, 48), "bias": normal(2)}
    assert assert_equals_crops(network, constants, (8, 8), (17, 14)) == (4, 4)


def test_concatenated_maps_of_different_alignment() -> None:
    network = [
        *pyramid(4),
        *pyramid(6),
        Op("both", "concatenate", ("fine6", "fine4"), {"axis": 1}),
        Op("flat", "reshape", ("both",), {"shape": (6 * 36,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    constants = pyramid_constants(4, 6) | {"weight": normal(2, 216), "bias": normal(2)}
    assert assert_equals_crops(network, constants, (12, 12), (37, 25)) == (12, 12)


@pytest.mark.parametrize("kind", ["subtract", "concatenate"])
def test_pooled_maps_of_different_strides_are_valid_at_the_least_common_multiple(kind: str) -> None:
    network = [
        *(op for s in (4, 6) for op in pyramid(s)[:1]),
        *(Op(f"pooled{s}", "mean", (f"coarse{s}",), {"axes": (2, 3)}) for s in (4, 6)),
        Op("both", kind, ("pooled4", "pooled6"), {"axis": 1} if kind == "concatenate" else {}),
    ]
    assert assert_equals_crops(network, pyramid_constants(4, 6), (12, 12), (37, 25)) == (12, 12)


def test_no_framework_is_imported() -> None:
    script = """
import sys
from tests.lifting import numpy_front_end
loaded = [n for n in ("torch", "onnx", "onnx_ir") if n in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=1800)
