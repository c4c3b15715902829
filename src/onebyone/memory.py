"""Memory: compare the size of a requested input with the machine's memory, and keep freed memory for reuse."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from onebyone.errors import BadInput

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of mallopt in malloc.h
_UNLIMITED = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 2**25  # of those that glibc sets by itself
_REQUESTED = re.compile(r"(?:you tried to allocate|Tried to allocate) ([\d.]+ ?\w+)")
_lock, _contexts = Lock(), 0  # the open contexts of `reused_memory`
_EXHAUSTED = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


def require_memory(name: str, value: Sequence[int], shape: Sequence[int], item_bytes: int) -> None:
    """Raise BadInput if a tensor of `shape` is larger than the machine's memory.

    `name` and `value` are the argument that requests it; `item_bytes` is the size of one element in bytes.

    >>> require_memory("window", (8, 8), (2, 3, 8, 8), 4)
    >>> require_memory("window", (10**9, 10**9), (2, 3, 10**9, 10**9), 4)
    Traceback (most recent call last):
        ...
    onebyone.errors.BadInput: window=1000000000,1000000000: an input of 24,000,000,000,000 MB does not fit into the ...
    """
    required, available = math.prod(shape) * item_bytes, physical_memory()
    if required > available:
        size = ",".join(map(str, value))
        raise BadInput(
            f"{name}={size}: an input of {_megabytes(required)} does not fit into the memory of this machine "
            f"({_megabytes(available)})"
        )


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed memory in this process for reuse while the context is open.

    glibc returns blocks of more than 32 MiB to the system as soon as they are freed. A network on a large tile
    allocates such blocks for each layer, and the system must clear every page again before each use. Free memory is
    returned to the system at the end.

    The thresholds are then the largest that glibc sets by itself. glibc has no function that reads the earlier ones,
    so they cannot be restored: a process that had set lower ones, by `mallopt` or by environment variables, keeps
    freed blocks of up to 32 MiB from then on, and glibc no longer adapts the thresholds to the blocks that are freed.
    This affects how soon free memory is returned to the system, and no result. Contexts may overlap: the last one to
    end has the effect. Does nothing where the C library has no `mallopt`.
    """
    global _contexts
    try:
        library = ctypes.CDLL(None)
        set_option, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        yield
        return
    with _lock:
        _contexts += 1
        set_option(_MMAP_THRESHOLD, _UNLIMITED)
        set_option(_TRIM_THRESHOLD, _UNLIMITED)
    try:
        yield
    finally:
        with _lock:
            _contexts -= 1
            if not _contexts:
                set_option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
                set_option(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
                trim(0)


def physical_memory() -> int:
    """The physical memory of the machine in bytes; 2⁶³ − 1 if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 2**63 - 1


def exhaustion(error: BaseException) -> str | None:
    """A message if `error` means that memory is exhausted, whichever library raised it; else None.

    >>> exhaustion(MemoryError())
    'the memory of this machine is exhausted; use a smaller input, batch or tile'
    >>> exhaustion(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 240 bytes. Error"))
    'the memory of this machine is exhausted (240 bytes were requested); use a smaller input, batch or tile'
    >>> exhaustion(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text for words in _EXHAUSTED):
        return None
    requested = _REQUESTED.search(text)
    amount = f" ({requested[1]} were requested)" if requested else ""
    return f"the memory of this machine is exhausted{amount}; use a smaller input, batch or tile"


def _megabytes(count: int) -> str:
    return f"{count // 10**6:,} MB"
