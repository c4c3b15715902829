"""Small versions of timm architectures, one for each kind of layout, in both directions."""

from __future__ import annotations

import copy

import pytest
import torch

from onebyone.laws.bounds import unit_roundoff
from onebyone.pytorch.files.sources import import_timm
from onebyone.pytorch.graph import convert_graph
from onebyone.pytorch.graph.patches import KEPT

pytestmark = pytest.mark.zoo
NETWORKS = {
    "vit_tiny_patch16_224": {"img_size": 48, "embed_dim": 48, "depth": 2},
    "convnext_atto": {},
    "mixer_s32_224": {"img_size": 96},
    "swin_tiny_patch4_window7_224": {
        "img_size": 56,
        "window_size": 7,
        "embed_dim": 24,
        "depths": (
            2,
            1,
            1,
            1,
        ),  # only the maps of the first stage are larger than a window, which then shifts
    },
    "resnet26": {},
    "xcit_nano_12_p16_224": {"img_size": 48},
}
SIZES = {"convnext_atto": 48, "resnet26": 48}
DEFAULT = {
    ("vit_tiny_patch16_224", "linear"),
    ("convnext_atto", "conv"),
    ("swin_tiny_patch4_window7_224", "linear"),
}
"""One for each kind of layout, in both directions; the others are slow tests."""


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network with no weight left at zero, in eval mode, and two images."""
    torch.manual_seed(0)
    options = NETWORKS[name]
    model = import_timm().create_model(name, **options).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    size = options.get("img_size", SIZES.get(name, 64))
    return model, torch.randn(2, 3, size, size)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        pytest.param(name, to, marks=() if (name, to) in DEFAULT else pytest.mark.slow)
        for name in NETWORKS
        for to in ("conv", "linear")
    ],
)
def test_zoo_networks_convert_without_more_layout_operators(name: str, to: str) -> None:
    model, x = build(name)
    wide = copy.deepcopy(model).double()
    c = convert_graph(wide, to=to, example=x.double())
    assert {refusal.reason for refusal in c.refused} <= ({KEPT} if to == "linear" else set())
    if name.startswith(("vit", "swin")) and to == "linear":
        assert "patch_embed.proj" in {change.path for change in c.changes}
    assert c.layout_after.total() <= c.layout_before.total()
    with torch.no_grad():
        exact, rough, got = wide(x.double()), model(x), c.model.module()(x.double())
    own = float((rough.double() - exact).abs().max()) + unit_roundoff("float32") * float(exact.abs().max())
    ratio = unit_roundoff("float64") / unit_roundoff("float32")
    assert float((got - exact).abs().max()) <= 16 * ratio * own
    for node in c.model.graph.nodes:
        operator = str(node.target)
        if to == "conv":
            assert operator not in ("aten.linear.default", "aten.addmm.default", "aten.mm.default")
        elif "conv2d" in operator:
            assert max(node.args[1].meta["val"].shape[2:]) > 1
