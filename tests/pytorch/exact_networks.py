"""Networks without padding: dense must equal crops. Each is (build, window, channels or None where a layer tells)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.pytorch.anysize import Apply, Residual, lenet
from tests.pytorch.exact_operators import OPERATORS


def shuffle(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Branches(nn.Module):
    """Branches of different receptive fields, joined; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 5)
        self.first, self.second = nn.Linear(9 * 6 * 4, 7), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        joined = torch.cat([self.a(x)[:, :, 1:-1, 1:-1], self.b(x)], 1)
        return self.first(joined.flatten(1)), self.second(joined.mean((2, 3)))


class ChannelsLast(nn.Module):
    """A ConvNeXt-like block: permute, layer norm, linear layers, permute back, with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 24), nn.Linear(24, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y)))) * self.scale
        return self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


class PatchMerging(nn.Module):
    """Swin's: the four neighbours side by side, in channels-last layout, then a linear layer: stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.head = nn.Linear(12, 5), nn.Linear(5 * 2 * 3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.reduce(x).flatten(1))


class Tokens(nn.Module):
    """A patch embedding, tokens, and the mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head((tokens + F.relu(self.mlp(tokens))).mean(1))


class TwoStrides(nn.Module):
    """Two resolutions exchanged, as HRNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        return self.head(
            (fine + F.interpolate(self.coarse(fine).relu(), scale_factor=2.0)).relu().mean((2, 3))
        )


class Stages(nn.Module):
    """The means of two stages, of different strides, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 5, 2, 3), nn.Linear(9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x).relu()
        return self.head(torch.cat([first.mean((2, 3)), self.second(first).relu().mean((2, 3))], 1))


EXACT = {
    "linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 5), nn.ReLU(), nn.Linear(5, 4)),
        (8, 6),
        3,
    ),
    "lenet": (lenet, 32, None),
    "lenet with batch norms": (lambda: lenet(norm=True), (32, 36 - 4), None),
    "height, width, channels order": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), Apply(lambda x: x.permute(0, 2, 3, 1)), nn.Flatten(), nn.Linear(3 * 5 * 7, 4)
        ),
        (7, 9),
        None,
    ),
    "flipped before the flatten": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), Apply(lambda x: x.flip(2, 3)), nn.Flatten(), nn.Linear(75, 4)
        ),
        7,
        None,
    ),
    "repeated elements": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.Flatten(), Apply(lambda x: torch.cat([x, x[:, 5:9]], 1)), nn.Linear(31, 4)
        ),
        5,
        None,
    ),
    "flatten in two steps": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(2), nn.Flatten(1, 2), nn.Linear(3 * 25, 4)),
        7,
        None,
    ),
    "dilation and stride": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2, (1, 3)),
            nn.Flatten(),
            nn.Linear(4 * 3 * 2, 4),
        ),
        (11, 15),
        None,
    ),
    "channel shuffle": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3),
            Apply(shuffle),
            nn.Conv2d(6, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(4 * 9, 3),
        ),
        7,
        None,
    ),
    "chunks": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3),
            Apply(lambda x: torch.cat([x.chunk(2, 1)[1].relu(), x.chunk(2, 1)[0]], 1)),
            nn.Flatten(),
            nn.Linear(6 * 25, 3),
        ),
        7,
        None,
    ),
    "gated linear unit": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3),
            Apply(lambda x: x[:, :3] * torch.sigmoid(x[:, 3:])),
            nn.Flatten(),
            nn.Linear(75, 3),
        ),
        7,
        None,
    ),
    "residual without padding": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            Residual(nn.Conv2d(4, 4, 3), 1),
            Residual(nn.Conv2d(4, 4, 1), 0),
            nn.Flatten(),
            nn.Linear(4 * 16, 3),
        ),
        8,
        None,
    ),
    "global mean": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        9,
        None,
    ),
    "global maximum": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        9,
        None,
    ),
    "adaptive pool, even bins": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(24, 3)
        ),
        8,
        None,
    ),
    "adaptive pool, overlapping bins of one size": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(100, 3)),
        8,
        None,
    ),
    "adaptive pool, uneven bins": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 3)),
        (7, 6),
        None,
    ),
    "adaptive pool that is the identity": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(144, 3)),
        8,
        None,
    ),
    "whole ceil_mode places": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(36, 3)
        ),
        9,
        None,
    ),
    "average pools": (
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)),
        8,
        None,
    ),
    "slopes a channel": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 6), nn.PReLU(6), nn.Linear(6, 3)
        ),
        8,
        None,
    ),
    "weight norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
            nn.Flatten(),
            nn.utils.parametrizations.weight_norm(nn.Linear(144, 3)),
        ),
        8,
        None,
    ),
    "channels last": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), ChannelsLast()), 7, None),
    "patch merging": (PatchMerging, (4, 6), 3),
    "tokens": (Tokens, (12, 8), None),
    "softmax over channels of each place": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Flatten(), nn.Linear(64, 3), nn.Softmax(-1)
        ),
        6,
        None,
    ),
    "group norm on vectors": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 12), nn.GroupNorm(3, 12), nn.Linear(12, 3)
        ),
        6,
        None,
    ),
    "layer norm on vectors": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 12), nn.LayerNorm(12), nn.Linear(12, 3)
        ),
        6,
        None,
    ),
    "layer norm over the flattened map": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 3)),
        5,
        None,
    ),
    "nearest neighbours upsampled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 2, 2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 4, 3),
            nn.Flatten(),
            nn.Linear(4 * 36, 3),
        ),
        8,
        None,
    ),
    "branches of two strides, one upsampled": (TwoStrides, 12, None),
    "sum of parts": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3),
            Apply(lambda x: x.unflatten(1, (3, 2)).amax(1)),
            nn.Flatten(),
            nn.Linear(2 * 16, 3),
        ),
        6,
        None,
    ),
    "gated linear units": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.GLU(1), nn.Flatten(), nn.Linear(48, 8), nn.GLU(), nn.Linear(4, 3)
        ),
        6,
        None,
    ),
    "cropped by negative padding": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ZeroPad2d((0, -1, -1, 0)), nn.Flatten(), nn.Linear(4 * 9, 3)
        ),
        6,
        None,
    ),
    "group norm on the flattened map": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.GroupNorm(2, 36), nn.Linear(36, 3)),
        5,
        None,
    ),
    "batch norm on one place": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), Apply(lambda x: x[:, :, 1, 1]), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)
        ),
        5,
        None,
    ),
    "batch norm on tokens": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        ),
        5,
        None,
    ),
    "minimum over places": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Apply(lambda x: x.amin((2, 3))), nn.Linear(4, 3)),
        5,
        None,
    ),
    "mean over places and channels": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), Apply(lambda x: x.mean((1, 2, 3))[:, None]), nn.Linear(1, 3)
        ),
        5,
        None,
    ),
    "heads of two strides": (Stages, 12, None),
    "a pool over features": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 5),
            nn.Flatten(),
            Apply(lambda x: F.max_pool1d(x[:, None], 2)[:, 0]),
            nn.Linear(2, 3),
        ),
        5,
        None,
    ),
    "adaptive pool to more places than there are": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1, 2), nn.AdaptiveMaxPool2d((1, 3)), nn.Flatten(), nn.Linear(12, 3)
        ),
        (5, 4),
        None,
    ),
    "space to depth": (
        lambda: nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 2), nn.Flatten(), nn.Linear(4 * 3 * 2, 3)
        ),
        (8, 6),
        3,
    ),
}

EXACT.update(OPERATORS)
