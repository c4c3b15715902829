"""Memory for batches of tiles that is used again: allocating a batch anew costs as much as filling it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor


@dataclass
class TileBuffers:
    """`count` batches that can be in use at a time: each is overwritten when `count` further ones were taken.

    With `pinned`, they are in memory that a CUDA device reads while the processor goes on.
    """

    count: int = 1
    pinned: bool = False
    _memory: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._next = cycle(range(self.count))

    def take(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next buffer, with undefined values."""
        number, shape = next(self._next), tuple(shape)
        buffer = self._memory.get(number)
        if buffer is None or tuple(buffer.shape) != shape or buffer.dtype != dtype:
            self._memory.pop(number, None)  # freed before the next one is allocated
            buffer = torch.empty_strided(shape, tuple(strides), dtype=dtype, pin_memory=self.pinned)
            self._memory[number] = buffer
        return buffer

    def release(self) -> None:
        """Free the buffers that nothing else uses; others are allocated where more are taken."""
        self._memory.clear()
