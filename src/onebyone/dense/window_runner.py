"""Running a classifier on every window of a tile, cropped separately: a `TileRunner` for any network of one window."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onebyone.dense.runner import TileRunner
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.records import Labels
from onebyone.results.any_size import Output

_BATCH_PIXELS = 2**21


@dataclass(frozen=True)
class WindowRunner:
    """Crops every window of each tile, runs batches of up to `batch` windows, and arranges the scores as a map.

    It has the interface of `TorchRunner`, so that a scan of windows is planned, stored and resumed as any other.
    """

    runner: TileRunner
    geometry: Geometry
    batch: int

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised pixels (N, C, *pixels) to scores (N, classes, *positions).

        Raises BadInput where the network gives more than one position for a window.
        """
        axes = tuple(range(2, batch.ndim))
        positions = self.geometry.positions(batch.shape[2:])
        view = np.lib.stride_tricks.sliding_window_view(batch, self.geometry.window, axes)
        view = view[:, :, *(slice(None, None, step) for step in self.geometry.stride)]
        view = np.moveaxis(view, 1, len(axes) + 1)  # (N, *positions, C, *window)
        indices = np.stack(
            np.unravel_index(np.arange(len(batch) * prod(positions)), view.shape[: len(axes) + 1])
        )
        parts = [
            self._vectors(np.ascontiguousarray(view[tuple(indices[:, first : first + self.batch])]))
            for first in range(0, indices.shape[1], self.batch)
        ]
        scores = np.concatenate(parts).reshape(len(batch), *positions, -1)
        result: NDArray[np.float32] = np.moveaxis(scores, -1, 1)
        return result

    def _vectors(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, classes) from the network's (N, classes) or (N, classes, 1, 1)."""
        result = self.runner(windows)
        if result.ndim < 2 or any(n != 1 for n in result.shape[2:]):
            raise BadInput(
                f"the network gives an output of shape {tuple(result.shape)} for single windows; "
                "expected one position each"
            )
        return result.reshape(len(result), -1)


def windows_per_batch(geometry: Geometry) -> int:
    """The number of windows in a batch: about two million pixels.

    >>> windows_per_batch(Geometry((32, 32), (4, 4), (0, 0), (32, 32), (0, 0), True))
    2048
    """
    return max(1, _BATCH_PIXELS // prod(geometry.window))


@dataclass(frozen=True)
class WindowClassifier:
    """A classifier of one window as `scan` takes it with mode="windows": for networks that cannot take other sizes.

    `geometry` has the stride between windows, which is free here. Such networks are those that `convolutionalize`
    refuses, such as a vision transformer.

    >>> WindowClassifier.of(nn.Flatten(), window=8, stride=4, channels=3).geometry.stride
    (4, 4)
    """

    model: nn.Module
    geometry: Geometry
    channels: int
    labels: Labels = field(default_factory=Labels)
    outputs: tuple[Output, ...] = ()
    head: str = "window"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        window: int | tuple[int, ...],
        stride: int | tuple[int, ...],
        channels: int | None = None,
        *,
        labels: Labels | None = None,
    ) -> WindowClassifier:
        """The classifier `model` (N, C, *window) -> (N, classes), applied every `stride` pixels.

        `channels` defaults to the input channels of the first layer that has any.

        Raises BadInput where they are not known, the stride is not positive, or the network does not take a window.
        """
        sizes = (window, window) if isinstance(window, int) else tuple(window)
        steps = (stride,) * len(sizes) if isinstance(stride, int) else tuple(stride)
        if len(steps) != len(sizes) or min(steps) < 1:
            raise BadInput(f"stride={stride!r}: expected a positive number of pixels, or one for each axis")
        geometry = Geometry(sizes, steps, (0,) * len(sizes), sizes, (0,) * len(sizes), True)
        channels = channels or _input_channels(model)
        return cls(model, geometry, channels, labels or Labels())


def _input_channels(model: nn.Module) -> int:
    for module in model.modules():
        channels: Any = getattr(module, "in_channels", None)
        if isinstance(channels, int):
            return channels
    raise BadInput("channels: the number of image channels is not known from the network; give channels=")
