"""How far a dense score map agrees with its crops: some windows are cropped, run by themselves, and compared.

Where a network pads, a crop has borders that the middle of a large image does not have, so the two give other numbers.
How much that matters depends on the network and on the image, so it is measured on the image at hand. On an image of
exactly one window the any-size network is the original, padded or not, so a saved file can be measured as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.errors import BadInput, NotEquivalent
from onebyone.laws.geometry import Geometry
from onebyone.records import ENOUGH_AGREEMENT

_LEAST, _MOST = 8, 64  # windows that are compared by default
_SHARE = 4  # the crops' pixels, at most one in so many of the image's
_BATCH_PIXELS = 2**21


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
        """Whether the share is at least 95%."""
        return self.share >= ENOUGH_AGREEMENT

    @property
    def advice(self) -> str:
        """What to tell where it is not enough."""
        return (
            f"the network is not exact, and on this image {self}, fewer than {ENOUGH_AGREEMENT:.0%}: "
            "mode='windows' crops every window, which is slower and gives the network's own answers"
        )

    def require(self, least: float) -> None:
        """Raise NotEquivalent where the share is below `least`."""
        if not 0 <= least <= 1:
            raise BadInput(f"min_agreement={least}: expected a share from 0 to 1")
        if self.share < least:
            raise NotEquivalent(
                f"only {self}, fewer than the share of min_agreement={least:g}: scan with mode='windows', which "
                "crops every window, or accept less",
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
        """What `to_dict` wrote."""
        return cls(int(data["same"]), int(data["windows"]), float(data["largest_difference"]))

    def __str__(self) -> str:
        windows = f"{self.same} of {self.windows} sampled windows"
        return f"{windows} ({self.share:.0%}) have the same best class as when cropped"


def how_many(geometry: Geometry, image_size: Sequence[int]) -> int:
    """How many windows to compare by default: 8 to 64, about a quarter of the image's pixels where that is between.

    >>> how_many(Geometry((224, 224), (32, 32), (0, 0), (224, 224), (0, 0), False, ("padding",)), (2240, 2240))
    25
    """
    return min(_MOST, max(_LEAST, prod(image_size) // (_SHARE * prod(geometry.window))))


def measure(
    scores: NDArray[np.float32],
    geometry: Geometry,
    crop: Callable[[Sequence[slice]], torch.Tensor],
    run: Callable[[torch.Tensor], torch.Tensor],
    most: int,
) -> Agreement | None:
    """Compare at most `most` windows of a map (classes, H', W'), evenly spread; None where there is but one class.

    `crop` gives the pixels (1, C, *window) of slices, as the network reads them; `run` the network's output for a
    batch of windows, (N, classes) or (N, classes, 1, 1).
    """
    positions = scores.shape[1:]
    if scores.shape[0] < 2 or most < 1:
        return None
    flat = np.unique(np.linspace(0, prod(positions) - 1, min(most, prod(positions))).round().astype(np.int64))
    at = np.stack(np.unravel_index(flat, positions), 1)
    size = max(1, _BATCH_PIXELS // prod(geometry.window))
    parts = []
    for first in range(0, len(at), size):
        windows = [geometry.window_at([int(i) for i in place]) for place in at[first : first + size]]
        batch = torch.cat([crop([slice(*span) for span in window]) for window in windows])
        parts.append(run(batch).flatten(1).float().cpu().numpy())
    alone = np.concatenate(parts)
    dense = scores[:, *at.T].T
    same = int((dense.argmax(1) == alone.argmax(1)).sum())
    return Agreement(same, len(at), float(np.abs(dense - alone).max()))
