"""Cutting windows out of an image, running a network on them, and comparing with a dense output place by place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebyone.records import first_line
from onebyone.verification.error_rules import NoRuleError
from onebyone.verification.layers import worst
from onebyone.verification.pytree import leaves, wide
from onebyone.verification.running_error import RunningError

# values per batch of windows: activations of a few hundred MiB for a large network
_BATCH_VALUES = 2**21


@dataclass(frozen=True)
class Places:
    """Which windows are compared: rows of (sample, i, j, …)."""

    where: Tensor
    window: tuple[int, ...]
    stride: tuple[int, ...]
    of: int
    """How many there are in all."""

    def __len__(self) -> int:
        return len(self.where)

    def crops(self, image: Tensor, rows: slice) -> Tensor:
        """The windows of some rows, `(rows, C, *window)`."""
        cut = []
        for sample, *place in self.where[rows].tolist():
            at = tuple(
                slice(i * s, i * s + n) for i, s, n in zip(place, self.stride, self.window, strict=True)
            )
            cut.append(image[(sample, slice(None), *at)])
        return torch.stack(cut)

    def pick(self, dense: Tensor) -> Tensor:
        """The dense output `(N, K, H', W')` at these places, `(rows, K)`."""
        last = dense.movedim(1, -1)
        return last[tuple(self.where.to(dense.device).unbind(1))]

    def sample(self, limit: int) -> Places:
        """At most `limit` of these places, evenly spread."""
        keep = torch.linspace(0, len(self) - 1, min(limit, len(self))).round().long()
        keep = torch.unique_consecutive(keep)
        return Places(self.where[keep], self.window, self.stride, self.of)


def places(counts: Sequence[int], samples: int, window: Sequence[int], stride: Sequence[int]) -> Places:
    """Every window of `samples` images with `counts` places per axis."""
    axes = [torch.arange(n) for n in (samples, *counts)]
    where = torch.cartesian_prod(*axes)
    return Places(where, tuple(window), tuple(stride), len(where))


def mosaic(x: Tensor, size: Sequence[int]) -> Tensor:
    """A larger image out of x and its mirror images, cut to `size`."""
    for axis, n in enumerate(size, 2):
        parts = [x]
        while sum(p.shape[axis] for p in parts) < n:
            parts.append(parts[-1].flip(axis))
        x = torch.cat(parts, axis).narrow(axis, 0, n)
    return x.contiguous()


def rows_of(outputs: Any) -> list[Tensor]:
    """A network's outputs for a batch of windows, each as `(B, K)`."""
    return [_row(t) for _, t in leaves(outputs)]


def _row(t: Tensor) -> Tensor:
    """One row for each window; one number where a network drops the axis of its only class."""
    return t.reshape(len(t), -1)


def batch_size(at: Places, channels: int, fixed: int | None) -> int:
    """Windows per batch; `fixed` where the network takes no other number."""
    return fixed or max(1, min(len(at), 64, _BATCH_VALUES // (channels * math.prod(at.window))))


def on_windows(
    run: Callable[[Tensor], list[Tensor]],
    image: Tensor,
    at: Places,
    batch: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[Tensor]:
    """`run` over all windows in batches of one size (the last one filled up), its outputs joined."""
    found: list[list[Tensor]] = []
    for start, rows in _batches(len(at), batch):
        crops = at.crops(image, rows)
        have = len(crops)
        if have < batch:
            crops = torch.cat([crops, crops[-1:].expand(batch - have, *crops.shape[1:])])
        found.append([t[:have] for t in run(crops)])
        report(start + have)
    return [torch.cat(column) for column in zip(*found, strict=True)]


def _batches(count: int, batch: int) -> Iterator[tuple[int, slice]]:
    for start in range(0, count, batch):
        yield start, slice(start, start + batch)


@dataclass(frozen=True)
class Bounds:
    """For each output, how far dense and crops may differ, `(rows, K)`; or why that is not known."""

    total: list[Tensor]
    missing: str = ""


class Walkers:
    """Running error bounds of both sides, added: each is that far from exact arithmetic at most.

    The two sides are walked separately, each through its own operators: the original on the windows, the dense
    network on the whole image. Exported once; `missing` says why where that cannot be done.
    """

    def __init__(self, network: Any, dense: Any, image: Tensor, at: Places, batch: int) -> None:
        self.missing, self.batch = "", batch
        example = at.crops(image, slice(0, 1)).expand(batch, *(-1,) * (image.dim() - 1)).contiguous()
        try:
            self.original = RunningError(network, example)
            self.dense = RunningError(dense, image)
        except NoRuleError as reason:
            self.missing = first_line(reason)

    def __call__(self, image: Tensor, at: Places) -> Bounds:
        """The bounds for an image in float32 or float64."""
        if self.missing:
            return Bounds([], self.missing)
        try:
            crops = on_windows(lambda x: [_row(e) for _, e in self.original(x)], image, at, self.batch)
            whole = [at.pick(e) for _, e in self.dense(image)]
        except NoRuleError as reason:
            return Bounds([], first_line(reason))
        # the two exact values are one number where the geometry is exact; adding rounds once more
        return Bounds([(wide(a) + wide(b)) * (1 + 2.0**-50) for a, b in zip(crops, whole, strict=True)])


@dataclass(frozen=True)
class Figures:
    """Largest and mean |dense − crops|, and the largest ÷ its bound (None without)."""

    largest: float
    mean: float
    spread: float
    agreement: float | None
    bound: float | None = None
    ratio: float | None = None


def compare_rows(dense: list[Tensor], crops: list[Tensor], bounds: list[Tensor]) -> Figures:
    """All outputs together; class agreement of the first one, where it has more than one class."""
    difference = [wide(a) - wide(b) for a, b in zip(dense, crops, strict=True)]
    sizes = torch.cat([d.abs().flatten() for d in difference])
    values = torch.cat([wide(c).flatten() for c in crops])
    agreement = None
    if crops[0].shape[1] > 1:
        agreement = float((wide(dense[0]).argmax(1) == wide(crops[0]).argmax(1)).double().mean())
    bound = ratio = None
    if bounds:
        ratio = max(worst(d, b)[1] for d, b in zip(difference, bounds, strict=True))
        bound = max(float(b.max()) for b in bounds)
    finite = bool(torch.isfinite(sizes).all())
    return Figures(
        float(sizes.max()) if finite else math.inf,
        float(sizes.mean()) if finite else math.inf,
        float(values.std()) if len(values) > 1 else 0.0,
        agreement,
        bound,
        ratio,
    )
