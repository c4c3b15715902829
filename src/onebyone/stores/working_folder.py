"""The working folder of a scan that writes to disk: what it computes, its identity, and which blocks are durable.

The folder is beside the output, under the output's name with `.partial` after it. It holds `scan.json`, the identity of
the scan, `map.json`, the description of its map for those who look at it, and `done`: the largest magnitude of the
image's pixels so far (float64), then one byte per block of the map, which is set after the block's data were flushed to
disk. So a scan that was interrupted at any moment goes on where it was, and another scan is refused. One process at a
time uses the folder; others may put data into it on its behalf.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import write_text
from onebyone.errors import BadInput

_FORMAT = "onebyone.unfinished-scan/2"
_MAX_IDENTITY_BYTES = 2**24
_IDENTITY, _MARKS = "scan.json", "done"
DESCRIPTION = "map.json"
_HEADER = 8  # bytes before the marks


def allocate(handle: int, size: int) -> None:
    """Give a file its size and its space on disk; the bytes that exist are kept.

    Without the space, a value that is set through memory on a full disk would end the process. Raises OSError where
    the disk is full.
    """
    os.ftruncate(handle, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot do it
                raise


class WorkingFolder:
    """The durable state of one scan.

    `key` is what the scan is: plain data for JSON. `grid` is the number of blocks per axis.

    Raises
    ------
    BadInput
        where the folder belongs to a scan with another key, naming the difference; where another process uses it;
        where it was not made by a scan; or where it cannot be made or read.

    Example
    -------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "scores.zarr"
    >>> folder = WorkingFolder(target, {"input": "a"}, (2, 3))
    >>> folder.mark((1, 2)); folder.is_done((1, 2)), folder.is_done((0, 0)), folder.remaining
    (True, False, 5)
    >>> folder.close()
    >>> WorkingFolder(target, {"input": "b"}, (2, 3))
    Traceback (most recent call last):
        ...
    onebyone.errors.BadInput: ...holds the unfinished results of another scan (input was a and is b)...
    """

    def __init__(self, target: Path, key: Mapping[str, Any], grid: Sequence[int]) -> None:
        self.path = working_path(target)
        self._removed = self.path.with_name(f".{self.path.name}-removed")
        shutil.rmtree(self._removed, ignore_errors=True)
        try:
            self.path.mkdir(exist_ok=True)
            self._lock()
            self._require_same_scan({"format": _FORMAT, **key, "grid": list(grid)})
            handle = os.open(self.path / _MARKS, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                allocate(handle, _HEADER + math.prod(grid))
            finally:
                os.close(handle)
            self._peak = np.memmap(self.path / _MARKS, np.float64, "r+", shape=(1,))
            self._done = np.memmap(self.path / _MARKS, np.uint8, "r+", offset=_HEADER, shape=tuple(grid))
        except OSError as error:
            raise BadInput(f"cannot write {self.path}: {error.strerror or error}") from error

    def mark(self, block: tuple[int, ...]) -> None:
        """State that a block is durable; to be called after its data were flushed to disk."""
        self._done[block] = 1

    def clear(self) -> None:
        """Take back all marks."""
        self._done[...] = 0

    def is_done(self, block: tuple[int, ...]) -> bool:
        """Whether a block is durable."""
        return bool(self._done[block])

    @property
    def remaining(self) -> int:
        """The number of blocks that are not durable."""
        return int(self._done.size - np.count_nonzero(self._done))

    @property
    def peak(self) -> float:
        """The largest magnitude of the image's pixels that was noted, in this process or an earlier one."""
        return float(self._peak[0])

    def note_peak(self, magnitude: float) -> None:
        """Note the largest magnitude of some pixels, durably; to be called before their blocks are marked."""
        if magnitude > self.peak:
            self._peak[0] = magnitude
            self._peak.flush()

    def flush(self) -> None:
        """Write the marks to disk."""
        self._done.flush()

    def close(self) -> None:
        """Write the marks to disk and let other processes use the folder."""
        self.flush()
        self._unlock()

    def remove(self) -> None:
        """Delete the folder, after the output has its own place."""
        with suppress(OSError):
            os.replace(self.path, self._removed)  # at once, so that no part of it is taken for a whole
            shutil.rmtree(self._removed, ignore_errors=True)
        self._unlock()

    def _lock(self) -> None:
        """Keep other processes from using the folder; the lock ends with this object or its process."""
        handle = os.open(self.path, os.O_RDONLY)
        self._unlock = weakref.finalize(self, os.close, handle)
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{self.path} is in use: another process runs this scan") from error
        except OSError:  # a network file system without locks
            return

    def _require_same_scan(self, stated: Mapping[str, Any]) -> None:
        file = self.path / _IDENTITY
        if not file.exists():
            others = [name for name in os.listdir(self.path) if name != _IDENTITY]
            if any(not name.startswith(f".{Path(_IDENTITY).stem}-") for name in others):
                raise BadInput(
                    f"{self.path} exists and was not made by a scan; expected a free name for unfinished results"
                )
            write_text(file, json.dumps(stated, indent=1, sort_keys=True))
            return
        try:
            before = _read_identity(file)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{file} does not describe an unfinished scan: {error}") from error
        if different := differences(before, stated):
            raise BadInput(
                f"{self.path} holds the unfinished results of another scan ({different}); run that scan to its end, "
                "or remove the folder to start anew"
            )


def working_path(target: Path) -> Path:
    """The working folder of an output."""
    return target.with_name(f"{target.name}.partial")


def read_marks(folder: Path, grid: Sequence[int]) -> NDArray[np.bool_]:
    """Which blocks of the grid are durable, read from a working folder that another process may use.

    None are where the folder does not say so, such as after it was removed.
    """
    file = folder / _MARKS
    try:
        if not file.is_symlink() and file.stat().st_size == _HEADER + math.prod(grid):
            marks = np.fromfile(file, np.bool_, offset=_HEADER, count=math.prod(grid))
            return marks.reshape(tuple(grid))
    except (OSError, ValueError):
        pass
    return np.zeros(tuple(grid), np.bool_)


def read_sizes(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape (channels, *positions) of the map and the positions of a block, as the folder's identity states them.

    Raises ValueError, KeyError, TypeError or OSError where it does not.
    """
    stated = _read_identity(folder / _IDENTITY)
    shape, chunk = stated["shape"], stated["chunk"]
    return tuple(int(n) for n in shape), tuple(int(n) for n in chunk)


def _read_identity(file: Path) -> dict[str, Any]:
    """The identity of a scan. Raises ValueError or RecursionError where the file does not state one."""
    if file.is_symlink() or file.stat().st_size > _MAX_IDENTITY_BYTES:
        raise ValueError("it was not written by a scan")
    stated = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(stated, dict) or stated.get("format") != _FORMAT:
        raise ValueError("its format is another")
    return stated


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not flush folders
            os.fsync(handle)
    finally:
        os.close(handle)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The entries in which two descriptions differ, for the message that refuses to go on; empty where none does.

    None in a list stands for a part of the image that could not be read, and equals anything.

    >>> differences({"tile": [8, 8], "weights": "a" * 64}, {"tile": [8, 9], "weights": "b" * 64})
    'tile was [8, 8] and is [8, 9]; weights differ'
    """
    plain = json.loads(json.dumps(now))
    said = []
    for key in sorted({*before, *plain}):
        old, new = before.get(key), plain.get(key)
        if not _agree(old, new):
            short = max(len(str(old)), len(str(new))) < 60
            said.append(f"{key} was {old} and is {new}" if short else f"{key} differ")
    return "; ".join(said)


def _agree(old: Any, new: Any) -> bool:
    """Whether two values are equal; None in a list equals anything."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_agree(old[k], new[k]) for k in old)
    if isinstance(old, list) and isinstance(new, list):
        pairs = zip(old, new, strict=False)
        return len(old) == len(new) and all(a is None or b is None or _agree(a, b) for a, b in pairs)
    return bool(old == new)
