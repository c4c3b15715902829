"""Writes a folder atomically."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onebyone.errors import BadInput


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Create an empty temporary folder; on success its files are moved to `path`, on failure it is removed.

    It is inside `path` if that exists, which may be a mounted folder, and next to it otherwise, because files can be
    renamed within one file system only. Other files in `path` are kept; files of the same names are replaced, each by
    a rename, so that readers never see an incomplete file.

    Raises
    ------
    BadInput
        if `path` is a file, or its parent folder does not exist or is not writable.
    """
    target, temporary = _with_temporary(path)
    try:
        yield temporary
        if not target.exists():
            temporary.rename(target)
            return
        for file in sorted(temporary.iterdir()):
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_folder(path: str | os.PathLike[str]) -> None:
    """Raise BadInput if `atomic_folder(path)` would raise it; call it before long work. It leaves no files."""
    _, temporary = _with_temporary(path)
    temporary.rmdir()


def _with_temporary(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The requested folder, and a new empty one on the same file system."""
    target = Path(os.path.abspath(path))
    if target.exists() and not target.is_dir():
        raise BadInput(f"cannot write to {path}: it is not a folder")
    temporary = (target if target.exists() else target.parent) / f".{target.name}-{secrets.token_hex(6)}"
    try:
        temporary.mkdir()
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror}") from error
    return target, temporary
