"""Operators on values of one position each: positions become samples of a batch, and the operator runs unchanged."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from onebyone.lifting.index import identity
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call
from onebyone.lifting.values import Cannot, Const, Lifted


def at_each_position(lifter: Lifter, call: Call) -> Lifted:
    """Run an operator whose operands are values of one position: exact, since windows are then independent samples.

    Legal only for operators that treat the samples of a batch independently, with the batch as their first axis.
    """
    if len(call.shapes) != 1:
        raise Cannot("an operator with several results, on values of one position each")
    values = [lifter.lifted(v) for v in call.operands if isinstance(v, Lifted)]
    maps, grid = lifter.aligned([lifter.at_one_position(v) for v in values])
    batches = iter(
        lifter.emit.as_batch(m.handle, lifter.axes, v.shape) for m, v in zip(maps, values, strict=True)
    )
    handles = [
        next(batches) if isinstance(v, Lifted) else v.handle if isinstance(v, Const) else v
        for v in call.operands
    ]
    handle = lifter.emit.from_batch(call.apply(*handles), maps[0].handle, lifter.axes)
    pooled: frozenset[str] = frozenset().union(*(v.pooled for v in values))
    result = Lifted(handle, replace(grid, channels=prod(call.shape)), None, pooled)
    return result.with_index(identity(call.shape))
