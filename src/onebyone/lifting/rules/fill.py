"""Constants that one number fills, beside values that depend on the image: zero channels, padding of channels.

Such a constant has no position, so that it can stand beside a map of any size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.pytorch.lift.lifter import Const, Lifted, Walk
from onebyone.pytorch.lift.rules import register
from onebyone.pytorch.lift.sliding import arguments

aten = torch.ops.aten


@register(
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.zeros_like, aten.ones_like, aten.full_like,
    aten.empty_like,
)  # fmt: skip
def like(walk: Walk, node: fx.Node) -> Const:
    """A constant in the type of a value that depends on the image, of which nothing else is read."""
    meta, source = node.meta["val"], walk.lifted(node.args[0])
    shape, name = tuple(int(n) for n in meta.shape), str(node.target)
    if "empty" in name:
        return Const(source.handle.new_empty(shape, dtype=meta.dtype), shape)
    number = arguments(node)["fill_value"] if "full" in name else int("ones" in name)
    handle = source.handle.new_full((1,), number, dtype=meta.dtype)
    return Const(handle, shape, None, torch.full(shape, number, dtype=meta.dtype))


def beside(constant: Const, value: Lifted, axis: int) -> Lifted | Const:
    """A constant of one number as a map that lies as the value does, but for its length along `axis` (not counting the
    batch); any other constant as it is."""
    number = constant.single
    if number is None or constant.known is None:
        return constant
    return filled(number, constant.known.dtype, value, axis, constant.shape[1 + axis])


def filled(number: float, dtype: torch.dtype, value: Lifted, axis: int, length: int) -> Lifted:
    """`length` times one number along `axis`, at each of the places where the value has elements."""
    handle: Any = torch.full_like(value.handle.narrow(1, 0, 1), number, dtype=dtype)
    places = value.indices() % int(np.prod(value.grid.nominal))  # of the one channel
    index = places.take([0], axis).repeat(length, axis)
    return Lifted(handle, replace(value.grid, channels=1), np.ascontiguousarray(index), value.pooled)
