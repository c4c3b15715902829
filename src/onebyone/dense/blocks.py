"""Blocks of a map: collected from tiles, stored durably one by one, and grouped into what is done or done again as one.

A scan that must survive a crash keeps every finished block in a file of its own, in a folder beside the output. The
file is written under a temporary name, flushed to disk and renamed, so a block that has a file is complete. One worker
writes each block, on any machine that sees the folder. At the end the blocks are written to the output in order, so
the output does not depend on the order in which they were computed, nor on interruptions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path
from onebyone.dense.plan import ScanPlan, Tile
from onebyone.errors import BadInput

if TYPE_CHECKING:
    from typing import Any

Block = tuple[int, ...]
_Floats = NDArray[np.float32]


@dataclass
class BlockWriter:
    """Collects the scores of tiles, and stores every block of a plan when its last tile has arrived.

    Blocks in `skipped` are neither collected nor stored: they were stored before, or a tile of theirs could not be
    read.
    """

    plan: ScanPlan
    store: Callable[[Block, _Floats], None]
    skipped: Collection[Block] = ()
    _partial: dict[Block, tuple[_Floats, int]] = field(default_factory=dict, init=False)

    def write(self, tile: Tile, scores: _Floats) -> None:
        """Take the scores (channels, h, w) of the positions that `tile` owns."""
        if tile.block in self.skipped:
            self._partial.pop(tile.block, None)
            return
        region = self.plan.block_region(tile.block)
        shape = tuple(len(span) for span in region)
        if shape == scores.shape[1:]:
            self.store(tile.block, scores)
            return
        values, missing = self._partial.get(tile.block) or (
            np.empty((len(scores), *shape), np.float32),
            int(np.prod(shape)),
        )
        inside = (
            slice(w.start - r.start, w.stop - r.start, w.step)
            for w, r in zip(tile.write, region, strict=True)
        )
        values[:, *inside] = scores
        missing -= scores[0].size
        self._partial[tile.block] = values, missing
        if missing == 0:
            del self._partial[tile.block]
            self.store(tile.block, values)


@dataclass(frozen=True)
class BlockFolder:
    """The finished blocks of one scan: a file each in `path`, with its scores and the peak of its pixels.

    >>> import tempfile
    >>> folder = BlockFolder(Path(tempfile.mkdtemp()))
    >>> folder.write((0, 2), np.ones((1, 1, 2), np.float32), peak=0.5)
    >>> folder.finished(), folder.read((0, 2))[0].tolist(), folder.read((0, 2))[1]
    ({(0, 2)}, [[[1.0, 1.0]]], 0.5)
    """

    path: Path

    def file(self, block: Block) -> Path:
        """The file of a block; blocks with the same first number share a folder."""
        return self.path / str(block[0]) / ("_".join(map(str, block)) + ".npy")

    def write(self, block: Block, scores: _Floats, peak: float) -> None:
        """Store a block durably. Raises BadInput where it cannot be written; nothing of it is kept then."""
        target = self.file(block)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"cannot write {target.parent}: {error.strerror}") from error
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(scores), allow_pickle=False)
            np.save(file, np.float64(peak), allow_pickle=False)

    def read(self, block: Block) -> tuple[_Floats, float]:
        """The scores (channels, h, w) of a block and the peak of its pixels. Raises BadInput for a damaged file."""
        path = self.file(block)
        try:
            with path.open("rb") as file:
                scores: Any = np.load(file, allow_pickle=False)
                return scores, float(np.load(file, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(
                f"{path} cannot be read: {error}; remove it, and its block is computed again"
            ) from error

    def finished(self) -> set[Block]:
        """The blocks that have a file. Files that a killed process left unfinished are removed."""
        blocks = set()
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            for name in os.listdir(folder) if folder.is_dir() else ():
                if name.startswith("."):
                    (folder / name).unlink(missing_ok=True)
                else:
                    blocks.add(tuple(int(n) for n in name.removesuffix(".npy").split("_")))
        return blocks


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
