"""Which neighbouring axes of a tensor are merged so that few are left, on plain integers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from math import prod
from typing import TypeAlias

from onebyone.onnx.constant_values import NotRewritable

Sizes: TypeAlias = "tuple[int, ...]"


def merged_groups(
    result: Sizes, operands: Sequence[Sizes], boundaries: frozenset[int], most: int
) -> list[list[int]]:
    """Neighbouring axes along which the same operands broadcast, except where an axis begins at a boundary.

    A boundary is the product of the sizes of all axes before it. Axes of size one are merged with their neighbours.
    Where more than `most` groups are left, boundaries are given up, so that the merged axis is as small as possible.

    >>> merged_groups((64, 1, 3, 32, 49), [(64, 1, 3, 32, 49), (1, 1, 1, 1, 1)], frozenset([64]), 4)
    [[0, 1], [2, 3, 4]]
    >>> merged_groups((64, 3, 49, 32), [(64, 3, 49, 32), (1, 1, 1, 1)], frozenset([64, 192, 9408]), 3)
    [[0], [1, 2], [3]]
    >>> merged_groups((1, 6, 5), [(1, 6, 5), (1, 1, 5)], frozenset(), 4)
    [[0, 1], [2]]
    """
    groups = _groups_between(result, operands, boundaries)
    while len(groups) > most:
        coarser = [
            _groups_between(result, operands, boundaries - {boundary}) for boundary in sorted(boundaries)
        ]
        coarser = [other for other in coarser if len(other) < len(groups)]
        if not coarser:
            return groups
        groups = min(coarser, key=lambda other: max(prod(result[axis] for axis in group) for group in other))
        boundaries = frozenset(prod(result[: group[0]]) for group in groups)
    return groups


def _groups_between(result: Sizes, operands: Sequence[Sizes], boundaries: frozenset[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    last: list[bool] | None = None
    for axis, size in enumerate(result):
        pattern = None if size == 1 else [sizes[axis] == size for sizes in operands]
        is_joined = last is None or pattern is None
        if groups and (is_joined or (pattern == last and prod(result[:axis]) not in boundaries)):
            groups[-1].append(axis)
        else:
            groups.append([axis])
        last = last if pattern is None else pattern
    return groups


def merge_around(sizes: Sequence[int], axis: int, most: int) -> tuple[Sizes, int]:
    """Sizes with at most `most` axes, one of which is `axis`, and its new place: those of size one left out first.

    Then the two neighbours of the smallest product are merged, so that no axis becomes larger than needed.

    >>> merge_around((3, 1, 6, 197, 64), 0, 4)
    ((3, 6, 197, 64), 0)
    >>> merge_around((2, 5, 7, 3, 4), -1, 4)
    ((10, 7, 3, 4), 3)
    """
    axis %= len(sizes)
    before = [size for size in sizes[:axis] if size != 1]
    after = [size for size in sizes[axis + 1 :] if size != 1]
    while len(before) + 1 + len(after) > most:
        pairs = [(side[i] * side[i + 1], side, i) for side in (before, after) for i in range(len(side) - 1)]
        if not pairs:
            raise NotRewritable(f"an axis between others needs three axes, and the target takes {most}")
        product, side, i = min(pairs, key=lambda pair: pair[0])
        side[i : i + 2] = [product]
    return (*before, sizes[axis], *after), len(before)


def regrouped(operand: Sizes, result: Sizes, new: Sizes) -> Sizes | None:
    """The sizes of an operand that broadcasts to `result`, where the result has the sizes `new` in row-major order.

    None where an axis of `new` would hold elements along which the operand broadcasts, and others.

    >>> regrouped((3, 49, 49), (64, 3, 49, 49), (64, 7203)), regrouped((1, 3, 1, 49), (64, 3, 49, 49), (64, 3, 49, 49))
    ((1, 7203), (1, 3, 1, 49))
    >>> regrouped((288,), (64, 49, 288), (64, 49, 3, 96)), regrouped((3, 49, 49), (64, 3, 49, 49), (192, 49, 49))
    ((1, 1, 3, 96), None)
    """
    if prod(result) != prod(new):
        return None
    operand = (1,) * (len(result) - len(operand)) + operand
    old_ends, new_ends = ([prod(sizes[: i + 1]) for i in range(len(sizes))] for sizes in (result, new))
    sizes, seen = [1] * len(new), [set[bool]() for _ in new]
    start = 1
    for end in sorted({*old_ends, *new_ends} - {1}):
        if end % start:
            return None
        old_axis = next(axis for axis, other in enumerate(old_ends) if other >= end)
        new_axis = next(axis for axis, other in enumerate(new_ends) if other >= end)
        is_full = operand[old_axis] == result[old_axis]
        seen[new_axis].add(is_full)
        sizes[new_axis] *= end // start if is_full else 1
        start = end
    return None if any(len(kinds) > 1 for kinds in seen) else tuple(sizes)


def coarser(sizes: Sizes, most: int) -> list[Sizes]:
    """The ways to merge neighbouring axes so that `most` are left; those with the smallest axes first.

    >>> coarser((64, 3, 49, 7), 3)
    [(64, 147, 7), (192, 49, 7), (64, 3, 343)]
    >>> coarser((64, 3), 3)
    [(64, 3)]
    """
    count = len(sizes)
    if count <= most:
        return [sizes]
    found = []
    for cuts in combinations(range(1, count), most - 1):
        ends = pairwise((0, *cuts, count))
        found.append(tuple(prod(sizes[first:last]) for first, last in ends))
    return sorted(found, key=max)


def without_ones(sizes: Sizes) -> Sizes:
    """The sizes larger than one: tensors that agree in these differ by Squeeze and Unsqueeze only.

    >>> without_ones((1, 64, 1, 49))
    (64, 49)
    """
    return tuple(size for size in sizes if size != 1)
