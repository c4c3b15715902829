"""Exact fractions and simple tensors for the tests of error rules.

The rules take the unit roundoff as an argument. A large one, 2⁻²⁰, is used here, so that the rounding of float64 itself
(2⁻⁵³) does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from onebyone.verification.error_rules import RULES, Approx

aten = torch.ops.aten
U = 2.0**-20
E = Fraction(1, 8)  # the error of every input, unless a test says otherwise


def apply(operator: Any, *args: Any, u: float = U, **kwargs: Any) -> Any:
    """The rule of an operator."""
    return RULES[operator.overloadpacket](u, operator, args, kwargs)


def gamma(n: int, u: Fraction = Fraction(1, 2**20)) -> Fraction:
    """n·u / (1 − n·u), exactly."""
    return n * u / (1 - n * u)


def widening(n: int) -> Fraction:
    """What a bound is multiplied by for the rounding of its own computation, from sums of n terms."""
    return 1 + 4 * gamma(n + 4)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Numbers with few digits, so that fractions stay short: multiples of 1/8 in [−2, 2], none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 17, shape, generator=generator)
    return numbers.double() / 8 * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)


def approx(x: Tensor, e: float | Tensor = float(E)) -> Approx:
    return Approx(x, e if isinstance(e, Tensor) else torch.full_like(x, e))


def fractions(t: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in t.flatten().tolist()]


def agrees(bound: Tensor, expected: Sequence[Fraction], what: str = "") -> None:
    """The bound equals the formula up to the rounding of float64."""
    assert len(expected) == bound.numel()
    for actual, exact in zip(bound.flatten().tolist(), expected, strict=True):
        assert actual == pytest.approx(float(exact), rel=1e-12, abs=1e-300), what


def matrix_of(f: Callable[[Tensor], Tensor], x: Tensor) -> list[list[Fraction]]:
    """The matrix of a linear map, row by row, from its values on unit vectors."""
    zero = f(torch.zeros_like(x))
    columns = []
    for i in range(x.numel()):
        unit = torch.zeros_like(x)
        unit.view(-1)[i] = 1
        columns.append(fractions(f(unit) - zero))
    return [list(row) for row in zip(*columns, strict=True)]
