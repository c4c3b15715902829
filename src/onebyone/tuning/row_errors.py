"""Errors of outputs by row: a row is a sample of an output (N, C), a token of (N, T, C), or a position of a map.

The error of a position of a map (N, C, H, W) may be as large as rounding makes it in its neighbourhood: tiled
convolutions round each position relative to the values of its tile (`onebyone.laws.winograd`). Rows of only a few
numbers are grouped by sample, because each of them may be correct by accident.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.verification.pytree import wide

_MIN_ROW_LENGTH = 8  # tokens with fewer features are grouped by sample
_NEIGHBOURHOOD = 16  # positions to each side on both axes of a map


def sizes(t: Tensor, neighbourhood: int = 0) -> Tensor:
    """Return the largest absolute value of each row, in float64, of shape (rows,).

    For a map, it is the largest value within `neighbourhood` positions on both axes.

    >>> sizes(torch.tensor([[1.0, -3.0], [0.0, 2.0]])).tolist()
    [3.0, 2.0]
    """
    size = wide(t).abs()
    if t.numel() == 0 or t.dim() < 2:
        return size.reshape(1, -1).amax(1) if t.numel() else size.new_zeros(1)
    if t.dim() == 4:
        size = size.amax(1, keepdim=True)
        return F.max_pool2d(size, 2 * neighbourhood + 1, stride=1, padding=neighbourhood).flatten()
    if t.dim() == 3 and t.shape[-1] >= _MIN_ROW_LENGTH:
        return size.amax(-1).flatten()
    return size.flatten(1).amax(1)


def rounding_errors(exact: Tensor, runs: list[Tensor], u: float) -> Tensor:
    """Return the error that rounding causes in each row, of shape (rows,).

    It is the largest error over the original's `runs`. Because a row may be correct by accident, it is at least
    max(u, median over rows of error ÷ size) times the row's size. A row of zeros gets the median size.

    >>> exact = torch.tensor([[1.0, 2.0], [4.0, 0.0], [0.0, 0.0]])
    >>> rounding_errors(exact, [exact + 2.0**-20], 2.0**-24).log2().tolist()
    [-20.0, -19.0, -20.0]
    """
    size = sizes(exact, _NEIGHBOURHOOD)
    typical = size[size > 0].median() if bool((size > 0).any()) else size.new_zeros(())
    size = torch.where(size > 0, size, typical)
    error = torch.stack([sizes(exact - wide(y), _NEIGHBOURHOOD) for y in runs]).amax(0)
    nonzero = size > 0
    relative = (error[nonzero] / size[nonzero]).median() if bool(nonzero.any()) else size.new_zeros(())
    return torch.maximum(error, torch.clamp(relative, min=u) * size)


def worst_ratio(exact: Tensor, output: Tensor, expected: Tensor) -> tuple[float, int]:
    """Return the largest ratio of error ÷ expected error over the rows, and the index of that row.

    If the expected error of a row is 0, its ratio is 1 for an error of 0, and infinite otherwise.
    """
    error = sizes(exact - wide(output))
    over_zero = torch.where(error > 0, torch.inf, 1.0).to(error)
    ratio = torch.where(expected > 0, error / expected, over_zero)
    row = int(ratio.argmax())
    return float(ratio[row]), row
