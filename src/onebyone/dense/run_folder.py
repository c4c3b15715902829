"""The folder of an unfinished scan: what the scan is, and its finished blocks. It lies beside the output."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onebyone.atomic_files import write_text
from onebyone.dense.blocks import BlockFolder
from onebyone.dense.fingerprint import differences
from onebyone.errors import BadInput

_FORMAT = "onebyone.unfinished-scan/1"


@contextmanager
def run_folder(out: str | os.PathLike[str], description: Mapping[str, Any]) -> Iterator[BlockFolder]:
    """The finished blocks of the scan that writes `out`, in the folder OUT.partial, which one process uses at a time.

    `description` is what the scan is: weights, configuration, input and grid. The folder is removed when the block
    ends without an error, and is kept otherwise, so that the same scan can go on.

    Raises
    ------
    BadInput
        where the folder belongs to a scan with another description, naming the difference; where another process
        uses it; where it was not made by a scan; or where it cannot be written.
    """
    folder = Path(f"{os.fspath(out)}.partial")
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"cannot write {folder}: {error.strerror}") from error
    try:
        _lock(lock, folder)
        _require_same_scan(folder, {"format": _FORMAT, **description})
        yield BlockFolder(folder / "blocks")
        # the description goes last, so that a folder whose removal was interrupted is still known as this scan's
        shutil.rmtree(folder / "blocks", ignore_errors=True)
        (folder / "scan.json").unlink()
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def _lock(handle: int, folder: Path) -> None:
    """Keep other processes from using the folder; the lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadInput(f"{folder} is in use: another process runs this scan") from error
    except OSError:  # a network file system without locks
        return


def _require_same_scan(folder: Path, description: Mapping[str, Any]) -> None:
    file = folder / "scan.json"
    if not file.exists():
        if any(name != "scan.json" and not name.startswith(".scan-") for name in os.listdir(folder)):
            raise BadInput(
                f"{folder} exists and was not made by a scan; expected a free name for unfinished results"
            )
        write_text(file, json.dumps(description, indent=1))
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(before, dict) or before.get("format") != _FORMAT:
            raise ValueError("its format is another")
    except (ValueError, OSError) as error:
        raise BadInput(f"{file} does not describe an unfinished scan: {error}") from error
    if different := differences(before, description):
        raise BadInput(
            f"{folder} holds the unfinished results of another scan ({different}); run that scan to its end, or "
            "remove the folder to start anew"
        )
