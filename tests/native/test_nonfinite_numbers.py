"""Infinities, NaN, the smallest and the largest numbers: kernels give what PyTorch gives, and only where it does."""

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
    """As PyTorch, a GELU in float64, where nothing cancels: NaN and infinities too; what is below 10⁻²¹ may be 0."""
    x = torch.tensor(EDGES)
    got = run_one(x, len(EDGES), partial(ElementwiseStep, activation=activation), threads=1)
    right = function(x.double() if "GELU" in activation.name else x).double()
    torch.testing.assert_close(got.double(), right, equal_nan=True, rtol=1e-6, atol=1e-21)


def test_a_max_pool_window_that_lies_in_the_padding() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.MaxPool2d(2, stride=1, padding=1, dilation=6))
    x = torch.randn(1, 3, 5, 6)
    got = build(network, x)(x)
    assert bool((got == -math.inf).any())
    torch.testing.assert_close(got, network(x), rtol=1e-5, atol=1e-6)


def spoiled(x: Tensor, places: list[tuple[int, ...]], number: float) -> Tensor:
    x = x.clone()
    for place in places:
        x[place] = number
    return x


PLACES = [(0, 0, 0, 0), (0, 5, 7, 9), (1, 3, 13, 22)]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pooled", [False, True])
def test_what_is_not_finite_reaches_no_window_but_those_that_hold_it(number: float, pooled: bool) -> None:
    """A 3×3 convolution by tiles of 6×6, in the engine."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 16, 1, groups=16), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
    nn.init.dirac_(network[0].weight, groups=16)
    if pooled:
        network.append(nn.MaxPool2d(2))
    x = torch.randn(2, 16, 14, 24)
    assert "WINOGRAD" in kinds(network, x)
    window = spoiled(torch.zeros_like(x[:, :1]), [(n, 0, h, w) for n, _, h, w in PLACES], 1.0)
    held = F.max_pool2d(window, 3, 1, 1) > 0
    if pooled:
        held = F.max_pool2d(held.float(), 2) > 0
    held = held.expand(-1, 32, -1, -1)
    wild = spoiled(x, PLACES, number)
    got = build(network, wild)(wild)
    with torch.no_grad():
        right = network(x)
    torch.testing.assert_close(got[~held], right[~held], rtol=1e-4, atol=1e-5)
    assert bool(got[held].isnan().all())


def test_the_same_in_the_operator_and_for_numbers_that_would_overflow_in_the_transforms() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 14, 24), torch.randn(32, 16, 3, 3)
    right = F.conv2d(x, weight, padding=1)
    held = F.max_pool2d(
        spoiled(torch.zeros_like(x[:, :1]), [(n, 0, h, w) for n, _, h, w in PLACES], 1.0), 3, 1, 1
    )
    held = (held > 0).expand(-1, 32, -1, -1)
    for number in (math.nan, math.inf, 3e38):
        wild = spoiled(x, PLACES, number)
        got = torch.ops.onebyone.winograd_conv2d(
            wild, packed(weight), None, 32, [1, 1], relu=False, pool=False
        )
        torch.testing.assert_close(got[~held], right[~held], rtol=1e-4, atol=1e-4)
        assert not bool(got[held].isfinite().all())
    for negated in (torch._neg_view(-x), torch.complex(x, -x).conj().imag):
        got = torch.ops.onebyone.winograd_conv2d(
            negated, packed(weight), None, 32, [1, 1], relu=False, pool=False
        )
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)
