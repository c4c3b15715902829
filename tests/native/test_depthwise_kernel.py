"""Depthwise convolutions, with the kernels and strides that have a specialised kernel, and others."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from tests.native.build import error, needs_compiler

pytestmark = needs_compiler

SPECIALISED = [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)]


def relative_error(
    channels: int, size: tuple[int, int], threads: int = 2, samples: int = 1, **settings: int
) -> float:
    """The error, relative to its bound for so many roundings of the largest output."""
    torch.manual_seed(0)
    kernel = settings.pop("kernel")
    depthwise = nn.Conv2d(channels, channels, kernel, groups=channels, **settings)  # type: ignore[arg-type]
    network = nn.Sequential(nn.Conv2d(3, channels, 1), depthwise)
    return error(network, torch.randn(samples, 3, *size), threads) / (8 * (kernel * kernel + 40))


@pytest.mark.parametrize(("kernel", "stride"), [*SPECIALISED, (7, 2), (4, 1), (1, 1)])
def test_every_width_and_number_of_channels(kernel: int, stride: int) -> None:
    """Rows shorter than the positions that are computed together, a multiple of them, and with some left over."""
    for wide, channels, threads in product((3, 8, 14, 20), (16, 56), (1, 3)):
        settings = {"kernel": kernel, "stride": stride, "padding": kernel // 2}
        assert relative_error(channels, (9, wide), threads, **settings) < 1, (wide, channels, threads)


@pytest.mark.parametrize(("kernel", "stride"), SPECIALISED)
def test_no_padding_much_padding_and_many_samples(kernel: int, stride: int) -> None:
    for padding, samples in product((0, 1, kernel - 1), (1, 3)):
        assert (
            relative_error(40, (11, 17), samples=samples, kernel=kernel, stride=stride, padding=padding) < 1
        )


def test_dilation_does_not_use_a_specialised_kernel() -> None:
    assert relative_error(16, (12, 21), kernel=3, stride=1, padding=2, dilation=2) < 1


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardswish(), nn.SiLU(), nn.Sigmoid(), nn.GELU()])
def test_a_fused_activation(activation: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, 1, 1, groups=24), activation)
    assert error(network, 4 * torch.randn(1, 3, 9, 20)) < 200
