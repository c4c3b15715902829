"""Plans of transformers and similar networks: their steps in float64 (`reference_steps`) against the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.native.layout import as_transposed, run_length, strides_of
from onebyone.native.planner import Planner
from onebyone.native.steps import LayerNormStep, Strides
from onebyone.native.unsupported import UnsupportedError
from onebyone.pytorch.files.sources import import_torchvision
from tests.native.build import traced
from tests.native.plans import no_compiler, planned, read, tokens

__all__ = ["no_compiler"]  # a fixture
pytestmark = pytest.mark.usefixtures("no_compiler")


def image(samples: int, size: int = 32) -> Tensor:
    return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_vision_transformer(samples: int, pool: str) -> None:
    import_torchvision()
    timm = pytest.importorskip("timm.models.vision_transformer")
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    network = timm.VisionTransformer(**settings, num_classes=10, global_pool=pool, class_token=pool != "map")
    counts = planned(
        network, image(samples), 1e-11 if pool != "map" else 1e-6
    )  # its query is computed in float32
    assert counts["ATTENTION"] == 2 + (pool == "map")
    assert counts["ELEMENTWISE"] == 1  # the position embedding; every residual is an addend of a linear step
    if pool == "token":
        assert counts == Counter(
            INPUT=1, CONVOLUTION=2, GATHER=2, ELEMENTWISE=1, LAYER_NORM=5, LINEAR=8, ATTENTION=2
        )


def test_only_the_token_that_is_read_is_normalised_last() -> None:
    import_torchvision()
    timm = pytest.importorskip("timm.models.vision_transformer")
    network = timm.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3)
    norms = [s for s in read(network, image(2))[0] if isinstance(s, LayerNormStep)]
    assert norms[-1].index is not None
    assert norms[-1].index.tolist() == [0, 17 * 48]


@pytest.mark.parametrize("samples", [1, 2])
def test_torchvision_vision_transformer(samples: int) -> None:
    import_torchvision()
    models = pytest.importorskip("torchvision.models.vision_transformer")
    counts = planned(models.VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=10), image(samples))
    assert counts["ATTENTION"] == 2
    assert counts["LINEAR"] == 8


@pytest.mark.parametrize("samples", [1, 2])
def test_shifted_windows(samples: int) -> None:
    import_torchvision()
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    network = swin.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=10)
    counts = planned(network, image(samples))
    assert counts["ATTENTION"] == 4
    assert counts["GATHER"] == 4  # the merging of patches; windows and shifts are read where they are
    assert counts["TRANSPOSE"] == 0


@pytest.mark.parametrize("samples", [1, 2])
def test_mixer(samples: int) -> None:
    import_torchvision()
    timm = pytest.importorskip("timm.models.mlp_mixer")
    network = timm.MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=40, num_classes=10)
    counts = planned(network, image(samples))
    assert counts["TRANSPOSE"] == 4
    assert counts["ELEMENTWISE"] == 2
    assert counts["GATHER"] == 0


@pytest.mark.parametrize("samples", [1, 2])
def test_convnext(samples: int) -> None:
    import_torchvision()
    convnext = pytest.importorskip("torchvision.models.convnext")
    blocks = [convnext.CNBlockConfig(16, 24, 2), convnext.CNBlockConfig(24, None, 1)]
    counts = planned(convnext.ConvNeXt(blocks, num_classes=10), image(samples))
    assert set(counts) == {"INPUT", "CONVOLUTION", "DEPTHWISE", "LAYER_NORM", "LINEAR", "MEAN"}


class Of(nn.Module):
    """A function of a linear layer's output (N, 5, 16) and of the normalised input (N, 5, 16)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(16, 16), function
        self.norm, self.number = nn.LayerNorm(16), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5, 16) to whatever the function gives."""
        return self.function(self.layer(x), self.norm(x))


def gated(y: Tensor, x: Tensor) -> Tensor:
    a, b = y.chunk(2, -1)
    return a * F.silu(b) + x[..., ::2]


def settled(y: Tensor, x: Tensor) -> Tensor:
    """Reads a value before and after an activation."""
    return y.transpose(1, 2).relu().transpose(1, 2) + y


def ones(y: Tensor) -> Tensor:
    return torch.ones(1, 1, 16).to(y).expand(len(y), -1, -1)


FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "a sum in the layer": (lambda y, x: F.gelu(x + y), ""),
    "a sum in another order": (lambda y, x: y + x.flip(1), "ELEMENTWISE"),
    "a sum across": (lambda y, x: y + x[:, :, :5].mT.repeat(1, 1, 4)[..., :16], "GATHER ELEMENTWISE"),
    "a sum of one row and all": (lambda y, x: y * y + x[:, :1], "ELEMENTWISE ELEMENTWISE"),
    "what is read twice": (settled, "ELEMENTWISE ELEMENTWISE"),
    "with itself": (lambda y, x: y + y, "ELEMENTWISE"),
    "with itself under another name": (lambda y, x: y + y.view(y.shape), "ELEMENTWISE"),
    "of two layers": (lambda y, x: F.linear(x, torch.eye(16).to(x)) + y, ""),
    "gates": (gated, "GATHER ELEMENTWISE GATHER ELEMENTWISE ELEMENTWISE"),
    "a factor in the layer": (lambda y, x: (2 * y - 1) / 3 + x, ""),
    "a factor elsewhere": (lambda y, x: (x + y.relu()) / 3, "ELEMENTWISE ELEMENTWISE"),
    "numbers of a channel": (lambda y, x: y * torch.arange(16.0).to(y) + torch.arange(16.0).to(y), ""),
    "numbers of a place": (lambda y, x: y * torch.arange(5.0).to(y)[:, None], "ELEMENTWISE"),
    "numbers of all places": (lambda y, x: y + torch.arange(80.0).to(y).view(5, 16), "ELEMENTWISE"),
    "a mean of tokens": (lambda y, x: y.mean(1), "MEAN"),
    "turned at the end": (lambda y, x: y.mT, ""),  # the output is copied in any case
    "turned": (lambda y, x: y.mT.mul(torch.arange(80.0).view(16, 5)).roll(1, 2), "ELEMENTWISE GATHER"),
    "rolled": (lambda y, x: y.roll((1, 3), (1, 2)), "GATHER"),
    "picked": (lambda y, x: y[:, [3, 1, 1]], "GATHER"),
    "joined rows": (lambda y, x: torch.cat([ones(y), y, x], 1), "GATHER GATHER GATHER"),
    "joined channels": (lambda y, x: torch.cat([y, x.flip(1), y[..., 4:]], -1), "GATHER GATHER GATHER"),
    "joined across": (lambda y, x: torch.cat([y.mT, x.mT], 2), "TRANSPOSE GATHER TRANSPOSE GATHER"),
    "stacked": (lambda y, x: torch.stack([y, x], 1), "GATHER GATHER"),
    "as an image": (lambda y, x: F.adaptive_avg_pool2d(y.mT.unsqueeze(3), 1), "MEAN"),
    "as another image": (lambda y, x: y.view(-1, 16, 5, 1).mean((2, 3)), "TRANSPOSE MEAN"),
}  # fmt: skip


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_between_layers(name: str, samples: int) -> None:
    torch.manual_seed(0)
    function, more = FUNCTIONS[name]
    counts = planned(Of(function), tokens(samples, 5, 16))
    for kind in ("INPUT", "LINEAR", "LAYER_NORM"):
        counts[kind] = 0
    assert +counts == Counter(more.split())


class Convolved(nn.Module):
    """A convolution, and a function of its map (N, 16, 4, 6)."""

    def __init__(self, function: Callable[[Tensor], Tensor], outputs: int) -> None:
        super().__init__()
        self.convolution, self.function = nn.Conv2d(3, 16, 3, padding=1), function
        self.layer = nn.Linear(outputs, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 4, 6) to what the layer gives."""
        out: Tensor = self.layer(self.function(self.convolution(x)))
        return out


MAPS: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    "flattened": (lambda y: y.flatten(1), 384, "CONVOLUTION"),
    "flattened and activated": (lambda y: y.flatten(1).relu(), 384, "CONVOLUTION"),
    "places": (lambda y: y.flatten(2).mT, 16, "LINEAR"),
    "channels": (lambda y: y.flatten(2), 24, "TRANSPOSE LINEAR"),
    "half of the channels": (lambda y: y[:, :8].flatten(1), 192, "GATHER CONVOLUTION"),
    "shuffled": (lambda y: y.unflatten(1, (2, 8)).transpose(1, 2).flatten(1), 384, "CONVOLUTION"),
    "flipped": (lambda y: y.flip(1).permute(0, 2, 3, 1), 16, "LINEAR"),
}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", MAPS)
def test_maps_become_rows(name: str, samples: int) -> None:
    torch.manual_seed(0)
    function, outputs, more = MAPS[name]
    x = torch.randn(samples, 3, 4, 6)
    counts = planned(Convolved(function, outputs), x)
    if samples == 2 or "half" not in name:
        assert counts == Counter(["INPUT", "CONVOLUTION", *more.split()])


def random(y: Tensor, x: Tensor) -> Tensor:
    return y + torch.rand(16)


def heads(y: Tensor) -> Tensor:
    return y.unflatten(-1, (2, 8)).transpose(1, 2)


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "softmax": (lambda y, x: y.softmax(-1), "aten.softmax.int that is not part of attention"),
    "scores": (lambda y, x: (y @ x.mT).relu(), "a matrix product that is not part of attention"),
    "over queries": (lambda y, x: (y @ x.mT).softmax(1) @ x, "aten.softmax.int over axis 1"),
    "weights": (lambda y, x: (y @ x.mT).softmax(-1) * 2, "a product with a softmax"),
    "a mask": (
        lambda y, x: F.scaled_dot_product_attention(y, x, x, (y @ x.mT).softmax(-1)),
        "a mask that is not a constant",
    ),
    "nothing to see": (
        lambda y, x: F.scaled_dot_product_attention(y, x, x, torch.zeros(5, 5).bool()),
        "hides everything",
    ),
    "groups": (
        lambda y, x: F.scaled_dot_product_attention(heads(y), heads(x)[:, :1], heads(x)[:, :1], enable_gqa=True),
        "enable_gqa",
    ),
    "dropout": (lambda y, x: F.scaled_dot_product_attention(y, x, x, dropout_p=0.1), "has random dropout"),
    "a norm of two axes": (lambda y, x: F.layer_norm(y, (5, 16)), "a norm over more than the last axis"),
    "chance": (random, "is random"),
    "broadcast": (lambda y, x: y[:, :1] + x[..., :1], "a sum of maps of different shapes"),
    "padding": (lambda y, x: F.pad(y, (0, 1)), "aten.pad.default"),
    "a mean of everything": (lambda y, x: y.mean(), "aten.mean.default"),
    "a mean of the first axis": (lambda y, x: y.mean(0), "a mean over the axes"),
    "operators": (lambda y, x: y.cumsum(1), "aten.cumsum.default"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_operators_are_refused_with_the_reason(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason):
        read(Of(function), tokens(2, 5, 16))


class Changes(nn.Module):
    """Changes one of its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.register_buffer("count", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5, 16) → (N, 5, 16)."""
        self.count.add_(1)  # type: ignore[operator]
        out: Tensor = self.layer(x) + self.count
        return out


def test_reading_a_graph_does_not_change_the_network() -> None:
    network, x = Changes(), tokens(1, 5, 16)
    module = traced(network, x)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(UnsupportedError, match="changes one of its parameters"):
        Planner(module).read(module.graph)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_orders_of_elements_are_recognised() -> None:
    dense = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert strides_of(dense.transpose(1, 2)) == Strides(0, 60, 5, 20)
    assert strides_of(dense[:, :, 1:, :3]) == Strides(5, 60, 20, 5)
    assert strides_of(dense.flip(-1)) is None
    assert strides_of(dense[:, [0, 2, 1]]) is None
    assert as_transposed(dense.transpose(2, 3).reshape(-1)) == (6, 4, 5)
    assert as_transposed(dense.transpose(1, 2).reshape(-1)) is None
    assert run_length(dense.transpose(1, 2).reshape(-1)) == 5
    assert run_length(dense[:, :, :, 1:].reshape(-1)) == 4
    assert run_length(dense.reshape(-1)) == 120
