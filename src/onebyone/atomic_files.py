"""Write files atomically, and check files before they are read or written.

A file is written under a temporary name in the target's folder, flushed to disk, and renamed to the target. Readers
see either the old file or the complete new one, and an interrupted write leaves no file behind.
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
def atomic_path(
    path: str | os.PathLike[str], readers_of: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Provide a temporary path in the folder of `path`; on success it replaces `path`, on failure it is removed.

    The temporary name has the suffix of `path`, because some writers choose the format by it. An existing file keeps
    its permissions. If `path` is a symbolic link, its target is replaced. Who may not read the file `readers_of`, from
    which the new one is made, may not read the new one either.

    Raises
    ------
    BadInput
        if `path` is a folder or a device, its folder does not exist, it is not writable, or the disk is full.

    Example
    -------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("complete")
    >>> (folder / "a.txt").read_text(), [p.name for p in folder.iterdir()]
    ('complete', ['a.txt'])
    """
    requested, target = Path(path), Path(os.path.realpath(path))
    temporary = _create_temporary(target, requested)
    permissions = temporary.stat().st_mode & 0o7777  # some writers replace the file by one of their own
    try:
        allowed = 0o7777 if readers_of is None else _permissions_like(Path(readers_of), temporary)
        temporary.chmod(permissions & allowed)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod((target.stat().st_mode & 0o7777 if target.exists() else permissions) & allowed)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and _about(temporary, error):
            raise _unwritable(requested, error) from error
        raise
    _flush_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8. Raises BadInput if it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically. Raises BadInput if it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def require_writable(path: str | os.PathLike[str], source: str | None = None) -> None:
    """Raise BadInput if `path` cannot be written, or is the file `source`, which a command reads.

    For use before a long computation. Leaves no file behind.
    """
    if (
        source is not None
        and os.path.exists(source)
        and os.path.exists(path)
        and os.path.samefile(source, path)
    ):
        raise BadInput(f"cannot write {path}: it is the network that is read; expected another name")
    _create_temporary(Path(os.path.realpath(path)), Path(path)).unlink()


def require_file(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path. Raises BadInput, with the reason, unless it is a regular file that can be opened."""
    file = Path(path)
    if file.is_dir():
        raise BadInput(f"cannot read {file}: it is a folder; expected a file")
    try:
        if (
            not file.is_file() and file.exists()
        ):  # reading a device may never end, and a pipe can be read only once
            raise BadInput(f"cannot read {file}: it is a device or a pipe; expected a regular file")
        with file.open("rb"):
            return file
    except OSError as error:
        raise BadInput(f"cannot read {file}: {_reason(error)}") from error


#: The first bytes of common kinds of files, and the name of the kind.
_SIGNATURES = (
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
    """The kind of a file by its first bytes, for messages that another kind was expected.

    >>> kind_of_file(__file__)
    'of an unknown kind'
    """
    with require_file(path).open("rb") as file:
        head = file.read(16)
    if not head:
        return "empty"
    return next((kind for signature, kind in _SIGNATURES if head.startswith(signature)), "of an unknown kind")


def _create_temporary(target: Path, requested: Path) -> Path:
    """Create an empty file in the folder of `target`, with the permissions that a plain `open` gives.

    Error messages name `requested`, the path that the user gave.
    """
    if target.is_dir():
        raise BadInput(f"cannot write {requested}: it is a folder")
    if target.exists() and not target.is_file():
        raise BadInput(f"cannot write {requested}: it is not a regular file, and cannot be replaced by one")
    temporary = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(6)}{target.suffix}")
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _unwritable(requested, error) from error
    return temporary


def _permissions_like(other: Path, temporary: Path) -> int:
    """The permissions that do not give a new file to anyone who may not read another one; the owner may write it."""
    theirs, own = other.stat(), temporary.stat()
    same_group = theirs.st_gid == own.st_gid
    return 0o600 | (theirs.st_mode & (0o777 if same_group else 0o707))


def _about(temporary: Path, error: OSError) -> bool:
    """Whether the error was caused by writing the file, and not by something else in the caller's block."""
    return error.errno in _FULL or (
        error.filename is not None and os.fspath(error.filename) == str(temporary)
    )


def _flush_folder(folder: Path) -> None:
    """Make the rename durable, on systems on which a folder can be opened."""
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
