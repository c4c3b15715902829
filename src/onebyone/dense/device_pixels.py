"""Pixels that a GPU normalises itself: they are copied to it as they are stored, and become network inputs there.

8-bit pixels are a quarter of the bytes of their float32 inputs, and the processor only copies them. The arithmetic is
that of `preprocessing.normalise`, operation by operation in IEEE float32, so the numbers are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.checks import PixelCheck
from onebyone.dense.plan import Tile
from onebyone.dense.preprocessing import scale_of
from onebyone.dense.runner import TileRunner, TorchRunner, TorchSettings
from onebyone.dense.tile_buffers import TileBuffers
from onebyone.errors import BadInput
from onebyone.records import Labels
from onebyone.stores.source import ImageSource

#: The types of pixels that are normalised on the device.
STORED_TYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float32): torch.float32}


class TileReader(Protocol):
    """Reads batches of tiles of one shape from one image."""

    def __call__(self, tiles: Sequence[Tile]) -> NDArray[Any]:
        """What the network's runner takes for these tiles."""
        ...

    def release(self) -> None:
        """Free the buffers."""
        ...


def reader_and_runner(
    run: TileRunner,
    source: ImageSource,
    labels: Labels,
    settings: TorchSettings,
    buffers: int,
    check: PixelCheck | None = None,
) -> tuple[TileReader, Callable[[NDArray[Any]], NDArray[np.float32]]]:
    """A reader of tiles, and what applies the network to its batches.

    On a CUDA device a PyTorch network gets the pixels as they are stored, where their type is one of `STORED_TYPES`.
    Everything else gets inputs that were normalised by the processor.
    """
    cuda = settings.device.type == "cuda"
    if cuda and isinstance(run, TorchRunner) and source.dtype in STORED_TYPES:
        return StoredPixelReader(source, TileBuffers(buffers, pinned=True), check), PixelRunner(run, labels)
    return BatchReader(source, labels, settings.channels_last, buffers, check, pinned=cuda), run


@dataclass
class StoredPixelReader:
    """Reads batches of tiles in the type in which the image is stored, one of `STORED_TYPES`.

    `check`, where given, sees the pixels of every tile.
    """

    source: ImageSource
    buffers: TileBuffers = field(default_factory=TileBuffers)
    check: PixelCheck | None = None

    def __call__(self, tiles: Sequence[Tile]) -> NDArray[Any]:
        """Pixels of tiles of one shape: (tiles, *read_shape, C), in one of the buffers.

        Raises BadInput where `check` finds a value that is not finite, or the image gives values of another type than
        it states: such values would be truncated to that type.
        """
        shape = (len(tiles), *tiles[0].read_shape, self.source.channels)
        packed = torch.empty(shape, device="meta").stride()
        batch: NDArray[Any] = self.buffers.take(shape, packed, STORED_TYPES[self.source.dtype]).numpy()
        for tile, pixels in zip(tiles, batch, strict=True):
            values = self.source.read(tile.read)
            if self.check is not None:
                self.check.add(values)
            if values.dtype.newbyteorder("=") != batch.dtype:
                raise BadInput(
                    f"the image gives values of type {values.dtype}; it states {self.source.dtype}"
                )
            np.copyto(pixels, values)
        return batch

    def release(self) -> None:
        """Free the buffers that nothing else uses. The reader allocates others where it is used again."""
        self.buffers.release()


@dataclass(frozen=True)
class PixelRunner:
    """A PyTorch network on pixels as they are stored, which its device normalises."""

    run: TorchRunner
    labels: Labels

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Pixels (N, *pixels, C) to the network's output (N, channels, *positions) float32."""
        stored = torch.from_numpy(pixels)
        # pinned memory is copied while the processor goes on; reading the output waits for it
        there = stored.to(self.run.settings.device, non_blocking=stored.is_pinned())
        return self.run.on_tensor(normalised(there, self.labels, scale_of(pixels.dtype, self.labels)))


def normalised(pixels: torch.Tensor, labels: Labels, scale: float) -> torch.Tensor:
    """Pixels (N, *pixels, C) as the network's input (N, C, *pixels) float32: (v · scale − mean) / std.

    >>> pixels = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    >>> normalised(pixels, Labels(mean=(0.5,), std=(0.25,)), 1 / 255)
    tensor([[[[2.]]]])
    """
    if labels.colour_order == "BGR" and pixels.shape[-1] == 3:
        pixels = pixels.flip(-1)
    values = pixels.to(torch.float32, copy=True)
    if scale != 1.0:
        values.mul_(scale)
    if labels.mean:
        values.sub_(torch.tensor(labels.mean, dtype=torch.float32, device=values.device))
    if labels.std:
        values.div_(torch.tensor(labels.std, dtype=torch.float32, device=values.device))
    return values.movedim(-1, 1)
