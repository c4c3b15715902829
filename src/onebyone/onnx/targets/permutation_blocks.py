"""A permutation of many axes as exchanges of two neighbouring parts, each a transpose of at most four axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise


def blocks_of(current: Sequence[int], order: Sequence[int]) -> list[list[int]]:
    """Runs of axes that stay together in a transpose, in the order in which they are stored.

    >>> blocks_of([0, 1, 2, 3], [2, 3, 0, 1])
    [[0, 1], [2, 3]]
    """
    after = dict(pairwise(order))
    blocks: list[list[int]] = []
    for axis in current:
        if blocks and after.get(blocks[-1][-1]) == axis:
            blocks[-1].append(axis)
        else:
            blocks.append([axis])
    return blocks


def best_exchange(blocks: Sequence[Sequence[int]], order: Sequence[int]) -> list[list[int]]:
    """The axes in four parts, of which exchanging the second and third leaves the fewest blocks.

    One exchange of neighbouring parts always joins two blocks at least, so each leaves fewer.

    >>> best_exchange([[0], [1], [2], [3], [4]], [4, 3, 2, 1, 0])
    [[], [0], [1], [2, 3, 4]]
    """
    best: tuple[int, list[list[int]]] | None = None
    for i, j, k in combinations(range(len(blocks) + 1), 3):
        parts = [[axis for block in part for axis in block]
                 for part in (blocks[:i], blocks[i:j], blocks[j:k], blocks[k:])]  # fmt: skip
        left = len(blocks_of([*parts[0], *parts[2], *parts[1], *parts[3]], order))
        if best is None or left < best[0]:
            best = left, parts
    assert best is not None
    return best[1]
