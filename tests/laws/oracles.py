"""Independent computations for the laws: loops over positions, from the definitions, without closed formulas."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from onebyone.laws.geometry import Sliding


def sliding_ops(
    kernels=(1, 2, 3),
    strides=(1, 2, 3),
    dilations=(1, 2),
    pads=((0, 0), (1, 0), (0, 1), (1, 1)),
    ceil=(False, True),
) -> Iterator[Sliding]:
    """Every combination, without paddings of more than half the kernel, which pools do not allow."""
    for k, s, d, (before, after), c in product(kernels, strides, dilations, pads, ceil):
        if max(before, after) <= k // 2:
            yield Sliding(k, s, d, before, after, c)


def starts(op: Sliding, size: int) -> list[int]:
    """Input position of the first tap of every output position: advance while another position is allowed."""
    end = size + op.pad_after
    found: list[int] = []
    first = -op.pad_before
    while True:
        reach = first + (op.kernel - 1) * op.dilation + 1
        if reach <= end:
            found.append(first)
        elif op.ceil_mode and reach - end < op.stride and first < size:
            found.append(first)  # a partial place: the last one
            return found
        else:
            return found
        first += op.stride


def slide(values: list[int], op: Sliding, taps: list[int]) -> list[int]:
    """A weighted sum at every position; taps outside the map contribute nothing."""
    return [
        sum(w * values[p] for t, w in enumerate(taps) if 0 <= (p := first + t * op.dilation) < len(values))
        for first in starts(op, len(values))
    ]


def seen(ops: list[Sliding], place: int) -> set[int]:
    """The pixels, including padding, that one position of an infinite map depends on."""
    reached = {place}
    for op in reversed(ops):
        reached = {q * op.stride - op.pad_before + t * op.dilation for q in reached for t in range(op.kernel)}
    return reached


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """x (C, H, W), kernel (O, C, h, w) -> (O, H - h + 1, W - w + 1), without padding."""
    h, w = kernel.shape[2:]
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    out = np.zeros((kernel.shape[0], rows, columns), dtype=x.dtype)
    for i, j in product(range(rows), range(columns)):
        out[:, i, j] = (kernel * x[:, i : i + h, j : j + w]).sum(axis=(1, 2, 3))
    return out


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    """Integers in [-9, 9] without 0, so that every missing element changes the result."""
    rng = np.random.default_rng([seed, *shape])
    return rng.integers(1, 10, shape) * rng.choice((-1, 1), shape)
