"""Writing files whole or not at all, and errors that name the file.

A file is written under a temporary name in its own folder, brought to the disk, and then renamed over the
target: a reader sees the old file or the new one, never half of either, and an interrupted write leaves
nothing behind.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onebyone.errors import BadInput

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in `path`'s folder; on success it replaces `path`, on any failure it is removed.

    The temporary name ends as `path` does, so writers that choose the format by suffix choose rightly.
    An existing file keeps its permissions; a symbolic link is followed, so that its target is replaced.

    Raises
    ------
    BadInput
        if `path` is a folder or a device, its folder is missing, it may not be written, or the disk is full.

    Example
    -------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> (folder / "a.txt").read_text(), [p.name for p in folder.iterdir()]
    ('whole', ['a.txt'])
    """
    asked, target = Path(path), Path(os.path.realpath(path))
    temporary = _create_beside(target, asked)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and _about(temporary, error):
            raise _unwritable(asked, error) from error
        raise
    _folder_to_disk(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all. Raises BadInput where it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises BadInput where it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise BadInput now if `path` could not be written later; leaves nothing. For before long work."""
    _create_beside(Path(os.path.realpath(path)), Path(path)).unlink()


def require_file(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path if it is a file that can be opened, else BadInput saying what is wrong with it."""
    found = Path(path)
    if found.is_dir():
        raise BadInput(f"cannot read {found}: it is a folder, and a file was expected")
    try:
        if not found.is_file() and found.exists():  # a device may never end, and a pipe is read only once
            raise BadInput(f"cannot read {found}: it is a device or a pipe, and a regular file was expected")
        with found.open("rb"):
            return found
    except OSError as error:
        raise BadInput(f"cannot read {found}: {_reason(error)}") from error


#: How files of common kinds begin, and what they are.
_BEGINNINGS = (
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"PK\x03\x04", "a zip archive, as .npz, .pt2 and .pth are"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"%PDF", "a PDF document"),
    (b"\x80", "a Python pickle"),
    (b"{", "JSON text"),
    (b"[", "JSON text"),
)


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """What a file is, by how it begins; for the message that another kind was expected.

    >>> kind_of_file(__file__)
    'of a kind that is not recognised'
    """
    with require_file(path).open("rb") as file:
        head = file.read(16)
    if not head:
        return "empty"
    return next(
        (what for begin, what in _BEGINNINGS if head.startswith(begin)), "of a kind that is not recognised"
    )


def _create_beside(target: Path, asked: Path) -> Path:
    """An empty new file in `target`'s folder, with the permissions a plain `open` gives."""
    if target.is_dir():
        raise BadInput(f"cannot write {asked}: it is a folder")
    if target.exists() and not target.is_file():
        raise BadInput(f"cannot write {asked}: it is not a regular file, and cannot be replaced by one")
    temporary = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(6)}{target.suffix}")
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _unwritable(asked, error) from error
    return temporary


def _about(temporary: Path, error: OSError) -> bool:
    """Whether the error comes from writing the file, and not from something else the caller did meanwhile."""
    return error.errno in _FULL or (
        error.filename is not None and os.fspath(error.filename) == str(temporary)
    )


def _folder_to_disk(folder: Path) -> None:
    """Make the rename itself durable, on systems that let a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(path: Path, error: OSError) -> BadInput:
    return BadInput(f"cannot write {path}: {_reason(error)}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
