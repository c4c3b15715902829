"""Sliding-window inference: every window of an image is cropped and run separately.

It is the reference that a dense scan is compared with, so it is as fast as this method allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onebyone.dense.checks import PixelCheck
from onebyone.dense.images import open_image
from onebyone.dense.outputs import select_output
from onebyone.dense.preprocessing import normalise, warn_of_raw_pixels
from onebyone.dense.progress import Progress, progress_reporter
from onebyone.dense.runner import floating_dtype, in_memory_order, moved_to, usable_device
from onebyone.dense.score_map import ScoreMap, resolve_kind
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.memory import reused_memory
from onebyone.pytorch.lift.exported_graph import evaluating
from onebyone.records import Labels
from onebyone.stores.placement import placement_of
from onebyone.stores.source import ImageSource, whole_region

_MAX_BATCH_PIXELS = 2**21
_BATCH_SIZES = (4, 16, 64, 256)
_TRIALS = 2  # runs of each candidate before the fastest one is used


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
    """Run a classifier on every window of an image, cropped separately.

    The image is preprocessed once, and windows are gathered in batches.

    Parameters
    ----------
    model
        (N, C, *window) -> (N, classes) or (N, classes, 1, 1), or a tuple of such.
    image, labels, device, output, page
        as for `scan`.
    geometry
        the windows.
    batch
        windows per batch. None runs the first windows in several batch sizes and memory orders, a few times each, and
        the rest in the fastest of them; nothing is computed twice.
    channels
        input channels of the network: where given, the image is checked against them, and a picture file is converted
        to grey or RGB.
    score_kind, softmax
        as for `scan`. Without them the kind of the scores is not known.
    progress
        True for a bar on stderr, or a callable of (done, total) windows.

    Raises
    ------
    BadInput
        as `scan` does, and for a network that gives more than one position for one window.
    """
    labels = labels or Labels()
    source = image
    if not isinstance(image, ImageSource):
        source = open_image(image, channels=channels, labels=labels, axes=len(geometry.window), page=page)
        warn_of_raw_pixels(labels, source)
    positions = geometry.positions(source.size)
    if batch is not None and batch < 1:
        raise BadInput(f"batch={batch}: expected a positive integer")
    if any(geometry.window_offset):
        raise BadInput(
            f"window_offset={geometry.window_offset}: windows that extend beyond the image cannot be cropped"
        )
    pixels = source.read(whole_region(source))
    check = PixelCheck(source, labels)
    check.add(pixels)
    check.finish()
    model = moved_to(model, device)
    total = prod(positions)
    start = time.perf_counter()
    with (
        reused_memory(),
        evaluating(model),
        torch.inference_mode(),
        progress_reporter(progress, total, "every window") as report,
    ):
        inputs = torch.from_numpy(normalise(pixels, labels))
        crops = _Crops(inputs.to(usable_device(device), floating_dtype(model)), geometry, positions)
        scores = _run(model, crops, _batch_trials(batch, geometry, total), output, report)
    return ScoreMap(
        scores=scores,
        geometry=geometry,
        labels=labels,
        image_size=source.size,
        seconds=time.perf_counter() - start,
        kind=resolve_kind(score_kind, softmax),
        device=str(device),
        passes=total,
        placement=placement_of(source),
        resized_from=getattr(source, "original_size", None),
        output=output,
    )


@dataclass(frozen=True)
class _Crops:
    """All windows of an image (C, H, W) in the order of the map. Batches of them are gathered on demand."""

    image: torch.Tensor
    geometry: Geometry
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return prod(self.positions)

    def batch(self, first: int, last: int, channels_last: bool) -> torch.Tensor:
        """Windows [first, last) as (N, C, *window)."""
        view = self.image
        for axis, (window, stride) in enumerate(zip(self.geometry.window, self.geometry.stride, strict=True)):
            view = view.unfold(axis + 1, window, stride)
        indices = np.unravel_index(np.arange(first, last), self.positions)
        # (C, rows, columns, h, w) indexed by pairs gives (C, N, h, w)
        index: tuple[Any, ...] = (slice(None), *(torch.from_numpy(i) for i in indices))
        return in_memory_order(view[index].transpose(0, 1), channels_last)


@dataclass
class _BatchTrials:
    """Chooses the size and memory order of each batch: every candidate a few times, then the fastest."""

    candidates: list[tuple[int, bool]]  # windows per batch, channels last
    queue: list[int] = field(default_factory=list)
    seconds_per_window: dict[int, float] = field(default_factory=dict)

    def next(self) -> int:
        """The index of the candidate to use for the next batch."""
        if self.queue:
            return self.queue.pop(0)
        return min(self.seconds_per_window, key=self.seconds_per_window.__getitem__, default=0)

    def record(self, candidate: int, seconds_per_window: float) -> None:
        """Keep the shortest time of a candidate."""
        best = self.seconds_per_window.get(candidate, seconds_per_window)
        self.seconds_per_window[candidate] = min(seconds_per_window, best)


def _batch_trials(batch: int | None, geometry: Geometry, total: int) -> _BatchTrials:
    if batch is not None:
        return _BatchTrials([(batch, True)])
    largest = max(1, _MAX_BATCH_PIXELS // prod(geometry.window))
    sizes = sorted({min(n, largest) for n in _BATCH_SIZES})
    candidates = [(n, channels_last) for n in sizes for channels_last in (True, False)]
    # the trials must remain a small part of the work
    while len(candidates) > 1 and 8 * _TRIALS * sum(n for n, _ in candidates) > total:
        candidates.pop()
    return _BatchTrials(candidates, queue=list(range(len(candidates))) * _TRIALS)


def _run(
    model: nn.Module, crops: _Crops, trials: _BatchTrials, output: int | str, report: Callable[[int], None]
) -> NDArray[np.float32]:
    scores: NDArray[np.float32] | None = None
    done = 0
    for values in _score_batches(model, crops, trials, output):
        if scores is None:
            scores = np.empty((values.shape[1], len(crops)), dtype=np.float32)
        scores[:, done : done + len(values)] = values.T
        done += len(values)
        report(done)
    assert scores is not None  # a map has at least one position
    return scores.reshape(-1, *crops.positions)


def _score_batches(
    model: nn.Module, crops: _Crops, trials: _BatchTrials, output: int | str
) -> Iterator[NDArray[np.float32]]:
    """The scores (N, classes) of consecutive batches of windows."""
    first = 0
    while first < len(crops):
        candidate = trials.next()
        size, channels_last = trials.candidates[candidate]
        last = min(first + size, len(crops))
        start = time.perf_counter()
        values = _vectors(select_output(model(crops.batch(first, last, channels_last)), output))
        trials.record(candidate, (time.perf_counter() - start) / (last - first))
        yield values
        first = last


def _vectors(result: torch.Tensor) -> NDArray[np.float32]:
    """(N, classes) from (N, classes) or (N, classes, 1, 1)."""
    if result.ndim < 2 or any(n != 1 for n in result.shape[2:]):
        raise BadInput(
            f"the network gives an output of shape {tuple(result.shape)} for single windows; "
            "expected one position each"
        )
    return result.flatten(1).float().cpu().numpy()
