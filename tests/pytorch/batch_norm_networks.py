"""Networks in which batch norms stand beside 1×1 convolutions and linear layers, in every layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Called(nn.Module):
    """Layers and a function that calls them."""

    def __init__(
        self, forward: Callable[[Callable[[str], nn.Module], Tensor], Tensor], **layers: nn.Module
    ) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleDict(layers), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers.__getitem__, x)


def one_image_of_columns() -> nn.Module:
    """One image made of the batch: the number of images is 1 whatever the batch."""
    layers = {"conv": nn.Conv2d(8, 6, 1), "norm": nn.BatchNorm2d(6)}
    return Called(lambda get, x: get("norm")(get("conv")(x.T.reshape(1, 8, 2, -1))).flatten(1), **layers)


def mobile_vit() -> nn.Module:
    """A map, unfolded into tokens for linear layers, and folded back before a 1×1 convolution with its norm."""
    layers = {
        "stem": nn.Conv2d(3, 8, 3, padding=1), "norm1": nn.BatchNorm2d(8), "into": nn.Conv2d(8, 6, 1, bias=False),
        "qkv": nn.Linear(6, 12), "proj": nn.Linear(12, 6), "out": nn.Conv2d(6, 8, 1), "norm2": nn.BatchNorm2d(8),
        "head": nn.Linear(8, 3),
    }  # fmt: skip

    def forward(get: Callable[[str], nn.Module], x: Tensor) -> Tensor:
        x = torch.relu(get("norm1")(get("stem")(x)))
        n, _, h, w = x.shape
        t = get("into")(x).reshape(n, 6, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1).reshape(n * 4, -1, 6)
        t = t + get("proj")(torch.relu(get("qkv")(t)))
        y = t.reshape(n, 2, 2, h // 2, w // 2, 6).permute(0, 5, 3, 1, 4, 2).reshape(n, 6, h, w)
        y = torch.relu(get("norm2")(get("out")(y))) + x
        return get("head")(y.mean((2, 3)))

    return Called(forward, **layers)


def tiny_vit() -> nn.Module:
    """Tokens (N, T, C), seen as a map by a depthwise convolution with its norm between two linear layers."""
    layers = {
        "fc1": nn.Linear(6, 8), "local": nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        "norm": nn.BatchNorm2d(8), "fc2": nn.Linear(8, 6), "down": nn.Conv2d(6, 10, 1), "norm2": nn.BatchNorm2d(10),
    }  # fmt: skip

    def forward(get: Callable[[str], nn.Module], x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        t = get("fc1")(x.flatten(2).transpose(1, 2))
        y = get("norm")(get("local")(t.transpose(1, 2).reshape(n, 8, h, w)))
        t = get("fc2")(y.flatten(2).transpose(1, 2))
        return torch.relu(get("norm2")(get("down")(t.transpose(1, 2).view(n, 6, h, w)))).mean((2, 3))

    return Called(forward, **layers)


def vectors_as_channels() -> nn.Module:
    """Tokens through `BatchNorm1d` over their features, before and after it a linear layer."""
    layers = {"a": nn.Linear(5, 6), "norm": nn.BatchNorm1d(6), "b": nn.Linear(6, 4)}
    return Called(lambda get, x: get("b")(get("norm")(get("a")(x).transpose(1, 2)).transpose(1, 2)), **layers)


def residual() -> nn.Module:
    """Strided and grouped 1×1 convolutions, each with its norm, and a sum of two of them."""
    layers = {
        "a": nn.Conv2d(4, 8, 1, bias=False), "na": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 8, 1, groups=2),
        "nb": nn.BatchNorm2d(8), "c": nn.Conv2d(8, 8, 1), "nc": nn.BatchNorm2d(8),
        "d": nn.Conv2d(8, 6, 1, stride=2), "nd": nn.BatchNorm2d(6), "fc": nn.Linear(6, 3),
    }  # fmt: skip

    def forward(get: Callable[[str], nn.Module], x: Tensor) -> Tensor:
        x = torch.relu(get("na")(get("a")(x)))
        y = torch.relu(get("nb")(get("b")(x)))
        y = torch.relu(get("nc")(get("c")(y)) + x)
        return get("fc")(get("nd")(get("d")(y)).amax((2, 3)))

    return Called(forward, **layers)


def volumes() -> nn.Module:
    """Three axes of places."""
    layers = {
        "a": nn.Conv3d(3, 6, 1),
        "norm": nn.BatchNorm3d(6),
        "b": nn.Conv3d(6, 4, 1),
        "norm2": nn.BatchNorm3d(4),
    }
    return Called(
        lambda get, x: get("norm2")(get("b")(torch.relu(get("norm")(get("a")(x))))).flatten(1), **layers
    )


def sequences() -> nn.Module:
    """One axis of places."""
    layers = {
        "a": nn.Conv1d(3, 6, 1),
        "norm": nn.BatchNorm1d(6),
        "b": nn.Conv1d(6, 4, 1),
        "norm2": nn.BatchNorm1d(4),
    }
    return Called(
        lambda get, x: get("norm2")(get("b")(torch.relu(get("norm")(get("a")(x))))).flatten(1), **layers
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "one image of columns": (one_image_of_columns, (8,)),
    "MobileViT": (mobile_vit, (3, 4, 6)),
    "TinyViT": (tiny_vit, (6, 3, 4)),
    "TinyViT, one row": (tiny_vit, (6, 1, 4)),
    "TinyViT, one column": (tiny_vit, (6, 4, 1)),
    "vectors as channels": (vectors_as_channels, (3, 5)),
    "residual": (residual, (4, 5, 6)),
    "residual, one row": (residual, (4, 1, 6)),
    "residual, one place": (residual, (4, 1, 1)),
    "volumes": (volumes, (3, 2, 3, 4)),
    "volumes, one plane": (volumes, (3, 1, 3, 4)),
    "sequences": (sequences, (3, 5)),
}


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """One of them with statistics that differ from channel to channel, and the shape of one sample."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net = make()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    return net.eval(), shape
