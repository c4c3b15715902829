"""The pyramid of square tiles that a viewer shows of an image, as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onebyone.errors import BadInput
from onebyone.stores.regions import Span

TILE = 256
"""Pixels per side of a tile."""


@dataclass(frozen=True)
class TileGrid:
    """Levels 0 (the whole image in one pixel or a few) to `max_level` (full resolution), each half of the next.

    At level k an image pixel is 2^(k − max_level) tile pixels wide, as in the Deep Zoom format.

    >>> grid = TileGrid((600, 1000))
    >>> grid.max_level, grid.step(grid.max_level), grid.shape(9), grid.region(9, 1, 0)
    (10, 1, (300, 500), (Span(start=0, stop=512, step=1), Span(start=512, stop=1000, step=1)))
    """

    size: tuple[int, int]

    @property
    def max_level(self) -> int:
        """The level of full resolution."""
        return (max(self.size) - 1).bit_length()

    @property
    def min_level(self) -> int:
        """The finest level that is a single tile; a viewer needs none below it.

        >>> TileGrid((600, 1000)).min_level, TileGrid((20, 30)).min_level
        (8, 5)
        """
        return min(self.max_level, TILE.bit_length() - 1)

    def step(self, level: int) -> int:
        """Image pixels per tile pixel at a level."""
        if not 0 <= level <= self.max_level:
            raise BadInput(f"level={level}: expected 0 to {self.max_level}")
        return 1 << (self.max_level - level)

    def shape(self, level: int) -> tuple[int, int]:
        """Rows and columns of tile pixels of the whole image at a level."""
        step = self.step(level)
        height, width = (-(-n // step) for n in self.size)
        return height, width

    def region(self, level: int, column: int, row: int) -> tuple[Span, Span]:
        """The image pixels, rows first, of a tile. Raises BadInput for a tile outside the image."""
        side = TILE * self.step(level)
        for name, index, size in (("row", row, self.size[0]), ("column", column, self.size[1])):
            if not 0 <= index * side < size:
                raise BadInput(f"{name}={index}: the image has fewer tiles at level {level}")
        rows, columns = (
            Span(index * side, min((index + 1) * side, size))
            for index, size in zip((row, column), self.size, strict=True)
        )
        return rows, columns

    def pixels(self, level: int, region: Sequence[Span]) -> tuple[int, int]:
        """Tile pixels (rows, columns) of a region at a level."""
        rows, columns = (-(-(span.stop - span.start) // self.step(level)) for span in region)
        return rows, columns
