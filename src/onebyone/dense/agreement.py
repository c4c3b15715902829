"""Agreement of a dense score map with crops: a sample of windows is cropped, run separately and compared.

Where a network pads, a crop has borders that the interior of a larger image does not have, so the numbers differ. How
much that matters depends on the network and on the image, so it is measured on the image at hand. On an image of
exactly one window the any-size network is the original, padded or not, so a saved file can be measured as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.runner import TileRunner
from onebyone.errors import BadInput, NotEquivalent
from onebyone.laws.geometry import Geometry
from onebyone.records import ENOUGH_AGREEMENT
from onebyone.stores.regions import Region, Span

#: The default number of windows that are compared: the pixels of the crops are at most a quarter of the image's,
#: within these limits.
_MIN_WINDOWS, _MAX_WINDOWS = 8, 64
_IMAGE_PIXELS_PER_CROP_PIXEL = 4
_BATCH_PIXELS = 2**21


class PositionScores(Protocol):
    """A map (channels, *positions) of which single positions can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, then positions per axis."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """`scores[:, i, j]` are the scores of a position."""
        ...


@dataclass(frozen=True)
class Agreement:
    """Of `windows` sampled windows, `same` have the same best class in the dense map and cropped.

    `largest_difference` is the largest difference of a score between the two.

    >>> print(Agreement(24, 25, 0.5))
    24 of 25 sampled windows (96%) have the same best class as when cropped
    """

    same: int
    windows: int
    largest_difference: float

    @property
    def share(self) -> float:
        """Windows with the same best class, from 0 to 1."""
        return self.same / self.windows

    @property
    def enough(self) -> bool:
        """Whether the share is at least 95% (`records.ENOUGH_AGREEMENT`)."""
        return self.share >= ENOUGH_AGREEMENT

    @property
    def advice(self) -> str:
        """A warning for a share that is not enough."""
        return (
            f"the network is not exact, and on this image {self}, fewer than {ENOUGH_AGREEMENT:.0%}: "
            "mode='windows' crops every window, which is slower and gives the network's own predictions"
        )

    def require(self, least: float) -> None:
        """Raise NotEquivalent where the share is below `least`."""
        if not 0 <= least <= 1:
            raise BadInput(f"min_agreement={least}: expected a share from 0 to 1")
        if self.share < least:
            raise NotEquivalent(
                f"only {self}, fewer than the share of min_agreement={least:g}: scan with mode='windows', which "
                "crops every window, or lower min_agreement",
                self,
            )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return {
            "same": self.same,
            "windows": self.windows,
            "share": self.share,
            "largest_difference": self.largest_difference,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Agreement:
        """The agreement that `to_dict` described."""
        return cls(int(data["same"]), int(data["windows"]), float(data["largest_difference"]))

    def __str__(self) -> str:
        windows = f"{self.same} of {self.windows} sampled windows"
        return f"{windows} ({self.share:.0%}) have the same best class as when cropped"


def default_sample_size(geometry: Geometry, image_size: Sequence[int]) -> int:
    """The number of windows to compare by default: 8 to 64, about a quarter of the image's pixels within that range.

    >>> geometry = Geometry((224, 224), (32, 32), (0, 0), (224, 224), (0, 0), False, ("padding",))
    >>> default_sample_size(geometry, (2240, 2240))
    25
    """
    windows = prod(image_size) // (_IMAGE_PIXELS_PER_CROP_PIXEL * prod(geometry.window))
    return min(_MAX_WINDOWS, max(_MIN_WINDOWS, windows))


def measure_agreement(
    scores: PositionScores,
    geometry: Geometry,
    crop: Callable[[Region], NDArray[np.float32]],
    run: TileRunner,
    max_windows: int,
    sample: Callable[[int], NDArray[np.int64]] | None = None,
) -> Agreement | None:
    """Compare at most `max_windows` windows of a map (classes, H', W'), evenly spread; None for a single class.

    `crop` gives the network's input (C, *window) for a region of pixels. `run` gives the network's output for a batch
    of windows, with one position each. `sample` gives at most so many positions (K, axes) where some are not scored.
    """
    positions = scores.shape[1:]
    if scores.shape[0] < 2 or max_windows < 1:
        return None
    if sample is None:
        count = min(max_windows, prod(positions))
        flat = np.unique(np.linspace(0, prod(positions) - 1, count).round().astype(np.int64))
        indices = np.stack(np.unravel_index(flat, positions), 1)
    else:
        indices = sample(max_windows)
    size = max(1, _BATCH_PIXELS // prod(geometry.window))
    parts = []
    for first in range(0, len(indices), size):
        windows = [geometry.window_at(index.tolist()) for index in indices[first : first + size]]
        batch = np.stack([crop([Span(*span) for span in window]) for window in windows])
        parts.append(run(batch).reshape(len(batch), -1))
    cropped = np.concatenate(parts)
    # one position at a time, because the map may be stored in parts
    dense = np.stack([scores[:, *index] for index in indices.tolist()])
    same = int((dense.argmax(1) == cropped.argmax(1)).sum())
    return Agreement(same, len(indices), float(np.abs(dense - cropped).max()))
