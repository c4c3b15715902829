"""Grouped pointwise convolution = batched product, compared with torch and the block-diagonal matrix."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.laws import grouped
from tests.laws.oracles import integers

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def batched_product(x: np.ndarray, matrices: np.ndarray, bias: np.ndarray) -> np.ndarray:
    groups, out, _ = matrices.shape
    y = np.einsum("goc,ngc...->ngo...", matrices, grouped.split_channels(x, groups))
    return y.reshape(x.shape[0], groups * out, *x.shape[2:]) + bias.reshape(-1, *(1,) * (x.ndim - 2))


def block_diagonal(matrices: np.ndarray) -> np.ndarray:
    groups, out, channels = matrices.shape
    whole = np.zeros((groups * out, groups * channels), dtype=matrices.dtype)
    for g in range(groups):
        whole[g * out : (g + 1) * out, g * channels : (g + 1) * channels] = matrices[g]
    return whole


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_small_grouped_convolution(dims):
    for groups, out, channels in product(range(1, 5), range(1, 4), range(1, 4)):
        kernel = integers(groups * out, channels, *(1,) * dims)
        bias = integers(groups * out, seed=3)
        x = integers(2, groups * channels, *(2, 3, 2)[:dims])
        assert grouped.why_not_batched(kernel.shape, groups, x.shape[1]) is None
        matrices = grouped.to_batched(kernel, groups)
        assert matrices.shape == grouped.batched_shape(kernel.shape, groups) == (groups, out, channels)
        assert np.shares_memory(matrices, kernel)
        assert np.shares_memory(grouped.split_channels(x, groups), x)
        torchs = CONVS[dims](
            *(torch.tensor(a.astype(float)) for a in (x, kernel, bias)), groups=groups
        ).numpy()
        np.testing.assert_array_equal(batched_product(x, matrices, bias), torchs)
        dense = np.einsum("oc,nc...->no...", block_diagonal(matrices), x) + bias.reshape(-1, *(1,) * dims)
        np.testing.assert_array_equal(dense, torchs)
        np.testing.assert_array_equal(grouped.to_grouped(matrices, dims), kernel)


def test_planted_faults_are_caught():
    """The wrong number of groups, groups in another order, output channels interleaved."""
    kernel, bias, x = integers(8, 2, 1, 1), integers(8, seed=3), integers(1, 8, 2, 3)
    y = F.conv2d(*(torch.tensor(a.astype(float)) for a in (x, kernel, bias)), groups=4).numpy()
    matrices = grouped.to_batched(kernel, 4)
    assert np.array_equal(batched_product(x, matrices, bias), y)
    assert not np.array_equal(batched_product(x, matrices[::-1], bias), y)
    assert not np.array_equal(batched_product(x, kernel.reshape(2, 4, 2).transpose(1, 0, 2), bias), y)
    assert not np.array_equal(batched_product(x[:, ::-1], matrices, bias), y)
    assert not np.array_equal(batched_product(x, matrices, np.roll(bias, 1)), y)


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (((8, 2), 4), "a convolution's weight has shape"),
        (((8, 2, 1, 3), 4), "the kernel is 1×3: it reads neighbours"),
        (((8, 2, 1, 1), 3), "8 output channels do not divide into 3 groups"),
        (((8, 2, 1, 1), 0), "8 output channels do not divide into 0 groups"),
        (((8, 2, 1, 1), 4, 6), "the input has 6 channels; expected 4 groups of 2"),
        (((8, 2, 1, 1), 4, 8, (0, 1)), "padding (0, 1) adds positions"),
    ],
)
def test_reasons(arguments, start):
    reason = grouped.why_not_batched(*arguments)
    assert reason is not None
    assert reason.startswith(start)


def test_transforms_refuse():
    with pytest.raises(BadInput, match="do not divide into 3 groups"):
        grouped.to_batched(integers(8, 2, 1), 3)
    with pytest.raises(BadInput, match="does not divide into 3 groups"):
        grouped.split_channels(integers(1, 8, 2), 3)
    with pytest.raises(BadInput, match="expected matrices"):
        grouped.to_grouped(integers(8, 2))


def test_kernels_have_two_axes_unless_told() -> None:
    assert grouped.to_grouped(integers(4, 3, 2)).shape == (12, 2, 1, 1)
    assert grouped.to_grouped(integers(4, 3, 2), 1).shape == (12, 2, 1)


def test_every_axis_of_the_kernel_must_be_one():
    for kernel in ((3, 1), (1, 3)):
        assert "reads neighbours" in str(grouped.why_not_batched((8, 2, *kernel), 4))


def test_maps_without_positions_have_groups_too():
    assert grouped.split_channels(np.ones((5, 6)), 3).shape == (5, 3, 2)
    for shape, groups in (((6,), 3), ((5, 6), 0), ((5, 6), 4)):
        with pytest.raises(BadInput, match="does not divide"):
            grouped.split_channels(np.ones(shape), groups)
