"""How large errors are row by row: a row is a sample of an output (N, C), a token of (N, T, C), a position of a map.

The error of a position of a map (N, C, H, W) may be as large as rounding makes it near there: convolutions by tiles
round each position by what its tile holds (`onebyone.laws.winograd`). Rows of a few numbers, of which each may be
right by accident, are taken with the whole sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.verification.pytree import wide

_FEW, _NEAR = 8, 16


def sizes(t: Tensor, near: int = 0) -> Tensor:
    """The largest |number| of each row, in float64: (rows,); of a map, within so many positions on each axis.

    >>> sizes(torch.tensor([[1.0, -3.0], [0.0, 2.0]])).tolist()
    [3.0, 2.0]
    """
    size = wide(t).abs()
    if t.numel() == 0 or t.dim() < 2:
        return size.reshape(1, -1).amax(1) if t.numel() else size.new_zeros(1)
    if t.dim() == 4:
        return F.max_pool2d(size.amax(1, keepdim=True), 2 * near + 1, stride=1, padding=near).flatten()
    if t.dim() == 3 and t.shape[-1] >= _FEW:
        return size.amax(-1).flatten()
    return size.flatten(1).amax(1)


def own_errors(exact: Tensor, runs: list[Tensor], u: float) -> Tensor:
    """The error that rounding makes of each row: (rows,).

    The largest over the original's own `runs`, and at least: u of the row's largest number; and the median over all
    rows of error ÷ size, times the row's size, so that a row which came out right by accident is no measure. A row of
    zeros counts as large as the median row.

    >>> exact = torch.tensor([[1.0, 2.0], [4.0, 0.0], [0.0, 0.0]])
    >>> own_errors(exact, [exact + 2.0**-20], 2.0**-24).log2().tolist()
    [-20.0, -19.0, -20.0]
    """
    size = sizes(exact, _NEAR)
    typical = size[size > 0].median() if bool((size > 0).any()) else size.new_zeros(())
    size = torch.where(size > 0, size, typical)
    error = torch.stack([sizes(exact - wide(y), _NEAR) for y in runs]).amax(0)
    known = size > 0
    relative = (error[known] / size[known]).median() if bool(known.any()) else size.new_zeros(())
    return torch.maximum(error, torch.clamp(relative, min=u) * size)


def worst_ratio(exact: Tensor, found: Tensor, own: Tensor) -> tuple[float, int]:
    """The largest error ÷ own error over the rows, and its row; where both are 0 it is 1, and infinite over 0 alone."""
    error = sizes(exact - wide(found))
    nothing = torch.where(error > 0, torch.inf, 1.0).to(error)
    ratio = torch.where(own > 0, error / own, nothing)
    row = int(ratio.argmax())
    return float(ratio[row]), row
