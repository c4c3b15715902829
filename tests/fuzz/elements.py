"""Values as the oracle sees them: each element is a function and a place.

What one window computes is written down element by element: element e is some function of the image, read at some
pixel. Two elements have the same function number exactly when they are the same function of the image moved to their
pixels (as channel c of a convolution is at all its places). Padding is thought away: a convolution's border places are
the function that they would be inside a larger image. Nothing here knows of maps, grids or indices into them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class Illegal(Exception):
    """The dense form cannot hold this: its operators would mean another thing at other places."""


class Never(Illegal):
    """Refused by its kind, whatever it reads."""


class Open(Exception):
    """Dense forms may hold this or refuse it; if held, the numbers must be right."""


@dataclass(frozen=True)
class Value:
    """`function` has the value's shape (no batch), `pixel` one more axis for the pixel axes.

    `jump`: pixels between neighbouring places at which the functions are computed, where its own places do not tell.
    `partial`: some slice left elements out since the last operator that computed. `pending`: a batch norm with a
    constant for each position waits for the next linear layer.
    """

    function: Numbers
    pixel: Numbers
    jump: tuple[int, ...]
    partial: bool = False
    pending: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.function.shape

    @property
    def axes(self) -> int:
        return len(self.jump)

    def moved(self, act: Callable[[Numbers], Numbers]) -> Value:
        """The value after an operator that only moves elements about."""
        ids = act(np.arange(self.function.size).reshape(self.shape))
        fewer = len(np.unique(ids)) < self.function.size
        return replace(
            self,
            function=self.function.ravel()[ids],
            pixel=self.pixel.reshape(-1, self.axes)[ids],
            partial=self.partial or fewer,
        )

    def spans(self) -> bool:
        """Whether the value reads more than one pixel position: not a plain vector at one place."""
        return bool((self.pixel.reshape(-1, self.axes) != self.pixel.reshape(-1, self.axes)[:1]).any())

    def repeats(self) -> bool:
        """Whether some element is there twice."""
        both = np.concatenate([self.function.reshape(-1, 1), self.pixel.reshape(-1, self.axes)], 1)
        return len(np.unique(both, axis=0)) < len(both)


_fresh = count(1)


def fresh(how_many: int) -> Numbers:
    """Function numbers not given before."""
    return np.asarray([next(_fresh) for _ in range(how_many)], dtype=np.int64)


def image(channels: int, window: tuple[int, ...]) -> Value:
    """The window itself: one function a channel, each pixel its place."""
    shape = (channels, *window)
    function = np.broadcast_to(fresh(channels).reshape(-1, *(1,) * len(window)), shape)
    pixel = np.stack(np.indices(shape)[1:], -1).astype(np.int64)
    return Value(np.ascontiguousarray(function), pixel, (1,) * len(window))


def renamed(keys: Numbers) -> Numbers:
    """A new function for each distinct row of `keys` (the last axis tells them apart)."""
    rows = keys.reshape(-1, keys.shape[-1])
    _, which = np.unique(rows, axis=0, return_inverse=True)
    return fresh(int(which.max()) + 1)[which.reshape(-1)].reshape(keys.shape[:-1])


def map_steps(v: Value) -> tuple[int, ...]:
    """Pixels from place to place on each axis if the value is a map `(C, *places)`: one function a channel, places in
    equal steps, the same for every channel. Illegal if it is none."""
    if len(v.shape) != v.axes + 1:
        raise Illegal(f"a value of {len(v.shape)} axes where a map with {v.axes} spatial axes is needed")
    head = v.function[(slice(None), *(slice(0, 1),) * v.axes)]
    if (v.function != head).any():
        raise Illegal("channels change from place to place")
    steps = []
    for axis in range(v.axes):
        apart = np.diff(v.pixel, axis=axis + 1)
        if not apart.size:
            steps.append(v.jump[axis])
            continue
        along = apart[..., axis]
        across = np.delete(apart, axis, -1)
        if across.any() or (along != along.flat[0]).any() or along.flat[0] < 1:
            raise Illegal("places do not follow one another in equal steps")
        steps.append(int(along.flat[0]))
    return tuple(steps)


def same_rows(v: Value, axes: tuple[int, ...]) -> tuple[Numbers, Numbers]:
    """The value as rows over `axes` (moved last, flattened), if all rows are one pattern moved about; else illegal."""
    function = np.moveaxis(v.function, axes, range(-len(axes), 0))
    lead = function.shape[: -len(axes)]
    function = function.reshape(*lead, -1)
    pixel = np.moveaxis(v.pixel, axes, range(-len(axes) - 1, -1)).reshape(*lead, -1, v.axes)
    first = function.reshape(-1, function.shape[-1])[:1]
    if (function.reshape(-1, function.shape[-1]) != first).any():
        raise Illegal("rows differ in what they hold: one weight would mean another thing in each")
    offsets = (pixel - pixel[..., :1, :]).reshape(-1, function.shape[-1], v.axes)
    if (offsets != offsets[:1]).any():
        raise Illegal("rows lie differently in the image")
    return function, pixel


def row_jump(v: Value, pixel: Numbers) -> tuple[int, ...]:
    """The jump of what is computed once for each row: the rows' own distances where they tell."""
    base = pixel[..., 0, :].reshape(-1, v.axes)
    apart = np.gcd.reduce(base - base[:1], axis=0)
    return tuple(int(a) or j for a, j in zip(apart, v.jump, strict=True))


def meet(parts: list[tuple[Numbers, Numbers | None]], v: Value) -> tuple[Numbers, bool]:
    """What elements become when they meet others, one by one: functions, and whether that holds at every place.

    `parts` are (function, pixel) of values of one shape, or (number, None) of constants. Elements with the same
    functions at the same distance make the same function. It holds if every new function is had wherever its parts are.
    """
    anchor = parts[0][1]
    assert anchor is not None
    columns = []
    for function, pixel in parts:
        columns.append(function[..., None])
        if pixel is not None:
            columns.append(pixel - anchor)
    made = renamed(np.concatenate(columns, -1))
    holds = True
    for function, pixel in parts:
        if pixel is not None:
            wanted = _places(function, pixel)
            for number, have in _places(made, pixel).items():
                one = function[made == number].flat[0]
                holds = holds and len(have) == len(wanted[int(one)])
    return made, holds


def _places(function: Numbers, pixel: Numbers) -> dict[int, set[tuple[int, ...]]]:
    found: dict[int, set[tuple[int, ...]]] = {}
    for f, p in zip(function.ravel().tolist(), pixel.reshape(-1, pixel.shape[-1]).tolist(), strict=True):
        found.setdefault(f, set()).add(tuple(p))
    return found


def spread(v: Value, shape: tuple[int, ...]) -> Value:
    """The value broadcast to a shape."""
    missing = len(shape) - len(v.shape)
    pixel = v.pixel.reshape(*(1,) * missing, *v.pixel.shape)
    return replace(
        v, function=np.broadcast_to(v.function, shape), pixel=np.broadcast_to(pixel, (*shape, v.axes))
    )


Rule = Callable[["Any", list[Value], dict[str, Any], tuple[int, ...]], Value]
