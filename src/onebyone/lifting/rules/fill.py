"""Constants that one number fills, beside values that depend on the image: zero channels, padding of channels.

Such a constant is the same at every position, so it can be made for a map of any size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from onebyone.lifting.lifter import Lifter
from onebyone.lifting.values import Const, Lifted


def fill_like(lifter: Lifter, constant: Const, value: Lifted, axis: int) -> Lifted | Const:
    """A constant of one number as a map with the positions of `value`, and with its own length along `axis`.

    Any other constant is returned as it is.
    """
    number = constant.single
    if number is None or constant.known is None:
        return constant
    return filled(lifter, number, constant.known.dtype, value, axis, constant.shape[1 + axis])


def filled(lifter: Lifter, number: float, dtype: Any, value: Lifted, axis: int, length: int) -> Lifted:
    """One number `length` times along `axis`, at each of the positions where `value` has elements."""
    handle = lifter.emit.filled(value.handle, number, dtype)
    positions = value.indices() % int(np.prod(value.grid.nominal))  # of the only channel
    index = np.ascontiguousarray(positions.take([0], axis).repeat(length, axis))
    return Lifted(handle, replace(value.grid, channels=1), index, value.pooled)
