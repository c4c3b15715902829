"""Strided pointwise convolution = subsample, then linear, for every small size and stride, compared with torch."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.laws import strided
from onebyone.laws.geometry import Sliding
from tests.laws.oracles import integers


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride, padding=0) -> np.ndarray:
    kernel = torch.tensor(weight.astype(float))[..., None, None]
    y = F.conv2d(torch.tensor(x.astype(float)), kernel, torch.tensor(bias.astype(float)), stride, padding)
    return y.numpy()


def linear_at_each_place(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.einsum("oc,nchw->nohw", weight, x) + bias.reshape(-1, 1, 1)


def test_every_small_size_and_stride():
    weight, bias = integers(3, 2), integers(3, seed=4)
    for size, stride in product(product(range(1, 6), repeat=2), product(range(1, 5), repeat=2)):
        x = integers(2, 2, *size)
        kept = strided.subsample(x, stride)
        assert np.shares_memory(kept, x)
        assert kept.shape[2:] == strided.out_size(size, stride)
        assert kept.shape[2:] == tuple(
            Sliding(1, stride=s).out_size(n) for n, s in zip(size, stride, strict=True)
        )
        y = conv(x, weight, bias, stride)
        np.testing.assert_array_equal(linear_at_each_place(kept, weight, bias), y)
        np.testing.assert_array_equal(strided.subsample(linear_at_each_place(x, weight, bias), stride), y)


def test_planted_faults_are_caught():
    """A wrong stride, the axes' strides swapped, an off-by-one start."""
    x, weight, bias = integers(1, 2, 7, 7), integers(3, 2), integers(3, seed=4)
    y = conv(x, weight, bias, (2, 3))
    for kept in (strided.subsample(x, (2, 2)), strided.subsample(x, (3, 2)), x[:, :, 1::2, ::3]):
        assert not np.array_equal(linear_at_each_place(kept, weight, bias), y)


def test_refused_exactly_where_it_differs():
    weight, bias = integers(3, 2), integers(3, seed=4)
    for stride, padding, size in product((1, 2, 3), (0, 1, 2), (3, 4, 5)):
        x = integers(1, 2, size, size)
        kept = strided.subsample(x, (stride, stride))
        same = np.array_equal(
            conv(x, weight, bias, stride, padding), linear_at_each_place(kept, weight, bias)
        )
        assert (strided.why_not_subsample((1, 1), (padding, padding)) is None) == same
    assert strided.why_not_subsample((1, 3)) == "the kernel is 1×3: it reads neighbours"


def test_bad_arguments():
    with pytest.raises(BadInput, match=r"stride=\(0, 1\)"):
        strided.subsample(integers(1, 1, 2, 2), (0, 1))
    with pytest.raises(BadInput, match="expected 2 numbers"):
        strided.out_size((2, 2), (1,))
    with pytest.raises(BadInput, match="expected a map"):
        strided.subsample(integers(3), ())


def test_a_map_without_positions_is_kept():
    x = np.ones((2, 3))
    assert np.shares_memory(strided.subsample(x, ()), x)
