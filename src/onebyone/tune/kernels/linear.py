"""Weights of a fully connected layer as `linear.h` multiplies with them, and how deep Strassen's products go."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.laws.strassen import PRODUCTS, weights

_DEEPEST = 2
# cycles of one core: for every tile of every product, for every vector of rows that is summed, and for every byte of
# weights, of which deeper products read more; fitted to 39 layers of the benchmark's networks on an EPYC of family 25
_TILE, _SUM, _BYTE = 340.0, 10.0, 0.04
# how much longer products take with panels of so many vectors, which read more rows, or more weights, for as many
_SLOWER = {1: 1.3, 2: 1.02, 3: 1.0}


def vectors(columns: int, lanes: int) -> int:
    """How many vectors wide a panel is best where a part of a layer has so many outputs: few are filled up.

    >>> [vectors(n, 16) for n in (96, 64, 240, 16, 200)]
    [3, 2, 3, 1, 2]
    """
    return min(_SLOWER, key=lambda n: -(-columns // (n * lanes)) * n * _SLOWER[n])


def depth(rows: int, inputs: int, outputs: int, lanes: int) -> int:
    """How often to halve the layer: what costs fewest cycles by the account above.

    >>> depth(196, 768, 3072, 16), depth(1, 768, 3072, 16), depth(197, 383, 384, 16)
    (2, 0, 0)
    """
    able = [
        n
        for n in range(_DEEPEST + 1)
        if inputs % 2**n == 0 and outputs % 2**n == 0 and (not n or rows >= 8 * 2**n)
    ]
    return min(able, key=lambda n: _cycles(rows, inputs, outputs, lanes, n))


def _cycles(rows: int, inputs: int, outputs: int, lanes: int, levels: int) -> float:
    parts = 1 << levels
    k, columns, height = inputs // parts, outputs // parts, -(-rows // parts)
    width = vectors(columns, lanes) * lanes
    panels = -(-columns // width) * int(PRODUCTS**levels)
    tiles = -(-height // (8 if width == 3 * lanes else 12))
    products = panels * (height * k * width / lanes + tiles * _TILE)
    summed = sum(1.75**n for n in range(levels)) * rows * inputs / lanes
    return products + _SUM * summed + _BYTE * 4 * panels * k * width


def packed(weight: Tensor, levels: int, lanes: int) -> Tensor:
    """Weight (N, K) as (panels, 7^levels, K / 2^levels, panel), the outputs filled up with zeros.

    >>> packed(torch.ones(6, 4), 1, 4).shape
    torch.Size([1, 7, 2, 4])
    """
    made = [torch.from_numpy(m) for m in weights(weight.double().t().numpy(), levels)]
    width = vectors(made[0].shape[1], lanes) * lanes
    filled = [F.pad(m.float(), (0, -m.shape[1] % width)).reshape(len(m), -1, width) for m in made]
    return torch.stack(filled).permute(2, 0, 1, 3).contiguous()
