"""Blocks of a map, grouped into what is computed, or computed again, as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onebyone.dense.plan import Tile

Block = tuple[int, ...]


def block_groups(tiles: Iterable[Tile], size: int) -> Iterator[list[Tile]]:
    """Consecutive whole blocks with at least `size` tiles together: what is done, or done again, as one.

    The batches of a group are the same whichever other groups were done before, so that a scan that was interrupted
    gives the same numbers bit for bit.
    """
    group: list[Tile] = []
    for tile in tiles:
        if len(group) >= size and tile.block != group[-1].block:
            yield group
            group = []
        group.append(tile)
    if group:
        yield group
