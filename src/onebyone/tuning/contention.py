"""Detection of contention: whether other processes used the processor during a timing round.

Three indicators are read, none of which is the measured code itself:

- A fixed piece of work, run before and after each round, took longer than its best time so far.
- The scheduler took a core from this process (involuntary context switches, from getrusage).
- Other processes used processor time meanwhile, as /proc/stat counts it (including time stolen by a hypervisor).

Any one of them marks the round as disturbed. On systems that lack an indicator, the others decide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

MAX_SLOWDOWN = 1.25
"""The reference work may take this many times its best time."""
MAX_SWITCHES_PER_SECOND = 100.0
"""An idle system has a few per second; another busy process takes the core for its time slice of 3 to 10 ms."""
_ALLOWED_SWITCHES = 3  # in any round, however short
MAX_OTHER_LOAD = 0.1
"""The share of one core that other processes may use."""
_LOOPS = 4000


def reference_work(loops: int = _LOOPS) -> float:
    """Return the seconds that a fixed loop of integer arithmetic takes: a fraction of a millisecond."""
    start = time.perf_counter()
    total = 0
    for i in range(loops):
        total += i * i & 7
    return time.perf_counter() - start


def involuntary_switches() -> int:
    """Return how often the scheduler took a core from this process; 0 on systems that do not count it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Return the processor seconds of all processes since the system started, or None if they cannot be read."""
    try:
        fields = [int(n) for n in stat.read_text("ascii").splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class ContentionMonitor:
    """Reads the indicators when a round begins and when it ends."""

    def __init__(
        self,
        reference: Callable[[], float] = reference_work,
        switches: Callable[[], int] = involuntary_switches,
        busy: Callable[[], float | None] = busy_seconds,
        own: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reference, self._switches, self._busy = reference, switches, busy
        self._own, self._now = own, now
        self._best = min(reference() for _ in range(5))
        self._at_start: tuple[float, int, float | None, float] = (0.0, 0, None, 0.0)
        self._slow_at_start = False

    def begin(self) -> None:
        """Read the indicators at the beginning of a round."""
        self._slow_at_start = self._is_slow()
        self._at_start = (self._now(), self._switches(), self._busy(), self._own())

    def disturbed(self) -> bool:
        """Return whether any indicator shows contention since `begin`."""
        start, switches_before, busy_before, own_before = self._at_start
        seconds = self._now() - start
        switches = self._switches() - switches_before
        busy, own = self._busy(), self._own()
        slow = self._slow_at_start or self._is_slow()
        if slow or switches > _ALLOWED_SWITCHES + MAX_SWITCHES_PER_SECOND * seconds:
            return True
        if busy_before is None or busy is None:
            return False
        # /proc/stat counts in steps of 10 ms on each core
        others = busy - busy_before - (own - own_before) - 0.01 * (os.cpu_count() or 1)
        return others > MAX_OTHER_LOAD * seconds

    def _is_slow(self) -> bool:
        seconds = min(self._reference() for _ in range(2))
        self._best = min(self._best, seconds)
        return seconds > MAX_SLOWDOWN * self._best
