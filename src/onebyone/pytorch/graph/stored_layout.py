"""Tensors between their original shape and the layout in which they are stored."""

from __future__ import annotations

import torch

from onebyone.layout.orders import UNIT, Layout, Order, natural_layout, order_of, permutation_between


def to_stored(value: torch.Tensor, axes: Order, layout: Layout) -> torch.Tensor:
    """A tensor of the original shape, whose significant axes are `axes`, in `layout`: a view where the order is kept.

    >>> to_stored(torch.ones(2, 1, 3), (0, 2), (2, 0, -1)).shape
    torch.Size([3, 2, 1])
    """
    return _changed(value, natural_layout(value.dim(), axes), layout)


def to_original(value: torch.Tensor, rank: int, axes: Order, layout: Layout) -> torch.Tensor:
    """The inverse of `to_stored`: a tensor in `layout`, in its original shape of `rank` axes.

    >>> to_original(torch.ones(3, 2, 1), 3, (0, 2), (2, 0, -1)).shape
    torch.Size([2, 1, 3])
    """
    return _changed(value, layout, natural_layout(rank, axes))


def _changed(value: torch.Tensor, have: Layout, want: Layout) -> torch.Tensor:
    order_have, order_want = order_of(have), order_of(want)
    units = [position for position, axis in enumerate(have) if axis == UNIT]
    moved = value.squeeze(units) if units else value
    moved = moved.permute(permutation_between(order_have, order_want))
    for position, axis in enumerate(want):
        if axis == UNIT:
            moved = moved.unsqueeze(position)
    return moved if order_have == order_want else moved.contiguous()
