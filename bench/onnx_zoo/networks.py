"""The networks of which the zoo's files are exported: each a builder that returns the network and its inputs.

Widths and depths are small where only the structure of the graph matters; weights are random and seeded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from onebyone.pytorch.files.sources import import_timm, import_torchvision, load_source

Built: TypeAlias = "tuple[nn.Module, tuple[Tensor, ...]]"

#: timm models by the arguments that make them small: the side of the image, and the number of blocks.
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (64, {"depth": 2, "img_size": 64}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "gmlp_ti16_224": (64, {"img_size": 64}),
    "convnext_atto": (64, {"depths": (1, 1, 2, 1)}),
    "convnextv2_atto": (64, {"depths": (1, 1, 2, 1)}),
    "swin_tiny_patch4_window7_224": (112, {"depths": (2, 1, 1, 1), "img_size": 112}),
    "poolformer_s12": (64, {}),
    "levit_128s": (224, {}),
    "mobilevit_xxs": (64, {}),
    "xcit_nano_12_p16_224": (64, {"depth": 2, "img_size": 64}),
}


class Text(nn.Module):
    """A transformer of Hugging Face whose forward takes tensors and returns its first output."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: Tensor) -> Tensor:
        result = self.network(**dict(zip(self.names, values, strict=True)), return_dict=True)
        return result[0]  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A recurrent network with a head on its last step, or on every step."""

    def __init__(self, body: nn.Module, head: nn.Module, every_step: bool) -> None:
        super().__init__()
        self.body, self.head, self.every_step = body, head, every_step

    def forward(self, x: Tensor) -> Tensor:
        steps = self.body(x)[0]
        return self.head(steps if self.every_step else steps[:, -1])  # type: ignore[no-any-return]


class ChannelsLastHead(nn.Module):
    """Convolutions, and a flatten in the order (H, W, C), as TensorFlow writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Linear(6 * 4 * 5, 16), nn.ReLU(), nn.Linear(16, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).permute(0, 2, 3, 1).flatten(1))  # type: ignore[no-any-return]


class EinsumAttention(nn.Module):
    """Attention whose projections are einsums with weights of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(12, 3, 4) / 4) for _ in range(3))
        self.out = nn.Parameter(torch.randn(3, 4, 12) / 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhtk,bhsk->bhts", q, k).softmax(-1)
        mixed = torch.einsum("bhts,bhsk->bhtk", weights, v)
        return torch.einsum("bhtk,hkd->btd", mixed, self.out)


class Branches(nn.Module):
    """Two branches of which one runs: an If whose graphs hold the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return self.first(x)  # type: ignore[no-any-return]
        return self.second(x)  # type: ignore[no-any-return]


class Repeated(nn.Module):
    """One layer that is applied as often as an input says: a Loop whose graph holds the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(8, 8)

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        for _ in range(int(count)):
            x = torch.relu(self.step(x))
        return x


class TiedHead(nn.Module):
    """An embedding, two layers of which each runs twice, and a head whose weight is that of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.other = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for _ in range(2):
            x = self.other(self.layer(x).relu())
        return nn.functional.linear(x, self.table.weight)


#: Image sides of torchvision models that do not take 64 pixels, or whose adaptive pools need the nominal size.
_SIDES = {"alexnet": 224, "vgg11": 224, "maxvit_t": 224, "vit_b_16": 224, "inception_v3": 96}


def build(source: str) -> Built:
    """The network of a source, in eval mode and without constant weights, and its example inputs (batch 2)."""
    torch.manual_seed(0)
    family, _, name = source.partition(":")
    if family == "torchvision":
        import_torchvision()
        side = _SIDES.get(name, 64)
        network = load_source(source)
        assert isinstance(network, nn.Module)
        return network, (torch.randn(2, 3, side, side),)
    if family == "timm":
        side, options = TIMM[name]
        return import_timm().create_model(name, pretrained=False, **options), (torch.randn(2, 3, side, side),)
    return BUILDERS[source]()


def _text(class_name: str, config_name: str, head: str | None = None, **sizes: Any) -> Built:
    import_torchvision()
    import transformers

    config = getattr(transformers, config_name)(vocab_size=120, **sizes)
    config._attn_implementation = "eager"
    network = getattr(transformers, class_name)(config)
    ids = torch.randint(3, 120, (2, 7))
    return Text(network if head is None else getattr(network, head), ("input_ids", "attention_mask")), (
        ids,
        torch.ones_like(ids),
    )


_BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
_GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 64, "use_cache": False}
_DISTIL = {"dim": 48, "n_layers": 2, "n_heads": 3, "hidden_dim": 96}
_T5 = {"d_model": 48, "num_layers": 2, "num_heads": 3, "d_kv": 16, "d_ff": 96, "use_cache": False}


def _whisper() -> Built:
    import_torchvision()
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=48,
        encoder_layers=2,
        encoder_attention_heads=3,
        encoder_ffn_dim=96,
        num_mel_bins=20,
        max_source_positions=32,
    )
    config._attn_implementation = "eager"
    return Text(WhisperEncoder(config), ("input_features",)), (torch.randn(2, 20, 64),)


def _vision(class_name: str, config_name: str, **sizes: Any) -> Built:
    import_torchvision()
    import transformers

    config = getattr(transformers, config_name)(image_size=32, patch_size=8, **sizes)
    config._attn_implementation = "eager"
    return Text(getattr(transformers, class_name)(config), ("pixel_values",)), (torch.randn(2, 3, 32, 32),)


def _mlp() -> Built:
    layers = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    return layers, (torch.randn(2, 24),)


def _classifier() -> Built:
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    pointwise = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1, stride=2), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 4 * 5, 16), nn.ReLU(), nn.Linear(16, 7))
    return nn.Sequential(*features, *pointwise, *head), (torch.randn(2, 3, 18, 22),)


BUILDERS: dict[str, Callable[[], Built]] = {
    "text:bert": lambda: _text("BertModel", "BertConfig", **_BERT),
    "text:bert-classifier": lambda: _text("BertForSequenceClassification", "BertConfig", **_BERT),
    "text:albert": lambda: _text("AlbertModel", "AlbertConfig", embedding_size=24, **_BERT),
    "text:distilbert": lambda: _text("DistilBertModel", "DistilBertConfig", **_DISTIL),
    "text:gpt2": lambda: _text("GPT2LMHeadModel", "GPT2Config", **_GPT2),
    "text:t5-encoder": lambda: _text("T5EncoderModel", "T5Config", **_T5),
    "audio:whisper-encoder": _whisper,
    "vision:vit": lambda: _vision("ViTModel", "ViTConfig", **_BERT),
    "vision:dinov2": lambda: _vision(
        "Dinov2Model", "Dinov2Config", hidden_size=48, num_hidden_layers=2, num_attention_heads=3
    ),
    "recurrent:lstm": lambda: (
        Recurrent(nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 5), False),
        (torch.randn(2, 9, 12),),
    ),
    "recurrent:gru": lambda: (
        Recurrent(nn.GRU(12, 16, batch_first=True), nn.Linear(16, 5), False),
        (torch.randn(2, 9, 12),),
    ),
    "recurrent:bilstm-every-step": lambda: (
        Recurrent(nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True), nn.Linear(32, 5), True),
        (torch.randn(2, 9, 12),),
    ),
    "block:mlp": _mlp,
    "block:classifier": _classifier,
    "block:channels-last": lambda: (ChannelsLastHead(), (torch.randn(2, 3, 10, 12),)),
    "block:einsum-attention": lambda: (EinsumAttention(), (torch.randn(2, 9, 12),)),
    "block:tied": lambda: (TiedHead(), (torch.randint(0, 50, (2, 6)),)),
    "block:branches": lambda: (torch.jit.script(Branches()), (torch.randn(2, 8),)),
    "block:repeated": lambda: (torch.jit.script(Repeated()), (torch.randn(2, 8), torch.tensor(3))),
    "block:conv1d": lambda: (
        nn.Sequential(nn.Conv1d(8, 12, 1), nn.ReLU(), nn.Conv1d(12, 6, 1, groups=2)),
        (torch.randn(2, 8, 11),),
    ),
    "block:conv3d": lambda: (
        nn.Sequential(nn.Conv3d(4, 8, 1), nn.ReLU(), nn.Conv3d(8, 6, 1, stride=(1, 2, 1))),
        (torch.randn(2, 4, 3, 4, 5),),
    ),
}
