"""Shape operators, joins and elements selected by an index."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.lifting.index import BATCH
from onebyone.lifting.operators import Concatenation, Rearrange, Select, Stack
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.pytorch.lift.graph_lifter import Decoder, GraphLifter, functional

aten = torch.ops.aten


def rearrange(lifter: GraphLifter, node: fx.Node) -> Rearrange:
    """The operator itself runs on integers; of a second image-dependent operand (view_as) only the shape counts."""

    def argument(a: Any) -> Any:
        value = lifter.values.get(a) if isinstance(a, fx.Node) else None
        if value is None or isinstance(value, (int, float)):
            return a if value is None else value
        if isinstance(value, Const) and value.known is not None:
            return value.known
        if not isinstance(value, Lifted):
            raise Cannot("a shape or an index that depends on a constant tensor")
        return torch.empty(BATCH, *value.shape, dtype=torch.int64)

    rest = fx.node.map_aggregate(node.args[1:], argument)
    kwargs = fx.node.map_aggregate(dict(node.kwargs), argument)

    def run(numbers: Any) -> Any:
        result = functional(node.target)(torch.from_numpy(numbers), *rest, **kwargs)
        if isinstance(result, (list, tuple)):
            return [np.asarray(r) for r in result]
        return result.numpy()

    return Rearrange(lifter.value(node.args[0]), run)


def unchanged(lifter: GraphLifter, node: fx.Node) -> Any:
    """The operand itself."""
    return lifter.value(node.args[0])


def getitem(lifter: GraphLifter, node: fx.Node) -> Any:
    """One of several results."""
    result = lifter.value(node.args[0])[node.args[1]]
    if result is None and node.users:
        raise Cannot(
            "a second result that depends on where the window lies (the indices of a max-pool, for example)"
        )
    return result


def concatenate(lifter: GraphLifter, node: fx.Node) -> Concatenation:
    return Concatenation(lifter.value(node.args[0]), _result_axis(node))


def stack(lifter: GraphLifter, node: fx.Node) -> Stack:
    return Stack(lifter.value(node.args[0]), _result_axis(node))


def _result_axis(node: fx.Node) -> int:
    """The axis along which the results are joined, without the batch: -1 is the batch itself."""
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return int(axis) % int(node.meta["val"].ndim) - 1


def select(lifter: GraphLifter, node: fx.Node) -> Rearrange | Select:
    """An index that is part of the code acts as a shape operator; one that a checkpoint may change stays a tensor."""
    operands = [lifter.value(n) for n in node.all_input_nodes]
    indices = [v for v in operands if isinstance(v, Const)]
    if len(indices) + 1 != len(operands) or not isinstance(lifter.value(node.args[0]), Lifted):
        raise Cannot("an index that depends on the image")
    if all(c.known is not None for c in indices):
        return rearrange(lifter, node)
    axis = _index_axis(node)
    if axis is None or len(indices) != 1:
        raise Cannot("an index that a checkpoint can change (a buffer), over more than one axis")
    return Select(lifter.value(node.args[0]), indices[0], axis - 1)


def _index_axis(node: fx.Node) -> int | None:
    """The only axis, batch included, that the node's index runs over; None where there are several."""
    if node.target is aten.index_select.default:
        source: Any = node.args[0]
        return int(node.args[1]) % int(source.meta["val"].ndim)  # type: ignore[arg-type]
    if node.target is aten.index.Tensor:
        entries: Any = node.args[1]
        indexed = [axis for axis, entry in enumerate(entries) if entry is not None]
        return indexed[0] if len(indexed) == 1 else None
    return None


DECODERS: dict[Any, Decoder] = {
    operator.getitem: getitem,
    **dict.fromkeys((aten.cat, aten.concat, aten.concatenate), concatenate),
    aten.stack: stack,
    **dict.fromkeys(
        (aten.index_select.default, aten.index.Tensor, aten.gather.default, aten.take_along_dim.default), select
    ),
    **dict.fromkeys(
        (
            aten.contiguous, aten.clone, aten.detach, aten.alias, aten.lift_fresh_copy, aten.positive, aten.detach_,
            aten._assert_tensor_metadata,
        ),
        unchanged,
    ),
    **dict.fromkeys(
        (
            aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.permute, aten.transpose,
            aten.t, aten.squeeze, aten.unsqueeze, aten.movedim, aten.swapaxes, aten.swapdims, aten.numpy_T, aten.mT,
            aten.select, aten.slice, aten.narrow, aten.flip, aten.roll, aten.rot90, aten.expand, aten.expand_as,
            aten.repeat, aten.repeat_interleave, aten.chunk, aten.split, aten.split_with_sizes, aten.unbind,
            aten.tensor_split, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.unfold,
            aten.diagonal, aten.tile, aten.broadcast_to, aten.view_as, aten.reshape_as, aten.ravel, aten.adjoint,
            aten.moveaxis, aten.hsplit, aten.vsplit,
        ),
        rearrange,
    ),
}  # fmt: skip

REFUSED = {
    "im2col (unfold), which copies positions into patches": (aten.im2col, aten.col2im),
}
