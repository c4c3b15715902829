"""Which outputs move when one pixel of the input does: measured at every place, for a person to drag through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from onebyone.comparison.claim_result import Figures
from onebyone.comparison.layer_function import Operation, sample

SIDE = 16
"""Places per side, at most, of the maps of layers that take any size."""
MOST_PER_SIDE = 32
"""Rows and columns, at most, of a connected layer's map, which cannot be cut: of more, an even sample."""
OUTPUTS = 16
_CHUNK = 2**22  # elements of the maps that are run at once


def measure_influence(operations: Mapping[str, Operation]) -> Figures:
    """By role, what `influence` gives. All run on the connected layer's map where they can, so that they compare."""
    own = operations["connected"].map_shape[1:]
    size = (min(own[0], SIDE), min(own[1], SIDE))
    return {role: influence(_on(op, size)) for role, op in operations.items()}


def _on(op: Operation, size: Sequence[int]) -> Operation:
    """The layer on a map of `size`, if that is large enough to see it act locally; else on its own, cut to SIDE."""
    if _is_bound(op):
        return op
    own = [min(n, SIDE) for n in op.map_shape[1:]]
    fitting = [s for s in (size, own) if _shows(op, s)] or [s for s in (own, size) if _output(op, s)]
    return op.on(fitting[0]) if fitting else op


def _output(op: Operation, size: Sequence[int]) -> tuple[int, ...]:
    """The shape of what it gives on such a map; empty where it does not run."""
    try:
        return tuple(op.on(size)(torch.zeros(1, op.map_shape[0], *size, dtype=torch.float64)).shape)
    except RuntimeError:
        return ()


def _shows(op: Operation, size: Sequence[int]) -> bool:
    """Whether it runs on such a map, and its kernel stands there in several places without reaching all of it.

    A k×k kernel reaches neither border from the middle of 2k − 1 places; a stride leaves few of them.
    """
    output, kernel = _output(op, size), op.weight.shape[2:]
    if len(output) < 4 or max(kernel, default=1) == 1:
        return bool(output)
    return min(output[2:]) > 2 and all(n >= 2 * k - 1 for n, k in zip(size, kernel, strict=True))


def _is_bound(op: Operation) -> bool:
    """Whether its weights cover the map, so that no other size will do."""
    return op.places > 1 and op.weight[0].numel() == prod(op.map_shape)


@torch.no_grad()
def influence(op: Operation, outputs: int = OUTPUTS) -> Figures:
    """How much each output place changes when one input place does, all its channels by random amounts.

    Of a layer with vectors for outputs, each of the first `outputs` neurons counts as a place; of one with
    maps, the largest change among as many channels. `moved` holds for each of `places` the output places that
    change by more than their rounding, counted row by row, and `amount` by how much, over the largest of all.
    `pattern` holds, for a layer whose output map is as large as its input, the offsets (dy, dx) from a pixel
    to what it moves, and whether every pixel moves the same ones, as far as the map goes.

    >>> from onebyone.comparison.layer_function import pointwise_form
    >>> weight = torch.ones(2, 3, 1, 1, dtype=torch.float64)
    >>> found = influence(Operation("1×1", pointwise_form, weight, None, (3, 2, 2)))
    >>> found["moved"], found["pattern"]
    ([[0], [1], [2], [3]], {'offsets': [[0, 0]], 'same_everywhere': True})
    """
    if op.groups == 1:
        op = op.first(outputs)
    h, w = op.map_shape[1:]
    places = [(y, x) for y in sample(h, MOST_PER_SIDE) for x in sample(w, MOST_PER_SIDE)]
    generator = torch.Generator().manual_seed(0)
    x, bump = op.maps(1, generator), torch.randn(op.map_shape[0], generator=generator, dtype=torch.float64)
    y = op(x)
    changes = torch.cat([_change(op, x, y, bump, part) for part in _parts(places, x.numel())])
    # what is below the rounding of the outputs did not move
    limit = 2 * float(op.bound(x.abs() + bump.abs()[None, :, None, None]).max())
    changes = torch.where(changes > limit, changes, torch.zeros_like(changes))
    changes /= changes.max().clamp_min(1e-300)
    moved = [torch.nonzero(row).flatten().tolist() for row in changes]
    output = list(y.shape[2:]) or [y.shape[1]]
    return {
        "map": [h, w],
        "output": output,
        "outputs_examined": y.shape[1],
        "places": [list(p) for p in places],
        "moved": moved,
        "amount": [
            [max(0.001, round(v, 3)) for v in row[at].tolist()]
            for row, at in zip(changes, moved, strict=True)
        ],
        "pattern": _pattern(moved, h, w) if output == [h, w] and len(places) == h * w else None,
    }


def _parts(places: list[tuple[int, int]], numel: int) -> list[list[tuple[int, int]]]:
    step = max(1, _CHUNK // numel)
    return [places[i : i + step] for i in range(0, len(places), step)]


def _change(op: Operation, x: Tensor, y: Tensor, bump: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """(len(places), output places): how far the outputs move."""
    given = x.repeat(len(places), 1, 1, 1)
    for row, (i, j) in enumerate(places):
        given[row, :, i, j] += bump
    moved = (op(given) - y).abs()
    return (moved.amax(1) if moved.dim() == 4 else moved).flatten(1)


def _pattern(moved: list[list[int]], h: int, w: int) -> Figures:
    """The offsets that any pixel moves, and whether they are every pixel's, cut at the border."""
    steps = [{(i // w - p // w, i % w - p % w) for i in row} for p, row in enumerate(moved)]
    pattern = set().union(*steps)
    same = all(
        found == {(y, x) for y, x in pattern if 0 <= p // w + y < h and 0 <= p % w + x < w}
        for p, found in enumerate(steps)
    )
    return {"offsets": sorted([y, x] for y, x in pattern), "same_everywhere": same}
