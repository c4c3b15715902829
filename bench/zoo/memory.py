"""Peak memory of a step in this process, if the system reports it (Linux), and a limit on memory."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> int:
    """Reset the peak, and return the current resident bytes."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
    return _field("VmRSS")


def peak() -> int:
    """Return the peak of resident bytes since `forget_peak` (since the start of the process if it cannot be reset)."""
    return _field("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cap(limit: int) -> None:
    """Limit the data of this process to `limit` bytes; allocations beyond it fail, which protects the machine."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _field(name: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0
