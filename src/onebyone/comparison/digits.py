"""Real data for the experiments and the demo: 1,797 handwritten digits of 8×8 pixels that scikit-learn includes.

The digits are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, 1998: 8×8 counts of ink from 0 to 16. The same writer may occur among the training
digits and among the held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.errors import MissingExtra

SIDE = 8
"""Pixels per side of a digit."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits: `ink` (n, 8, 8) float32 in [0, 1], `labels` (n,) int64, `ids` (n,) rows of the data set."""

    ink: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """The digits as images of one channel, (n, 1, 8, 8)."""
        return self.ink[:, None]


@dataclass(frozen=True)
class DigitSplit:
    """Digits for training, and held-out digits for testing."""

    train: Digits
    test: Digits


def load_digits(
    seed: int = 0, held_out: int = 597, purpose: str = "this experiment on real digits"
) -> DigitSplit:
    """The 1,797 digits, split at random by `seed` with `held_out` for testing; every class is split in proportion.

    `purpose` names what needs them in the error.

    Raises
    ------
    MissingExtra
        if scikit-learn is not installed.
    """
    try:
        import sklearn.datasets
        import sklearn.model_selection
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", purpose) from error
    data = sklearn.datasets.load_digits()
    ink = torch.from_numpy(np.asarray(data.images, dtype=np.float32) / 16)
    labels = torch.from_numpy(np.asarray(data.target, dtype=np.int64))
    parts = sklearn.model_selection.train_test_split(
        np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels.numpy()
    )
    train, test = (torch.from_numpy(np.sort(part)) for part in parts)
    return DigitSplit(Digits(ink[train], labels[train], train), Digits(ink[test], labels[test], test))


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Takes (network, images, labels) and returns the value to minimise."""


def cross_entropy(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the network's logits."""
    return F.cross_entropy(network(images), labels)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    seed: int,
    rate: float = 3e-3,
    loss: Loss = cross_entropy,
) -> nn.Module:
    """Train in place by Adam with a one-cycle learning rate, on random batches of 100; returns it in eval mode.

    It runs on one thread: for such small networks several threads mostly wait for each other, and one thread
    makes the result independent of the number of threads.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3 * rate, total_steps=steps)
    network.train()
    with torch.enable_grad(), _one_thread():
        for _ in range(steps):
            batch = torch.randint(len(images), (100,), generator=generator)
            value = loss(network, images[batch], labels[batch])
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose predicted class is right; outputs (n, classes, 1, 1) count as (n, classes)."""
    return float((network(images).flatten(1).argmax(1) == labels).double().mean())
