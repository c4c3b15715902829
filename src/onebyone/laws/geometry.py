"""Geometry: which pixels of the image each position of a feature map depends on, in exact integers.

Equation (one axis, one sliding operator with kernel k, stride s, dilation d, padding p before and after):

    extent            e  = (k - 1)·d + 1
    positions         n' = ⌊(n + p_before + p_after - e) / s⌋ + 1
    jump              j' = j·s
    start             a' = a - p_before·j
    receptive field   r' = r + (e - 1)·j

so that position q of a map depends on the pixels [q·j + a, q·j + a + r). Where branches are combined their jumps must
be equal, and the receptive field is the smallest interval that contains those of all branches.

Source: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019
(size, start and jump of chains; branching graphs); Dumoulin and Visin, "A guide to convolution arithmetic
for deep learning", 2016, §2 and §5.1 (sizes; dilation). The ceil_mode rule is that of PyTorch
(`aten/src/ATen/native/Pool.h`, `pooling_output_shape`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onebyone.errors import BadInput
from onebyone.records import by

NAME = "geometry"
EQUATION = "position q depends on pixels [q·jump + start, q·jump + start + size)"


@dataclass(frozen=True)
class Sliding:
    """One axis of a sliding operator (a convolution or a pool). All lengths are in positions of its input map.

    A pad operator is `Sliding(kernel=1, pad_before=..., pad_after=...)`.

    Raises
    ------
    BadInput
        if kernel, stride or dilation is below 1, or a padding is negative.

    >>> Sliding(kernel=3, stride=2, pad_before=1, pad_after=1).out_size(224)
    112
    >>> Sliding(kernel=3, stride=2, ceil_mode=True).out_size(6), Sliding(kernel=3, stride=2).out_size(6)
    (3, 2)
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    pad_before: int = 0
    pad_after: int = 0
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel", "stride", "dilation"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("pad_before", "pad_after"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name}={getattr(self, name)}: expected 0 or more (crop with Field.shifted)")

    @property
    def extent(self) -> int:
        """Positions from the first to the last tap, both included: (kernel - 1)·dilation + 1."""
        return (self.kernel - 1) * self.dilation + 1

    def out_size(self, size: int) -> int:
        """Number of output positions for `size` input positions (0 if the operator does not fit).

        With ceil_mode the last position may extend past the input, but must start in the input or the padding before.
        """
        room = size + self.pad_before + self.pad_after - self.extent
        if not self.ceil_mode:
            return max(0, room // self.stride + 1)
        positions = (room + self.stride - 1) // self.stride + 1
        if (positions - 1) * self.stride >= size + self.pad_before:
            positions -= 1
        return max(0, positions)

    def partial_last(self, size: int) -> bool:
        """Whether the last position extends past `size + pad_after`, which only ceil_mode allows.

        >>> Sliding(kernel=3, stride=2, ceil_mode=True).partial_last(6)
        True
        """
        positions = self.out_size(size)
        end = (positions - 1) * self.stride - self.pad_before + self.extent
        return positions > 0 and end > size + self.pad_after

    def at_one_position(self, size: int) -> Sliding:
        """The same operator, at stride 1 if it has one output position on `size` positions (the stride has no effect).

        So a pool over the entire map is treated as a global pool is: on a larger map it becomes a pool at stride 1.

        >>> Sliding(7, stride=7).at_one_position(7).stride, Sliding(7, stride=7).at_one_position(14).stride
        (1, 7)
        """
        return replace(self, stride=1) if self.out_size(size) == 1 else self

    def padded(self) -> bool:
        """Whether any position can depend on padding."""
        return self.pad_before > 0 or self.pad_after > 0


@dataclass(frozen=True)
class Field:
    """Receptive field on one axis: position q depends on the pixels [q·jump + start, q·jump + start + size).

    >>> Field().through(Sliding(3, stride=2, pad_before=1)).through(Sliding(3))
    Field(jump=2, start=-1, size=7)
    """

    jump: int = 1
    start: int = 0
    size: int = 1

    def through(self, op: Sliding) -> Field:
        """The field after `op`."""
        return Field(
            jump=self.jump * op.stride,
            start=self.start - op.pad_before * self.jump,
            size=self.size + (op.extent - 1) * self.jump,
        )

    def join(self, other: Field) -> Field | None:
        """The field of two branches combined position by position: their hull; None if their jumps differ."""
        if self.jump != other.jump:
            return None
        start = min(self.start, other.start)
        stop = max(self.start + self.size, other.start + other.size)
        return Field(self.jump, start, stop - start)

    def shifted(self, positions: int) -> Field:
        """The field after cropping the first `positions` positions (negative: after padding that many)."""
        return Field(self.jump, self.start + positions * self.jump, self.size)

    def strided(self, step: int) -> Field:
        """The field after keeping every `step`-th position, starting with the first."""
        return Field(self.jump * step, self.start, self.size)


@dataclass(frozen=True)
class Parallel:
    """Branches that read the same map and are combined position by position. An empty branch is a shortcut."""

    branches: tuple[tuple[Step, ...], ...]


Step = Sliding | Parallel


def follow(steps: Iterable[Step], field: Field | None = None) -> Field:
    """The field after a chain of operators and parallel branches (which may be nested).

    Raises
    ------
    BadInput
        if branches with different jumps are combined.

    >>> follow([Sliding(7, stride=2, pad_before=3), Parallel(((), (Sliding(3, pad_before=1),)))])
    Field(jump=2, start=-5, size=11)
    """
    field = field or Field()
    for step in steps:
        field = field.through(step) if isinstance(step, Sliding) else _combine(step, field)
    return field


def _combine(step: Parallel, field: Field) -> Field:
    if not step.branches:
        raise BadInput("branches=(): expected at least one branch (an empty one is a shortcut)")
    ends = [follow(branch, field) for branch in step.branches]
    joined: Field = ends[0]
    for end in ends[1:]:
        hull = joined.join(end)
        if hull is None:
            raise BadInput(f"combined branches have different jumps: {joined.jump} and {end.jump} pixels")
        joined = hull
    return joined


def out_positions(steps: Iterable[Step], size: int) -> int:
    """Number of output positions of a chain for `size` pixels; branches are cropped to their common extent.

    >>> out_positions([Sliding(3, stride=2), Sliding(3)], 21)
    8
    """
    for step in steps:
        if isinstance(step, Sliding):
            size = step.out_size(size)
        else:
            size = min(out_positions(branch, size) for branch in step.branches)
    return size


def why_not_exact(steps: Iterable[Step], window: int) -> tuple[str, ...]:
    """Every reason why dense scores differ from those of cropping each window of `window` pixels; () if they are equal.

    Padding affects crops but not the interior of a larger image. A partial last position of ceil_mode acts as padding
    at the far edge of a crop.

    >>> why_not_exact([Sliding(3, pad_before=1, pad_after=1), Sliding(2, stride=2)], 8)
    ('step 0: padding 1 before and 1 after',)
    """
    reasons: list[str] = []
    size = window
    for number, step in enumerate(steps):
        if isinstance(step, Parallel):
            for branch in step.branches:
                reasons += [f"step {number}, {reason}" for reason in why_not_exact(branch, size)]
        elif step.padded():
            reasons.append(f"step {number}: padding {step.pad_before} before and {step.pad_after} after")
        elif step.partial_last(size):
            reasons.append(f"step {number}: ceil_mode's last position is partial at {size} positions")
        size = out_positions([step], size)
    return tuple(reasons)


@dataclass(frozen=True)
class Geometry:
    """The window and receptive field of each position of a dense result, per axis (y, x), in pixels.

    Position i holds the scores of the window [i·stride - window_offset, + window). Its receptive field is
    [i·stride - receptive_field_offset, + receptive_field), which padding can make larger than the window. `exact`: the
    dense result equals cropping every window; if not, `inexact_because` lists the operators that are the reason.
    `image_wide`: every position depends on the whole image (`context="image"`), so the result cannot be computed in
    tiles.

    >>> g = Geometry((28, 28), (2, 2), (0, 0), (28, 28), (0, 0), True)
    >>> g.positions((64, 65)), g.window_at((1, 18))
    ((19, 19), ((2, 30), (36, 64)))
    >>> Geometry.from_dict(g.to_dict()) == g
    True
    >>> print(g)
    window 28×28, stride 2×2, window offset 0×0
    receptive field 28×28, offset 0×0
    exact: equals cropping every window
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]
    window_offset: tuple[int, ...]
    receptive_field: tuple[int, ...]
    receptive_field_offset: tuple[int, ...]
    exact: bool
    inexact_because: tuple[str, ...] = ()
    image_wide: bool = False

    def __post_init__(self) -> None:
        if len({len(getattr(self, name)) for name in _AXES}) != 1:
            given = ", ".join(f"{name} {getattr(self, name)}" for name in _AXES)
            raise BadInput(f"a geometry needs one number per axis in each of {given}")
        for name in ("window", "stride", "receptive_field"):
            if any(value < 1 for value in getattr(self, name)):
                raise BadInput(f"{name}={getattr(self, name)}: expected at least 1 pixel on every axis")

    @classmethod
    def from_fields(
        cls,
        window: Sequence[int],
        fields: Sequence[Field],
        inexact_because: Sequence[str] = (),
        image_wide: bool = False,
    ) -> Geometry:
        """The geometry of a result whose place 0 answers for the window at the image's first pixel.

        `window` in pixels and `fields` (of the result), one per axis; exact where `inexact_because` is empty.
        """
        return cls(
            window=tuple(window),
            stride=tuple(f.jump for f in fields),
            window_offset=(0,) * len(fields),
            receptive_field=tuple(f.size for f in fields),
            receptive_field_offset=tuple(-f.start for f in fields),
            exact=not inexact_because,
            inexact_because=tuple(inexact_because),
            image_wide=image_wide,
        )

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """Number of windows of an image of `size` pixels per axis: ⌊(size - window) / stride⌋ + 1.

        Raises
        ------
        BadInput
            if the image is smaller than the window, or has another number of axes.
        """
        self._check_axes(size, "image size")
        if any(s < w for s, w in zip(size, self.window, strict=True)):
            raise BadInput(f"the image is {by(size)} pixels, smaller than the window of {by(self.window)}")
        return tuple((s - w) // step + 1 for s, w, step in zip(size, self.window, self.stride, strict=True))

    def window_at(self, index: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The window of position `index` as (first pixel, last pixel + 1) per axis."""
        self._check_axes(index, "index")
        return _spans(index, self.stride, self.window_offset, self.window)

    def receptive_field_at(self, index: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The receptive field of position `index` as (first pixel, last pixel + 1) per axis; may exceed the image."""
        self._check_axes(index, "index")
        return _spans(index, self.stride, self.receptive_field_offset, self.receptive_field)

    @property
    def halo(self) -> tuple[tuple[int, int], ...]:
        """Pixels of the receptive field before and after the window, per axis.

        >>> Geometry((8,), (2,), (0,), (12,), (3,), False, ("conv1: padding",)).halo
        ((3, 1),)
        """
        zero = (0,) * len(self.window)
        pairs = zip(self.window_at(zero), self.receptive_field_at(zero), strict=True)
        return tuple((max(0, w0 - r0), max(0, r1 - w1)) for (w0, w1), (r0, r1) in pairs)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Geometry:
        """The geometry from the output of `to_dict`.

        Raises
        ------
        BadInput
            if an entry is missing or has the wrong type.
        """
        try:
            axes = {name: tuple(operator.index(v) for v in data[name]) for name in _AXES}
            reasons = tuple(str(reason) for reason in data["inexact_because"])
            wide = bool(data.get("image_wide"))
            return cls(**axes, exact=bool(data["exact"]), inexact_because=reasons, image_wide=wide)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"not a geometry: {error!r} in {data!r}") from error

    def __str__(self) -> str:
        more = len(self.inexact_because) - _SHOWN
        shown = [*self.inexact_because[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        why = "; ".join(shown) or "no reason given"
        exact = "exact: equals cropping every window" if self.exact else f"not exact: {why}"
        field, start = by(self.receptive_field), by(self.receptive_field_offset)
        offset = by(self.window_offset)
        return "\n".join(
            (
                f"window {by(self.window)}, stride {by(self.stride)}, window offset {offset}",
                f"receptive field {field}, offset {start}",
                exact,
            )
        )

    def _check_axes(self, values: Sequence[int], what: str) -> None:
        if len(values) != len(self.window):
            raise BadInput(f"{what}={tuple(values)}: expected {len(self.window)} axes, not {len(values)}")


_SHOWN = 3  # reasons that `print` shows; `inexact_because` has all
_AXES = ("window", "stride", "window_offset", "receptive_field", "receptive_field_offset")


def _spans(
    index: Sequence[int], stride: Sequence[int], offset: Sequence[int], length: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    starts = [i * s - o for i, s, o in zip(index, stride, offset, strict=True)]
    return tuple((start, start + n) for start, n in zip(starts, length, strict=True))
