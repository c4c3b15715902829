"""Peak memory of a step of this process, where the system tells (Linux); and a cap on it."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> int:
    """Begin a new peak; the resident bytes now."""
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
    return _field("VmRSS")


def peak() -> int:
    """The most resident bytes since `forget_peak` (since the process began where the system cannot forget)."""
    return _field("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cap(limit: int) -> None:
    """Let this process have at most `limit` bytes of data: beyond it an allocation fails, and the machine lives."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _field(name: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0
