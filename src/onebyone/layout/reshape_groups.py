"""How a reshape splits and merges axes, and what it does to the order in which they are stored.

A reshape keeps the elements in row-major order. Between the two shapes there are groups of neighbouring axes with
equal products of sizes: `(2, 6, 5) → (2, 2, 3, 5)` keeps the first and the last axis, and splits the middle one. A
reshape of a *stored* tensor means the same as long as the axes of each group are stored side by side and in their
original order.
"""

from __future__ import annotations

from collections.abc import Sequence

from onebyone.layout.orders import Order, significant_axes
from onebyone.layout.sizes import Size, same_product, smaller_product

Groups = tuple[tuple[Order, Order], ...]


def reshape_groups(before: Sequence[Size], after: Sequence[Size]) -> Groups:
    """The smallest groups `(axes before, axes after)` with equal products of sizes, in order.

    Only significant axes are listed. Where symbolic sizes cannot be compared, all remaining axes form one group. No
    size may be 0.

    >>> reshape_groups((2, 6, 5), (2, 2, 3, 5))
    (((0,), (0,)), ((1,), (1, 2)), ((2,), (3,)))
    """
    left, right = significant_axes(before), significant_axes(after)
    groups: list[tuple[Order, Order]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        i_end, j_end = _group_end(left, right, before, after, i, j)
        groups.append((left[i:i_end], right[j:j_end]))
        i, j = i_end, j_end
    if i < len(left) or j < len(right):
        last_left, last_right = groups.pop() if groups else ((), ())
        groups.append((last_left + left[i:], last_right + right[j:]))
    return tuple(groups)


def _group_end(
    left: Order, right: Order, before: Sequence[Size], after: Sequence[Size], i: int, j: int
) -> tuple[int, int]:
    """The ends of the group that begins at `left[i]` and `right[j]`: the shorter side grows until products agree."""
    i_end, j_end = i + 1, j + 1
    while True:
        sizes_before, sizes_after = [before[a] for a in left[i:i_end]], [after[a] for a in right[j:j_end]]
        if same_product(sizes_before, sizes_after):
            return i_end, j_end
        if smaller_product(sizes_before, sizes_after):
            if i_end == len(left):
                return i_end, j_end
            i_end += 1
        elif j_end == len(right):
            return i_end, j_end
        else:
            j_end += 1


def order_after_reshape(order: Order, groups: Groups) -> Order | None:
    """The order of the result, where the operand is stored in `order` and the stored tensor is reshaped.

    None where the axes of a group are not stored side by side in their original order: then no reshape of the stored
    tensor is the reshape of the value.

    >>> order_after_reshape((0, 2, 1), (((0,), (0,)), ((1,), (1,)), ((2,), (2, 3))))
    (0, 2, 3, 1)
    """
    group_of = {axis: group for group in groups for axis in group[0]}
    result: list[int] = []
    position = 0
    while position < len(order):
        axes_before, axes_after = group_of[order[position]]
        if order[position : position + len(axes_before)] != axes_before:
            return None
        result.extend(axes_after)
        position += len(axes_before)
    return tuple(result)
