"""Convolutions whose kernel is their stride, as linear layers on patches: values, weights, state, what is refused."""

from __future__ import annotations

import copy
import itertools
import re

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput
from onebyone.laws import patches
from onebyone.pytorch.modules import dropins
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import PatchLinear
from onebyone.pytorch.modules.native import LinearOnPatches
from tests.pytorch.integer_networks import exact, integer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LEVELS = ("layers", "native")


def layer(kernel: tuple[int, ...], bias: bool = True, channels: int = 3) -> nn.Module:
    return integer(CONVOLUTIONS[len(kernel) - 1](channels, 4, kernel, stride=kernel, bias=bias))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [(2,), (5,), (2, 2), (3, 2), (1, 4), (2, 2, 2), (2, 3, 1)], ids=str)
def test_every_remainder_layout_and_rank(kernel, bias, level):
    """On integers, bit for bit: every remainder of the size, batched or not, empty, in both memory formats."""
    torch.manual_seed(0)
    conv = layer(kernel, bias)
    c = convert_module(conv, to="linear", level=level)
    assert [(change.law, change.copied_bytes) for change in c.changes] == [(patches.NAME, 0)]
    assert type(c.model) is (PatchLinear if level == "layers" else LinearOnPatches)
    for rest in itertools.product(*(range(k) for k in kernel)):
        size = [2 * k + a * k + r for a, (k, r) in enumerate(zip(kernel, rest, strict=True))]
        for x in (exact(2, 3, *size), exact(2, *size, 3).movedim(-1, 1), exact(3, *size), exact(0, 3, *size)):
            right = conv(x)
            for trains in (True, False):  # rows of patches, and columns
                with torch.set_grad_enabled(trains):
                    y = c.model(x)
                assert torch.equal(y, right)
                assert y.stride() == right.stride() or len(kernel) == 3 or not x.numel()


@pytest.mark.parametrize("kernel", [(3,), (2, 3), (2, 1, 3)], ids=str)
def test_against_the_law_on_arrays(kernel):
    """The values again, from NumPy: the law's patches times the law's weight."""
    conv = layer(kernel)
    x = exact(2, 3, *(2 * k + 1 for k in kernel))
    rows = patches.patches(x.numpy(), kernel)
    weight, bias = (p.detach().numpy() for p in (conv.weight, conv.bias))
    right = torch.from_numpy(rows @ patches.to_linear(weight).T + bias).movedim(-1, 1)
    with torch.inference_mode():
        for level in LEVELS:
            assert torch.equal(convert_module(conv, to="linear", level=level).model(x), right)


def test_the_parameters_are_the_very_ones_and_train_alike():
    net = nn.Sequential(layer((2, 3)), nn.ReLU())
    c = convert_module(net, to="linear")
    assert c.model[0].weight is net[0].weight
    assert list(c.model.state_dict()) == list(net.state_dict())
    x = exact(2, 3, 5, 7).requires_grad_()
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), [x, *net.parameters()]) for m in (c.model, net))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    back = convert_module(c.model, to="conv")
    assert type(back.model[0]) is nn.Conv2d
    assert back.model[0].weight is net[0].weight
    assert [change.law for change in back.changes] == [patches.NAME]


def test_a_real_linear_with_state_both_ways():
    net = nn.Sequential(layer((2, 3)), nn.ReLU())
    c = convert_module(net, to="linear", level="native")
    inner = c.model[0].linear
    assert type(inner) is nn.Linear
    assert tuple(inner.weight.shape) == (4, 18)
    assert inner.weight.data_ptr() == net[0].weight.data_ptr()
    assert torch.equal(c.model[0].weight, net[0].weight)
    other = copy.deepcopy(net)
    integer(other)
    c = convert_module(net, to="linear", level="native", copy=True)
    c.model.load_state_dict(c.state_dict_from_original(other.state_dict()))
    x = exact(2, 3, 5, 7)
    assert torch.equal(c.model(x), other(x))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in c.state_dict_to_original().items())
    c.model[0].weight = other[0].weight = nn.Parameter(other[0].weight.detach() * 2)
    assert torch.equal(c.model(x), other(x))


def test_a_weight_that_lies_channels_last_is_copied_and_that_is_stated():
    net = layer((2, 3)).to(memory_format=torch.channels_last)
    x = exact(2, 3, 5, 7)
    for level, copied in (("layers", 0), ("native", 4 * 3 * 6 * 4)):
        c = convert_module(net, to="linear", level=level)
        assert torch.equal(c.model(x), net(x))
        assert c.copied_bytes == copied


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"groups": 2}, "2 groups do not connect all channels"),
        ({"padding": 1}, r"padding \(1, 1\) shifts the patches"),
        ({"dilation": 2}, r"dilation \(2, 2\) leaves gaps"),
    ],
)
def test_what_is_no_linear_layer_on_patches_is_refused_for_its_reason(settings, reason, level):
    c = convert_module(nn.Conv2d(4, 4, 2, stride=2, **settings), to="linear", level=level)
    assert not c.changes
    (refused,) = c.refused
    assert re.search(reason, refused.reason)


def test_inputs_that_the_convolution_refuses_are_refused():
    for level in LEVELS:
        model = convert_module(layer((4, 4)), to="linear", level=level).model
        with pytest.raises(BadInput, match="input has size 3×9; expected at least one patch of 4×4"):
            model(torch.zeros(1, 3, 3, 9))
        with pytest.raises(BadInput, match=r"input has shape \(9, 9\)"):
            model(torch.zeros(9, 9))
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize("level", LEVELS)
def test_exported_for_any_batch_and_size(level):
    model = convert_module(nn.Sequential(layer((2, 3))), to="linear", level=level).model
    any_size = torch.export.Dim.AUTO
    program = torch.export.export(
        model, (exact(2, 3, 8, 9),), dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},)
    )
    x = exact(5, 3, 11, 13)
    assert torch.equal(program.module()(x), model(x))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kernel", [(3,), (2, 2), (2, 2, 2)], ids=str)
def test_verified_and_its_planted_faults_seen(kernel, level):
    torch.manual_seed(0)
    net = nn.Sequential(CONVOLUTIONS[len(kernel) - 1](3, 4, kernel, stride=kernel), nn.ReLU()).eval()
    x = torch.randn(2, 3, *(3 * k + 1 for k in kernel))
    found = onebyone.verify(net, onebyone.convert(net, to="linear", level=level), x)
    assert found.equivalent
    (seen,) = found.layers
    assert seen.bitwise
    names = {f.name for f in seen.faults if f.seen_by_integers and f.seen_by_bound}
    assert "kernel order swapped (channels last)" in names
    assert ("kernel order swapped (height and width)" in names) == (len(kernel) > 1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("example", [True, False])
def test_pixels_in_another_order_are_caught(monkeypatch, level, example):
    """The planted fault: patches whose pixels are taken down the columns, of the same shape and the same values."""
    net = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU()).eval()
    c = onebyone.convert(net, to="linear", level=level)
    right = dropins.as_patches

    def turned(x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        return right(x, kernel).transpose(-1, -2)

    monkeypatch.setattr(dropins, "as_patches", turned)
    found = onebyone.verify(net, c, torch.randn(2, 3, 6, 4)) if example else onebyone.verify(net, c)
    assert not found.equivalent
    assert "integer probe" in found.layers[0].why


def test_an_edge_that_is_read_is_caught(monkeypatch):
    """The planted fault: patches counted from the far edge, which differ only where a remainder is left."""
    net = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2)).eval()
    c = onebyone.convert(net, to="linear")
    right = dropins.as_patches

    def from_the_far_edge(x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        start = [n % k for n, k in zip(x.shape[2:], kernel, strict=True)]
        return right(x[(..., *(slice(s, None) for s in start))], kernel)

    monkeypatch.setattr(dropins, "as_patches", from_the_far_edge)
    assert not onebyone.verify(net, c).equivalent
