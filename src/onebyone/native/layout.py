"""What a planner knows of a value: the map whose memory holds it, and where in that memory each of its elements is.

Operators that only move elements about (reshape, transpose, roll, slice ...) are carried out on those places by PyTorch
itself, so that whatever such operators do, their meaning is the right one, and no step is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from onebyone.native.kernels.program import Map
from onebyone.native.unserved import UnservedError

aten = torch.ops.aten
SAME = {
    aten.dropout.default, aten.dropout_.default, aten.contiguous.default, aten.clone.default, aten.detach.default,
    aten.alias.default, aten.feature_dropout.default, aten.lift_fresh_copy.default, aten.to.dtype,
    aten._to_copy.default,
}  # fmt: skip
"""Operators that give what they are given (in evaluation mode)."""
RESHAPES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.view_as.default, aten.reshape_as.default,
}  # fmt: skip
"""Operators that give the same elements in the same order, in another shape."""
MOVES = {
    aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default,
    aten.movedim.int, aten.movedim.intlist, aten.swapaxes.default, aten.swapdims.default, aten.select.int,
    aten.slice.Tensor, aten.narrow.default, aten.unbind.int, aten.split.Tensor, aten.split.sizes,
    aten.split_with_sizes.default, aten.chunk.default, aten.tensor_split.sections, aten.expand.default,
    aten.expand_as.default, aten.broadcast_to.default, aten.repeat.default, aten.roll.default, aten.flip.default,
    aten.index.Tensor, aten.index_select.default, aten.repeat_interleave.self_int,
}  # fmt: skip
"""Operators that give some of the elements, in another order or more than once."""


@dataclass(eq=False)
class Value:
    """Numbers in the memory of a map. `moved`: each element's offset there, in floats; None: the map (N, C, H, W)
    itself. `scale`: what they are still to be multiplied by."""

    memory: Map
    moved: Tensor | None = None
    scale: float = 1.0

    @property
    def at(self) -> Tensor:
        """Each element's offset, in the value's own shape."""
        if self.moved is not None:
            return self.moved
        n, c, h, w = self.memory.shape
        return torch.arange(n * c * h * w).view(n, h, w, c).permute(0, 3, 1, 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's own."""
        return self.memory.shape if self.moved is None else tuple(self.moved.shape)

    @property
    def maps(self) -> tuple[Map, ...]:
        """Whose memory it is in."""
        return (self.memory.memory,)


@dataclass(eq=False)
class Scores:
    """q·kᵀ·scale + bias, and its softmax once `soft`, that no step computes by itself: it becomes part of attention."""

    q: Value
    k: Value
    shape: tuple[int, ...]
    scale: float
    bias: Tensor | None = None
    soft: bool = False

    @property
    def maps(self) -> tuple[Map, ...]:
        """Whose memory it reads."""
        return self.q.maps + self.k.maps

    def reshaped(self, node: Any) -> Scores:
        """Other leading axes."""
        shape = tuple(node.meta["val"].shape)
        if shape[-2:] != self.shape[-2:]:
            raise UnservedError(f"{node.target} of a matrix product that is part of attention")
        return replace(self, shape=shape, bias=None if self.bias is None else self.bias.reshape(shape))


def size(map_: Map) -> int:
    """How many numbers a map holds."""
    return math.prod(map_.shape)


def rows_map(shape: tuple[int, ...]) -> Map:
    """A map that lies as a dense tensor of this shape; its rows are the last axis.

    >>> rows_map((2, 5, 16)).shape, rows_map((2, 3, 5, 16)).shape
    ((2, 16, 1, 5), (2, 16, 3, 5))
    """
    *lead, c = shape
    n, *places = lead or [1]
    h, w = places if len(places) == 2 else (1, math.prod(places))
    return Map((n, c, h, w))


def laid(shape: tuple[int, ...], memory: Map | None = None) -> Value:
    """A dense value, row after row."""
    return Value(memory or rows_map(shape), torch.arange(math.prod(shape)).view(shape))


def moved(value: Value, node: Any, places: dict[Any, Any]) -> Any:
    """What an operator of RESHAPES or MOVES gives: a value or several. `places`: of what it is given, by node."""
    if node.target in RESHAPES:
        return replace(value, moved=value.at.reshape(node.meta["val"].shape))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: places[n])
    found = node.target(*args, **kwargs)
    if isinstance(found, Tensor):
        return replace(value, moved=found)
    return tuple(replace(value, moved=part) for part in found)


def in_order(flat: Tensor) -> bool:
    """Whether it counts 0, 1, 2 ..."""
    return torch.equal(flat, torch.arange(flat.numel()))


def runs(flat: Tensor) -> int:
    """The largest length of which all of it is runs of successive numbers.

    >>> runs(torch.tensor([6, 7, 8, 9, 2, 3])), runs(torch.arange(5)), runs(torch.tensor([1, 0]))
    (2, 5, 1)
    """
    found = flat.numel()
    breaks = (flat.diff() != 1).nonzero().flatten() + 1
    while len(breaks):
        over = breaks % found
        breaks = over[over > 0]
        found = math.gcd(found, int(breaks[0])) if len(breaks) else found
    return found


def turned(flat: Tensor) -> tuple[int, int, int] | None:
    """(batch, rows, columns) of the dense matrices that, each transposed, lie in this order; None: it is none.

    >>> turned(torch.tensor([0, 2, 4, 1, 3, 5])), turned(torch.tensor([0, 2, 1]))
    ((1, 3, 2), None)
    """
    if flat.numel() < 4 or flat[0] != 0:
        return None
    columns = int(flat[1])
    other = (flat.diff() != columns).nonzero().flatten()
    rows = int(other[0]) + 1 if len(other) else flat.numel()
    if columns < 2 or rows < 2 or flat.numel() % (rows * columns):
        return None
    dense = torch.arange(flat.numel()).view(-1, rows, columns)
    return (len(dense), rows, columns) if torch.equal(dense.mT.reshape(-1), flat) else None


def in_memory(value: Value, other: Tensor) -> Tensor | None:
    """`other`, of the value's shape, in the order of the value's memory, flat; None where that is not one of each."""
    flat, given = value.at.reshape(-1), other.expand(value.shape).reshape(-1)
    if len(flat) != size(value.memory):
        return None
    if in_order(flat):
        return given
    seen = torch.zeros(len(flat), dtype=torch.bool)
    seen[flat] = True
    if not bool(seen.all()):
        return None
    found = torch.empty_like(given)
    found[flat] = given
    return found


def strides(at: Tensor) -> tuple[int, ...] | None:
    """Where (B, H, T, D) begins and how far its batches, heads and rows are apart; None where they do not lie so."""
    begin = int(at[0, 0, 0, 0])
    steps = [int(at.select(axis, 1).flatten()[0]) - begin if at.shape[axis] > 1 else 0 for axis in range(3)]
    found = torch.full((1, 1, 1, 1), begin)
    for axis, step in enumerate([*steps, 1]):
        found = found + step * torch.arange(at.shape[axis]).view(-1, *[1] * (3 - axis))
    return (begin, *steps) if torch.equal(found, at) else None
