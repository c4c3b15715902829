"""Real networks of timm and torchvision: everything eligible converts, both ways, and computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from onebyone.pytorch.files.sources import import_timm, import_torchvision
from onebyone.pytorch.modules.convert import convert_module

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# name, options, image size: plain, with standardised weights, with MHA, with a qkv that its parent reads
NETWORKS = {
    "timm:resnet18": ({}, 64),
    "timm:vit_tiny_patch16_224": (SMALL, 224),
    "timm:convnext_atto": ({}, 64),
    "timm:mobilenetv3_small_050": ({}, 64),
    "timm:swin_tiny_patch4_window7_224": ({"embed_dim": 24, "depths": (1, 2, 1, 1)}, 224),
    "timm:resnetv2_50x1_bit": ({}, 64),
    "timm:beit_base_patch16_224": (SMALL, 224),
    "torchvision:vit_b_16": ({"image_size": 64}, 64),
    "torchvision:regnet_y_400mf": ({}, 64),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    zoo, _, model = name.partition(":")
    options, size = NETWORKS[name]
    make = import_timm().create_model if zoo == "timm" else import_torchvision().models.get_model
    net = make(model, **options)
    with torch.no_grad():
        for p in net.parameters():  # zero heads and tiny layer scales would hide a fault
            p.normal_(1, 0.1) if p.dim() == 1 else p.normal_(0, p[0].numel() ** -0.5)
    return net.double().eval(), torch.randn(1, 3, size, size, dtype=torch.float64)


def eligible(net: nn.Module, to: str) -> int:
    """How many layers there are to convert, counted apart from the code that converts."""
    if to == "conv":
        return sum(isinstance(m, nn.Linear | nn.MultiheadAttention) for m in net.modules())
    return sum(isinstance(m, nn.Conv2d) and (is_pointwise(m) or is_on_patches(m)) for m in net.modules())


def is_pointwise(m: nn.Conv2d) -> bool:
    return m.kernel_size == (1, 1)


def is_on_patches(m: nn.Conv2d) -> bool:
    return m.kernel_size == m.stride


@pytest.mark.parametrize("name", NETWORKS)
def test_every_eligible_layer_converts_and_is_called(name):
    net, x = built(name)
    with torch.no_grad():
        expected = net(x)
        for to in ("conv", "linear"):
            count = eligible(net, to)
            c = convert_module(net, to=to)
            assert (len(c.changes), c.refused) == (count, ())
            # float64: some thousand roundings of 2⁻⁵³ each, relative to the largest output
            assert (c.model(x) - expected).abs().max() <= 1e-11 * expected.abs().max()
            assert list(c.model.state_dict()) == list(net.state_dict())
            assert c.never_called(x) == ()
            if c.changes:
                only = [change.path for change in c.changes]
                back = convert_module(c.model, to="linear" if to == "conv" else "conv", only=only)
                assert [type(m) for m in back.model.modules()] == [type(m) for m in net.modules()]
