"""The networks of `bench/targets.py`, with random weights, as ONNX files with fixed sizes and batch 1."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onebyone.pytorch.files.sources import import_timm, import_torchvision

OPSET = 17


class OnlyLastState(nn.Module):
    """A model of transformers as a function of tensors: its last hidden state, or one block's first result."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        result: Any = self.network(*inputs)
        if isinstance(result, torch.Tensor):
            return result
        return result[0]  # type: ignore[no-any-return]


def _timm(name: str, **settings: Any) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    def build() -> tuple[nn.Module, torch.Tensor]:
        return import_timm().create_model(name, **settings), torch.randn(1, 3, 224, 224)

    return build


def bert(layers: int = 12, tokens: int = 128) -> tuple[nn.Module, torch.Tensor]:
    """An encoder of the shape of BERT-base, from token numbers to the last hidden state."""
    from transformers import BertConfig, BertModel

    config = BertConfig(num_hidden_layers=layers, attn_implementation="eager")
    return OnlyLastState(BertModel(config)), torch.randint(0, 30000, (1, tokens))


def whisper(layers: int = 4) -> tuple[nn.Module, torch.Tensor]:
    """The encoder of Whisper-tiny, from a spectrogram of 30 seconds to 1,500 states."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=384,
        encoder_layers=layers,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        attn_implementation="eager",
    )
    return OnlyLastState(WhisperEncoder(config)), torch.randn(1, 80, 3000)


def gpt2_block(tokens: int = 128) -> tuple[nn.Module, torch.Tensor]:
    """One block of GPT-2 (768 channels, 12 heads)."""
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = GPT2Config(attn_implementation="eager")
    return OnlyLastState(GPT2Block(config, layer_idx=0)), torch.randn(1, tokens, 768)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "ViT-S/16": _timm("vit_small_patch16_224"),
    "BERT-base-shaped encoder, 128 tokens": bert,
    "Mixer-B/16": _timm("mixer_b16_224"),
    "Swin-T": _timm("swin_tiny_patch4_window7_224"),
    "ConvNeXt-T": _timm("convnext_tiny"),
    "Whisper-tiny's encoder": whisper,
    "GPT-2 block, 128 tokens": gpt2_block,
}
#: The same structures with few layers, for a quick look.
SMALL: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "ViT-S/16": _timm("vit_small_patch16_224", depth=2),
    "BERT-base-shaped encoder, 128 tokens": lambda: bert(2, 32),
    "Mixer-B/16": _timm("mixer_s16_224"),
    "Swin-T": _timm("swin_tiny_patch4_window7_224", depths=(2, 2)),
    "ConvNeXt-T": _timm("convnext_tiny", depths=(1, 1, 2, 1)),
    "Whisper-tiny's encoder": lambda: whisper(1),
    "GPT-2 block, 128 tokens": gpt2_block,
}


def write_onnx(name: str, path: Path, small: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Write a network to an ONNX file; returns an example input, by the input's name."""
    import_torchvision()  # declares the operators that transformers needs of it
    torch.manual_seed(0)
    network, x = (SMALL if small else NETWORKS)[name]()
    network.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(path), dynamo=False, opset_version=OPSET, input_names=["x"])
    return {"x": x.numpy()}
