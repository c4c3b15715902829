"""Indices: which element of a window's part of a map each element of a value is.

An index is an integer array of the value's shape (without the batch) into the flattened `(channels, *nominal)`. The
functions here recognise the patterns that a map can be made to hold: a gather (channels selected, positions cropped
and strided), a stencil (the same pattern of positions and channels, repeated on a grid), a reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onebyone.lifting.grid import Grid, Integers

#: Samples in the example that networks are read with: two, so that operators which mix the batch are seen.
BATCH = 2


def identity(shape: Sequence[int]) -> Integers:
    """The index of a window's part of a map itself, shape `(channels, *nominal)`."""
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(tuple(shape))


def decode(index: Integers, grid: Grid) -> tuple[Integers, Integers]:
    """Channels, shape as `index`, and positions, shape `(axes, *index.shape)`."""
    # on a broadcast view of more than 8,192 elements, numpy 2.4's unravel_index reads beyond it
    channel, *positions = np.unravel_index(np.ascontiguousarray(index), grid.shape)
    return np.asarray(channel), np.stack([np.asarray(p) for p in positions])


@dataclass(frozen=True)
class Gather:
    """Output channel k at position q is in channel `channels[k]` at position `starts[:, k] + q * steps`.

    `broadcast` names the axes on which one position is used for all (a value per window, combined with a value per
    position).
    """

    channels: Integers
    starts: Integers  # (axes, K)
    steps: tuple[int, ...]
    nominal: tuple[int, ...]
    broadcast: tuple[int, ...] = ()

    def grid(self, grid: Grid) -> Grid:
        """The grid of the gathered map."""
        spans = [(int(s.min()), int(s.max())) for s in self.starts]
        return grid.gathered(len(self.channels), spans, self.steps, self.nominal)

    def is_identity(self, grid: Grid) -> bool:
        """Whether nothing needs to be done."""
        return (
            not self.starts.any()
            and all(s == 1 for s in self.steps)
            and self.nominal == grid.nominal
            and np.array_equal(self.channels, np.arange(grid.channels))
        )


def as_gather(index: Integers, grid: Grid) -> Gather | str:
    """Read an index of shape `(K, *positions)` as a gather from the map, or return the reason why it is not one."""
    axes = len(grid.nominal)
    if index.ndim != axes + 1:
        return f"a value of shape {index.shape} is not a map with {axes} spatial axes"
    if not index.size:
        return "a value without elements"
    channel, position = decode(index, grid)
    origin = (slice(None),) + (0,) * axes
    channels, starts = channel[origin], position[(slice(None), *origin)]
    if not (channel == channels.reshape((-1,) + (1,) * axes)).all():
        return "channels and positions are mixed (tokens regrouped for attention over positions, for example)"
    steps, broadcast = [], []
    for axis in range(axes):
        length = index.shape[axis + 1]
        one = tuple(int(a == axis) for a in range(axes))
        step = int(position[axis][(0, *one)] - starts[axis, 0]) if length > 1 else 1
        expected = starts[axis].reshape((-1,) + (1,) * axes) + step * np.arange(length).reshape(
            (1, *(length if a == axis else 1 for a in range(axes)))
        )
        if any(np.diff(position[axis], axis=a + 1).any() for a in range(axes) if a != axis):
            return "the map's axes are exchanged (a transposed or rotated map, for example)"
        if not (position[axis] == expected).all():
            return "positions are not equally spaced"
        if step < 0:
            return "positions are in reverse order (a spatial flip)"
        if step == 0:
            broadcast.append(axis)
        steps.append(max(step, 1))
    nominal = tuple(1 if a in broadcast else index.shape[a + 1] for a in range(axes))
    return Gather(channels, starts, tuple(steps), nominal, tuple(broadcast))


@dataclass(frozen=True)
class Stencil:
    """Rows of features that repeat over a grid of positions.

    Feature f of the row at output position q is in channel `channels[f]`, at position
    `start + q * step + offsets[:, f]`; `lead` gives each row's output position, flattened over `nominal`.
    """

    channels: Integers  # (F,)
    offsets: Integers  # (axes, F), each axis beginning at 0
    start: tuple[int, ...]
    step: tuple[int, ...]
    nominal: tuple[int, ...]
    lead: Integers

    @property
    def kernel(self) -> tuple[int, ...]:
        """Places per axis that the features span."""
        return tuple(int(o.max()) + 1 for o in self.offsets)

    @property
    def is_pointwise(self) -> bool:
        """Whether the features of a row are all at one position: its convolution has a 1×1 kernel."""
        return all(k == 1 for k in self.kernel)

    def gather(self) -> Gather:
        """The gather that puts the features side by side as channels."""
        starts = np.asarray(self.offsets + np.asarray(self.start)[:, None])
        return Gather(self.channels, starts, self.step, self.nominal)

    def feature_order(self, channels: int) -> tuple[Integers | None, Integers | None]:
        """Which element of a `(channels, *kernel)` window each feature is, and the inverse of that order.

        The order is None where features are in the window's own order; the inverse is None there, and where features
        repeat elements or leave some out.
        """
        shape = (channels, *self.kernel)
        order = np.ravel_multi_index((self.channels, *self.offsets), shape)
        size = int(np.prod(shape))
        if len(order) == size and (order == np.arange(size)).all():
            return None, None
        is_permutation = len(order) == size and len(np.unique(order)) == size
        return order, np.argsort(order) if is_permutation else None

    def out_index(self, features: int) -> Integers:
        """The index of rows of `features` new features, shape `(*lead, features)`, into `(features, *nominal)`."""
        positions = int(np.prod(self.nominal))
        return np.asarray(np.arange(features, dtype=np.int64) * positions + self.lead[..., None])


def as_stencil(index: Integers, grid: Grid) -> Stencil | str:
    """Read an index of shape `(*lead, F)` as a stencil, or return the reason why it is not one."""
    if not index.size:
        return "a value without elements"
    rows = index.reshape(-1, index.shape[-1])
    channel, position = decode(rows, grid)
    if not (channel == channel[:1]).all():
        return (
            "the features of different rows are in different channels "
            "(positions are mixed channel by channel, for example)"
        )
    relative = position - position[:, :, :1]
    if not (relative == relative[:, :1]).all():
        return "the features of different rows are laid out differently in the map"
    low = relative[:, 0].min(axis=1)  # (axes,)
    base = position[:, :, 0] + low[:, None]  # (axes, rows)
    start = base.min(axis=1)
    steps, nominal, lead = [], [], np.zeros(rows.shape[0], dtype=np.int64)
    for axis in range(len(grid.nominal)):
        distance = base[axis] - start[axis]
        step = int(np.gcd.reduce(distance)) or 1
        count = int(distance.max()) // step + 1
        lead = lead * count + distance // step
        steps.append(step)
        nominal.append(count)
    return Stencil(
        channel[0],
        relative[:, 0] - low[:, None],
        tuple(int(s) for s in start),
        tuple(steps),
        tuple(nominal),
        lead.reshape(index.shape[:-1]),
    )


@dataclass(frozen=True)
class Groups:
    """Rows of features in `count` groups, each a stencil on one common grid of positions.

    `gather` puts the features of all groups side by side as channels, group by group; `lead` gives each row's position
    in `(count, *nominal)`, flattened.
    """

    gather: Gather
    count: int
    lead: Integers

    def out_index(self, features: int) -> Integers:
        """The index of rows of new features, shape `(*lead, features)`, into `(count · features, *nominal)`."""
        positions = int(np.prod(self.gather.nominal))
        group, position = np.divmod(self.lead[..., None], positions)
        return np.asarray((group * features + np.arange(features, dtype=np.int64)) * positions + position)


def as_groups(index: Integers, grid: Grid) -> Groups | str:
    """Read an index of shape `(*lead, F)` as stencils, one for each choice of channels.

    Returns the reason as a string where it cannot be read so.

    Rows of one group differ only in their position. All groups must have equally many positions, at equal distances.
    """
    if not index.size:
        return "a value without elements"
    rows = index.reshape(-1, index.shape[-1])
    channel, _ = decode(rows, grid)
    _, first, member = np.unique(channel, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[member.reshape(-1)]  # groups in the order in which they occur
    stencils: list[Stencil] = []
    lead = np.empty(len(rows), dtype=np.int64)
    for group in range(len(first)):
        stencil = as_stencil(rows[order == group], grid)
        if isinstance(stencil, str):
            return stencil
        if stencils and (stencil.nominal, stencil.step) != (stencils[0].nominal, stencils[0].step):
            return "groups of channels are laid out differently in the map"
        stencils.append(stencil)
        lead[order == group] = group * int(np.prod(stencil.nominal)) + stencil.lead
    plans = [s.gather() for s in stencils]
    gather = Gather(
        np.concatenate([p.channels for p in plans]),
        np.concatenate([p.starts for p in plans], axis=1),
        plans[0].steps,
        plans[0].nominal,
    )
    return Groups(gather, len(stencils), lead.reshape(index.shape[:-1]))


@dataclass(frozen=True)
class Window:
    """A reduction over a full rectangle of positions, channel by channel: a pool of `kernel` positions at stride 1.

    `index` is the result's index into the pooled map, whose nominal size is `nominal - kernel + 1`.
    """

    kernel: tuple[int, ...]
    index: Integers


def as_window(index: Integers, grid: Grid) -> Window | str:
    """Read an index of shape `(*lead, R)`, reduced over R, as a windowed pool, or return the reason why it is
    not one."""
    rows = index.reshape(-1, index.shape[-1])
    channel, position = decode(rows, grid)
    if not (channel == channel[:, :1]).all():
        return "the reduction mixes channels and positions"
    relative = position - position[:, :, :1]
    if not (relative == relative[:, :1]).all():
        return "different elements are reduced over different sets of positions"
    low = relative[:, 0].min(axis=1)
    offsets = relative[:, 0] - low[:, None]
    kernel = tuple(int(o.max()) + 1 for o in offsets)
    flat = np.ravel_multi_index(tuple(offsets), kernel)
    if len(flat) != int(np.prod(kernel)) or len(np.unique(flat)) != len(flat):
        return "the reduction does not cover each position of a rectangle exactly once"
    shape = (grid.channels, *(n - k + 1 for n, k in zip(grid.nominal, kernel, strict=True)))
    base = position[:, :, 0] + low[:, None]
    new = np.ravel_multi_index((channel[:, 0], *base), shape).astype(np.int64)
    return Window(kernel, new.reshape(index.shape[:-1]))


def is_bijection(index: Integers, grid: Grid) -> bool:
    """Whether every element of the window's part of the map is in the value exactly once."""
    size = int(np.prod(grid.shape))
    if index.size != size:
        return False
    seen = np.zeros(size, dtype=bool)
    seen[index.ravel()] = True
    return bool(seen.all())


def in_layout_of(index: Integers, anchor: Integers, grid: Grid) -> Integers:
    """`index` (of the anchor's shape) rearranged as the anchor's map is: shape `(channels, *nominal)` of `grid`."""
    moved = np.empty(int(np.prod(grid.shape)), dtype=np.int64)
    moved[anchor.ravel()] = index.ravel()
    return moved.reshape(grid.shape)


def batched(index: Integers, size: int, batch: int) -> Integers:
    """The index with a batch in front, element e of sample b numbered `b * size + e`: what shape operators run on."""
    numbers = np.arange(batch).reshape((-1,) + (1,) * index.ndim) * size + index
    return np.ascontiguousarray(numbers)


def unbatched(result: Integers, size: int, batch: int) -> Integers | str:
    """The index of one sample after a shape operator, or a reason: samples were mixed, or the batch axis moved."""
    if result.ndim == 0 or result.shape[0] != batch:
        return "the batch axis is merged with another or moved (windows of attention as a batch, for example)"
    first: Integers = result[0]
    same = all(np.array_equal(result[b], first + b * size) for b in range(1, batch))
    if not same or (first.size and (first.min() < 0 or first.max() >= size)):
        return "elements of different samples of the batch are mixed"
    return first
