"""Score maps as one array: `.npy` with its description beside it in `.npy.json`, or `.npz`, and what other single
files are made from.

Each finished block is first a file of its own, so that processes on several machines can write blocks at the same time;
the output is put together from these files at the end.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path, kind_of_file, require_file, write_text
from onebyone.errors import BadInput
from onebyone.stores.file_sink import Mapper
from onebyone.stores.map_description import MapDescription
from onebyone.stores.regions import Span
from onebyone.stores.working_folder import allocate, flush_to_disk

ARCHIVE_FORMAT = "onebyone.ScoreMap/1"
_MAX_DESCRIPTION = 2**24


class NpyWriter:
    """Collects blocks as files and publishes the map as one `.npy` file; a `MapWriter`.

    `shape` is (channels, *positions) and `block` the positions of a block.
    """

    def __init__(self, shape: tuple[int, ...], block: tuple[int, ...]) -> None:
        self._shape, self._block = shape, block
        self._blocks = Path()

    def require_own(self, target: Path) -> None:
        """Raise BadInput where there is no description beside the array."""
        read_description(target)

    def begun(self, folder: Path) -> bool:
        """Whether the working folder has a place for blocks."""
        return (folder / "blocks").is_dir()

    def start(self, folder: Path) -> None:
        """Make a place for the files of blocks."""
        self._blocks = folder / "blocks"
        self._blocks.mkdir(exist_ok=True)

    def put(self, region: tuple[Span, ...], values: NDArray[np.float32]) -> None:
        """Write one block to a file of its own and flush it to disk."""
        file = self.file(self._blocks, region)
        file.parent.mkdir(exist_ok=True)
        encoded = io.BytesIO()  # NumPy's own errors of a file do not say that the disk is full
        np.save(encoded, np.ascontiguousarray(values), allow_pickle=False)
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            stream.write(encoded.getbuffer())

    def get(self, region: tuple[Span, ...]) -> NDArray[np.float32]:
        """The values of a block. Raises BadInput for a file that is damaged."""
        path = self.file(self._blocks, region)
        try:
            values: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(
                f"{path} cannot be read: {error}; remove {path.parents[2]} to start anew"
            ) from error
        return values

    def publish(self, target: Path, description: MapDescription, mapper: Mapper) -> None:
        """Put the blocks together in the working folder, and rename the result into place."""
        array = self._blocks.parent / "values.npy"
        values = np.lib.format.open_memmap(array, "w+", np.float32, self._shape)
        with array.open("r+b") as file:
            allocate(file.fileno(), array.stat().st_size)
        starts = (range(0, n, b) for n, b in zip(self._shape[1:], self._block, strict=True))
        for first in product(*starts):
            region = tuple(
                Span(a, min(a + b, n)) for a, b, n in zip(first, self._block, self._shape[1:], strict=True)
            )
            values[(slice(None), *(span.slice for span in region))] = self.get(region)
        values.flush()
        self._publish_array(array, values, target, description)

    def close(self) -> None:
        """Nothing is held open."""

    @staticmethod
    def file(blocks: Path, region: tuple[Span, ...]) -> Path:
        """The file of a block in the folder of all; blocks with the same first row share a folder."""
        starts = [str(span.start) for span in region]
        return blocks / starts[0] / ("_".join(starts) + ".npy")

    def _publish_array(
        self, array: Path, values: NDArray[np.float32], target: Path, description: MapDescription
    ) -> None:
        """Write the output from the whole map, an array on disk, and rename it into place."""
        write_text(description_path(target), description.to_text())
        os.replace(array, target)


class NpzWriter(NpyWriter):
    """Publishes the map as a `.npz` archive; a `MapWriter`."""

    def require_own(self, target: Path) -> None:
        """Raise BadInput where the file is not an archive with scores and their description."""
        try:
            with zipfile.ZipFile(require_file(target)) as archive:
                names = set(archive.namelist())
        except (zipfile.BadZipFile, OSError) as error:
            raise BadInput("is not a score map of onebyone (.npz)") from error
        if not {"scores.npy", "meta.npy"} <= names:
            raise BadInput("is not a score map of onebyone (.npz)")

    def _publish_array(
        self, array: Path, values: NDArray[np.float32], target: Path, description: MapDescription
    ) -> None:
        new = array.with_name("map.npz")  # in the working folder: no crash leaves a part beside the output
        with new.open("wb") as file:
            write_archive(file, values, description.scan)
        flush_to_disk(new)
        os.replace(new, target)


def write_archive(file: IO[bytes], scores: NDArray[np.float32], facts: Mapping[str, Any]) -> None:
    """Write a `.npz` archive of scores (channels, *positions) and plain data about them."""
    meta = {"format": ARCHIVE_FORMAT, **facts}
    np.savez(file, scores=np.asarray(scores), meta=np.array(json.dumps(meta)))


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
