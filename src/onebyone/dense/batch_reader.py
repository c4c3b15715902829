"""Pixels to network inputs: each batch of tiles is converted and normalised in one pass, into a buffer that is reused.

The arithmetic is that of `preprocessing.normalise`, operation by operation in float32, so the numbers are equal bit for
bit: (v · scale − mean) / std. It runs on a few rows at a time, which stay in the processor's cache from the conversion
of the pixels to the division. The buffer has the memory order that the network reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebyone.dense.checks import PixelCheck
from onebyone.dense.plan import Tile
from onebyone.dense.preprocessing import in_colour_order, scale_of
from onebyone.dense.runner import strides_of
from onebyone.dense.tile_buffers import TileBuffers
from onebyone.records import Labels
from onebyone.stores.source import ImageSource

#: Elements normalised at a time: 1 MiB of float32, which fits a core's second-level cache.
_CHUNK = 2**18
_CONVERTED_BY_TORCH = (np.dtype(np.uint8), np.dtype(np.float32))


@dataclass
class BatchReader:
    """Reads batches of tiles from one image, normalised for the network.

    `buffers` batches can be in use at a time: a batch is overwritten when that many further batches have been read.
    `check`, where given, sees the pixels of every tile before they are converted. `pinned` buffers are in memory that
    a CUDA device reads while the processor goes on.
    """

    source: ImageSource
    labels: Labels
    channels_last: bool
    buffers: int = 1
    check: PixelCheck | None = None
    pinned: bool = False

    def __post_init__(self) -> None:
        self._memory = TileBuffers(self.buffers, self.pinned)

    @torch.inference_mode()
    def __call__(self, tiles: Sequence[Tile]) -> NDArray[np.float32]:
        """The network's input for tiles of one shape: (tiles, C, *read_shape) float32, in one of the buffers.

        Raises BadInput where `check` finds a value that is not finite.
        """
        shape = (len(tiles), self.source.channels, *tiles[0].read_shape)
        batch = self._memory.take(shape, strides_of(shape, self.channels_last), torch.float32)
        for tile, sample in zip(tiles, batch, strict=True):
            values = self.source.read(tile.read)
            if self.check is not None:
                self.check.add(values)
            self._normalise_into(sample.movedim(0, -1), values)
        array: NDArray[np.float32] = batch.numpy()
        return array

    def release(self) -> None:
        """Free the buffers that nothing else uses. The reader allocates others where it is used again."""
        self._memory.release()

    def _normalise_into(self, out: Tensor, values: NDArray[Any]) -> None:
        """Write the normalised pixels of a tile (h, w, C) into `out` (h, w, C), some rows at a time."""
        scale = scale_of(values.dtype, self.labels)
        values = in_colour_order(values, self.labels)
        mean, std = (_per_channel(v, out) for v in (self.labels.mean, self.labels.std))
        rows = max(1, _CHUNK // max(1, prod(out.shape[1:])))
        for first in range(0, len(out), rows):
            part = out[first : first + rows]
            _convert(values[first : first + rows], part)
            part = _rows_flattened(part)
            if scale != 1.0:
                part.mul_(scale)
            if mean is not None:
                part.sub_(mean)
            if std is not None:
                part.div_(std)


def _convert(values: NDArray[Any], out: Tensor) -> None:
    """Write pixels (h, w, C) of any type into a float32 `out` of that shape."""
    if (
        _has_packed_rows(out)
        and values.dtype in _CONVERTED_BY_TORCH
        and values.flags.writeable  # torch warns of arrays that are not
        and min(values.strides) > 0
    ):
        out.copy_(torch.from_numpy(values))  # on all threads
        return
    planes = out.numpy()
    for channel in range(values.shape[-1]):
        np.copyto(planes[..., channel], values[..., channel], casting="same_kind")


def _rows_flattened(part: Tensor) -> Tensor:
    """(h, …, w, C) as (h, …, w·C) where the rows are packed, so that each row is one long loop.

    A signal (T, C) stays as it is: its rows are its samples.
    """
    return part.flatten(-2) if part.ndim > 2 and _has_packed_rows(part) else part


def _has_packed_rows(part: Tensor) -> bool:
    """Whether the pixels of a row (…, w, C) follow each other in memory, channels last."""
    return part.stride(-1) == 1 and part.stride(-2) == part.shape[-1]


def _per_channel(values: tuple[float, ...], out: Tensor) -> Tensor | None:
    """One float32 value per channel, repeated along a row where `_rows_flattened` flattens; None without values."""
    if not values:
        return None
    each = torch.tensor(values, dtype=torch.float32).expand(out.shape[-1])
    return each.repeat(out.shape[-2]) if out.ndim > 2 and _has_packed_rows(out) else each
