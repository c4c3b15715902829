"""Weights of a fully connected layer as `strassen.h` multiplies with them, and how deep Strassen's products go."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.laws import scaling
from onebyone.laws.strassen import PRODUCTS, weights

_DEEPEST = 2
# cycles of one core: for every tile of every product, for every vector of rows that is summed, and for every byte of
# weights, of which deeper products read more; fitted to 39 layers of the benchmark's networks on an EPYC of family 25
_TILE, _SUM, _BYTE = 340.0, 10.0, 0.04
# how much longer products take with panels of so many vectors, which read more rows, or more weights, for as many
_SLOWER = {1: 1.3, 2: 1.02, 3: 1.0}


def vectors(columns: int, lanes: int) -> int:
    """How many vectors wide panels are best where a part of a layer has so many outputs; the last has those left.

    >>> [vectors(n, 16) for n in (96, 64, 240, 16, 200)]
    [3, 2, 3, 1, 3]
    """
    return min(_SLOWER, key=lambda n: _slowed(columns, lanes, n))


def _slowed(columns: int, lanes: int, wide: int) -> float:
    """Vectors of outputs in panels of `wide` and one of those left, each as many as it takes the time of."""
    whole, left = divmod(-(-columns // lanes), wide)
    return whole * wide * _SLOWER[wide] + (left * _SLOWER[left] if left else 0.0)


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
    wide = vectors(columns, lanes)
    panels, tiles = -(-columns // (wide * lanes)), -(-height // (8 if wide == 3 else 12))
    products = height * k * _slowed(columns, lanes, wide) + panels * tiles * _TILE
    summed = sum(1.75**n for n in range(levels)) * rows * inputs / lanes
    return int(PRODUCTS**levels) * (products + _BYTE * 4 * k * columns) + _SUM * summed


def packed(weight: Tensor, levels: int, lanes: int) -> Tensor:
    """Weight (N, K) as panels (7^levels, K / 2^levels, their width), one after the other, filled up to whole vectors.

    >>> packed(torch.ones(6, 4), 1, 4).shape, packed(torch.ones(40, 2), 0, 4).shape
    (torch.Size([56]), torch.Size([80]))
    """
    made = torch.stack([torch.from_numpy(m).float() for m in weights(weight.double().t().numpy(), levels)])
    filled = F.pad(made, (0, -made.shape[2] % lanes))
    width = vectors(made.shape[2], lanes) * lanes
    return torch.cat(
        [filled[..., begin : begin + width].flatten() for begin in range(0, filled.shape[2], width)]
    )


def in_halves(weight: Tensor) -> bool:
    """Whether a layer's weight (N, K) may be multiplied in halves with an error bound for each row."""
    return scaling.why_not(weight.detach().double().numpy()) is None


def guards(weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The weight (N, K) with its channels scaled; their scales (K,), or None where none is; the signs of the weight.

    The signs are bits, (2, K, ⌈N/8⌉) bytes: where a weight is positive, and where it is negative. They are what the
    products of an infinity depend on.

    >>> scaled, scales, signs = guards(torch.tensor([[1.0, -0.02], [-0.5, 0.0]]))
    >>> scaled.tolist(), scales.tolist(), signs.flatten().tolist()
    ([[1.0, -0.6399999856948853], [-0.5, 0.0]], [1.0, 0.03125], [1, 0, 2, 1])
    """
    w = weight.detach().double().numpy()
    scales = scaling.channel_scales(w)
    scaled = torch.from_numpy(scaling.scaled_weight(w, scales))
    bits = np.packbits(np.stack([w.T > 0, w.T < 0]), axis=-1, bitorder="little")
    return scaled, None if scales is None else torch.from_numpy(scales).float(), torch.from_numpy(bits)
