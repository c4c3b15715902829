"""The baseline: every window cropped and classified by itself, as fast as that honestly goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onebyone.dense.images import Pixels, load_image, warn_of_raw_pixels
from onebyone.dense.runner import (
    Progress,
    device_named,
    floating_dtype,
    laid_out,
    output_of,
    place_on,
    telling,
)
from onebyone.dense.score_map import ScoreMap, kind_given
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.pytorch.lift.exported_graph import evaluating
from onebyone.records import Labels

_LARGEST_BATCH_PIXELS = 2**21
_TRIALS = 2  # each candidate runs this often before the fastest goes on


def scan_windows(
    model: nn.Module,
    image: Any,
    geometry: Geometry,
    *,
    labels: Labels | None = None,
    device: str | torch.device = "cpu",
    batch: int | None = None,
    channels: int | None = None,
    output: int | str = 0,
    score_kind: str | ScoreKind | None = None,
    softmax: bool | None = None,
    page: int | None = None,
    progress: Progress = None,
) -> ScoreMap:
    """Run a classifier over every window of an image, each by itself: what `scan` is compared with.

    `model` takes (N, C, *window) and gives (N, classes), or (N, classes, 1, 1), or a tuple of such.
    `geometry` says which windows. The image is preprocessed once; windows are gathered in batches of `batch`.
    Where `batch` is None, the first windows are run in several batch sizes and memory layouts, each a few
    times, and the rest in the fastest of them; nothing is computed twice.

    `channels` are those the network reads, where the image must be checked or a picture file turned grey or
    RGB for it. `output`, `score_kind`, `softmax` and `page` mean what they mean for `scan`; what the network gives is
    not known without them. `progress` is True for a bar on stderr, or a callable of (done, total) windows.

    Raises
    ------
    BadInput
        as `scan` does, and for a network that gives more than one place for one window.
    """
    labels = labels or Labels()
    pixels = image
    if not isinstance(image, Pixels):
        pixels = load_image(image, channels=channels, labels=labels, axes=len(geometry.window), page=page)
        warn_of_raw_pixels(labels, pixels)
    positions = geometry.positions(pixels.size)
    if batch is not None and batch < 1:
        raise BadInput(f"batch={batch}: expected a positive integer")
    if any(geometry.window_offset):
        raise BadInput(
            f"window_offset={geometry.window_offset}: windows that leave the image cannot be cropped"
        )
    model = place_on(model, device)
    total = int(np.prod(positions))
    start = time.perf_counter()
    with evaluating(model), torch.inference_mode(), telling(progress, total, "every window") as tell:
        whole = pixels.read((slice(None),) * len(geometry.window), labels)[0]
        crops = _Crops(whole.to(device_named(device), floating_dtype(model)), geometry, positions)
        scores = _run(model, crops, _pace(batch, geometry, total), output, tell)
    return ScoreMap(
        scores=scores,
        geometry=geometry,
        labels=labels,
        image_size=pixels.size,
        seconds=time.perf_counter() - start,
        kind=kind_given(score_kind, softmax),
        device=str(device),
        passes=total,
    )


@dataclass(frozen=True)
class _Crops:
    """All windows of an image (C, H, W), in the map's order; a batch of them is gathered on asking."""

    image: torch.Tensor
    geometry: Geometry
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return int(np.prod(self.positions))

    def take(self, first: int, last: int, channels_last: bool) -> torch.Tensor:
        """Windows [first, last) as (N, C, *window)."""
        view = self.image
        for axis, (window, stride) in enumerate(zip(self.geometry.window, self.geometry.stride, strict=True)):
            view = view.unfold(axis + 1, window, stride)
        places = np.unravel_index(np.arange(first, last), self.positions)
        # (C, rows, columns, h, w) indexed by pairs gives (C, N, h, w)
        index: tuple[Any, ...] = (slice(None), *(torch.from_numpy(p) for p in places))
        picked = view[index]
        return laid_out(picked.transpose(0, 1), channels_last)


@dataclass
class _Pace:
    """How large the next batch is and how it is laid out: tries every candidate, then takes the fastest."""

    candidates: list[tuple[int, bool]]  # windows a batch, channels last
    queue: list[int] = field(default_factory=list)
    best: dict[int, float] = field(default_factory=dict)

    def next(self) -> int:
        """The number of the candidate to run now."""
        if self.queue:
            return self.queue.pop(0)
        return min(self.best, key=self.best.__getitem__, default=0)

    def learn(self, candidate: int, seconds_per_window: float) -> None:
        """Keep the candidate's best time."""
        self.best[candidate] = min(seconds_per_window, self.best.get(candidate, seconds_per_window))


def _pace(batch: int | None, geometry: Geometry, total: int) -> _Pace:
    if batch is not None:
        return _Pace([(batch, True)])
    pixels = int(np.prod(geometry.window))
    largest = max(1, _LARGEST_BATCH_PIXELS // pixels)
    sizes = sorted({min(n, largest) for n in (4, 16, 64, 256)})
    candidates = [(n, channels_last) for n in sizes for channels_last in (True, False)]
    # trying all must stay a small part of the work
    while len(candidates) > 1 and 8 * _TRIALS * sum(n for n, _ in candidates) > total:
        candidates.pop()
    return _Pace(candidates, queue=list(range(len(candidates))) * _TRIALS)


def _run(
    model: nn.Module, crops: _Crops, pace: _Pace, output: int | str, tell: Callable[[int], None]
) -> NDArray[np.float32]:
    parts: list[NDArray[np.float32]] = []
    for values in _steps(model, crops, pace, output):
        parts.append(values)
        tell(sum(len(p) for p in parts))
    scores = np.concatenate(parts).T.reshape(-1, *crops.positions)
    return np.ascontiguousarray(scores)


def _steps(model: nn.Module, crops: _Crops, pace: _Pace, output: int | str) -> Iterator[NDArray[np.float32]]:
    first = 0
    while first < len(crops):
        candidate = pace.next()
        size, channels_last = pace.candidates[candidate]
        last = min(first + size, len(crops))
        start = time.perf_counter()
        values = _vectors(output_of(model(crops.take(first, last, channels_last)), output))
        pace.learn(candidate, (time.perf_counter() - start) / (last - first))
        yield values
        first = last


def _vectors(result: torch.Tensor) -> NDArray[np.float32]:
    """(N, classes) from (N, classes) or (N, classes, 1, 1)."""
    if result.ndim < 2 or any(n != 1 for n in result.shape[2:]):
        raise BadInput(f"the network gives {tuple(result.shape)} for single windows; expected one place each")
    return result.flatten(1).float().cpu().numpy()
