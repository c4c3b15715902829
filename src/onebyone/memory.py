"""Memory: what a request would take is compared with what the machine has, before anything is allocated."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from onebyone.errors import BadInput

_ASKED = re.compile(r"(?:you tried to allocate|Tried to allocate) ([\d.]+ ?\w+)")
_EXHAUSTED = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


def require_memory(name: str, value: Sequence[int], shape: Sequence[int], item_bytes: int) -> None:
    """Raise BadInput where a tensor of `shape` is larger than the machine's memory.

    `name` and `value` are the argument that asks for it; `item_bytes` is the size of one element in bytes.

    >>> require_memory("window", (8, 8), (2, 3, 8, 8), 4)
    >>> require_memory("window", (10**9, 10**9), (2, 3, 10**9, 10**9), 4)
    Traceback (most recent call last):
        ...
    onebyone.errors.BadInput: window=1000000000,1000000000: an input of 24,000,000,000,000 MB does not fit into the ...
    """
    wanted, present = math.prod(shape) * item_bytes, physical_memory()
    if wanted > present:
        shown = ",".join(map(str, value))
        raise BadInput(
            f"{name}={shown}: an input of {_megabytes(wanted)} does not fit into the memory of this machine "
            f"({_megabytes(present)})"
        )


def physical_memory() -> int:
    """Bytes of memory that the machine has; 2⁶³ − 1 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 2**63 - 1


def exhaustion(error: BaseException) -> str | None:
    """One sentence where `error` says that memory is exhausted, whichever library raised it; else None.

    >>> exhaustion(MemoryError())
    'the memory of this machine is exhausted; use a smaller input, batch or tile'
    >>> exhaustion(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 240 bytes. Error"))
    'the memory of this machine is exhausted (240 bytes were asked for); use a smaller input, batch or tile'
    >>> exhaustion(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text for words in _EXHAUSTED):
        return None
    asked = _ASKED.search(text)
    told = f" ({asked[1]} were asked for)" if asked else ""
    return f"the memory of this machine is exhausted{told}; use a smaller input, batch or tile"


def _megabytes(count: int) -> str:
    return f"{count // 10**6:,} MB"
