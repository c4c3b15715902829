"""Interpolation by whole factors: a finer map, aligned with windows whose stride is a multiple of the coarse jump."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import fx

from onebyone.laws.geometry import Field
from onebyone.lifting.grid import Grid
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.lifter import Cannot, Lifted, Walk
from onebyone.pytorch.lift.rules import refusing, register
from onebyone.pytorch.lift.sliding import arguments

aten = torch.ops.aten


@register(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)
def nearest(walk: Walk, node: fx.Node) -> Lifted:
    """Each place repeated."""
    value, factors = _factors(walk, node)
    handle = emitter.repeat_places(value.handle, factors)
    return replace(value, handle=handle, grid=_finer(value.grid, factors, 0))


@register(aten.upsample_bilinear2d, aten.upsample_linear1d, aten.upsample_trilinear3d)
def linear(walk: Walk, node: fx.Node) -> Lifted:
    """Between each place and its neighbours; at the border of a crop there is none."""
    if arguments(node).get("align_corners"):
        raise Cannot("interpolation with align_corners: what it reads depends on the size of the image")
    value, factors = _factors(walk, node)
    mode = ("linear", "bilinear", "trilinear")[walk.axes - 1]
    scale = tuple(float(f) for f in factors)
    handle = walk.call(F.interpolate, value.handle, scale_factor=scale, mode=mode, align_corners=False)
    walk.not_exact(node, "interpolation: a crop has a border there that the middle of an image has not")
    return replace(value, handle=handle, grid=_finer(value.grid, factors, 1))


refusing(
    "interpolation that reads more than the neighbouring places",
    aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
)  # fmt: skip


refusing(
    "a transposed convolution: which of its kernel's phases a place gets depends on where the window begins",
    aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
)  # fmt: skip


def _factors(walk: Walk, node: fx.Node) -> tuple[Lifted, tuple[int, ...]]:
    """The map, and the whole numbers it grows by."""
    value = walk.as_map(walk.lifted(node.args[0]))
    out = [int(n) for n in node.meta["val"].shape[2:]]
    jumps = zip(out, value.grid.nominal, value.grid.jump, strict=True)
    if value.grid.image_wide or any(m % n or j % (m // n) for m, n, j in jumps):
        raise Cannot(
            f"interpolation from {value.grid.nominal} to {tuple(out)} places, which is no whole factor"
        )
    return value, tuple(m // n for m, n in zip(out, value.grid.nominal, strict=True))


def _finer(grid: Grid, factors: tuple[int, ...], neighbours: int) -> Grid:
    fields = tuple(_refined(f, r, neighbours) for f, r in zip(grid.fields, factors, strict=True))
    align = tuple(math.lcm(a, j) for a, j in zip(grid.align, grid.jump, strict=True))
    nominal = tuple(n * r for n, r in zip(grid.nominal, factors, strict=True))
    sizes = tuple(tuple(n * r for n in s) for s, r in zip(grid.sizes, factors, strict=True))
    return replace(grid, fields=fields, align=align, nominal=nominal, sizes=sizes)


def _refined(field: Field, factor: int, neighbours: int) -> Field:
    """Place r·q + t reads place q and `neighbours` beside it, so what it sees reaches r - 1 fine steps further back."""
    if factor == 1:
        return field
    fine = field.jump // factor
    back = (factor - 1) * fine + neighbours * field.jump
    return Field(fine, field.start - back, field.size + back + neighbours * field.jump)
