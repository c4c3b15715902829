"""A network while it is drawn: operators that torch does not run on their values are left out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from tests.fuzz.networks import Description, Net, Op

MAX_ELEMENTS = 1500  # of one value: keeps the oracle quick


class Drawing:
    """A network being drawn: operators that torch does not run on their values are left out."""

    def __init__(self, random: Random, channels: int, window: tuple[int, ...]) -> None:
        self.random = random
        self.net = Net(Description(channels, window))
        self.probe = [torch.zeros(2, channels, *window)]
        self.axes = len(window)

    def draw(self, choices: Sequence[Any]) -> Any:
        return self.random.choice(list(choices))

    def chance(self, percent: int) -> bool:
        return self.random.random() * 100 < percent

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, max(low, high))

    def shape(self, value: int) -> tuple[int, ...]:
        return self.net.shapes[value]

    def put(self, kind: str, *inputs: int, **args: Any) -> int:
        """Append an operator; the value it gives, or its first input where torch refuses it or it grows too large."""
        d = self.net.description
        before = d.ops
        self.net.description = Description(d.channels, d.window, (*before, Op(kind, inputs, args)))
        number = len(before)
        try:
            self.net.append(number, self.probe)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            self._undo(number, before)
            return inputs[0]
        size = self.probe[-1][0].numel()
        if size > MAX_ELEMENTS or size == 0 or self.probe[-1].dim() < 2:
            self._undo(number, before)
            return inputs[0]
        return number + 1

    def _undo(self, number: int, before: tuple[Op, ...]) -> None:
        d = self.net.description
        self.net.description = Description(d.channels, d.window, before)
        self.net.layers.pop(str(number)) if str(number) in self.net.layers else None
        del self.net.shapes[number + 1 :], self.probe[number + 1 :]

    def is_map(self, x: int) -> bool:
        return len(self.shape(x)) == self.axes + 1

    @property
    def spatial(self) -> range:
        return range(1, self.axes + 1)
