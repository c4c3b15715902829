"""From the grids of a lifted network's outputs to the geometry of the result: one position per window.

Outputs may have different strides and receptive fields. The result has one stride for all of them, the least common
multiple, and at that stride exactly ⌊(size − window) / stride⌋ + 1 positions per axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onebyone.laws.geometry import Geometry
from onebyone.lifting.grid import PERIOD, Grid
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.values import Cannot, Lifted, Unknown
from onebyone.records import Refusal, by


def output_map(lifter: Lifter, number: int, value: Any) -> Lifted | None:
    """Output `number` of a network as a map with one position per window, whose channels are the output's elements.

    What is no such map is refused in `lifter`, and None is returned.
    """
    if isinstance(value, Lifted) and value.affine is None and not value.grid.image_wide:
        try:
            if (
                max(value.grid.nominal) > 1
                and len(value.shape) == lifter.axes + 1
                and max(value.shape[1:]) > 1
            ):
                raise Cannot(f"gives a map of {by(value.shape[1:])} positions for one window, not a vector")
            return lifter.at_one_position(value)
        except Cannot as reason:
            lifter.refused.append(Refusal("", f"output {number}", str(reason)))
    elif not isinstance(value, Unknown):
        lifter.refused.append(Refusal("", f"output {number}", "does not depend on the position in the image"))
    return None


def common_stride(grids: Sequence[Grid]) -> tuple[int, ...]:
    """The stride of the result in pixels, per axis: the least common multiple of the outputs' jumps and alignments."""
    axes = range(len(grids[0].jump))
    return tuple(math.lcm(*(math.lcm(grid.jump[a], grid.align[a]) for grid in grids)) for a in axes)


def may_have_surplus(
    grid: Grid, stride: Sequence[int], window: Sequence[int], nominal: Sequence[int]
) -> bool:
    """Whether an output, subsampled to `stride`, may have more positions than there are windows in an image.

    Parameters
    ----------
    grid: the output's grid; `grid.sizes` holds its numbers of positions for all image sizes over one period, from
        `nominal` on.
    stride: the stride of the result, a multiple of `grid.jump`.
    window: the window of the result.
    nominal: the window size that the network was built for.
    """
    if max(stride) > PERIOD:
        return True  # the sizes are known over one period only
    for sizes, jump, s, w, size in zip(grid.sizes, grid.jump, stride, window, nominal, strict=True):
        step = s // jump
        if any(-(-count // step) != (size + i - w) // s + 1 for i, count in enumerate(sizes)):
            return True
    return False


def joint_geometry(
    grids: Sequence[Grid],
    stride: Sequence[int],
    window: Sequence[int],
    inexact_because: Sequence[str],
    image_wide: bool,
) -> Geometry:
    """The geometry of a result with several outputs; its receptive field covers those of all outputs."""
    fields = []
    for axis, step in enumerate(stride):
        first, *others = (replace(grid.fields[axis], jump=step) for grid in grids)
        for other in others:
            joined = first.join(other)
            assert joined is not None  # they have one jump
            first = joined
        fields.append(first)
    return Geometry.from_fields(tuple(window), fields, list(inexact_because), image_wide)
