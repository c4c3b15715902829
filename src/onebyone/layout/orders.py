"""The algebra of axis orders and layouts, on plain integers.

A value of a program has *logical axes*: the dimensions that the tensor has in the original graph, numbered from 0.
The rewritten graph may store the tensor with its dimensions in another order. Two descriptions of that are used:

- an **order** lists the logical axes in the order in which they are stored. Axes whose size is known to be 1 are
  left out, because inserting, removing or moving such an axis copies nothing. The axes that remain are called
  *significant*.
- a **layout** lists what each dimension of the stored tensor holds: a logical axis, or `UNIT` (−1) for a dimension
  of size 1. It is an order with unit dimensions inserted.

For example, a value `(B, T, C)` that is stored as an image `(B, C, T, 1)` has the order `(0, 2, 1)` and the layout
`(0, 2, 1, −1)`. Changing between layouts of one order takes squeezes and unsqueezes, which are not layout operators.
Changing the order takes a permute, which is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Order = tuple[int, ...]
Layout = tuple[int, ...]
UNIT = -1


def order_of(layout: Layout) -> Order:
    """The order of a layout: its axes without the unit dimensions.

    >>> order_of((0, 2, 1, -1))
    (0, 2, 1)
    """
    return tuple(axis for axis in layout if axis != UNIT)


def significant_axes(shape: Sequence[object]) -> Order:
    """The axes whose size is not known to be 1; a symbolic size may be anything and is significant.

    >>> significant_axes((1, 5, 1, 7))
    (1, 3)
    """
    return tuple(axis for axis, size in enumerate(shape) if not (isinstance(size, int) and size == 1))


def natural_layout(rank: int, axes: Order) -> Layout:
    """The layout of the original tensor, of which `axes` are significant.

    >>> natural_layout(3, (1, 2))
    (-1, 1, 2)
    """
    return tuple(axis if axis in axes else UNIT for axis in range(rank))


def renamed(layout: Layout, names: Mapping[int, int]) -> Layout:
    """The layout with every axis replaced by `names[axis]`; unit dimensions stay.

    >>> renamed((0, -1, 1), {0: 2, 1: 3})
    (2, -1, 3)
    """
    return tuple(axis if axis == UNIT else names[axis] for axis in layout)


def operand_order(order: Order, axes: Iterable[int], shift: int = 0) -> Order:
    """The order of an operand that broadcasts against a value stored in `order`.

    `axes` are the operand's significant axes. Axis `a` of the value is axis `a − shift` of the operand, where `shift`
    is the difference of their ranks.

    >>> operand_order((0, 2, 1), (0,), shift=2)
    (0,)
    """
    present = set(axes)
    return tuple(axis - shift for axis in order if axis - shift in present)


def operand_layout(layout: Layout, axes: Iterable[int], shift: int = 0) -> Layout:
    """The layout in which an operand broadcasts against a tensor stored in `layout`; see `operand_order`.

    Dimensions whose axis the operand lacks are unit dimensions.

    >>> operand_layout((0, 2, 1, -1), (0,), shift=2)
    (-1, 0, -1, -1)
    """
    present = set(axes)
    return tuple(axis - shift if axis != UNIT and axis - shift in present else UNIT for axis in layout)


def with_order(layout: Layout, order: Order) -> Layout:
    """The layout with its axes in another order, and unit dimensions where they were: one permute leads there.

    >>> with_order((-1, 2, -1, 1), (1, 2))
    (-1, 1, -1, 2)
    """
    axes = iter(order)
    return tuple(axis if axis == UNIT else next(axes) for axis in layout)


def without_leading_units(layout: Layout) -> Layout:
    """The layout without the unit dimensions at its front, which broadcasting adds by itself.

    >>> without_leading_units((-1, 0, -1))
    (0, -1)
    """
    first = next((position for position, axis in enumerate(layout) if axis != UNIT), len(layout))
    return layout[first:]


def unit_changes(have: Layout, want: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions to squeeze, then the positions to unsqueeze one after another, that turn `have` into `want`.

    Both must have the same order. As few dimensions as possible are changed.

    >>> unit_changes((0, 2, 1, -1), (0, 2, 1))
    ((3,), ())
    >>> unit_changes((-1, 1, 2), (1, 2, -1))
    ((0,), (2,))
    """
    squeeze: list[int] = []
    unsqueeze: list[int] = []
    position_have = position_want = 0
    for units_have, units_want in zip(_units_before_axes(have), _units_before_axes(want), strict=True):
        squeeze.extend(range(position_have, position_have + max(0, units_have - units_want)))
        unsqueeze.extend(range(position_want + min(units_have, units_want), position_want + units_want))
        position_have += units_have + 1
        position_want += units_want + 1
    return tuple(squeeze), tuple(unsqueeze)


def _units_before_axes(layout: Layout) -> list[int]:
    """The number of unit dimensions before each axis, and after the last one."""
    counts = [0]
    for axis in layout:
        if axis == UNIT:
            counts[-1] += 1
        else:
            counts.append(0)
    return counts


def permutation_between(have: Layout, want: Layout) -> tuple[int, ...]:
    """For each dimension of `want`, the dimension of `have` that it comes from; unit dimensions in turn.

    Both must have the same axes and the same number of unit dimensions.

    >>> permutation_between((0, -1, 2, 1), (0, 1, 2, -1))
    (0, 3, 2, 1)
    """
    positions: dict[int, list[int]] = {}
    for position, axis in enumerate(have):
        positions.setdefault(axis, []).append(position)
    return tuple(positions[axis].pop(0) for axis in want)


def insertions(order: Order, axes: Order) -> list[Order]:
    """Every order that results from inserting `axes`, side by side, into `order`; the last position first.

    >>> insertions((0, 1), (2,))
    [(0, 1, 2), (0, 2, 1), (2, 0, 1)]
    """
    if not axes:
        return [order]
    return [order[:i] + axes + order[i:] for i in range(len(order), -1, -1)]
