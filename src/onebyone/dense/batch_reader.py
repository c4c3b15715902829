"""Pixels into batches for the network: one pass that scales, normalises and lays out, into one buffer.

The arithmetic is `preprocess.normalise`'s, operation by operation in float32, so the numbers are the same bit for bit:
(v · scale − mean) / std. It is done on a few rows at a time, which stay in the processor's cache from the conversion
of the pixels to the division. The buffer is in the memory order that the network is to read, and is used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from onebyone.dense.images import Pixels
from onebyone.dense.plan import Tile
from onebyone.dense.runner import strides_of
from onebyone.records import Labels

#: Elements normalised at a time: 1 MiB of float32, which fits a core's second-level cache.
_CHUNK = 2**18
_READ_BY_TORCH = (np.dtype(np.uint8), np.dtype(np.float32))

_Item = TypeVar("_Item")


@dataclass
class Feed:
    """Makes batches of one image's tiles; `buffers` of them are in use at a time.

    A batch is overwritten when `buffers` further batches have been made.
    """

    pixels: Pixels
    labels: Labels
    channels_last: bool
    buffers: int = 1
    _held: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._turn = cycle(range(self.buffers))

    @torch.inference_mode()
    def __call__(self, tiles: Sequence[Tile]) -> Tensor:
        """The network's input for tiles of one shape, (tiles, C, *read_shape) float32."""
        batch = self._buffer((len(tiles), self.pixels.channels, *tiles[0].read_shape))
        for tile, sample in zip(tiles, batch, strict=True):
            self._fill(sample.movedim(0, -1), [span.slice for span in tile.read])
        return batch

    def _buffer(self, shape: tuple[int, ...]) -> Tensor:
        turn = next(self._turn)
        held = self._held.get(turn)
        if held is None or tuple(held.shape) != shape:
            self._held.pop(turn, None)  # freed before the next is made
            held = torch.empty_strided(shape, strides_of(shape, self.channels_last))
            self._held[turn] = held
        return held

    def _fill(self, out: Tensor, region: list[slice]) -> None:
        """Write one region's normalised pixels into `out` (h, w, C), some rows at a time."""
        values = self.pixels.values[tuple(region)]
        if self.labels.colour_order == "BGR" and values.shape[-1] == 3:
            values = values[..., ::-1]
        scale = self.labels.scale / 257 if values.dtype == np.uint16 else self.labels.scale
        mean, std = (_per_channel(v, out) for v in (self.labels.mean, self.labels.std))
        rows = max(1, _CHUNK // max(1, prod(out.shape[1:])))
        for first in range(0, len(out), rows):
            part = out[first : first + rows]
            _convert(values[first : first + rows], part)
            part = _flat(part)
            if scale != 1.0:
                part.mul_(scale)
            if mean is not None:
                part.sub_(mean)
            if std is not None:
                part.div_(std)


def _convert(values: np.ndarray, out: Tensor) -> None:
    """Write pixels (h, w, C) of any type into a float32 `out` of that shape."""
    if (
        _together(out)
        and values.dtype in _READ_BY_TORCH
        and values.flags.writeable
        and min(values.strides) > 0
    ):
        out.copy_(torch.from_numpy(values))  # on all threads
        return
    planes = out.numpy()
    for channel in range(values.shape[-1]):
        np.copyto(planes[..., channel], values[..., channel], casting="same_kind")


def _flat(part: Tensor) -> Tensor:
    """(h, …, w, C) as (h, …, w·C) where the channels lie together, which is one long loop for each row.

    A signal (T, C) stays as it is: its rows are its samples.
    """
    return part.flatten(-2) if part.ndim > 2 and _together(part) else part


def _together(part: Tensor) -> bool:
    return part.stride(-1) == 1 and part.stride(-2) == part.shape[-1]


def _per_channel(values: tuple[float, ...], out: Tensor) -> Tensor | None:
    """A value for each channel in float32, repeated along a row where the rows are flat; None where there is none."""
    if not values:
        return None
    each = torch.tensor(values, dtype=torch.float32).expand(out.shape[-1])
    return each.repeat(out.shape[-2]) if out.ndim > 2 and _together(out) else each


def made_ahead(
    make: Callable[[_Item], Tensor], items: Iterable[_Item], ahead: bool
) -> Iterator[tuple[_Item, Tensor]]:
    """Each item with what is made of it; where `ahead`, the next one is made while the caller uses this one."""
    if not ahead:
        for item in items:
            yield item, make(item)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="onebyone-reader") as reader:
        waiting = None
        for item in items:
            made = (item, reader.submit(make, item))
            if waiting is not None:
                # the caller is done with the one before, whose buffer the reader writes now
                yield waiting[0], waiting[1].result()
            waiting = made
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def reads_ahead(device: torch.device) -> bool:
    """Whether a second thread may read: the network computes elsewhere, or leaves a core idle.

    Where it computes on every core, a reader takes from it what it saves.
    """
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return device.type != "cpu" or cores > torch.get_num_threads()
