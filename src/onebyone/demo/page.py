"""A page to search: held-out digits laid on a held-out photograph, at places that are written down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.demo.data import DIGIT, WINDOW, Digits, contrasting_ink, painted, strokes, to_bytes

MAX_TRIES = 20_000


@dataclass(frozen=True)
class Page:
    """`image` (H, W) uint8; `boxes` (n, 4) int64 as x1, y1, x2, y2 in pixels; `labels` (n,) the digits in them.

    A digit's box is the WINDOW×WINDOW square in whose middle it was laid: what the network answers for.
    `digit_ids` are the digits' rows in the data set, `photograph` the name of the file beneath.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    labels: NDArray[np.int64]
    digit_ids: NDArray[np.int64]
    photograph: str


def compose(photograph: torch.Tensor, name: str, digits: Digits, count: int, seed: int) -> Page:
    """Lay `count` of `digits`, equally many of each class as far as they go, on `photograph` (H, W) in [0, 1].

    Places are any whole pixel, not only multiples of the network's stride, drawn so that no two boxes touch.
    """
    random = np.random.default_rng(seed)
    chosen = _balanced(digits.labels.numpy(), count, random)
    corners = scattered(tuple(photograph.shape), len(chosen), random)
    canvas = photograph.clone()
    depth = torch.from_numpy(random.uniform(0, 0.15, len(chosen)).astype(np.float32))
    opacity = strokes(digits.ink[chosen], WINDOW)
    for (y, x), stroke, deep in zip(corners.tolist(), opacity, depth, strict=True):
        patch = canvas[None, None, y : y + WINDOW, x : x + WINDOW]
        patch.copy_(painted(patch, stroke[None], contrasting_ink(patch, deep[None])))
    boxes = np.concatenate([corners[:, ::-1], corners[:, ::-1] + WINDOW], axis=1)
    return Page(to_bytes(canvas), boxes, digits.labels.numpy()[chosen], digits.ids.numpy()[chosen], name)


def scattered(size: tuple[int, ...], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Corners (count, 2) as y, x of squares of WINDOW pixels inside `size`, at least DIGIT/4 apart.

    >>> corners = scattered((400, 400), 10, np.random.default_rng(0))
    >>> apart = np.abs(corners[:, None] - corners[None]).max(axis=2)
    >>> bool((apart[~np.eye(10, dtype=bool)] >= WINDOW).all())
    True
    """
    spacing = WINDOW + DIGIT // 4
    placed = np.empty((0, 2), dtype=np.int64)
    for _ in range(MAX_TRIES):
        if len(placed) == count:
            return placed
        corner = random.integers(0, [side - WINDOW + 1 for side in size])
        if not len(placed) or np.abs(placed - corner).max(axis=1).min() >= spacing:
            placed = np.vstack([placed, corner])
    raise ValueError(f"{count} squares of {spacing} pixels do not fit on {size}")


def _balanced(labels: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Rows of `labels`, `count` of them, taking one of each class in turn."""
    order = random.permutation(len(labels))
    seen: dict[int, int] = {}
    turns = []
    for row in order:
        label = int(labels[row])
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return order[np.argsort(turns, kind="stable")][:count]
