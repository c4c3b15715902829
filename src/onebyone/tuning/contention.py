"""Whether something else had the processor: three witnesses, none of them the thing that is measured.

- A fixed piece of work, run before and after each round, that takes longer than it ever has.
- Involuntary context switches of this process (getrusage): the scheduler gave the core to somebody.
- Processor time that others used meanwhile, as /proc/stat counts it (stolen time of a virtual machine included).

Any one of them condemns the round. Where a system has no such counter, the others decide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

SLOWER = 1.25
"""The reference work may take so many times its best."""
SWITCHES_PER_SECOND = 100.0
"""An idle system gives a few a second; another busy process takes the core for its slice of 3 to 10 ms."""
OTHERS = 0.1
"""Share of one core that others may use."""
_LOOPS = 4000


def reference_work(loops: int = _LOOPS) -> float:
    """Seconds that a fixed loop of integer arithmetic takes: a fraction of a millisecond."""
    start = time.perf_counter()
    total = 0
    for i in range(loops):
        total += i * i & 7
    return time.perf_counter() - start


def involuntary_switches() -> int:
    """How often the scheduler took a core from this process; 0 on systems that do not count it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Processor seconds spent by all processes, and stolen, since the start; None where it cannot be read."""
    try:
        fields = [int(n) for n in stat.read_text("ascii").splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Witness:
    """Notes the counters when a round begins, and judges it when it ends."""

    def __init__(
        self,
        reference: Callable[[], float] = reference_work,
        switches: Callable[[], int] = involuntary_switches,
        busy: Callable[[], float | None] = busy_seconds,
        own: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reference, self._switches, self._busy, self._own, self._now = (
            reference,
            switches,
            busy,
            own,
            now,
        )
        self._best = min(reference() for _ in range(5))
        self._before: tuple[float, int, float | None, float] = (0.0, 0, None, 0.0)
        self._slow = False

    def begin(self) -> None:
        """Note the counters."""
        self._slow = self._too_slow()
        self._before = (self._now(), self._switches(), self._busy(), self._own())

    def disturbed(self) -> bool:
        """Whether any witness saw something else run since `begin`."""
        then, switches, busy, own = self._before
        seconds = self._now() - then
        switched = self._switches() - switches
        busy_now, own_now = self._busy(), self._own()
        slow = self._slow or self._too_slow()
        if slow or switched > 3 + SWITCHES_PER_SECOND * seconds:
            return True
        if busy is None or busy_now is None:
            return False
        # the counter moves in steps of 10 ms on each core
        others = busy_now - busy - (own_now - own) - 0.01 * (os.cpu_count() or 1)
        return others > OTHERS * seconds

    def _too_slow(self) -> bool:
        taken = min(self._reference() for _ in range(2))
        self._best = min(self._best, taken)
        return taken > SLOWER * self._best
