"""Operators on values that are at one place each: places become samples of a batch, and the operator runs as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from onebyone.lifting.index import identity
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, functional, handle_of
from onebyone.pytorch.lift.rules_shape import with_index


def at_each_place(walk: Walk, node: fx.Node) -> Lifted:
    """Run an operator whose operands are whole values of one place: exact, since windows are then independent samples.

    Legal only for operators that treat the samples of a batch independently, with the batch in front.
    """
    values = {n: walk.at_one_place(v) for n, v in _operands(walk, node).items()}
    maps, grid = walk.met(list(values.values()))
    batches = {}
    for (source, _), laid in zip(values.items(), maps, strict=True):
        batches[source] = emitter.as_batch(laid.handle, walk.axes, _operands(walk, node)[source].shape)

    def argument(a: Any) -> Any:
        if isinstance(a, fx.Node):
            held = walk.values[a]
            return batches[a] if a in batches else handle_of(held) if isinstance(held, Const) else held
        return a

    args = fx.node.map_aggregate(node.args, argument)
    kwargs = fx.node.map_aggregate(dict(node.kwargs), argument)
    out = walk.call(functional(node.target), *args, **kwargs)
    meta = node.meta["val"]
    if not isinstance(meta, torch.Tensor):
        raise Cannot("several results")
    shape = tuple(int(n) for n in meta.shape[1:])
    handle = emitter.from_batch(out, maps[0].handle, walk.axes)
    channels = 1
    for n in shape:
        channels *= n
    whole = replace(grid, channels=channels)
    pooled = frozenset().union(*(v.pooled for v in values.values()))
    return with_index(Lifted(handle, whole, None, pooled), identity(shape))


def _operands(walk: Walk, node: fx.Node) -> dict[fx.Node, Lifted]:
    return {n: walk.lifted(n) for n in node.all_input_nodes if isinstance(walk.values[n], Lifted)}
