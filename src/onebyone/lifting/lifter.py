"""The lifter: what rules use to turn values of one window into values at every window of a larger image.

It holds the state of one conversion (refusals, reasons for inexactness, changes) and the operations that many rules
share: bringing a value into the form that an operator needs, and aligning maps that are combined. What each operator
means is in `rules/`. A refused operator makes everything that depends on it `Unknown`, so that one conversion finds
every reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onebyone.laws.geometry import Sliding
from onebyone.lifting.emitter import MapEmitter
from onebyone.lifting.grid import Grid, Integers
from onebyone.lifting.index import Gather, Groups, as_gather, as_groups, as_stencil, identity, is_bijection
from onebyone.lifting.operators import Call, LinearLayer
from onebyone.lifting.values import Cannot, Lifted, Value
from onebyone.records import Change, Refusal

#: How many elements of one window may become the channels of a map.
MOST_CHANNELS = 65536
#: Why only a linear layer may follow a batch norm on a flattened map.
BY_POSITION = "only a linear layer can absorb constants that depend on the position in a flattened map"
#: Why a pool with ceil_mode is not exact at a window; at another it may be.
PARTIAL = "ceil_mode makes the last position partial in a crop and complete in a larger image"


@dataclass
class Lifter:
    """The state of one conversion.

    `window` is in pixels per axis. `head` is "window" or "cam", `context` is None, "window" or "image" (see
    `onebyone.convolutionalize`). `image_wide` holds the keys of the pools that are taken over the whole image,
    `context_pools` those whose results act on positions, and `left_out` those that head="cam" leaves out, with their
    kernel and jump.
    """

    emit: MapEmitter
    window: tuple[int, ...]
    head: str = "window"
    context: str | None = None
    image_wide: frozenset[str] = frozenset()
    refused: list[Refusal] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    linear_layers: list[LinearLayer] = field(default_factory=list)
    context_pools: set[str] = field(default_factory=set)
    left_out: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def axes(self) -> int:
        """Spatial axes."""
        return len(self.window)

    def lifted(self, value: Value) -> Lifted:
        """The value itself, if it depends on the image and has no pending scale and shift; else raises `Cannot`."""
        if not isinstance(value, Lifted):
            raise Cannot("a constant where a value that depends on the image was expected")
        if value.affine is not None:
            raise Cannot(BY_POSITION)
        return value

    # values in the form that an operator needs

    def gathered(self, value: Lifted, plan: Gather) -> Lifted:
        """The map after a gather."""
        if plan.is_identity(value.grid):
            return replace(value, index=None)
        handle = self.emit.gather(value.handle, plan, value.grid.channels)
        return Lifted(handle, plan.grid(value.grid), None, value.pooled)

    def as_map(self, value: Lifted) -> Lifted:
        """The value as a map whose index is the identity, its shape `(channels, *positions)`."""
        if value.index is None:
            return value
        plan = as_gather(value.index, value.grid)
        if isinstance(plan, str):
            raise Cannot(plan)
        if plan.broadcast:
            raise Cannot("a value per window is repeated over positions")
        return self.gathered(value, plan)

    def at_one_position(self, value: Lifted) -> Lifted:
        """The value as the channels of a map with one position per window: its elements in their own order."""
        stencil = as_stencil(value.indices().reshape(-1), value.grid)
        if isinstance(stencil, str):
            raise Cannot(stencil)
        if stencil.channels.size > MOST_CHANNELS:
            raise Cannot(f"{stencil.channels.size} elements of different positions would each need a channel")
        return self.gathered(value, stencil.gather())

    def with_channels(self, value: Lifted, axes: Sequence[int]) -> Lifted:
        """The value on a map whose channels are its elements along `axes`, in order."""
        index, rows = _rows(value, axes)
        stencil = as_stencil(rows, value.grid)
        if isinstance(stencil, str):
            raise Cannot(stencil)
        gathered = self.gathered(value, stencil.gather())
        new = stencil.out_index(rows.shape[-1]).reshape(index.shape)
        return gathered.with_index(np.ascontiguousarray(np.moveaxis(new, range(-len(axes), 0), axes)))

    def with_groups(self, value: Lifted, axes: Sequence[int]) -> tuple[Lifted, Groups]:
        """The value on a map of `groups.count` × F channels: at each position its F elements along `axes`, in order,
        one group for each combination of channels that the other axes select."""
        _, rows = _rows(value, axes)
        groups = as_groups(rows, value.grid)
        if isinstance(groups, str):
            raise Cannot(groups)
        if len(groups.gather.channels) > MOST_CHANNELS:
            raise Cannot(f"{len(groups.gather.channels)} elements of a window would each need a channel")
        return self.gathered(value, groups.gather), groups

    def compact(self, value: Lifted) -> Lifted:
        """The value on a map that holds each of its elements exactly once, in whichever layout that is."""
        if value.index is None or is_bijection(value.index, value.grid):
            return value
        if value.index.ndim == self.axes + 1:
            plan = as_gather(value.index, value.grid)
            if not isinstance(plan, str) and not plan.broadcast:
                return self.gathered(value, plan)
        for axis in range(value.index.ndim - 1, -1, -1):
            if value.index.shape[axis] > 1:
                try:
                    moved = self.with_channels(value, (axis,))
                except Cannot:
                    continue
                if is_bijection(moved.indices(), moved.grid):
                    return moved
        return self.at_one_position(value).with_index(identity(value.shape))

    # maps that are combined

    def aligned(self, values: Sequence[Lifted]) -> tuple[list[Lifted], Grid]:
        """Maps that are combined position by position, cropped to their common extent where it can differ; and their
        joint grid."""
        values = self._at_one_stride(values)
        grid = values[0].grid
        for other in values[1:]:
            joined = grid.joined(other.grid)
            if joined is None:
                raise Cannot(
                    f"maps of different strides are combined: {grid.jump} and {other.grid.jump} pixels"
                )
            grid = joined
        if not grid.extents_known or any(v.grid.sizes != grid.sizes for v in values):
            handles = self.emit.crop_to_common([v.handle for v in values], self.axes)
            values = [replace(v, handle=h) for v, h in zip(values, handles, strict=True)]
        return values, grid

    def concatenated(self, values: Sequence[Lifted]) -> Lifted:
        """Maps whose indices are the identity, side by side along the channels."""
        maps, grid = self.aligned(values)
        channels = sum(m.grid.channels for m in maps)
        pooled: frozenset[str] = frozenset().union(*(v.pooled for v in values))
        handle = self.emit.concatenate([m.handle for m in maps])
        return Lifted(handle, replace(grid, channels=channels), None, pooled)

    def _at_one_stride(self, values: Sequence[Lifted]) -> list[Lifted]:
        """Values of one position each, at the least common stride: windows at its multiples have them all."""
        jumps = {v.grid.jump for v in values}
        if len(jumps) == 1 or any(max(v.grid.nominal) > 1 for v in values):
            return list(values)
        least = [math.lcm(*axis) for axis in zip(*jumps, strict=True)]
        return [self._strided(v, [m // j for m, j in zip(least, v.grid.jump, strict=True)]) for v in values]

    def _strided(self, value: Lifted, steps: list[int]) -> Lifted:
        starts = [(0, 0)] * self.axes
        grid = value.grid.gathered(value.grid.channels, starts, steps, value.grid.nominal)
        return replace(value, handle=self.emit.strided(value.handle, steps), grid=grid)

    # what is recorded

    def slid(self, call: Call, grid: Grid, ops: Sequence[Sliding], channels: int | None = None) -> Grid:
        """The grid after sliding operators; padding and partial last positions make the result inexact."""
        if any(op.padded() for op in ops):
            sides = [
                f"{op.pad_before}" if op.pad_before == op.pad_after else f"{op.pad_before}+{op.pad_after}"
                for op in ops
            ]
            amounts = sides[0] if len(set(sides)) == 1 else "×".join(sides)
            self.not_exact(call, f"padding {amounts} affects crops but not the interior of a larger image")
        if any(op.partial_last(n) for op, n in zip(ops, grid.nominal, strict=True)):
            self.not_exact(call, PARTIAL)
        after = grid.through(ops, channels)
        if any(n < 1 for n in after.nominal):
            raise Cannot("the window is too small: no position is left")
        return after

    def change(self, call: Call, law: str, before: str, after: str, copied_bytes: int = 0) -> None:
        """Record a layer that was re-expressed."""
        self.changes.append(Change(call.path, call.name, law, before, after, copied_bytes))

    def refuse(self, path: str, name: str, reason: str) -> None:
        """Record a refusal."""
        refusal = Refusal(path, name, reason)
        if refusal not in self.refused:
            self.refused.append(refusal)

    def not_exact(self, call: Call, reason: str) -> None:
        """Record why the result differs from cropping every window."""
        text = f"{call.path or call.key} ({call.name}): {reason}"
        if text not in self.inexact:
            self.inexact.append(text)


def _rows(value: Lifted, axes: Sequence[int]) -> tuple[Integers, Integers]:
    """The index with `axes` moved last, and the same with them as one axis."""
    index = np.moveaxis(value.indices(), axes, range(-len(axes), 0))
    return index, index.reshape(*index.shape[: -len(axes)], -1)
