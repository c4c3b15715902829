"""Crop windows from an image, run a network on them, and compare the outputs with an any-size network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebyone.records import first_line
from onebyone.verification.error_rules import NoRuleError
from onebyone.verification.layer_checks import worst
from onebyone.verification.pytree import leaves, wide
from onebyone.verification.running_error import RunningError

#: Pixel values per batch of windows, such that the activations of a large network take a few hundred MiB.
_BATCH_VALUES = 2**21


@dataclass(frozen=True)
class WindowPositions:
    """Windows of a batch of images, by their output positions.

    `index` holds one row `(sample, i, j, …)` for each window; `total` is the number of windows that the images have.
    """

    index: Tensor
    window: tuple[int, ...]
    stride: tuple[int, ...]
    total: int

    def __len__(self) -> int:
        return len(self.index)

    def crops(self, image: Tensor, rows: slice) -> Tensor:
        """The windows at some rows of `index`, cropped from images `(N, C, H, W)`: `(rows, C, *window)`."""
        crops = []
        for sample, *position in self.index[rows].tolist():
            area = tuple(
                slice(i * s, i * s + n) for i, s, n in zip(position, self.stride, self.window, strict=True)
            )
            crops.append(image[(sample, slice(None), *area)])
        return torch.stack(crops)

    def pick(self, dense: Tensor) -> Tensor:
        """The values of an output `(N, K, H', W')` at these positions: `(rows, K)`."""
        channels_last = dense.movedim(1, -1)
        return channels_last[tuple(self.index.to(dense.device).unbind(1))]

    def sample(self, limit: int) -> WindowPositions:
        """At most `limit` of these windows, evenly spread."""
        # float32 has no odd numbers above 2^24, and rounds the last row to one that does not exist
        rows = torch.linspace(0, len(self) - 1, min(limit, len(self)), dtype=torch.float64).round().long()
        return WindowPositions(
            self.index[torch.unique_consecutive(rows)], self.window, self.stride, self.total
        )


def all_windows(
    counts: Sequence[int], samples: int, window: Sequence[int], stride: Sequence[int]
) -> WindowPositions:
    """Every window of `samples` images with `counts` positions per axis.

    >>> all_windows((1, 2), 1, (4, 4), (2, 2)).index.tolist()
    [[0, 0, 0], [0, 0, 1]]
    """
    index = torch.cartesian_prod(*(torch.arange(n) for n in (samples, *counts)))
    return WindowPositions(index, tuple(window), tuple(stride), len(index))


def mosaic(x: Tensor, size: Sequence[int]) -> Tensor:
    """A larger image `(N, C, *size)` made of x and its mirror images."""
    for axis, n in enumerate(size, 2):
        parts = [x]
        while sum(p.shape[axis] for p in parts) < n:
            parts.append(parts[-1].flip(axis))
        x = torch.cat(parts, axis).narrow(axis, 0, n)
    return x.contiguous()


def rows_of(outputs: Any) -> list[Tensor]:
    """A network's outputs for a batch of B windows, each as `(B, K)`; K is 1 if the network drops the class axis."""
    return [_row(t) for _, t in leaves(outputs)]


def _row(t: Tensor) -> Tensor:
    return t.reshape(len(t), -1)


def batch_size(windows: WindowPositions, channels: int, fixed: int | None) -> int:
    """Windows per batch; `fixed` if the network accepts no other number."""
    return fixed or max(1, min(len(windows), 64, _BATCH_VALUES // (channels * math.prod(windows.window))))


def run_on_windows(
    run: Callable[[Tensor], list[Tensor]],
    image: Tensor,
    windows: WindowPositions,
    batch: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[Tensor]:
    """Call `run` on all windows in batches of one size (the last one is filled up) and concatenate its outputs."""
    outputs: list[list[Tensor]] = []
    for start, rows in _batches(len(windows), batch):
        crops = windows.crops(image, rows)
        count = len(crops)
        if count < batch:
            crops = torch.cat([crops, crops[-1:].expand(batch - count, *crops.shape[1:])])
        outputs.append([t[:count] for t in run(crops)])
        report(start + count)
    return [torch.cat(column) for column in zip(*outputs, strict=True)]


def _batches(count: int, batch: int) -> Iterator[tuple[int, slice]]:
    for start in range(0, count, batch):
        yield start, slice(start, start + batch)


@dataclass(frozen=True)
class OutputBounds:
    """For each output, how far any-size and cropped outputs may differ, `(rows, K)`; `missing` says why not known."""

    bounds: list[Tensor]
    missing: str = ""


class DifferenceBounds:
    """Derived bounds on the difference between an any-size network's outputs and those of cropped windows.

    A running error bound says how far a computed output is from exact arithmetic. The original is analysed on the
    windows and the any-size network on the whole image, each through its own operators, and the two bounds are added.
    Both networks are exported once; `missing` says why if that is impossible.
    """

    def __init__(self, network: Any, dense: Any, image: Tensor, windows: WindowPositions, batch: int) -> None:
        self.missing, self.batch = "", batch
        example = windows.crops(image, slice(1)).expand(batch, *(-1,) * (image.dim() - 1)).contiguous()
        try:
            self.original = _analysis(network, example)
            self.dense = _analysis(dense, image)
        except NoRuleError as reason:
            self.missing = first_line(reason)

    def __call__(self, image: Tensor, windows: WindowPositions) -> OutputBounds:
        """The bounds for an image in float32 or float64."""
        if self.missing:
            return OutputBounds([], self.missing)
        try:
            crops = run_on_windows(
                lambda x: [_row(e) for _, e in self.original(x)], image, windows, self.batch
            )
            dense = [windows.pick(e) for _, e in self.dense(image)]
        except NoRuleError as reason:
            return OutputBounds([], first_line(reason))
        # In exact arithmetic the two outputs are equal, because the geometry is exact. The addition rounds once more.
        return OutputBounds([(wide(a) + wide(b)) * (1 + 2.0**-50) for a, b in zip(crops, dense, strict=True)])


def _analysis(network: Any, example: Tensor) -> Callable[[Tensor], list[tuple[Tensor, Tensor]]]:
    """The running error analysis of a PyTorch network or an ONNX model."""
    own: Callable[[Tensor], list[tuple[Tensor, Tensor]]] | None = getattr(network, "running_error", None)
    return RunningError(network, example) if own is None else own


@dataclass(frozen=True)
class Differences:
    """How any-size outputs differ from those of cropped windows, over all outputs.

    `largest` and `mean` are of |dense − crops|; `spread` is the standard deviation of the crops' outputs; `agreement`
    the share of windows with the same best class (None if there is only one class); `bound` the largest elementwise
    bound and `ratio` the largest difference ÷ its bound (None without bounds).
    """

    largest: float
    mean: float
    spread: float
    agreement: float | None
    bound: float | None
    ratio: float | None


def compare_rows(dense: list[Tensor], crops: list[Tensor], bounds: list[Tensor]) -> Differences:
    """Compare outputs `(rows, K)`, all of them together. The class agreement is that of the first output."""
    differences = [wide(a) - wide(b) for a, b in zip(dense, crops, strict=True)]
    sizes = torch.cat([d.abs().flatten() for d in differences])
    values = torch.cat([wide(c).flatten() for c in crops])
    agreement = None
    if crops[0].shape[1] > 1:
        agreement = float((wide(dense[0]).argmax(1) == wide(crops[0]).argmax(1)).double().mean())
    bound = ratio = None
    if bounds:
        if [b.shape for b in bounds] != [d.shape for d in differences]:
            raise ValueError("each output needs bounds of its own shape")
        ratio = max(worst(d, b)[1] for d, b in zip(differences, bounds, strict=True))
        bound = max(float(b.max()) for b in bounds)
    finite = bool(torch.isfinite(sizes).all())
    return Differences(
        float(sizes.max()) if finite else math.inf,
        float(sizes.mean()) if finite else math.inf,
        float(values.std()) if len(values) > 1 else 0.0,
        agreement,
        bound,
        ratio,
    )
