"""PyTorch's channels-last memory format, as a permutation of axes."""

from __future__ import annotations

import torch

from onebyone.layout.orders import Layout

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last_axes(rank: int) -> tuple[int, ...]:
    """The permutation from (N, C, *spatial) to (N, *spatial, C).

    >>> channels_last_axes(4)
    (0, 2, 3, 1)
    """
    return (0, *range(2, rank), 1) if rank > 1 else tuple(range(rank))


def channels_first_axes(rank: int) -> tuple[int, ...]:
    """The permutation from (N, *spatial, C) to (N, C, *spatial).

    >>> channels_first_axes(4)
    (0, 3, 1, 2)
    """
    return (0, rank - 1, *range(1, rank - 1)) if rank > 1 else tuple(range(rank))


def channels_last(layout: Layout) -> Layout:
    """The layout in which an image (N, C, *spatial) is stored in channels-last memory.

    >>> channels_last((0, 1, 2, -1))
    (0, 2, -1, 1)
    """
    return tuple(layout[axis] for axis in channels_last_axes(len(layout)))
