"""The demo's network: small, without padding, with two fully connected layers at its end."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from onebyone.demo.data import CLASSES, WINDOW
from onebyone.laws.cost import Layer
from onebyone.laws.geometry import Sliding

HIDDEN = 64
"""Neurons of the first fully connected layer."""


def build(seed: int = 0) -> nn.Sequential:
    """An untrained network from (N, 1, 40, 40) to (N, 11) logits, without padding.

    The first layer has a stride because its map is the largest one on a whole page: half the side is a quarter of the
    memory traffic. Channel counts are multiples of 16, the size of a vector register. The batch norms shorten training
    by a factor of three and are removed by :func:`folded`.

    >>> build(0).eval()(torch.zeros(2, 1, 40, 40)).shape
    torch.Size([2, 11])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = nn.Sequential(
            *_block(1, 16, 6, stride=2),  # 40 -> 18
            *_block(16, 32, 3),  # 18 -> 16
            *_block(32, 32, 3),  # 16 -> 14
            nn.MaxPool2d(2),  # 14 -> 7
            *_block(32, 32, 3),  # 7 -> 5
        )
        channels, height, width = features.eval()(torch.zeros(1, 1, WINDOW, WINDOW)).shape[1:]
        network = nn.Sequential(
            *features,
            nn.Flatten(),
            nn.Linear(channels * height * width, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, len(CLASSES)),
        )
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _block(channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out_channels, kernel, stride=stride)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def folded(network: nn.Sequential) -> nn.Sequential:
    """A copy for inference, in which each batch norm is folded into the convolution before it.

    >>> [type(layer).__name__ for layer in folded(build(0))][:3]
    ['Conv2d', 'ReLU', 'Conv2d']
    """
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(network).eval():
        if isinstance(layer, nn.BatchNorm2d):
            conv = layers.pop()
            assert isinstance(conv, nn.Conv2d)
            layer = fuse_conv_bn_eval(conv, layer)
        layers.append(layer)
    result = nn.Sequential(*layers).eval().requires_grad_(False)
    return result.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def cost_layers(network: nn.Sequential) -> list[Layer]:
    """The network's convolutions, pools and fully connected layers, as arguments of `laws.cost`.

    The fully connected layer after the flatten is a convolution over the whole map, the one after it a 1×1 convolution.
    """
    layers: list[Layer] = []
    size = (WINDOW, WINDOW)
    for module in network:
        if isinstance(module, nn.Conv2d):
            ops = [Sliding(int(k), int(s)) for k, s in zip(module.kernel_size, module.stride, strict=True)]
            layers.append(Layer(module.in_channels, module.out_channels, tuple(ops)))
        elif isinstance(module, nn.MaxPool2d):
            assert isinstance(module.kernel_size, int)
            assert isinstance(module.stride, int)
            op = Sliding(module.kernel_size, module.stride)
            layers.append(Layer(layers[-1].out_channels or 0, None, (op, op)))
        elif isinstance(module, nn.Linear):
            channels = module.in_features // (size[0] * size[1])
            layers.append(Layer(channels, module.out_features, (Sliding(size[0]), Sliding(size[1]))))
        else:
            continue
        height, width = layers[-1].out_size(size)
        size = (height, width)
    return layers
