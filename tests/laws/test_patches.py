"""A convolution on adjacent patches = rearrange, then linear, for every small size and kernel, compared with torch."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.laws import patches
from onebyone.laws.geometry import Sliding
from tests.laws.oracles import integers

CONV = (F.conv1d, F.conv2d, F.conv3d)


def conv(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    arrays = [torch.tensor(a.astype(float)) for a in (x, kernel, bias)]
    return CONV[kernel.ndim - 3](*arrays, kernel.shape[2:]).numpy()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_small_size_and_kernel(axes: int) -> None:
    """Sizes that are multiples of the kernel, and others, whose remainder at the far edge is not read."""
    top = (7, 6, 4)[axes - 1]
    for kernel in product(range(1, 4), repeat=axes):
        weight, bias = integers(3, 2, *kernel), integers(3, seed=4)
        assert patches.why_not_patches(kernel, kernel) is None
        for size in product(*(range(k, top + 1) for k in kernel)):
            x = integers(2, 2, *size, seed=1)
            rows = patches.patches(x, kernel)
            assert rows.size <= x.size
            assert rows.shape[1:-1] == tuple(
                Sliding(k, stride=k).out_size(n) for n, k in zip(size, kernel, strict=True)
            )
            y = rows @ patches.to_linear(weight).T + bias
            np.testing.assert_array_equal(np.moveaxis(y, -1, 1), conv(x, weight, bias))


def test_the_weight_is_a_view_and_its_order_matters() -> None:
    weight, bias = integers(3, 2, 2, 3), integers(3, seed=4)
    assert np.shares_memory(patches.to_linear(weight), weight)
    x = integers(1, 2, 4, 6, seed=1)
    turned = patches.to_linear(weight.swapaxes(1, 2))  # the planted fault: another flatten order
    y = patches.patches(x, (2, 3)) @ turned.T + bias
    assert (np.moveaxis(y, -1, 1) != conv(x, weight, bias)).any()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kernel": (3, 3), "stride": (2, 2)}, "adjacent patches"),
        ({"kernel": (2, 2), "stride": (2, 3)}, "adjacent patches"),
        ({"kernel": (2, 2), "stride": (2, 2), "padding": (0, 1)}, "shifts the patches"),
        ({"kernel": (2, 2), "stride": (2, 2), "dilation": (1, 2)}, "leaves gaps"),
        ({"kernel": (2, 2), "stride": (2, 2), "groups": 2}, "2 groups"),
        ({"kernel": (2, 2), "stride": (2,)}, "do not have the same one, two or three axes"),
    ],
)
def test_what_is_not_on_patches_is_said(arguments: dict, reason: str) -> None:
    assert reason in str(patches.why_not_patches(**arguments))


def test_where_the_kernel_is_one_dilation_does_not_matter() -> None:
    assert patches.why_not_patches((1, 2), (1, 2), dilation=(3, 1)) is None


def test_shapes_are_checked() -> None:
    with pytest.raises(BadInput, match=r"kernel=\(2,\): expected 2 numbers of at least 1"):
        patches.patches(integers(1, 2, 4, 4), (2,))
    with pytest.raises(BadInput, match="expected a map"):
        patches.patches(integers(4, 4), ())
    with pytest.raises(BadInput, match="a convolution's weight"):
        patches.to_linear(integers(4, 4))
