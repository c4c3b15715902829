"""Strassen's algorithm for linear layers: how often to halve the matrices, and the packed weights for strassen.h."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.laws import scaling
from onebyone.laws.strassen import PRODUCTS, weights

_MAX_LEVELS = 2
# cycles of one core for every tile of every product, for every vector of rows that is summed, and for every byte of
# weights (more levels read more of them); fitted to 39 layers of the benchmark's networks on an EPYC of family 25
_TILE, _SUM, _BYTE = 340.0, 10.0, 0.04
# the relative cost of panels of so many vectors: narrower panels read the rows, or the weights, more often
_PANEL_COST = {1: 1.3, 2: 1.02, 3: 1.0}


def panel_vectors(columns: int, lanes: int) -> int:
    """The best width of a panel, in vectors, for so many outputs; the last panel is narrower if some are left.

    >>> [panel_vectors(n, 16) for n in (96, 64, 240, 16, 200)]
    [3, 2, 3, 1, 3]
    """
    return min(_PANEL_COST, key=lambda n: _relative_cost(columns, lanes, n))


def _relative_cost(columns: int, lanes: int, vectors: int) -> float:
    """The cost of panels of so many vectors and of the last, narrower one, in vectors of outputs."""
    whole, left = divmod(-(-columns // lanes), vectors)
    return whole * vectors * _PANEL_COST[vectors] + (left * _PANEL_COST[left] if left else 0.0)


def best_levels(rows: int, inputs: int, outputs: int, lanes: int) -> int:
    """How often to halve the matrices of a layer: the number of levels with the lowest estimated cost.

    >>> best_levels(196, 768, 3072, 16), best_levels(1, 768, 3072, 16), best_levels(197, 383, 384, 16)
    (2, 0, 0)
    """
    possible = [
        n
        for n in range(_MAX_LEVELS + 1)
        if inputs % 2**n == 0 and outputs % 2**n == 0 and (not n or rows >= 8 * 2**n)
    ]
    return min(possible, key=lambda n: _cycles(rows, inputs, outputs, lanes, n))


def _cycles(rows: int, inputs: int, outputs: int, lanes: int, levels: int) -> float:
    parts = 1 << levels
    k, columns, height = inputs // parts, outputs // parts, -(-rows // parts)
    vectors = panel_vectors(columns, lanes)
    panels, tiles = -(-columns // (vectors * lanes)), -(-height // (8 if vectors == 3 else 12))
    products = height * k * _relative_cost(columns, lanes, vectors) + panels * tiles * _TILE
    summed = sum(1.75**n for n in range(levels)) * rows * inputs / lanes
    return int(PRODUCTS**levels) * (products + _BYTE * 4 * k * columns) + _SUM * summed


def packed(weight: Tensor, levels: int, lanes: int) -> Tensor:
    """The weight (N, K) as panels (7^levels, K / 2^levels, panel width), one after another, padded to whole vectors.

    >>> packed(torch.ones(6, 4), 1, 4).shape, packed(torch.ones(40, 2), 0, 4).shape
    (torch.Size([56]), torch.Size([80]))
    """
    factors = torch.stack([torch.from_numpy(m).float() for m in weights(weight.double().t().numpy(), levels)])
    padded = F.pad(factors, (0, -factors.shape[2] % lanes))
    width = panel_vectors(factors.shape[2], lanes) * lanes
    begins = range(0, padded.shape[2], width)
    return torch.cat([padded[..., begin : begin + width].flatten() for begin in begins])


def has_row_bounds(weight: Tensor) -> bool:
    """Whether Strassen's algorithm keeps an error bound for each row with this weight (N, K)."""
    return scaling.why_not(weight.detach().double().numpy()) is None


def guards(weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """What keeps an error bound for each row: the scaled weight (N, K), the channels' scales, the weights' signs.

    The scales (K,) are None if no channel is scaled. The signs are bits, (2, K, ⌈N/8⌉) bytes: where a weight is
    positive, and where it is negative. The products of infinities depend on the signs alone.

    >>> scaled, scales, signs = guards(torch.tensor([[1.0, -0.02], [-0.5, 0.0]]))
    >>> scaled.tolist(), scales.tolist(), signs.flatten().tolist()
    ([[1.0, -0.6399999856948853], [-0.5, 0.0]], [1.0, 0.03125], [1, 0, 2, 1])
    """
    w = weight.detach().double().numpy()
    scales = scaling.channel_scales(w)
    scaled = torch.from_numpy(scaling.scaled_weight(w, scales))
    bits = np.packbits(np.stack([w.T > 0, w.T < 0]), axis=-1, bitorder="little")
    return scaled, None if scales is None else torch.from_numpy(scales).float(), torch.from_numpy(bits)
