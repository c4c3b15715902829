"""Composes the page to search: held-out digits on a held-out photograph, at known positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.comparison.digits import Digits
from onebyone.demo.data import DIGIT, WINDOW, contrasting_ink, painted, strokes, to_bytes

MAX_TRIES = 20_000


@dataclass(frozen=True)
class DigitPage:
    """`image` (H, W) uint8; `boxes` (n, 4) int64 as x1, y1, x2, y2 in pixels; `labels` (n,) the digits in them.

    The box of a digit is the WINDOW×WINDOW square around it, which is the window that the network classifies.
    `digit_ids` are the digits' rows in the data set, and `photograph` is the file name of the background.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    labels: NDArray[np.int64]
    digit_ids: NDArray[np.int64]
    photograph: str


def compose(photograph: torch.Tensor, name: str, digits: Digits, count: int, seed: int) -> DigitPage:
    """Draw `count` of `digits`, as equally distributed over the classes as possible, on `photograph` (H, W) in [0, 1].

    Positions are arbitrary pixels, not multiples of the network's stride, and boxes do not touch.
    """
    random = np.random.default_rng(seed)
    chosen = _balanced(digits.labels.numpy(), count, random)
    corners = scattered(tuple(photograph.shape), len(chosen), random)
    canvas = photograph.clone()
    depth = torch.from_numpy(random.uniform(0, 0.15, len(chosen)).astype(np.float32))
    opacity = strokes(digits.ink[chosen], WINDOW)
    for (y, x), stroke, ink_depth in zip(corners.tolist(), opacity, depth, strict=True):
        patch = canvas[None, None, y : y + WINDOW, x : x + WINDOW]
        patch.copy_(painted(patch, stroke[None], contrasting_ink(patch, ink_depth[None])))
    boxes = np.concatenate([corners[:, ::-1], corners[:, ::-1] + WINDOW], axis=1)
    return DigitPage(to_bytes(canvas), boxes, digits.labels.numpy()[chosen], digits.ids.numpy()[chosen], name)


def scattered(size: tuple[int, ...], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Random corners (count, 2) as (y, x) of squares of WINDOW pixels inside `size`, at least DIGIT/4 pixels apart.

    >>> corners = scattered((400, 400), 10, np.random.default_rng(0))
    >>> distance = np.abs(corners[:, None] - corners[None]).max(axis=2)
    >>> bool((distance[~np.eye(10, dtype=bool)] >= WINDOW).all())
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
    """`count` rows of `labels`, at random, with the classes as equally frequent as possible."""
    order = random.permutation(len(labels))
    counts: dict[int, int] = {}
    turns = []
    for row in order:
        label = int(labels[row])
        turns.append(counts.get(label, 0))
        counts[label] = turns[-1] + 1
    return order[np.argsort(turns, kind="stable")][:count]
