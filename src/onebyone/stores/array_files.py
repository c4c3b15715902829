"""Score maps as `.npy`: one array (channels, *positions) float32, and its description beside it in `.npy.json`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import kind_of_file, require_file, write_text
from onebyone.errors import BadInput
from onebyone.stores.map_description import MapDescription
from onebyone.stores.regions import Span
from onebyone.stores.working_folder import flush_to_disk

_MAX_DESCRIPTION = 2**24


class NpyWriter:
    """Writes blocks into a memory-mapped `.npy` file; a `MapWriter`."""

    def __init__(self, shape: tuple[int, ...], description: MapDescription) -> None:
        self._shape, self._description = shape, description
        self.values: NDArray[np.float32] | None = None
        self._file = Path()

    def stored(self, target: Path) -> MapDescription:
        """The description beside a finished array. Raises BadInput where there is none."""
        return read_description(target)

    def start(self, folder: Path) -> None:
        """Make the array in the working folder, or open it."""
        self._file = folder / "values.npy"
        if not self._file.exists():
            # made under another name, so that a crash leaves no array with a half-written header
            new = folder / f".values-{os.getpid()}.npy"
            np.lib.format.open_memmap(new, "w+", np.float32, self._shape).flush()
            os.replace(new, self._file)
        self.values = np.load(self._file, mmap_mode="r+", allow_pickle=False)

    def put(self, region: tuple[Span, ...], values: NDArray[np.float32]) -> None:
        """Write the values of one block and flush them to disk."""
        assert self.values is not None
        self.values[(slice(None), *(span.slice for span in region))] = values
        flush_to_disk(self._file)

    def publish(self, target: Path) -> None:
        """Rename the array, and write its description, to their places."""
        self.close()
        write_text(description_path(target), self._description.to_text())
        os.replace(self._file, target)

    def close(self) -> None:
        """Flush and release the array."""
        if isinstance(self.values, np.memmap):
            self.values.flush()
        self.values = None


def description_path(target: Path) -> Path:
    """The file beside an array that describes it."""
    return target.with_name(target.name + ".json")


def read_description(target: Path) -> MapDescription:
    """The description beside a `.npy` file. Raises BadInput where there is none."""
    file = description_path(target)
    if not target.is_file() or "(.npy)" not in kind_of_file(target) or not file.is_file():
        raise BadInput("is not a score map of onebyone (an array with a .npy.json beside it)")
    if require_file(file).stat().st_size > _MAX_DESCRIPTION:
        raise BadInput("is not a score map of onebyone: its description is too large")
    return MapDescription.from_text(file.read_text(encoding="utf-8", errors="replace"))
