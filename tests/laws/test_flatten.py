"""Flatten, then linear = convolution, for every small block, axis order, start and index."""

from __future__ import annotations

from itertools import permutations, product
from math import prod

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.laws import flatten
from tests.laws.oracles import convolve, integers

BLOCKS = [(c, h, w) for c, h, w in product((1, 2, 3), repeat=3)]
ORDERS = list(permutations(range(3)))


def flatten_then_linear(
    crop: np.ndarray, weight: np.ndarray, order: tuple[int, ...], start: int
) -> np.ndarray:
    """The computation of a network on a window: permute the axes, flatten from `start`, multiply the last axis."""
    moved = torch.from_numpy(crop).permute(order)
    return (torch.flatten(moved, start) @ torch.from_numpy(weight).T).numpy()


def convolution_gives(crop: np.ndarray, kernel: np.ndarray, order: tuple[int, ...], start: int) -> np.ndarray:
    """The same from the kernel, which slides over kept positions; a kept channel axis is a batch axis."""
    images = crop if kernel.shape[1] == crop.shape[0] else crop[:, None]
    images = images[None] if images.ndim == 3 else images
    maps = np.stack([convolve(image, kernel) for image in images])  # (C or 1, O, places...)
    block_axes = np.moveaxis(maps, 1, -1)  # (channel, y, x, O), merged axes 1
    kept = [order[position] for position in range(start)]
    lead = block_axes.transpose(*order, 3)
    return lead.reshape(*(crop.shape[axis] for axis in kept), -1)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_every_block_order_and_start(start):
    for block, order in product(BLOCKS, ORDERS):
        merged = flatten.merged_block(block, order, start)
        index = flatten.flatten_index(block, order, start)
        weight = integers(2, prod(merged))
        assert flatten.why_not_kernel(weight.shape, index, merged) is None
        kernel = flatten.to_kernel(weight, index, merged)
        assert kernel.shape == flatten.kernel_shape(weight.shape, merged) == (2, *merged)
        crop = integers(*block, seed=1)
        expected = flatten_then_linear(crop, weight, order, start)
        np.testing.assert_array_equal(convolution_gives(crop, kernel, order, start), expected)
        np.testing.assert_array_equal(flatten.to_weight(kernel, index), weight)


def dense_differs(
    weight: np.ndarray, kernel: np.ndarray, order: tuple[int, ...], bias=None, conv_bias=None
) -> bool:
    """Whether torch's convolution on a larger map differs anywhere from flatten + linear on the window."""
    c, h, w = kernel.shape[1:]
    image = integers(c, h + 2, w + 1, seed=3).astype(float)
    torch_bias = None if conv_bias is None else torch.tensor(conv_bias.astype(float))
    dense = F.conv2d(torch.tensor(image)[None], torch.tensor(kernel.astype(float)), torch_bias)[0].numpy()
    assert dense.shape == (len(weight), 3, 2)
    for i, j in product(range(3), range(2)):
        crop = image[:, i : i + h, j : j + w]
        expected = flatten_then_linear(crop, weight.astype(float), order, 0) + (0 if bias is None else bias)
        if not np.array_equal(dense[:, i, j], expected):
            return True
    return False


def test_the_kernel_gives_every_window_of_a_larger_map():
    for block, order in product(BLOCKS, ORDERS):
        weight, bias = integers(3, prod(block)), integers(3, seed=2)
        kernel = flatten.to_kernel(weight, flatten.flatten_index(block, order), block)
        assert not dense_differs(weight, kernel, order, bias, bias), (block, order)


def test_a_wrong_flatten_order_is_caught_wherever_it_is_wrong():
    caught = 0
    for block, order, other in product(BLOCKS, ORDERS, ORDERS):
        weight = integers(1, prod(block))
        wrong_index = flatten.flatten_index(block, other)
        kernel = flatten.to_kernel(weight, wrong_index, block)
        is_wrong = not np.array_equal(
            kernel, flatten.to_kernel(weight, flatten.flatten_index(block, order), block)
        )
        assert dense_differs(weight, kernel, order) == is_wrong, (block, order, other)
        caught += is_wrong
    assert caught > 200


def test_a_dropped_bias_and_a_shifted_kernel_are_caught():
    block = (2, 3, 2)
    weight, bias = integers(3, 12), integers(3, seed=2)
    kernel = flatten.to_kernel(weight, flatten.flatten_index(block), block)
    assert dense_differs(weight, kernel, (0, 1, 2), bias, None)
    assert dense_differs(weight, np.roll(kernel, 1, axis=2), (0, 1, 2))
    assert dense_differs(weight, kernel[..., ::-1], (0, 1, 2))


def test_axis_orders_give_views_and_other_indices_one_copy():
    block = (2, 3, 4)
    weight = integers(5, 24)
    for order in ORDERS:
        index = flatten.flatten_index(block, order)
        assert flatten.axis_order(index, block) == order
        assert np.shares_memory(flatten.to_kernel(weight, index, block), weight)
    flipped = np.arange(24)[::-1]
    assert flatten.axis_order(flipped, block) is None
    kernel = flatten.to_kernel(weight, flipped, block)
    assert not np.shares_memory(kernel, weight)
    np.testing.assert_array_equal(kernel.reshape(5, 24), weight[:, ::-1])
    identity = flatten.to_kernel(weight, np.arange(24), block)
    assert identity.flags.c_contiguous
    assert np.shares_memory(flatten.to_weight(identity, np.arange(24)), weight)


def test_every_small_index_repeats_add_up_and_absences_are_zeros():
    """Every index of up to 4 elements into every block of up to 4 elements, with unit impulses as input."""
    for size, length in product(range(1, 5), repeat=2):
        block = (size, 1, 1) if size != 4 else (1, 2, 2)
        weight = integers(2, length)
        for chosen in product(range(size), repeat=length):
            index = np.array(chosen)
            kernel = flatten.to_kernel(weight, index, block)
            for element in range(size):  # an impulse at each element of the block
                x = np.zeros(size, dtype=int)
                x[element] = 1
                np.testing.assert_array_equal(kernel.reshape(2, -1) @ x, weight @ x[index])
            reason = flatten.why_not_weight(index, block)
            assert (reason is None) == (sorted(chosen) == list(range(size)))
            if reason is None:
                np.testing.assert_array_equal(flatten.to_weight(kernel, index), weight)


def test_repeated_weights_are_added_in_the_order_of_the_features():
    """So the kernel does not depend on how a processor sorts: features in another order of elements give the same."""
    index = np.random.default_rng(0).integers(0, 4, 200)
    weight = np.random.default_rng(1).normal(size=(3, 200)).astype(np.float32)
    by_element = sorted(range(200), key=lambda f: index[f])  # Python's sort is stable
    kernel = flatten.to_kernel(weight, index, (1, 2, 2))
    firsts = [int((index < element).sum()) for element in range(4)]
    expected = np.add.reduceat(weight[:, by_element], firsts, axis=1)
    assert kernel.tobytes() == expected.tobytes()


def test_the_weight_can_be_gathered_in_one_and_three_dimensions():
    for block in ((3, 4), (2, 2, 3, 2)):
        for order in permutations(range(len(block))):
            weight = integers(2, prod(block))
            index = flatten.flatten_index(block, order)
            x = integers(*block, seed=5)
            kernel = flatten.to_kernel(weight, index, block)
            np.testing.assert_array_equal(
                (kernel * x).sum(axis=tuple(range(1, kernel.ndim))), weight @ x.transpose(order).reshape(-1)
            )
            np.testing.assert_array_equal(flatten.to_weight(kernel, index), weight)


def test_a_convolution_is_flatten_and_linear_at_its_own_size_only():
    kernel = integers(3, 2, 2, 3).astype(float)
    weight = flatten.to_weight(kernel, flatten.flatten_index((2, 2, 3)))
    for size, padding in product(product((1, 2, 3), repeat=2), (0, 1)):
        reason = flatten.why_not_flatten(kernel.shape, size, padding=(padding,) * 2)
        x = integers(2, *size, seed=7).astype(float)
        try:
            y = F.conv2d(torch.tensor(x)[None], torch.tensor(kernel), padding=padding)[0].reshape(-1).numpy()
            same = np.array_equal(y, weight @ x.reshape(-1))
        except (RuntimeError, ValueError):
            same = False
        assert (reason is None) == same
    assert "dilation" in (flatten.why_not_flatten((3, 2, 2, 3), (2, 3), dilation=(1, 2)) or "")
    assert flatten.why_not_flatten((3, 2, 1, 3), (1, 3), dilation=(2, 1)) is None
    assert "groups" in (flatten.why_not_flatten((3, 2, 2, 3), (2, 3), groups=2) or "")


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (np.arange(6), (2, 6, 1), "a linear weight has shape"),
        (np.arange(6.0), (2, 6), "the index has dtype float64; expected integers"),
        (np.arange(5), (2, 6), "the index has shape"),
        (np.arange(6) - 1, (2, 6), "the index contains element -1"),
        (np.arange(6) + 1, (2, 6), "the index contains element 6, outside the block 2×3×1"),
    ],
)
def test_what_cannot_be_scattered_is_refused(index, shape, message):
    with pytest.raises(BadInput, match=message):
        flatten.to_kernel(np.zeros(shape), index, (2, 3, 1))


@pytest.mark.parametrize(("out", "block"), [(0, (2, 3, 1)), (2, (2, 3, 0)), (2, ())])
def test_what_is_empty_is_refused(out, block):
    reason = flatten.why_not_kernel((out, 6), np.arange(6), block)
    assert reason is not None
    assert reason.endswith("is empty")


@pytest.mark.parametrize("block", [(1, 2, 2), (2, 2, 1)])
def test_the_reasons_against_gathering_count_and_name_the_element(block):
    assert flatten.why_not_weight(np.array([3, 1, 3, 3]), block) == (
        "element 3 occurs 3 times: its weight cannot be divided"
    )
    assert flatten.why_not_weight(np.array([3, 1, 0]), block) == (
        "element 2 does not occur: its weight would be lost"
    )


def test_orders_and_starts_are_checked():
    with pytest.raises(BadInput, match="order="):
        flatten.flatten_index((2, 2, 2), order=(0, 1))
    with pytest.raises(BadInput, match="flattening the batch axis mixes images"):
        flatten.flatten_index((2, 2, 2), start=-1)
    with pytest.raises(BadInput, match="occurs 2 times"):
        flatten.to_weight(integers(2, 1, 1, 2), np.array([0, 0]))
    with pytest.raises(BadInput, match="contains element 2"):
        flatten.to_weight(integers(2, 1, 1, 2), np.array([0, 2]))


def test_a_permutation_of_single_elements_at_the_size_of_vggs_first_fc_layer():
    rng = np.random.default_rng(0)
    index = rng.permutation(512 * 49)
    weight = rng.integers(-3, 4, (16, 512 * 49)).astype(np.float32)
    kernel = flatten.to_kernel(weight, index, (512, 7, 7))
    np.testing.assert_array_equal(kernel.reshape(16, -1)[:, index], weight)
