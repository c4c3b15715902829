"""A simulated clock, and calls that take a given time on it."""

from __future__ import annotations

from collections.abc import Callable

from onebyone.tuning.clock import Clock


class Time:
    """Seconds that pass only in calls made by `spend`; `log` lists these calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.log: list[str] = []

    def now(self) -> float:
        return self.seconds

    def spend(self, name: str, seconds: float) -> Callable[[], None]:
        """Return a call that takes this many seconds."""

        def call() -> None:
            self.log.append(name)
            self.seconds += seconds

        return call


class Noise:
    """A monitor that returns the given verdicts for the first rounds, and False for all later ones."""

    def __init__(self, *verdicts: bool) -> None:
        self.verdicts = list(verdicts)
        self.rounds = 0

    def begin(self) -> None:
        self.rounds += 1

    def disturbed(self) -> bool:
        return self.verdicts.pop(0) if self.verdicts else False


def clock(time: Time, *verdicts: bool, seed: int = 0) -> Clock:
    return Clock(now=time.now, monitor=Noise(*verdicts), seed=seed)
