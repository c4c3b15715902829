"""A folder written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onebyone.errors import BadInput


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder beside `path`; on success its files go to `path`, on any failure it is removed.

    Files that are already in `path` under other names stay; those of the same names are replaced, each by a
    rename, so no reader ever finds half a file.

    Raises
    ------
    BadInput
        if `path` is a file, or its folder is missing or may not be written.
    """
    target, temporary = _beside(path)
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
    """Raise BadInput now if `atomic_folder(path)` would later: for checks before long work. Leaves nothing."""
    _, temporary = _beside(path)
    temporary.rmdir()


def _beside(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The folder asked for, and a new empty one beside it."""
    target = Path(os.path.abspath(path))
    if target.exists() and not target.is_dir():
        raise BadInput(f"cannot write to {path}: it is not a folder")
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(6)}")
    try:
        if target.exists() and not os.access(target, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        temporary.mkdir()
    except OSError as error:
        raise BadInput(f"cannot write to {path}: {error.strerror}") from error
    return target, temporary
