"""Common blocks that are rare in `timm` and `torchvision` networks: small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """A small network: its builder, the shapes of its inputs without the batch, and its window if it has one."""

    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    window: tuple[int, ...] | None = None


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 32) → (N, T, 32)."""
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class CrossAttention(nn.Module):
    """`nn.MultiheadAttention` with keys and values of another width, a learned key bias and weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, kdim=20, vdim=24, add_bias_kv=True, batch_first=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T, 32), (N, S, 20), (N, S, 24) → (N, T, 32), (N, T, S + 1)."""
        out: tuple[Tensor, Tensor] = self.attention(q, k, v)
        return out


class Recurrent(nn.Module):
    """A recurrent network with linear layers before and after it."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 16), nn.Linear(48, 10)
        self.cell = cell(16, 24, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 12) → (N, 10)."""
        out: Tensor = self.head(self.cell(self.embed(x))[0][:, -1])
        return out


class UNet(nn.Module):
    """Ronneberger et al., 2015, small: two levels, skip connections, transposed convolutions, a 1×1 head."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = _double(3, 8), _double(8, 16), _double(16, 32)
        self.up2, self.join2 = nn.ConvTranspose2d(32, 16, 2, stride=2), _double(32, 16)
        self.up1, self.join1 = nn.ConvTranspose2d(16, 8, 2, stride=2), _double(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, 4, H, W), H and W multiples of 4."""
        a = self.down1(x)
        b = self.down2(nn.functional.max_pool2d(a, 2))
        c = self.middle(nn.functional.max_pool2d(b, 2))
        b = self.join2(torch.cat([self.up2(c), b], 1))
        a = self.join1(torch.cat([self.up1(b), a], 1))
        out: Tensor = self.head(a)
        return out


def _double(before: int, after: int) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


def _generator() -> nn.Module:
    """Radford et al., 2016: a linear layer, then transposed convolutions, a 1×1 convolution at the end."""
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    start = [nn.Linear(24, 32 * 4 * 4), nn.Unflatten(1, (32, 4, 4)), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(
        *start, *up, nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Tanh()
    )


def _autoencoder() -> nn.Module:
    encoder = [nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 8)]
    return nn.Sequential(
        *encoder, nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 144), nn.Unflatten(1, (1, 12, 12))
    )


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(144, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10)
    )


def _signals() -> nn.Module:
    body = [nn.Conv1d(2, 8, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 16, 3), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16 * 14, 20), nn.ReLU(), nn.Linear(20, 4))


def _volumes() -> nn.Module:
    body = [nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5))


def _patches() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *body, nn.Flatten(), nn.Linear(12 * 25, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 6)
    )


def _encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)


def _decoder() -> nn.Module:
    return nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)


def _stack() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


TOKENS = (7, 32)
BLOCKS: dict[str, Block] = {
    "self_attention": Block(SelfAttention, (TOKENS,)),
    "cross_attention": Block(CrossAttention, (TOKENS, (5, 20), (5, 24))),
    "transformer_encoder_layer": Block(_encoder, (TOKENS,)),
    "transformer_encoder": Block(_stack, (TOKENS,)),
    "transformer_decoder_layer": Block(_decoder, (TOKENS, (5, 32))),
    "lstm": Block(lambda: Recurrent(nn.LSTM), ((9, 12),)),
    "gru": Block(lambda: Recurrent(nn.GRU), ((9, 12),)),
    "generator": Block(_generator, ((24,),)),
    "unet": Block(UNet, ((3, 32, 40),), (32, 40)),
    "autoencoder": Block(_autoencoder, ((1, 12, 12),), (12, 12)),
    "mlp": Block(_mlp, ((1, 12, 12),), (12, 12)),
    "patch_classifier": Block(_patches, ((3, 28, 28),), (28, 28)),
    "cnn_1d": Block(_signals, ((2, 64),), (64,)),
    "cnn_3d": Block(_volumes, ((1, 12, 14, 16),), (12, 14, 16)),
}
