"""The time budget of tuning, and the shares of it that each stage may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

LAYER_SHARE, PEAK_SHARE, FINAL_SHARE, PROOF_SHARE = 0.08, 0.03, 0.15, 0.05
"""Shares of the budget: forms of single layers, the peak product rate, the final comparison, the proof of equivalence.
The rest is for building and timing candidates.
"""


@dataclass
class Budget:
    """A time budget in seconds, which starts when it is made.

    `longest` records the longest duration of each kind of work, which predicts the duration of the next of that kind.
    """

    seconds: float
    now: Callable[[], float] = time.perf_counter
    longest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self.now()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.now() - self.start

    def left(self, reserved: float = FINAL_SHARE + PROOF_SHARE) -> float:
        """Return the seconds left before the share that is reserved for later stages."""
        return self.seconds * (1 - reserved) - self.elapsed

    def allows(self, kind: str) -> bool:
        """Return whether work of a kind should end in time, judging by the longest of its kind so far."""
        return self.left() > self.longest.get(kind, 0.0)

    def record(self, kind: str, seconds: float) -> None:
        """Record how long work of a kind took."""
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))
