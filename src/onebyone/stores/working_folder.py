"""The working folder of a scan that writes to disk: what it computes, its identity, and which blocks are durable.

The folder is beside the output, under the output's name with a dot before it and `.scan` after it. It holds `key.json`,
the identity of the scan, and `done`, one byte per block of the map, which is set after the block's data were flushed to
disk. So a scan that was interrupted at any moment goes on where it was, and another scan is refused.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from onebyone.atomic_files import write_text
from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal

_MAX_KEY_BYTES = 2**24


class WorkingFolder:
    """The durable state of one scan. Several processes may open the folder of one scan at the same time.

    Raises
    ------
    Refused
        where the folder was begun by another scan; the reason names what differs.
    BadInput
        where the folder cannot be made or read.

    Example
    -------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "scores.zarr"
    >>> folder = WorkingFolder(target, {"input": "a"}, (2, 3))
    >>> folder.mark((1, 2)); folder.is_done((1, 2)), folder.is_done((0, 0)), folder.remaining
    (True, False, 5)
    >>> WorkingFolder(target, {"input": "b"}, (2, 3))
    Traceback (most recent call last):
        ...
    onebyone.errors.Refused: an interrupted scan cannot go on:
      ...scores.zarr.scan (resume): input is 'b', and 'a' in the scan that was begun; repeat ...
    """

    def __init__(self, target: Path, key: Mapping[str, Any], grid: Sequence[int]) -> None:
        self.path = working_path(target)
        self._grid = tuple(grid)
        stated = json.loads(json.dumps({**key, "grid": list(grid)}))
        try:
            self.path.mkdir(exist_ok=True)
            stored = self._stored_key()
            if stored is None:
                write_text(self.path / "key.json", json.dumps(stated, sort_keys=True))
            elif stored != stated:
                raise _other_scan(self.path, stated, stored)
            handle = os.open(self.path / "done", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                os.ftruncate(handle, math.prod(grid))  # keeps the bytes that exist
            finally:
                os.close(handle)
            self._done = np.memmap(self.path / "done", np.uint8, "r+", shape=self._grid)
        except OSError as error:
            raise BadInput(f"cannot write {target}: {error.strerror or error}") from error

    def _stored_key(self) -> dict[str, Any] | None:
        file = self.path / "key.json"
        if not file.exists():
            if any(not p.name.startswith(".") for p in self.path.iterdir() if p.name != "done"):
                raise _refused(self.path, "the folder exists, and no scan made it")
            return None
        if file.is_symlink() or file.stat().st_size > _MAX_KEY_BYTES:
            raise _refused(self.path, "its key.json was not written by a scan")
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise _refused(self.path, "its key.json was not written by a scan") from error
        return stored if isinstance(stored, dict) else {}

    def mark(self, block: tuple[int, ...]) -> None:
        """State that a block is durable; to be called after its data were flushed to disk."""
        self._done[block] = 1

    def is_done(self, block: tuple[int, ...]) -> bool:
        """Whether a block is durable."""
        return bool(self._done[block])

    @property
    def remaining(self) -> int:
        """The number of blocks that are not durable."""
        return int(self._done.size - np.count_nonzero(self._done))

    def flush(self) -> None:
        """Write the marks to disk."""
        self._done.flush()

    def remove(self) -> None:
        """Delete the folder, after the output has its own place."""
        shutil.rmtree(self.path, ignore_errors=True)


def working_path(target: Path) -> Path:
    """The working folder of an output."""
    return target.with_name(f".{target.name}.scan")


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not flush folders
            os.fsync(handle)
    finally:
        os.close(handle)


def _other_scan(path: Path, stated: dict[str, Any], stored: dict[str, Any]) -> Refused:
    names = [n for n in sorted({*stated, *stored}) if stated.get(n) != stored.get(n)]
    name = names[0]
    reason = f"{name} is {stated.get(name)!r}, and {stored.get(name)!r} in the scan that was begun"
    others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return _refused(path, f"{reason}{others}; repeat that one, or delete the folder")


def _refused(path: Path, reason: str) -> Refused:
    return Refused([Refusal(str(path), "resume", reason)], "an interrupted scan cannot go on")
