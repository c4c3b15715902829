"""Values of the graph as memory: the map that holds a value, and the offset of each of its elements there.

Operators that only rearrange elements (reshape, transpose, roll, slice …) are run by PyTorch itself on the tensor of
offsets. So they need no step, and every variant of them has exactly PyTorch's meaning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from onebyone.native.maps import Map
from onebyone.native.steps import Strides
from onebyone.native.unsupported import UnsupportedError

aten = torch.ops.aten
IDENTITIES = {
    aten.dropout.default, aten.dropout_.default, aten.contiguous.default, aten.clone.default, aten.detach.default,
    aten.alias.default, aten.feature_dropout.default, aten.lift_fresh_copy.default, aten.to.dtype,
    aten._to_copy.default,
}  # fmt: skip
"""Operators that return their input unchanged in evaluation mode."""
RESHAPES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.view_as.default, aten.reshape_as.default,
}  # fmt: skip
"""Operators that return the same elements in the same order with another shape."""
REARRANGEMENTS = {
    aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default,
    aten.movedim.int, aten.movedim.intlist, aten.swapaxes.default, aten.swapdims.default, aten.select.int,
    aten.slice.Tensor, aten.narrow.default, aten.unbind.int, aten.split.Tensor, aten.split.sizes,
    aten.split_with_sizes.default, aten.chunk.default, aten.tensor_split.sections, aten.expand.default,
    aten.expand_as.default, aten.broadcast_to.default, aten.repeat.default, aten.roll.default, aten.flip.default,
    aten.index.Tensor, aten.index_select.default, aten.repeat_interleave.self_int,
}  # fmt: skip
"""Operators that return some of the elements, in another order or repeated."""


@dataclass(eq=False)
class Value:
    """A tensor whose elements are in the memory of a map.

    `offsets` has the tensor's shape and holds each element's offset in that memory, in floats; None if the tensor is
    the map (N, C, H, W) itself. `scale` is a factor by which the elements are still to be multiplied.
    """

    memory: Map
    offsets: Tensor | None = None
    scale: float = 1.0

    @property
    def element_offsets(self) -> Tensor:
        """The offset of each element, also where the value is the map itself."""
        if self.offsets is not None:
            return self.offsets
        n, c, h, w = self.memory.shape
        return torch.arange(n * c * h * w).view(n, h, w, c).permute(0, 3, 1, 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.memory.shape if self.offsets is None else tuple(self.offsets.shape)

    @property
    def maps(self) -> tuple[Map, ...]:
        """The maps whose memory holds the value."""
        return (self.memory.memory,)


@dataclass(eq=False)
class Scores:
    """The scores of attention, q·kᵀ·scale + bias, or their softmax if `softmax`.

    They are never stored as a whole: they become part of an attention step.
    """

    q: Value
    k: Value
    shape: tuple[int, ...]
    scale: float
    bias: Tensor | None = None
    softmax: bool = False

    @property
    def maps(self) -> tuple[Map, ...]:
        """The maps whose memory they are computed from."""
        return self.q.maps + self.k.maps

    def reshaped(self, node: Any) -> Scores:
        """The scores with other leading axes."""
        shape = tuple(node.meta["val"].shape)
        if shape[-2:] != self.shape[-2:]:
            raise UnsupportedError(f"{node.target} of a matrix product that is part of attention")
        return replace(self, shape=shape, bias=None if self.bias is None else self.bias.reshape(shape))


def element_count(map_: Map) -> int:
    """The number of elements of a map."""
    return math.prod(map_.shape)


def map_of_rows(shape: tuple[int, ...]) -> Map:
    """A map whose memory is that of a contiguous tensor of this shape; the last axis becomes the channels.

    >>> map_of_rows((2, 5, 16)).shape, map_of_rows((2, 3, 5, 16)).shape
    ((2, 16, 1, 5), (2, 16, 3, 5))
    """
    *leading, c = shape
    n, *positions = leading or [1]
    h, w = positions if len(positions) == 2 else (1, math.prod(positions))
    return Map((n, c, h, w))


def contiguous_value(shape: tuple[int, ...], memory: Map | None = None) -> Value:
    """A value of this shape whose elements are contiguous in the memory of a map."""
    return Value(memory or map_of_rows(shape), torch.arange(math.prod(shape)).view(shape))


def rearranged(value: Value, node: Any, offsets: dict[Any, Any]) -> Any:
    """The result of an operator of RESHAPES or REARRANGEMENTS: a value or a tuple of values.

    `offsets` are those of the node's inputs; a constant input (an index) stands for itself.
    """
    if node.target in RESHAPES:
        return replace(value, offsets=value.element_offsets.reshape(node.meta["val"].shape))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: offsets[n])
    result = node.target(*args, **kwargs)
    if isinstance(result, Tensor):
        return replace(value, offsets=result)
    return tuple(replace(value, offsets=part) for part in result)


def counts_up(flat: Tensor) -> bool:
    """Whether the offsets equal arange(n)."""
    return torch.equal(flat, torch.arange(flat.numel()))


def run_length(flat: Tensor) -> int:
    """The largest n such that the offsets consist of runs of n successive numbers.

    >>> run_length(torch.tensor([6, 7, 8, 9, 2, 3])), run_length(torch.arange(5)), run_length(torch.tensor([1, 0]))
    (2, 5, 1)
    """
    length = flat.numel()
    breaks = (flat.diff() != 1).nonzero().flatten() + 1
    while len(breaks):
        rest = breaks % length
        breaks = rest[rest > 0]
        length = math.gcd(length, int(breaks[0])) if len(breaks) else length
    return length


def as_transposed(flat: Tensor) -> tuple[int, int, int] | None:
    """(matrices, rows, columns) if the offsets read contiguous matrices of that shape column by column, else None.

    >>> as_transposed(torch.tensor([0, 2, 4, 1, 3, 5])), as_transposed(torch.tensor([0, 2, 1]))
    ((1, 3, 2), None)
    """
    if flat.numel() < 4 or flat[0] != 0:
        return None
    columns = int(flat[1])
    column_ends = (flat.diff() != columns).nonzero().flatten()
    rows = int(column_ends[0]) + 1 if len(column_ends) else flat.numel()
    if columns < 2 or rows < 2 or flat.numel() % (rows * columns):
        return None
    contiguous = torch.arange(flat.numel()).view(-1, rows, columns)
    return (len(contiguous), rows, columns) if torch.equal(contiguous.mT.reshape(-1), flat) else None


def in_memory_order(value: Value, other: Tensor) -> Tensor | None:
    """The elements of `other` (broadcast to the value's shape), flat, in the order of the value's memory.

    None if the value does not hold each element of its memory exactly once.
    """
    flat, elements = value.element_offsets.reshape(-1), other.expand(value.shape).reshape(-1)
    if len(flat) != element_count(value.memory):
        return None
    if counts_up(flat):
        return elements
    seen = torch.zeros(len(flat), dtype=torch.bool)
    seen[flat] = True
    if not bool(seen.all()):
        return None
    ordered = torch.empty_like(elements)
    ordered[flat] = elements
    return ordered


def strides_of(offsets: Tensor) -> Strides | None:
    """The strides of offsets (samples, heads, rows, columns) with contiguous columns; None if they have no strides."""
    begin = int(offsets[0, 0, 0, 0])
    steps = [
        int(offsets.select(axis, 1).flatten()[0]) - begin if offsets.shape[axis] > 1 else 0
        for axis in range(3)
    ]
    regular = torch.full((1, 1, 1, 1), begin)
    for axis, step in enumerate([*steps, 1]):
        regular = regular + step * torch.arange(offsets.shape[axis]).view(-1, *[1] * (3 - axis))
    return Strides(begin, *steps) if torch.equal(regular, offsets) else None
