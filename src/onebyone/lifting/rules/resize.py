"""Interpolation by whole factors: a finer map, aligned with windows whose stride is a multiple of the coarse jump."""

from __future__ import annotations

import math
from dataclasses import replace

from onebyone.laws.geometry import Field
from onebyone.lifting.grid import Grid
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Resize
from onebyone.lifting.values import Cannot, Lifted


def resize(lifter: Lifter, call: Call, operator: Resize) -> Lifted:
    """Each position repeated, or interpolated between itself and its neighbours, which the border of a crop lacks."""
    value, size = lifter.as_map(lifter.lifted(operator.source)), tuple(operator.size)
    nominal, jump = value.grid.nominal, value.grid.jump
    change = f"interpolation from {nominal} to {size} positions"
    if value.grid.image_wide:
        raise Cannot(f"{change} of a value pooled over the whole image, which has one position")
    if any(m % n for m, n in zip(size, nominal, strict=True)):
        raise Cannot(f"{change}, which is not a whole factor")
    factors = tuple(m // n for m, n in zip(size, nominal, strict=True))
    if any(j % r for j, r in zip(jump, factors, strict=True)):
        raise Cannot(f"{change}: the distance of {jump} pixels, divided by the factor, is not whole")
    if operator.mode == "nearest":
        handle = lifter.emit.repeat_positions(value.handle, factors)
        return replace(value, handle=handle, grid=_finer(value.grid, factors, 0))
    handle = lifter.emit.interpolate(value.handle, factors)
    lifter.not_exact(
        call, "interpolation reads beyond the border of a crop, where a larger image has neighbours"
    )
    return replace(value, handle=handle, grid=_finer(value.grid, factors, 1))


def _finer(grid: Grid, factors: tuple[int, ...], neighbours: int) -> Grid:
    fields = tuple(_refined(f, r, neighbours) for f, r in zip(grid.fields, factors, strict=True))
    align = tuple(math.lcm(a, j) for a, j in zip(grid.align, grid.jump, strict=True))
    nominal = tuple(n * r for n, r in zip(grid.nominal, factors, strict=True))
    sizes = tuple(tuple(n * r for n in s) for s, r in zip(grid.sizes, factors, strict=True))
    return replace(grid, fields=fields, align=align, nominal=nominal, sizes=sizes)


def _refined(field: Field, factor: int, neighbours: int) -> Field:
    """Position r·q + t reads position q and `neighbours` beside it, so its field reaches r - 1 fine steps further
    back."""
    if factor == 1:
        return field
    fine = field.jump // factor
    back = (factor - 1) * fine + neighbours * field.jump
    return Field(fine, field.start - back, field.size + back + neighbours * field.jump)
