"""Small random networks that the engine supports; the same seed gives the same network."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.GELU, nn.Identity)


def network(seed: int, threads: int = 1) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode and an input; some have numbers of rows that so many threads divide unevenly."""
    pick = random.Random(seed)
    torch.manual_seed(seed)
    kind = pick.choice((_layers, _images, _images, _tokens, _tokens))
    network_, x = _layers(pick, threads) if kind is _layers else kind(pick)
    if pick.random() < 0.3:  # an outlier: rows must then be scaled before they are added
        x.view(-1, x.shape[-1])[pick.randrange(x.shape[-2])] *= 1e5
    return network_.eval(), x


def _activation(pick: random.Random) -> nn.Module:
    return nn.GELU(approximate="tanh") if pick.random() < 0.1 else pick.choice(ACTIVATIONS)()


def _layers(pick: random.Random, threads: int) -> tuple[nn.Module, Tensor]:
    """Linear layers on many rows: all levels of Strassen's algorithm, and every division of the rows."""
    inputs, hidden = (pick.choice((24, 64, 96, 100, 144, 256, 384, 768)) for _ in range(2))
    # a thread processes 321 rows in chunks of 161 and 160, for which the size of the scratch was once wrong
    rows = pick.choice((1, 7, 33, 197, 161 * threads, 321 * threads, 481 * threads, pick.randint(1, 800)))
    if pick.random() < 0.2:
        inputs = 1024
    network_ = nn.Sequential(
        nn.Linear(inputs, hidden, bias=pick.random() < 0.7), _activation(pick), nn.Linear(hidden, inputs)
    )
    return network_, torch.randn(pick.choice((1, 1, 2)), rows, inputs)


class _Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 16, 1), nn.Conv2d(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1)
        out: Tensor = x * torch.sigmoid(self.up(F.relu(self.down(y))))
        return out


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.after = inner, after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(x + self.inner(x))
        return out


class _Joined(nn.Module):
    """Branches concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _norm(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
    nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


def _images(pick: random.Random) -> tuple[nn.Module, Tensor]:
    size = [pick.randint(9, 40) for _ in range(2)]
    c = pick.choice((16, 24, 32, 40, 52))
    layers: list[nn.Module] = [
        nn.Conv2d(3, c, pick.choice((1, 3, 5, 7)), pick.choice((1, 2)), pick.choice((0, 1, 3)))
    ]
    for _ in range(pick.randint(1, 5)):
        kind = pick.randrange(9)
        if kind == 0:
            layers += [nn.Conv2d(c, c, 3, padding=1), _norm(c), _activation(pick)]
        elif kind == 1:
            wide = pick.choice((16, 48, 64))
            layers += [nn.Conv2d(c, wide, 1, bias=False), _norm(wide), _activation(pick)]
            c = wide
        elif kind == 2:
            k = pick.choice((3, 5, 7))
            layers += [nn.Conv2d(c, c, k, pick.choice((1, 1, 2)), k // 2, groups=c), _activation(pick)]
        elif kind == 3:
            layers.append(nn.MaxPool2d(3, pick.choice((1, 2)), 1))
        elif kind == 4:
            layers += [_Gate(c), nn.Conv2d(c, c, 1)]
        elif kind == 5:
            inner = nn.Sequential(nn.Conv2d(c, c, 1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1))
            layers.append(_Residual(inner, _activation(pick)))
        elif kind == 6:
            layers.append(_Joined(nn.Conv2d(c, 16, 1), nn.Conv2d(c, 24, 3, padding=1)))
            c = 40
        elif kind == 7:
            layers.append(nn.Conv2d(c, c, (1, 3), 1, (0, 1), dilation=1))
        else:
            layers.append(_activation(pick))
    if pick.random() < 0.6:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, pick.choice((5, 10, 64)))]
    elif pick.random() < 0.6:
        k = pick.choice((1, 3, 5))
        layers += [nn.Conv2d(c, pick.choice((1, 3, 5)), k, padding=k // 2), _activation(pick)]
    return nn.Sequential(*layers), torch.randn(pick.choice((1, 1, 2, 3)), 3, *size)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.heads, self.causal = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            heads,
            causal,
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(y.transpose(1, 2).reshape(n, t, c))
        return out


class _First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def _tokens(pick: random.Random) -> tuple[nn.Module, Tensor]:
    heads = pick.choice((1, 2, 3, 4))
    width = heads * pick.choice((8, 16, 20, 32))
    layers: list[nn.Module] = []
    for _ in range(pick.randint(1, 3)):
        inner: nn.Module = _Attention(width, heads, pick.random() < 0.3)
        if pick.random() < 0.4:
            inner = nn.Sequential(nn.Linear(width, 4 * width), _activation(pick), nn.Linear(4 * width, width))
        layers.append(_Residual(nn.Sequential(nn.LayerNorm(width), inner)))
    if pick.random() < 0.5:
        layers += [nn.LayerNorm(width), _First(), nn.Linear(width, 10)]
    rows = pick.choice((5, 16, 33, 50, 197, pick.randint(2, 330)))
    return nn.Sequential(*layers), torch.randn(pick.choice((1, 1, 2, 3)), rows, width)
