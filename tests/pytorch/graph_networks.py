"""Networks for the graph-level tests, each with an example input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention as timm writes it: one product for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class Encoder(nn.Module):
    """A transformer encoder block, normalised first."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A small vision transformer: patches, class token, positions, blocks, head."""

    def __init__(self, dim: int = 12, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 7, dim))
        self.blocks = nn.Sequential(*(Encoder(dim) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then an MLP over the channels, with a permute before and after it."""

    def __init__(self, dim: int = 6, linear: bool = True) -> None:
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.linear = linear
        self.fc1 = nn.Linear(dim, 4 * dim) if linear else nn.Conv2d(dim, 4 * dim, 1)
        self.fc2 = nn.Linear(4 * dim, dim) if linear else nn.Conv2d(4 * dim, dim, 1)
        self.gamma = nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        if not self.linear:
            y = self.fc2(F.gelu(self.fc1(y.permute(0, 3, 1, 2))))
            return x + y * self.gamma[:, None, None]
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)


class Mixer(nn.Module):
    """Mixes tokens, then channels."""

    def __init__(self, tokens: int = 7, dim: int = 6) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens, self.channels = mlp(tokens, 10), mlp(dim, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Squeeze(nn.Module):
    """Squeeze and excitation, by 1×1 convolutions or by linear layers."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.linear = linear
        make: Any = nn.Linear if linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.down, self.up = make(8, 2), make(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.linear:
            gate = self.up(F.relu(self.down(x.mean((2, 3)))))[:, :, None, None]
        else:
            gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Spelled(nn.Module):
    """One product with a constant weight, spelled in a given way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.out_in, self.in_out = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4, 5))
        self.bias, self.matrix = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(6, 5))
        self.vector = nn.Parameter(torch.randn(4))
        self.shared = nn.Parameter(torch.randn(1, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return SPELLINGS[self.how](self, x)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, 4)


def _long(x: Tensor, rank: int) -> Tensor:
    for _ in range(rank - 3):
        x = torch.stack([x, x + 1], 1)
    return x


SPELLINGS: dict[str, Any] = {
    "linear": lambda m, x: F.linear(x, m.out_in, m.bias),
    "linear of a transposed parameter": lambda m, x: F.linear(x, m.in_out.t(), m.bias),
    "mm (in, out)": lambda m, x: torch.mm(_rows(x), m.in_out),
    "mm of t": lambda m, x: torch.mm(_rows(x), m.out_in.t()),
    "constant on the left": lambda m, x: torch.mm(m.out_in, _rows(x).t()),
    "addmm, as Conv1D has it": lambda m, x: torch.addmm(m.bias, _rows(x), m.in_out).view(2, 3, 5),
    "addmm, alpha and beta": lambda m, x: torch.addmm(m.bias, _rows(x), m.in_out, beta=0.5, alpha=-2),
    "addmm, beta 0": lambda m, x: torch.addmm(m.bias, _rows(x), m.in_out, beta=0),
    "addmm, a matrix added": lambda m, x: torch.addmm(m.matrix, _rows(x), m.out_in.t()),
    "matmul": lambda m, x: x @ m.in_out,
    "matmul of a transpose": lambda m, x: torch.matmul(x, m.out_in.transpose(0, 1)),
    "matmul from the left": lambda m, x: torch.matmul(m.out_in, x.transpose(1, 2)),
    "matmul with a vector": lambda m, x: x @ m.vector,
    "bmm of an expanded weight": lambda m, x: torch.bmm(x, m.in_out.expand(2, 4, 5)),
    "bmm of a broadcast weight": lambda m, x: torch.bmm(x, m.shared.expand(2, 4, 5)),
    "baddbmm": lambda m, x: torch.baddbmm(m.bias, x, m.in_out.expand(2, 4, 5)),
    "mv": lambda m, x: torch.mv(m.out_in, x[0, 0]),
    "one row": lambda m, x: F.linear(x[0, 0], m.out_in, m.bias),
    "five axes": lambda m, x: F.linear(_long(x, 5), m.out_in, m.bias),
    "six axes": lambda m, x: F.linear(_long(x, 6), m.out_in, m.bias),
}


def mlp(dim: int, hidden: int) -> nn.Sequential:
    """The MLP block of a transformer."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, dim))


class Tied(nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(9, 6), mlp(6, 12), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


def rank3_head() -> nn.Module:
    """Convolutions, a pool and a classifier with in-place activations."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7), nn.ReLU(inplace=True), nn.Linear(7, 4),
    )  # fmt: skip


class Bottleneck(nn.Module):
    """A residual block with a strided 1×1 shortcut and a grouped 1×1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.bn = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.spatial = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.expand, self.shortcut = nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(6, 8, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.reduce(x)))
        y = self.expand(F.relu_(self.spatial(y)))
        y += self.shortcut(x)
        return F.relu(y)


def blocks() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Every block with inputs whose sizes are all different."""
    tokens, image = torch.randn(2, 5, 12), torch.randn(2, 6, 7, 5)
    return {
        "mlp": (mlp(12, 20), (tokens,)),
        "encoder": (Encoder(), (tokens,)),
        "transformer": (Transformer(), (torch.randn(2, 3, 8, 12),)),
        "TransformerEncoderLayer": (nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), (tokens,)),
        "TransformerEncoderLayer, sequence first": (nn.TransformerEncoderLayer(12, 3, 20), (tokens,)),
        "MultiheadAttention": (
            nn.MultiheadAttention(12, 3),
            (tokens, torch.randn(4, 5, 12), torch.randn(4, 5, 12)),
        ),
        "ConvNeXt, linear": (ConvNeXtBlock(linear=True), (image,)),
        "ConvNeXt, convolutions": (ConvNeXtBlock(linear=False), (image,)),
        "mixer": (Mixer(), (torch.randn(2, 7, 6),)),
        "squeeze, linear": (Squeeze(True), (torch.randn(2, 3, 6, 5),)),
        "squeeze, convolutions": (Squeeze(False), (torch.randn(2, 3, 6, 5),)),
        "tied": (Tied(), (torch.randint(0, 9, (2, 5)),)),
        "classifier": (rank3_head(), (torch.randn(2, 3, 7, 6),)),
        "bottleneck": (Bottleneck(), (image,)),
    }
