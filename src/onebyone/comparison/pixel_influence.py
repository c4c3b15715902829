"""Which outputs change when one input pixel changes, measured at every position, for the interactive report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from onebyone.comparison.claim_result import Figures
from onebyone.comparison.operation import Operation, sample

SIDE = 16
"""Positions per side, at most, of the maps of layers that accept any size."""
MAX_PER_SIDE = 32
"""Rows and columns, at most, that are changed on the fixed map of a connected layer; of more, an even sample."""
MAX_OUTPUTS = 16
_CHUNK = 2**22  # elements of the maps in one batch


def measure_influence(operations: Mapping[str, Operation]) -> Figures:
    """`influence` by role; all layers run on maps of the connected layer's size if they can, to be comparable."""
    connected_size = operations["connected"].map_shape[1:]
    size = (min(connected_size[0], SIDE), min(connected_size[1], SIDE))
    return {role: influence(_resized(op, size)) for role, op in operations.items()}


def _resized(op: Operation, size: Sequence[int]) -> Operation:
    """The layer on a map of `size` if it visibly acts locally there, else on its own map limited to SIDE."""
    if _has_fixed_size(op):
        return op
    layer_size = [min(n, SIDE) for n in op.map_shape[1:]]
    sizes = [s for s in (size, layer_size) if _is_visibly_local(op, s)]
    sizes = sizes or [s for s in (layer_size, size) if _output_shape(op, s)]
    return op.on(sizes[0]) if sizes else op


def _output_shape(op: Operation, size: Sequence[int]) -> tuple[int, ...]:
    """The output shape on a map of `size`; empty if the layer does not run on it."""
    try:
        return tuple(op.on(size)(torch.zeros(1, op.map_shape[0], *size, dtype=torch.float64)).shape)
    except RuntimeError:
        return ()


def _is_visibly_local(op: Operation, size: Sequence[int]) -> bool:
    """Whether the layer runs on a map of `size`, at several positions, and its kernel does not cover the whole map.

    From the middle of 2k − 1 positions a k×k kernel reaches neither border; a stride reduces the number of outputs.
    """
    output, kernel = _output_shape(op, size), op.weight.shape[2:]
    if len(output) < 4 or max(kernel, default=1) == 1:
        return bool(output)
    return min(output[2:]) > 2 and all(n >= 2 * k - 1 for n, k in zip(size, kernel, strict=True))


def _has_fixed_size(op: Operation) -> bool:
    """Whether the weights cover the whole map, so that the layer accepts no other size."""
    return op.positions > 1 and op.weight[0].numel() == prod(op.map_shape)


@torch.no_grad()
def influence(op: Operation, outputs: int = MAX_OUTPUTS) -> Figures:
    """How much each output position changes when all channels of one input position change by random amounts.

    For a layer whose output is a vector, each of the first `outputs` neurons counts as a position; for one whose
    output is a map, the largest change among as many channels counts. For each of `places` (input positions),
    `moved` lists the output positions, counted row by row, that change by more than rounding, and `amount` their
    change relative to the largest one. If the output map has the size of the input map, `pattern` holds the offsets
    (dy, dx) from a pixel to the outputs that change with it, and whether they are the same for every pixel, except
    that they end at the border.

    >>> from onebyone.comparison.operation import pointwise_form
    >>> weight = torch.ones(2, 3, 1, 1, dtype=torch.float64)
    >>> figures = influence(Operation("1×1", pointwise_form, weight, None, (3, 2, 2)))
    >>> figures["moved"], figures["pattern"]
    ([[0], [1], [2], [3]], {'offsets': [[0, 0]], 'same_everywhere': True})
    """
    if op.groups == 1:
        op = op.first(outputs)
    h, w = op.map_shape[1:]
    positions = [(y, x) for y in sample(h, MAX_PER_SIDE) for x in sample(w, MAX_PER_SIDE)]
    generator = torch.Generator().manual_seed(0)
    x, bump = op.maps(1, generator), torch.randn(op.map_shape[0], generator=generator, dtype=torch.float64)
    y = op(x)
    changes = torch.cat([_change(op, x, y, bump, part) for part in _batches(positions, x.numel())])
    # smaller changes are rounding
    limit = 2 * float(op.bound(x.abs() + bump.abs()[None, :, None, None]).max())
    changes = torch.where(changes > limit, changes, torch.zeros_like(changes))
    changes /= changes.max().clamp_min(1e-300)
    moved = [torch.nonzero(row).flatten().tolist() for row in changes]
    output = list(y.shape[2:]) or [y.shape[1]]
    return {
        "map": [h, w],
        "output": output,
        "outputs_examined": y.shape[1],
        "places": [list(p) for p in positions],
        "moved": moved,
        "amount": [
            [max(0.001, round(v, 3)) for v in row[at].tolist()]
            for row, at in zip(changes, moved, strict=True)
        ],
        "pattern": _pattern(moved, h, w) if output == [h, w] and len(positions) == h * w else None,
    }


def _batches(positions: list[tuple[int, int]], numel: int) -> list[list[tuple[int, int]]]:
    size = max(1, _CHUNK // numel)
    return [positions[i : i + size] for i in range(0, len(positions), size)]


def _change(op: Operation, x: Tensor, y: Tensor, bump: Tensor, positions: list[tuple[int, int]]) -> Tensor:
    """The change of the outputs, (input positions, output positions)."""
    changed = x.repeat(len(positions), 1, 1, 1)
    for row, (i, j) in enumerate(positions):
        changed[row, :, i, j] += bump
    difference = (op(changed) - y).abs()
    return (difference.amax(1) if difference.dim() == 4 else difference).flatten(1)


def _pattern(moved: list[list[int]], h: int, w: int) -> Figures:
    """All offsets that occur, and whether every pixel has them all, except beyond the border."""
    offsets = [{(i // w - p // w, i % w - p % w) for i in row} for p, row in enumerate(moved)]
    pattern = set().union(*offsets)
    same = all(
        actual == {(y, x) for y, x in pattern if 0 <= p // w + y < h and 0 <= p % w + x < w}
        for p, actual in enumerate(offsets)
    )
    return {"offsets": sorted([y, x] for y, x in pattern), "same_everywhere": same}
