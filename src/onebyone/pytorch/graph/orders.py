"""The algebra of stored axis orders, on plain integers.

A value of the program has *logical* axes, those of the original graph. In the rewritten graph it is stored
with its axes in some *order*: a tuple of its significant logical axes (those whose size is not statically 1;
axes of size 1 move for free). A *frame* is an order with units, written −1: the exact shape of one stored
tensor. So a `(B, T, C)` value stored as a `(B, C, T, 1)` image has order `(0, 2, 1)` and frame `(0, 2, 1,
−1)`. Changing frames within one order squeezes and unsqueezes, which moves no data and is no layout operator;
changing the order is a permute, which is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Order = tuple[int, ...]
Frame = tuple[int, ...]
UNIT = -1


def order_of(frame: Frame) -> Order:
    """The frame without its units.

    >>> order_of((0, 2, 1, -1))
    (0, 2, 1)
    """
    return tuple(axis for axis in frame if axis != UNIT)


def significant(shape: Sequence[object]) -> Order:
    """The axes whose size is not statically 1.

    >>> significant((1, 5, 1, 7))
    (1, 3)
    """
    return tuple(i for i, size in enumerate(shape) if not (isinstance(size, int) and size == 1))


def natural_frame(rank: int, axes: Order) -> Frame:
    """The frame of the original tensor.

    >>> natural_frame(3, (1, 2))
    (-1, 1, 2)
    """
    return tuple(axis if axis in axes else UNIT for axis in range(rank))


def restrict(order: Order, axes: Sequence[int], shift: int = 0) -> Order:
    """The part of `order` an operand has, in the operand's own axes: axis `a` of the result is axis `a −
    shift` of the operand.

    >>> restrict((0, 2, 1), (0,), shift=2)
    (0,)
    """
    return tuple(a - shift for a in order if a - shift in axes)


def restrict_frame(frame: Frame, axes: Sequence[int], shift: int = 0) -> Frame:
    """A frame for an operand that broadcasts against a value stored in `frame`; axes it lacks are units.

    >>> restrict_frame((0, 2, 1, -1), (0,), shift=2)
    (-1, 0, -1, -1)
    """
    return tuple(a - shift if a != UNIT and a - shift in axes else UNIT for a in frame)


def strip_leading_units(frame: Frame) -> Frame:
    """Broadcasting supplies leading units by itself.

    >>> strip_leading_units((-1, 0, -1))
    (0, -1)
    """
    first = next((i for i, a in enumerate(frame) if a != UNIT), len(frame))
    return frame[first:]


def frame_steps(have: Frame, want: Frame) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions to squeeze away, then positions to unsqueeze in turn, that make `want` of `have`; the orders
    must be equal.

    >>> frame_steps((0, 2, 1, -1), (0, 2, 1))
    ((3,), ())
    >>> frame_steps((-1, 1, 2), (1, 2, -1))
    ((0,), (2,))
    """
    gaps_have, gaps_want = _gaps(have), _gaps(want)
    squeeze: list[int] = []
    unsqueeze: list[int] = []
    at_have = at_want = 0
    for n_have, n_want in zip(gaps_have, gaps_want, strict=True):
        squeeze.extend(range(at_have, at_have + max(0, n_have - n_want)))
        unsqueeze.extend(range(at_want + min(n_have, n_want), at_want + n_want))
        at_have += n_have + 1
        at_want += n_want + 1
    return tuple(squeeze), tuple(unsqueeze)


def channels_last(frame: Frame) -> Frame:
    """The order in which an image (N, C, *spatial) in channels-last memory lies.

    >>> channels_last((0, 1, 2, UNIT))
    (0, 2, -1, 1)
    """
    return tuple(frame[a] for a in channels_last_axes(len(frame)))


def channels_last_axes(rank: int) -> tuple[int, ...]:
    """The permutation from (N, C, *spatial) to (N, *spatial, C).

    >>> channels_last_axes(4)
    (0, 2, 3, 1)
    """
    return (0, *range(2, rank), 1) if rank > 1 else tuple(range(rank))


def image_axes(rank: int) -> tuple[int, ...]:
    """The inverse permutation.

    >>> image_axes(4)
    (0, 3, 1, 2)
    """
    return (0, rank - 1, *range(1, rank - 1)) if rank > 1 else tuple(range(rank))


def _gaps(frame: Frame) -> list[int]:
    """How many units stand before each axis, and after the last."""
    gaps = [0]
    for axis in frame:
        if axis == UNIT:
            gaps[-1] += 1
        else:
            gaps.append(0)
    return gaps


Groups = list[tuple[Order, Order]]


def reshape_groups(
    before: Sequence[object],
    after: Sequence[object],
    same: Callable[[list[object], list[object]], bool],
    smaller: Callable[[list[object], list[object]], bool],
) -> Groups:
    """How a reshape splits and merges axes: pairs (axes before, axes after) with equal products, in order,
    units left out.

    `same(a, b)` says whether two lists of sizes have equal products, `smaller(a, b)` whether the first's is
    the smaller.

    >>> from math import prod
    >>> reshape_groups((2, 6, 5), (2, 2, 3, 5), lambda a, b: prod(a) == prod(b), lambda a, b: prod(a) < prod(b))
    [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]
    """
    left, right = list(significant(before)), list(significant(after))
    groups: Groups = []
    i = j = 0
    while i < len(left) and j < len(right):
        ins, outs = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while not same([before[a] for a in ins], [after[a] for a in outs]):
            if smaller([before[a] for a in ins], [after[a] for a in outs]):
                if i == len(left):
                    break
                ins.append(left[i])
                i += 1
            else:
                if j == len(right):
                    break
                outs.append(right[j])
                j += 1
        groups.append((tuple(ins), tuple(outs)))
    if i < len(left) or j < len(right):  # sizes that could not be told apart: one group for all the rest
        tail_in, tail_out = groups.pop() if groups else ((), ())
        groups.append((tail_in + tuple(left[i:]), tail_out + tuple(right[j:])))
    return groups


def through_groups(order: Order, groups: Groups) -> Order | None:
    """The order after a reshape of a value stored in `order`; None where a group's axes are not adjacent and
    in turn.

    >>> through_groups((0, 2, 1), [((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))])
    (0, 2, 3, 1)
    """
    out: list[int] = []
    owner = {axis: group for group in groups for axis in group[0]}
    seen = 0
    while seen < len(order):
        ins, outs = owner[order[seen]]
        if order[seen : seen + len(ins)] != ins:
            return None
        out.extend(outs)
        seen += len(ins)
    return tuple(out)
