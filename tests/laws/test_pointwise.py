"""Linear = pointwise convolution: convolutions of torch compared with products of NumPy, in exact integers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.laws import pointwise
from tests.laws.oracles import integers

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def differs(
    kernel: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, conv_bias: np.ndarray | None
) -> bool:
    """Whether torch's convolution with `kernel` differs anywhere from W·x + b at each position."""
    dims = kernel.ndim - 2
    x = integers(2, weight.shape[1], *(2, 3, 2)[:dims], seed=1).astype(float)
    torch_bias = None if conv_bias is None else torch.tensor(conv_bias, dtype=torch.float64)
    y = CONVS[dims](torch.tensor(x), torch.tensor(kernel, dtype=torch.float64), torch_bias).numpy()
    expected = np.einsum("of,nf...->no...", weight, x)
    if bias is not None:
        expected += bias.reshape(-1, *(1,) * dims)
    return not np.array_equal(y, expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_every_small_linear_layer_is_a_pointwise_convolution(dims, biased):
    for out, features in product(range(1, 5), repeat=2):
        weight = integers(out, features)
        bias = integers(out, seed=2) if biased else None
        assert pointwise.why_not_pointwise(weight.shape, None if bias is None else bias.shape, dims) is None
        kernel = pointwise.to_conv(weight, dims)
        assert kernel.shape == pointwise.conv_shape(weight.shape, dims) == (out, features, *(1,) * dims)
        assert not differs(kernel, weight, bias, bias)
        back = pointwise.to_linear(kernel)
        assert back.shape == pointwise.linear_shape(kernel.shape)
        np.testing.assert_array_equal(back, weight)


def test_the_image_of_a_linear_weight_is_two_dimensional_unless_said():
    assert pointwise.to_conv(integers(3, 4)).shape == pointwise.conv_shape((3, 4)) == (3, 4, 1, 1)


def test_both_directions_are_views_of_any_memory():
    base = integers(6, 8)
    for weight in (base, base.T, base[::2, 1::3], np.asfortranarray(base)):
        kernel = pointwise.to_conv(weight, 3)
        assert np.shares_memory(kernel, weight)
        assert np.shares_memory(pointwise.to_linear(kernel), weight)
        kernel[0, 0] = 77
        assert weight[0, 0] == 77


def test_planted_faults_are_caught():
    weight, bias = integers(3, 3), integers(3, seed=2)
    assert differs(pointwise.to_conv(weight.T), weight, bias, bias), "a transposed weight"
    assert differs(pointwise.to_conv(weight), weight, bias, None), "a dropped bias"
    assert differs(pointwise.to_conv(weight), weight, bias, bias[::-1].copy()), "a bias in another order"


def test_what_is_not_a_linear_layer_is_refused_and_what_is_refused_differs():
    """Torch with this stride or padding compared with W·x at each position: refused if the result differs."""
    weight, bias = integers(2, 3), integers(2, seed=2)
    x = torch.tensor(integers(1, 3, 4, 4).astype(float))
    for stride, padding in product((1, 2), (0, 1)):
        kernel = torch.tensor(pointwise.to_conv(weight).astype(float))
        y = F.conv2d(x, kernel, torch.tensor(bias.astype(float)), stride, padding).numpy()
        expected = np.einsum("of,nfhw->nohw", weight, x.numpy()) + bias.reshape(-1, 1, 1)
        reason = pointwise.why_not_linear(kernel.shape, stride=(stride,) * 2, padding=(padding,) * 2)
        assert (reason is None) == np.array_equal(y, expected)


@pytest.mark.parametrize(
    ("reason", "start"),
    [
        (pointwise.why_not_pointwise((3, 4), dims=4), "a convolution has 1, 2 or 3 dimensions, not 4"),
        (pointwise.why_not_pointwise((3, 4, 1)), "a linear weight has shape (O, F), not (3, 4, 1)"),
        (pointwise.why_not_pointwise((3, 0)), "the weight of shape (3, 0) is empty"),
        (
            pointwise.why_not_pointwise((3, 4), (4,)),
            "the bias has shape (4,); a weight of shape (3, 4) needs (3,)",
        ),
        (pointwise.why_not_linear((3, 4)), "a convolution's weight has shape (O, C, *kernel)"),
        (pointwise.why_not_linear((3, 4, 1, 2)), "the kernel is 1×2, not 1×1"),
        (pointwise.why_not_linear((3, 4, 1, 1), groups=2), "2 groups do not connect all channels"),
        (pointwise.why_not_linear((3, 4, 1, 1), stride=(1, 2)), "stride (1, 2) skips positions"),
        (pointwise.why_not_linear((3, 4, 1), padding=(1,)), "padding (1,) adds positions"),
    ],
)
def test_reasons(reason, start):
    assert reason is not None
    assert reason.startswith(start)


def test_the_bias_of_a_convolution_has_a_number_for_each_output():
    assert pointwise.why_not_linear((3, 4, 1, 1), (3,)) is None
    assert pointwise.why_not_linear((3, 4, 1, 1), (4,)) == (
        "the bias has shape (4,); a weight of shape (3, 4, 1, 1) needs (3,)"
    )


def test_transforms_refuse_with_the_reason():
    with pytest.raises(BadInput, match="it reads neighbours"):
        pointwise.to_linear(integers(2, 2, 3))
    with pytest.raises(BadInput, match="a linear weight has shape"):
        pointwise.to_conv(integers(2, 2, 1))
    with pytest.raises(BadInput, match="expected tokens"):
        pointwise.tokens_to_image(integers(2, 2))


def test_tokens_are_a_channels_last_image():
    tokens = integers(2, 5, 3).astype(np.float32)
    image = pointwise.tokens_to_image(tokens)
    assert image.shape == (2, 3, 5, 1)
    assert np.shares_memory(image, tokens)
    assert torch.from_numpy(image).is_contiguous(memory_format=torch.channels_last)
    back = pointwise.image_to_tokens(image)
    assert np.shares_memory(back, tokens)
    np.testing.assert_array_equal(back, tokens)
    weight = integers(4, 3).astype(np.float32)
    y = F.conv2d(torch.from_numpy(image), torch.from_numpy(pointwise.to_conv(weight)))
    np.testing.assert_array_equal(pointwise.image_to_tokens(y.numpy()), tokens @ weight.T)


def test_image_shape_names_the_channels_last_memory_of_every_rank():
    for rank in range(1, 7):
        x = torch.arange(float(np.prod([2, 3, 1, 4, 2, 5][:rank]))).reshape([2, 3, 1, 4, 2, 5][:rank])
        batch, channels, height, width = pointwise.image_shape(x.shape)
        image = x.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        assert image.data_ptr() == x.data_ptr()
        assert image.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(BadInput, match="at least one axis"):
        pointwise.image_shape(())


@pytest.mark.parametrize("dims", [0, 4])
def test_kernels_of_other_dimensions_are_refused(dims):
    with pytest.raises(BadInput, match=f"a convolution has 1, 2 or 3 dimensions, not {dims}"):
        pointwise.to_conv(np.ones((2, 3)), dims)


def test_other_numbers_of_axes_are_refused():
    with pytest.raises(
        BadInput, match=r"expected an image \(B, C, H, W\), not an array of shape \(1, 2, 3\)"
    ):
        pointwise.image_to_tokens(np.ones((1, 2, 3)))
    with pytest.raises(BadInput, match=r"expected tokens \(B, T, C\), not an array of shape \(1, 2\)"):
        pointwise.tokens_to_image(np.ones((1, 2)))
