"""From the arguments of a scan to its work: the size of the tiles, within the memory, and the settings."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from onebyone.dense.executor import PENDING_WRITES
from onebyone.dense.memory_budget import TileMemory, network_memory, peak_bytes, pixels_in_budget
from onebyone.dense.network import Dense, ScoreOutput
from onebyone.dense.plan import PerAxis, choose_tile, plan_scan
from onebyone.dense.runner import TorchSettings
from onebyone.dense.window_runner import windows_per_batch
from onebyone.dense.work import ScanWork
from onebyone.errors import BadInput, Refused
from onebyone.laws.geometry import Geometry
from onebyone.records import Refusal
from onebyone.stores.source import ImageSource

#: Pixels that a tile has at least, where that many exist: feature maps of 2^16 pixels fit a processor's caches, and
#: other devices need 2^22 to be busy.
_MIN_TILE_PIXELS_CPU, _MIN_TILE_PIXELS_OTHER = 2**16, 2**22

#: The same where each tile is a block in a file: a block takes some milliseconds until it is on disk.
_MIN_STORED_TILE_PIXELS = 2**20

#: Pixels that a tile has at most unless a memory budget says otherwise.
_MAX_TILE_PIXELS = 2**23

#: Positions per tile from which channels-last inputs are faster on a CPU.
_CHANNELS_LAST_POSITIONS = 64

#: Batches of pixels that exist at a time: one is read while another is computed, and outputs that share the memory of
#: their inputs wait to be written.
_BUFFERS = 2 + PENDING_WRITES


@dataclass(frozen=True)
class Request:
    """What a caller asks for, with the image opened.

    `geometry` is that of one pass of the network; with `windows` it is that of the finished map, of which every window
    is cropped.
    """

    d: Dense
    geometry: Geometry
    source: ImageSource
    output: ScoreOutput
    device: torch.device
    batch: int = 1
    shifts: PerAxis = 1
    windows: bool = False
    memory: str | int | None = None

    def work(self, tile: PerAxis | None, channels_last: bool | None, aligned: bool) -> ScanWork:
        """The plan and the settings.

        Raises BadInput for a memory that is too small for one tile, and Refused where the network cannot be tiled and
        the whole image does not fit.
        """
        on_cpu = self.device.type == "cpu"
        if self.geometry.image_wide:
            self._require_whole_image_fits()
        elif tile is None:
            tile = choose_tile(
                self.geometry,
                self.source.size,
                shifts=self.shifts,
                min_pixels=max(
                    _MIN_TILE_PIXELS_CPU if on_cpu else _MIN_TILE_PIXELS_OTHER,
                    _MIN_STORED_TILE_PIXELS if aligned else 0,
                ),
                max_pixels=self._max_tile_pixels(),
            )
        plan = plan_scan(self.geometry, self.source.size, shifts=self.shifts, tile=tile, aligned=aligned)
        if channels_last is None:
            positions = prod(plan.tile)
            many = positions >= _CHANNELS_LAST_POSITIONS * prod(plan.shifts)
            channels_last = on_cpu and many and isinstance(self.d.model, nn.Module)
        return ScanWork(
            self.d.model,
            plan,
            self.output.labels,
            TorchSettings(self.device, channels_last, self.output.number),
            self.batch,
            windows_per_batch(self.geometry) if self.windows else None,
        )

    def tile_shape(self) -> tuple[int, ...]:
        """The shape (1, C, *pixels) of the tiles of a scan to a file."""
        tile = next(iter(self.work(None, False, aligned=True).plan))
        return (1, self.source.channels, *tile.read_shape)

    def _max_tile_pixels(self) -> int:
        if self.memory is None:
            return _MAX_TILE_PIXELS
        smallest = self.batch * prod(self.geometry.window)
        return pixels_in_budget(self.memory, self._needed(), self._buffers(), smallest) // self.batch

    def _needed(self) -> TileMemory:
        if not isinstance(self.d.model, nn.Module):
            raise BadInput(
                f"memory={self.memory}: the memory of an ONNX model is not known; give tile= instead"
            )
        if not self.windows:
            return network_memory(self.d.model, self.geometry, self.source.channels)
        size = windows_per_batch(self.geometry)
        fixed = peak_bytes(self.d.model, (size, self.source.channels, *self.geometry.window))
        return TileMemory(2.0 * fixed, 0.0)

    def _buffers(self) -> float:
        """Bytes per pixel of a tile outside of the network: pixels as read, as normalised, and scores."""
        pixel = self.source.channels * (2 * self.source.dtype.itemsize + 4 * _BUFFERS)
        outputs = getattr(self.d, "outputs", ())
        channels = max((o.channels for o in outputs), default=1)
        return pixel + 4 * channels * (2 + PENDING_WRITES) / prod(self.geometry.stride)

    def _require_whole_image_fits(self) -> None:
        if self.memory is None:
            return
        needed = network_memory(self.d.model, self.geometry, self.source.channels)
        pixels = prod(self.source.size)
        if pixels_in_budget(self.memory, needed, self._buffers(), 0) < pixels:
            reason = "; ".join(self.geometry.inexact_because) or "global context"
            raise Refused(
                [
                    Refusal(
                        "",
                        "global context",
                        f"{reason}. Every prediction depends on the whole image, so it cannot be computed in tiles, "
                        f"and {pixels:,} pixels do not fit into memory={self.memory}: convolutionalize with "
                        "context='window', or scan with mode='windows'",
                    )
                ],
                "the image cannot be scanned in tiles",
            )
