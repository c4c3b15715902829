"""The ten networks of the benchmark, with random weights (the values of weights do not affect the time)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from onebyone.pytorch.files.sources import import_torchvision, load_source

SEED = 0


class Network(NamedTuple):
    """A network, the function that builds it, and the shape of its input."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def make(self) -> tuple[nn.Module, Tensor]:
        """Return the network in eval mode and a standard normal input; the same at every call."""
        torch.manual_seed(SEED)
        model = self.build().eval().requires_grad_(False)
        _randomise_small_weights(model)
        return model, torch.randn(*self.shape, generator=torch.Generator().manual_seed(SEED))


def _randomise_small_weights(model: nn.Module) -> None:
    """Randomise weights that are initialised near zero: a head of zeros or layer scales of 1e-6 would hide errors."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and float(parameter.abs().max()) <= 1e-5:
            nn.init.normal_(parameter, std=0.1)


class BertEncoder(nn.Module):
    """The twelve layers of BERT-base as `transformers` builds them, from embeddings to hidden states."""

    def __init__(self) -> None:
        super().__init__()
        import_torchvision()  # transformers imports it too, and fails where its compiled operators are missing
        from transformers import BertConfig, BertModel

        self.encoder = BertModel(BertConfig(), add_pooling_layer=False).encoder

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map (N, T, 768) to (N, T, 768)."""
        out: Tensor = self.encoder(embeddings).last_hidden_state
        return out


def _source(spec: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = load_source(spec)
        assert isinstance(model, nn.Module)
        return model

    return build


IMAGE = (1, 3, 224, 224)
NETWORKS = (
    Network("ViT-S/16", _source("timm:vit_small_patch16_224"), IMAGE),
    Network("ViT-S/16 ×8", _source("timm:vit_small_patch16_224"), (8, *IMAGE[1:])),
    Network("ConvNeXt-T", _source("torchvision:convnext_tiny"), IMAGE),
    Network("Mixer-B/16", _source("timm:mixer_b16_224"), IMAGE),
    Network("Swin-T", _source("torchvision:swin_t"), IMAGE),
    Network("ResNet-50", _source("torchvision:resnet50"), IMAGE),
    Network("VGG-16", _source("torchvision:vgg16"), IMAGE),
    Network("MobileNetV3-L", _source("torchvision:mobilenet_v3_large"), IMAGE),
    Network("EfficientNet-B0", _source("torchvision:efficientnet_b0"), IMAGE),
    Network("BERT-base, 128 tokens", BertEncoder, (1, 128, 768)),
)
