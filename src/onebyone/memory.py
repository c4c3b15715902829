"""Memory checks: compare the size of a requested input with the machine's memory before allocating it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from onebyone.errors import BadInput

_REQUESTED = re.compile(r"(?:you tried to allocate|Tried to allocate) ([\d.]+ ?\w+)")
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
