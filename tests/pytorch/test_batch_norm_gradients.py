"""Gradients through batch norms after a conversion, for one image and for two, at every level and both ways.

PyTorch's backward of a batch norm in eval mode reads the input by one memory format and the gradient by another where
the strides of an axis of size one leave the format open; one image is such an axis.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.verification.output_comparison import copies_in
from tests.pytorch.batch_norm_networks import NETWORKS, network


def gradients(net: nn.Module, x: Tensor) -> Tensor:
    """Of Σ c·y, by autograd, to the input."""
    x = x.clone().requires_grad_()
    y = net(x)
    c = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad((y * c).sum(), x)[0]


def sample(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """The network and so many images, or columns of one image; the same in every call."""
    net, shape = network(name)
    return net, torch.randn(4 * batch if name == "one image of columns" else batch, *shape)


@cache
def differences(name: str, batch: int) -> Tensor:
    """The independent second computation: central differences of the original network, element by element."""
    net, x = sample(name, batch)
    net, x = net.double(), x.double()
    with torch.no_grad():
        c = torch.linspace(-1, 1, net(x).numel(), dtype=x.dtype)
        found = torch.zeros_like(x)
        for i in range(x.numel()):
            step = torch.zeros(x.numel(), dtype=x.dtype)
            step[i] = 1e-6
            step = step.reshape(x.shape)
            found.view(-1)[i] = ((net(x + step) - net(x - step)).flatten() * c).sum() / 2e-6
    return found


@pytest.mark.parametrize("level", ["layers", "native", "graph"])
@pytest.mark.parametrize("to", ["conv", "linear"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_finite_differences(name: str, to: str, level: str) -> None:
    for batch in (1, 2):
        net, x = sample(name, batch)
        example = x if level == "graph" else None
        conversion = onebyone.convert(net, to=to, level=level, example=example)
        after = conversion.model.module() if level == "graph" else conversion.model
        (after,) = copies_in(torch.float64, after)
        x = x.double()
        # the difference quotient's own error: its step of 1e-6 squared, and rounding of 1e-16 over the step
        assert torch.allclose(gradients(after, x), differences(name, batch), atol=1e-7, rtol=1e-7), batch


@pytest.mark.parametrize("name", ["one image of columns", "TinyViT"])
def test_the_verifier_finds_the_gradients_of_one_image_equal(name: str) -> None:
    net, x = sample(name, 1)
    for to, level in (("linear", "graph"), ("conv", "layers")):
        conversion = onebyone.convert(net, to=to, level=level, example=x if level == "graph" else None)
        if conversion.changes:
            found = onebyone.verify(net, conversion, x)
            assert found.equivalent, found.problems
            assert found.gradients is not None
