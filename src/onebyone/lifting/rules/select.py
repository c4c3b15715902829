"""Elements chosen by a constant index: `index_select`, `x[:, index]`, `gather`.

An index that is part of the code acts on integers, as shape operators do. One that a checkpoint may change (a buffer)
stays a tensor: the elements that it chooses among become channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, handle_of
from onebyone.pytorch.lift.rules import register
from onebyone.pytorch.lift.rules_shape import move, with_index

aten = torch.ops.aten


@register(aten.index_select.default, aten.index.Tensor, aten.gather.default, aten.take_along_dim.default)
def select(walk: Walk, node: fx.Node) -> Any:
    """The chosen elements of a value."""
    held = [walk.value(n) for n in node.all_input_nodes]
    indices = [v for v in held if isinstance(v, Const)]
    if len(indices) + 1 != len(held) or not isinstance(walk.value(node.args[0]), Lifted):
        raise Cannot("an index that depends on the image")
    if all(c.known is not None for c in indices):
        return move(walk, node)
    axis = _axis(node)
    if axis is None or len(indices) != 1 or len(indices[0].shape) != 1:
        raise Cannot("an index that a checkpoint can change (a buffer), over more than one axis")
    value = walk.lifted(node.args[0])
    if axis == 0:
        raise Cannot("samples of the batch are chosen by an index")
    laid, groups = walk.with_groups(value, (axis - 1,))
    chosen = laid.handle.unflatten(1, (groups.count, -1)).index_select(2, handle_of(indices[0]))
    length = indices[0].shape[0]
    grid = replace(laid.grid, channels=groups.count * length)
    index = np.ascontiguousarray(np.moveaxis(groups.out_index(length), -1, axis - 1))
    return with_index(Lifted(chosen.flatten(1, 2), grid, None, laid.pooled), index)


def _axis(node: fx.Node) -> int | None:
    """The one axis, batch included, that the node's index runs over; None where there are several."""
    if node.target is aten.index_select.default:
        source: Any = node.args[0]
        return int(node.args[1]) % int(source.meta["val"].ndim)  # type: ignore[arg-type]
    if node.target is aten.index.Tensor:
        entries: Any = node.args[1]
        over = [axis for axis, entry in enumerate(entries) if entry is not None]
        return over[0] if len(over) == 1 else None
    return None
