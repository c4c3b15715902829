"""Weights of some neurons of a fully connected layer, as rows of its matrix and as convolution filters."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from onebyone.comparison.claim_result import Figures
from onebyone.comparison.layer_pair import ComparedLayers
from onebyone.laws.flatten import flatten_index, to_kernel

NEURONS = 4
MAX_CELLS = 600
"""Weights of a neuron that are shown, at most: whole channels, or a corner of a larger channel."""
_CORNER_SIDE = 24


def row_and_filter(pair: ComparedLayers) -> Figures:
    """Weights of the first neurons of the fully connected layer, read from its matrix and from its filters.

    The row of a neuron has the order in which the network flattens the map (C, h, w); `order` lists the axes from
    the slowest to the fastest. The filter is computed from the whole row by `laws.flatten`. `index` lists the
    elements that are shown, `at` the position (c, y, x) of each in the filter; `row[n][k]` and `filter[n][k]` are the
    same weight of neuron n, read from the matrix and from the filter.
    """
    op, layer = pair.connected, pair.linear
    block = op.map_shape
    order: tuple[int, ...] = (0, 1, 2)
    rows = op.weight[:NEURONS].flatten(1)
    weight = None if layer is None else layer.weight()[:NEURONS].cpu()
    if layer is not None and weight is not None and bool((weight != 0).any()):
        rows = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
        order = layer.order if layer.block == block else order
    flattening = flatten_index(block, order)
    kernel = torch.from_numpy(np.array(to_kernel(rows.numpy(), flattening, block)))
    cells = _shown_block(block)
    at = np.stack(np.unravel_index(flattening, block), axis=1)
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


def _shown_block(block: tuple[int, int, int]) -> tuple[int, int, int]:
    """The part (c, h, w) of a filter that is shown.

    >>> _shown_block((512, 7, 7)), _shown_block((512, 1, 1)), _shown_block((3, 28, 28))
    ((12, 7, 7), (512, 1, 1), (1, 24, 24))
    """
    h, w = (n if prod(block[1:]) <= MAX_CELLS else min(n, _CORNER_SIDE) for n in block[1:])
    return min(block[0], max(1, MAX_CELLS // (h * w))), h, w


def _exact(values: Tensor) -> list[list[float]]:
    """The values with the fewest digits that identify each of them in its dtype."""
    if values.dtype == torch.float32:
        return [[float(str(v)) for v in row] for row in values.numpy()]
    return values.double().tolist()
