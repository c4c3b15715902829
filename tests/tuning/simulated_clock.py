"""Time that stands still unless it is made to pass, and candidates that take what they are told to."""

from __future__ import annotations

from collections.abc import Callable

from onebyone.tuning.clock import Clock


class Time:
    """Seconds that pass only by `spend`; remembers who spent them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.log: list[str] = []

    def now(self) -> float:
        return self.seconds

    def spend(self, name: str, seconds: float) -> Callable[[], None]:
        """A call that takes so long."""

        def call() -> None:
            self.log.append(name)
            self.seconds += seconds

        return call


class Noise:
    """A watch that says of each round what it is told to, and afterwards that nothing was amiss."""

    def __init__(self, *verdicts: bool) -> None:
        self.verdicts = list(verdicts)
        self.rounds = 0

    def begin(self) -> None:
        self.rounds += 1

    def disturbed(self) -> bool:
        return self.verdicts.pop(0) if self.verdicts else False


def clock(time: Time, *verdicts: bool, seed: int = 0) -> Clock:
    return Clock(now=time.now, monitor=Noise(*verdicts), seed=seed)
