"""The seconds there are, and the shares of them that the parts of tuning may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

LAYERS, PEAK, FINAL, PROOF = 0.08, 0.03, 0.15, 0.05
"""Shares: forms of single layers, the largest product rate, the last comparison, the proof. The rest: candidates."""


@dataclass
class Budget:
    """A clock that runs down; `used` remembers what a kind of work took, to foresee the next of its kind."""

    seconds: float
    now: Callable[[], float] = time.perf_counter
    used: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self.now()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.now() - self.start

    def left(self, reserved: float = FINAL + PROOF) -> float:
        """Seconds left before what is reserved (a share) for later."""
        return self.seconds * (1 - reserved) - self.elapsed

    def allows(self, kind: str) -> bool:
        """Whether work of a kind may begin: it should end in time, going by the longest of its kind so far."""
        return self.left() > self.used.get(kind, 0.0)

    def note(self, kind: str, seconds: float) -> None:
        """Remember how long work of a kind took."""
        self.used[kind] = max(seconds, self.used.get(kind, 0.0))
