"""The same numbers twice: some neurons of a fully connected layer as rows of weights, and as filters."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from onebyone.comparison.claim_result import Figures
from onebyone.comparison.layer_pair import ComparedLayers
from onebyone.laws.flatten import flatten_index, to_kernel

NEURONS = 4
MOST_CELLS = 600
"""Weights of a neuron that are shown: as many whole channels as that, and a corner of a channel larger than it."""
_CORNER = 24


def row_and_filter(pair: ComparedLayers) -> Figures:
    """Weights of the first neurons of the fully connected layer, read from its row and from its filter.

    The row is the layer's own, in the order in which its network flattens the map (C, h, w): `order` names
    the axes from the slowest to the fastest. The filter is what the law `flatten` makes of the whole row.
    `index` lists the elements shown, `at` the (c, y, x) that each has in the filter; `row[n][k]` and
    `filter[n][k]` are neuron n's weight there, read from either side.
    """
    op, layer = pair.connected, pair.linear
    block = op.map_shape
    order: tuple[int, ...] = (0, 1, 2)
    rows = op.weight[:NEURONS].flatten(1)
    own = None if layer is None else layer.weight()[:NEURONS].cpu()
    if layer is not None and own is not None and bool((own != 0).any()):
        rows = own if own.dtype in (torch.float32, torch.float64) else own.float()
        order = layer.order if layer.block == block else order
    natural = flatten_index(block, order)
    kernel = torch.from_numpy(np.array(to_kernel(rows.numpy(), natural, block)))
    cells = _shown(block)
    at = np.stack(np.unravel_index(natural, block), axis=1)
    index = np.flatnonzero((at < np.array(cells)).all(1))
    c, y, x = at[index].T
    return {
        "layer": op.path,
        "origin": op.origin,
        "block": list(block),
        "order": list(order),
        "shown": list(cells),
        "neurons": len(rows),
        "index": index.tolist(),
        "at": at[index].tolist(),
        "row": _exact(rows[:, index]),
        "filter": _exact(kernel[:, c, y, x]),
    }


def _shown(block: tuple[int, int, int]) -> tuple[int, int, int]:
    """The part of a filter that is shown.

    >>> _shown((512, 7, 7)), _shown((512, 1, 1)), _shown((3, 28, 28))
    ((12, 7, 7), (512, 1, 1), (1, 24, 24))
    """
    h, w = (n if prod(block[1:]) <= MOST_CELLS else min(n, _CORNER) for n in block[1:])
    return min(block[0], max(1, MOST_CELLS // (h * w))), h, w


def _exact(values: Tensor) -> list[list[float]]:
    """As numbers of the fewest digits that still name each value of its own type."""
    if values.dtype == torch.float32:
        return [[float(str(v)) for v in row] for row in values.numpy()]
    return values.double().tolist()
