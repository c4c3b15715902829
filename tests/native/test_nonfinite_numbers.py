"""Infinities, NaN, the smallest and largest numbers: the kernels return what PyTorch returns, at the same positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.native.kernels.winograd import packed
from onebyone.native.steps import Activation, ElementwiseStep
from tests.native.build import build, kinds, needs_compiler, run_one

pytestmark = needs_compiler
TINY = 2.0**-149
EDGES = [
    *(math.inf, -math.inf, math.nan, 0.0, -0.0, TINY, -TINY, 1e-39, -1e-39, 3.4e38, -3.4e38, 1e20, -1e20),
    *(
        87.0,
        88.5,
        88.8,
        89.0,
        104.0,
        -87.0,
        -88.5,
        -88.8,
        -89.0,
        -104.0,
        -200.0,
        -9.9,
        -10.0,
        -10.1,
        -21.0,
        3.0,
        -3.0,
    ),
]


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (Activation.RELU, F.relu),
        (Activation.RELU6, F.relu6),
        (Activation.HARDSWISH, F.hardswish),
        (Activation.HARDSIGMOID, F.hardsigmoid),
        (Activation.SILU, F.silu),
        (Activation.SIGMOID, torch.sigmoid),
        (Activation.GELU, F.gelu),
        (Activation.GELU_TANH, lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activations_at_the_edges(activation: Activation, function: Callable[[Tensor], Tensor]) -> None:
    """As in PyTorch (GELU in float64, where nothing cancels), including NaN and infinities; below 10⁻²¹ it may be 0."""
    x = torch.tensor(EDGES)
    got = run_one(x, len(EDGES), partial(ElementwiseStep, activation=activation), threads=1)
    expected = function(x.double() if "GELU" in activation.name else x).double()
    torch.testing.assert_close(got.double(), expected, equal_nan=True, rtol=1e-6, atol=1e-21)


def test_a_max_pool_window_inside_the_padding() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.MaxPool2d(2, stride=1, padding=1, dilation=6))
    x = torch.randn(1, 3, 5, 6)
    got = build(network, x)(x)
    assert bool((got == -math.inf).any())
    torch.testing.assert_close(got, network(x), rtol=1e-5, atol=1e-6)


def with_number_at(x: Tensor, positions: list[tuple[int, ...]], number: float) -> Tensor:
    x = x.clone()
    for position in positions:
        x[position] = number
    return x


POSITIONS = [(0, 0, 0, 0), (0, 5, 7, 9), (1, 3, 13, 22)]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pooled", [False, True])
def test_winograd_nonfinite_numbers_change_only_windows_that_contain_them(
    number: float, pooled: bool
) -> None:
    """A 3×3 convolution by Winograd's algorithm, in a compiled network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 16, 1, groups=16), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
    nn.init.dirac_(network[0].weight, groups=16)
    if pooled:
        network.append(nn.MaxPool2d(2))
    x = torch.randn(2, 16, 14, 24)
    assert "WINOGRAD" in kinds(network, x)
    window = with_number_at(torch.zeros_like(x[:, :1]), [(n, 0, h, w) for n, _, h, w in POSITIONS], 1.0)
    affected = F.max_pool2d(window, 3, 1, 1) > 0
    if pooled:
        affected = F.max_pool2d(affected.float(), 2) > 0
    affected = affected.expand(-1, 32, -1, -1)
    changed = with_number_at(x, POSITIONS, number)
    got = build(network, changed)(changed)
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(got[~affected], expected[~affected], rtol=1e-4, atol=1e-5)
    assert bool(got[affected].isnan().all())


def test_the_winograd_operator_on_nonfinite_and_very_large_numbers() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 14, 24), torch.randn(32, 16, 3, 3)
    expected = F.conv2d(x, weight, padding=1)
    affected = F.max_pool2d(
        with_number_at(torch.zeros_like(x[:, :1]), [(n, 0, h, w) for n, _, h, w in POSITIONS], 1.0), 3, 1, 1
    )
    affected = (affected > 0).expand(-1, 32, -1, -1)
    for number in (math.nan, math.inf, 3e38):
        changed = with_number_at(x, POSITIONS, number)
        got = torch.ops.onebyone.winograd_conv2d(
            changed, packed(weight), None, 32, [1, 1], relu=False, pool=False
        )
        torch.testing.assert_close(got[~affected], expected[~affected], rtol=1e-4, atol=1e-4)
        assert not bool(got[affected].isfinite().all())
    for negated in (torch._neg_view(-x), torch.complex(x, -x).conj().imag):
        got = torch.ops.onebyone.winograd_conv2d(
            negated, packed(weight), None, 32, [1, 1], relu=False, pool=False
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
