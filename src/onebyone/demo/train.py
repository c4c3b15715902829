"""Training on digits in the middle of a window, against photographs and digits that are off the middle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from onebyone.comparison.digits import Digits
from onebyone.demo.data import (
    BACKGROUND,
    DIGIT,
    WINDOW,
    contrasting_ink,
    painted,
    resized,
    strokes,
    to_bytes,
)

STEPS = 900
BATCH = 256
RATE = 1e-2
NEAR = 3.0
"""A digit at most this many pixels off the middle has its own class ..."""
FAR = 7.0
"""... and one at least this many pixels off, along either axis, is background. Distances between are not trained on."""
ZOOMS = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5)
"""Scales of the photographs, so that textures of many sizes occur."""
MAX_HARD = 8000
HARD_SCORE = 0.1
"""A window of a photograph without digits is hard if some digit has a larger probability."""

Search = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Scans an image (H, W) of bytes and returns probabilities (11, H', W')."""


@dataclass
class Crops:
    """Background crops (n, 1, WINDOW, WINDOW) in [0, 1], and hard ones (m, ...) that a search found."""

    plain: torch.Tensor
    hard: torch.Tensor = field(default_factory=lambda: torch.empty(0, 1, WINDOW, WINDOW))


def background_crops(photographs: list[torch.Tensor], count: int, seed: int) -> torch.Tensor:
    """Random crops (count, 1, WINDOW, WINDOW) of photographs, at several scales."""
    random = np.random.default_rng(seed)
    share = math.ceil(count / (len(photographs) * len(ZOOMS)))
    crops = []
    for photograph in photographs:
        for zoom in ZOOMS:
            image = resized(photograph, zoom)
            ys, xs = (random.integers(0, side - WINDOW + 1, share) for side in image.shape)
            crops += [image[y : y + WINDOW, x : x + WINDOW] for y, x in zip(ys, xs, strict=True)]
    return torch.stack(crops)[torch.from_numpy(random.permutation(len(crops))[:count])][:, None]


class Batches:
    """Random training batches, drawn with one generator."""

    def __init__(self, digits: Digits, crops: Crops, seed: int) -> None:
        self.digits, self.crops = digits, crops
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (BATCH, 1, WINDOW, WINDOW) in [0, 1] and labels (BATCH,).

        Half of them are digits in the middle, a quarter digits off the middle, a quarter without a digit.
        """
        half, quarter = BATCH // 2, BATCH // 4
        near, labels = self._with_digits(half, self._uniform((half, 2), -NEAR, NEAR))
        far, _ = self._with_digits(quarter, self._far_shifts(quarter))
        empty = self._augmented(self._background(BATCH - half - quarter, hard=0.6))
        images = torch.cat([near, far, empty])
        images = (images + 0.02 * torch.randn(images.shape, generator=self.generator)).clamp(0, 1)
        return images, torch.cat([labels, torch.full((BATCH - half,), BACKGROUND)])

    def _with_digits(self, count: int, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Digits shifted by `shift` (count, 2) pixels from the middle, slightly rotated and scaled."""
        rows = torch.randint(len(self.digits), (count,), generator=self.generator)
        warp = torch.eye(2) * self._uniform((count, 1, 1), 0.92, 1.1)
        warp = warp + self._uniform((count, 2, 2), -0.12, 0.12)
        transform = torch.cat([warp * (WINDOW / DIGIT), -shift[:, :, None] * (2 / DIGIT)], dim=2)
        opacity = strokes(self.digits.ink[rows], WINDOW, transform) * self._uniform(
            (count, 1, 1, 1), 0.85, 1.0
        )
        background = self._augmented(self._background(count, hard=0.2))
        ink = contrasting_ink(background, self._uniform((count,), 0, 0.2))
        return painted(background, opacity, ink), self.digits.labels[rows]

    def _far_shifts(self, count: int) -> torch.Tensor:
        """Shifts (count, 2) of at least FAR pixels along one axis and any number along the other."""
        reach = WINDOW * 0.8
        side = torch.randint(2, (count, 1), generator=self.generator) * 2 - 1
        # nearer shifts are harder, and the square makes them more frequent
        far = side * (FAR + (reach - FAR) * self._uniform((count, 1), 0, 1) ** 2)
        along = torch.cat([far, self._uniform((count, 1), -reach / 2, reach / 2)], dim=1)
        axis = torch.randint(2, (count, 1), generator=self.generator)
        return torch.where(axis == 0, along, along.flip(1))

    def _background(self, count: int, hard: float) -> torch.Tensor:
        """Crops without a digit; a share `hard` of them are hard ones, if there are any."""
        crops = self.crops.plain[self._rows(len(self.crops.plain), count)]
        if not len(self.crops.hard):
            return crops
        hard_crops = self.crops.hard[self._rows(len(self.crops.hard), count)]
        return torch.where(self._uniform((count, 1, 1, 1), 0, 1) < hard, hard_crops, crops)

    def _augmented(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops with random contrast and brightness, half of them mirrored, and one in eight made uniform."""
        count = len(crops)
        crops = torch.where(self._uniform((count, 1, 1, 1), 0, 1) < 0.5, crops.flip(3), crops)
        gain, paper = self._uniform((2, count, 1, 1, 1), 0, 1)
        mean = crops.mean(dim=(1, 2, 3), keepdim=True)
        crops = mean + (crops - mean) * torch.where(paper < 0.125, 0.0, 0.6 + 0.6 * gain)
        return (crops + self._uniform((count, 1, 1, 1), -0.15, 0.15)).clamp(0, 1)

    def _rows(self, size: int, count: int) -> torch.Tensor:
        return torch.randint(size, (count,), generator=self.generator)

    def _uniform(self, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)


def train(
    network: nn.Module,
    batches: Batches,
    search: Callable[[int], torch.Tensor],
    on_step: Callable[[int, int], object],
    steps: int = STEPS,
) -> list[float]:
    """Train by AdamW with a one-cycle learning rate for `steps` batches; returns the loss of each batch.

    `on_step(done, steps)` reports progress. After a third and two thirds of the steps, `search(round)` returns windows
    (m, 1, WINDOW, WINDOW) that the network currently mistakes for digits; they are added to the hard background crops.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.2)
    losses = []
    for step in range(steps):
        if step in (steps // 3, 2 * steps // 3):
            network.eval()
            batches.crops.hard = torch.cat([batches.crops.hard, search(3 * step // steps)])
        network.train()
        images, labels = batches.draw()
        loss = F.cross_entropy(network(normalised(images)), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        on_step(step + 1, steps)
    network.eval()
    return losses


def hard_crops(photographs: list[torch.Tensor], search: Search, stride: int, seed: int) -> torch.Tensor:
    """Windows (m, 1, WINDOW, WINDOW) of photographs without digits in which `search` detects a digit.

    The dense detector is thus used in its own training. Of each photograph, a part of about half a million pixels is
    searched, at a random scale.
    """
    random = np.random.default_rng(seed)
    windows = []
    for photograph in photographs:
        image = to_bytes(_part(resized(photograph, random.uniform(0.6, 2.6)), random))
        digits = search(image)[:BACKGROUND].max(axis=0)
        for y, x in np.argwhere(digits > HARD_SCORE) * stride:
            windows.append(image[y : y + WINDOW, x : x + WINDOW])
    chosen = random.permutation(len(windows))[:MAX_HARD]
    crops = np.stack([windows[i] for i in chosen]) if len(chosen) else np.empty((0, WINDOW, WINDOW), np.uint8)
    return torch.from_numpy(crops).float()[:, None] / 255


def _part(image: torch.Tensor, random: np.random.Generator, side: int = 720) -> torch.Tensor:
    y, x = (int(random.integers(0, max(1, n - side + 1))) for n in image.shape)
    return image[y : y + side, x : x + side]


def normalised(image: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] as the network's input: (v − 0.5) / 0.5."""
    return (image - 0.5) / 0.5


@torch.inference_mode()
def accuracy(network: nn.Module, digits: Digits, background: torch.Tensor) -> float:
    """The share of `digits`, each in the middle of a window, for which the predicted class of all eleven is right.

    They are drawn on `background`, (n, 1, WINDOW, WINDOW) or (1, ...) in [0, 1].
    """
    background = background.expand(len(digits), 1, WINDOW, WINDOW)
    ink = contrasting_ink(background, torch.full((len(digits),), 0.1))
    images = painted(background, strokes(digits.ink, WINDOW), ink)
    return float((network(normalised(images)).argmax(1) == digits.labels).double().mean())
