"""Shape operators: run on the index alone, so that no size is baked in and no order is assumed."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.lifting.grid import Integers
from onebyone.lifting.index import batched, unbatched
from onebyone.pytorch.lift.exported_graph import BATCH
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, functional
from onebyone.pytorch.lift.rules import refusing, register
from onebyone.pytorch.lift.rules_filled import beside

aten = torch.ops.aten

MOVES = (
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.permute, aten.transpose, aten.t,
    aten.squeeze, aten.unsqueeze, aten.movedim, aten.swapaxes, aten.swapdims, aten.numpy_T, aten.mT,
    aten.select, aten.slice, aten.narrow, aten.flip, aten.roll, aten.rot90, aten.expand, aten.expand_as, aten.repeat,
    aten.repeat_interleave, aten.chunk, aten.split, aten.split_with_sizes, aten.unbind, aten.tensor_split,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.unfold, aten.diagonal, aten.tile,
    aten.broadcast_to, aten.view_as, aten.reshape_as, aten.ravel, aten.adjoint, aten.moveaxis, aten.hsplit, aten.vsplit,
)  # fmt: skip

PASSES = (
    aten.contiguous, aten.clone, aten.detach, aten.alias, aten.lift_fresh_copy, aten.positive, aten.detach_,
    aten._assert_tensor_metadata,
)  # fmt: skip


@register(*MOVES)
def move(walk: Walk, node: fx.Node) -> Any:
    """Run the operator on integers that number the elements of a batch; the result's numbers are the new index."""
    value = walk.value(node.args[0])
    if not isinstance(value, Lifted):
        raise Cannot("a constant takes its shape from a value that depends on the image")
    index = value.indices()
    size = int(np.prod(value.grid.shape))

    def argument(a: Any) -> Any:
        other = walk.values.get(a) if isinstance(a, fx.Node) else None
        if other is None or isinstance(other, (int, float)):
            return a if other is None else other
        if isinstance(other, Const) and other.known is not None:
            return other.known
        if not isinstance(other, Lifted):
            raise Cannot("a shape or an index that depends on a constant tensor")
        return torch.empty(
            BATCH, *other.shape, dtype=torch.int64
        )  # view_as, expand_as: only the shape counts

    numbers = torch.from_numpy(batched(index, size, BATCH))
    rest = fx.node.map_aggregate(node.args[1:], argument)
    kwargs = fx.node.map_aggregate(dict(node.kwargs), argument)
    result = functional(node.target)(numbers, *rest, **kwargs)
    if isinstance(result, (list, tuple)):
        return tuple(_moved(value, r, size) for r in result)
    return _moved(value, result, size)


def _moved(value: Lifted, result: torch.Tensor, size: int) -> Lifted:
    index = unbatched(result.numpy(), size, BATCH)
    if isinstance(index, str):
        raise Cannot(index)
    if value.affine is not None and not np.array_equal(index, value.indices()):
        raise Cannot(
            "a vector with constants that depend on the position is rearranged before the next linear layer"
        )
    return with_index(value, index)


def with_index(value: Lifted, index: Integers) -> Lifted:
    """The value with another index; the identity is kept as None."""
    whole = index.shape == value.grid.shape and np.array_equal(index.ravel(), np.arange(index.size))
    return Lifted(value.handle, value.grid, None if whole else index, value.pooled, value.affine)


refusing("places taken apart into patches by im2col (unfold)", aten.im2col, aten.col2im)


@register(*PASSES)
def same(walk: Walk, node: fx.Node) -> Any:
    """The very same value."""
    return walk.value(node.args[0])


@register(operator.getitem)
def getitem(walk: Walk, node: fx.Node) -> Any:
    """One of several results."""
    result = walk.value(node.args[0])[node.args[1]]
    if result is None and node.users:
        raise Cannot(
            "a second result that depends on where the window lies (the indices of a max-pool, for one)"
        )
    return result


@register(aten.cat, aten.concat, aten.concatenate)
def cat(walk: Walk, node: fx.Node) -> Lifted:
    """Maps side by side along the channels; the index says where each element went."""
    values = walk.value(node.args[0])
    axis = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    if axis in (1, 1 - len(node.meta["val"].shape)) and all(_is_whole(v, values[0]) for v in values):
        maps, grid = walk.met(values)
        handle = walk.call(torch.cat, [m.handle.node for m in maps], 1)
        channels = sum(m.grid.channels for m in maps)
        pooled: frozenset[str] = frozenset().union(*(v.pooled for v in values))
        return Lifted(handle, replace(grid, channels=channels), None, pooled)
    axis %= len(node.meta["val"].shape)
    return joined(walk, _beside_first(values, axis - 1), axis)


def _is_whole(value: Any, first: Any) -> bool:
    """Whether the value is a map as it is, of the same part of the image as the first one."""
    return (
        isinstance(value, Lifted)
        and value.index is None
        and value.affine is None
        and value.grid.nominal == first.grid.nominal
        and value.grid.image_wide == first.grid.image_wide
    )


@register(aten.stack)
def stack(walk: Walk, node: fx.Node) -> Lifted:
    """As `cat`, along a new axis."""
    values = walk.value(node.args[0])
    axis = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    return _joined(walk, values, lambda parts: torch.stack(parts, axis))


def joined(walk: Walk, values: list[Any], axis: int) -> Lifted:
    """Values side by side along an axis, the batch counted."""
    return _joined(walk, values, lambda parts: torch.cat(parts, axis))


def _beside_first(values: list[Any], axis: int) -> list[Any]:
    """The values to be joined, constants of one number made maps that lie as the first value of the image does."""
    first = next((v for v in values if isinstance(v, Lifted)), None)
    if first is None or axis < 0 or first.affine is not None:
        return values
    return [beside(v, first, axis) if isinstance(v, Const) else v for v in values]


def _joined(walk: Walk, values: list[Any], join: Any) -> Lifted:
    if not all(isinstance(v, Lifted) and v.affine is None for v in values):
        raise Cannot("a constant is put beside values that depend on the image (a class token, for one)")
    if all(v.handle is values[0].handle for v in values):
        return _join_indices(
            values[0], [v.indices() for v in values], int(np.prod(values[0].grid.shape)), join
        )
    if len({v.grid.image_wide for v in values}) > 1:
        raise Cannot("a value of the whole image is put beside values of a window")
    compact = [_compact(walk, v) for v in values]
    if len({v.grid.nominal for v, _ in compact}) > 1:
        compact = [_vector(walk, v) for v in values]
    maps, grid = walk.met([v for v, _ in compact])
    handle = walk.call(torch.cat, [m.handle.node for m in maps], 1)
    places = int(np.prod(grid.nominal))
    first, indices = 0, []
    for part, (_, index) in zip(maps, compact, strict=True):
        indices.append(index + first * places)
        first += part.grid.channels
    whole = replace(grid, channels=first)
    pooled = frozenset().union(*(v.pooled for v in values))
    return _join_indices(Lifted(handle, whole, None, pooled), indices, first * places, join)


def _join_indices(value: Lifted, indices: list[Integers], size: int, join: Any) -> Lifted:
    numbers = join([torch.from_numpy(batched(i, size, BATCH)) for i in indices])
    index = unbatched(numbers.numpy(), size, BATCH)
    if isinstance(index, str):
        raise Cannot(index)
    return with_index(value, index)


def _compact(walk: Walk, value: Lifted) -> tuple[Lifted, Integers]:
    """The value on a map that holds no more than it needs; and its index there."""
    if value.index is None or value.index.size >= int(np.prod(value.grid.shape)):
        return value, value.indices()
    held = walk.compact(value)
    return held, held.indices()


def _vector(walk: Walk, value: Lifted) -> tuple[Lifted, Integers]:
    one = walk.at_one_place(value)
    return one, one.indices().reshape(value.shape)
