"""A linear layer with a weight stored as (C, O) = a linear layer with the transpose.

Equation, for V (C, O) and W (O, C):

    x·V + b = x·Wᵀ + b,   W = Vᵀ

W is a view of V with its axes exchanged. Stored contiguously, as `nn.Linear` and `nn.Conv2d` store it, it is one copy.

Source: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018, whose published code
stores weights as (C, O) and calls the layer a convolution of width 1 (`Conv1D` in Hugging Face's transformers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from onebyone.errors import BadInput

NAME = "transposed linear = linear"
EQUATION = "x·V + b = x·Wᵀ + b, W = Vᵀ"

Array = NDArray[Any]


def why_not_transposed(weight_shape: Sequence[int]) -> str | None:
    """Why a weight is not a transposed linear weight (C, O); None if it is.

    >>> why_not_transposed((768, 2304))
    >>> why_not_transposed((8, 3, 1))
    'a transposed linear weight has shape (C, O), not (8, 3, 1)'
    """
    if len(weight_shape) != 2:
        return f"a transposed linear weight has shape (C, O), not {tuple(weight_shape)}"
    return None


def to_linear(weight: Array) -> Array:
    """A weight (C, O) as (O, C), or the reverse: a view.

    Raises
    ------
    BadInput
        with `why_not_transposed`'s reason.
    """
    reason = why_not_transposed(weight.shape)
    if reason:
        raise BadInput(reason)
    return weight.T
