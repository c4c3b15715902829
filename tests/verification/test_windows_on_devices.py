"""Positions of windows beside outputs on another device."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from onebyone.verification.window_crops import WindowPositions


def test_values_are_picked_on_the_device_of_the_output() -> None:
    class Index(Tensor):
        moved: ClassVar[list[Any]] = []

        def to(self, device: Any) -> Tensor:  # type: ignore[override]
            self.moved.append(device)
            return self.as_subclass(Tensor)

    index = torch.tensor([[0, 1, 0]])
    windows = WindowPositions(index.as_subclass(Index), (1, 1), (1, 1), 1)
    dense = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert windows.pick(dense).tolist() == [[2.0, 6.0]]
    assert Index.moved == [dense.device]
