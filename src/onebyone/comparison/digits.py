"""Real data that comes with scikit-learn: 1,797 handwritten digits of 8×8 pixels; training on them in a second.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.errors import MissingExtra

SIDE = 8


class DigitSplit(NamedTuple):
    """Images (n, 1, 8, 8) float32 in [0, 1] and labels (n,), for training and held out."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0, held_out: int = 597) -> DigitSplit:
    """The digits, split at random by `seed`.

    Raises
    ------
    MissingExtra
        if scikit-learn is not installed.
    """
    try:
        import sklearn.datasets
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", "this experiment on real digits") from error
    data = sklearn.datasets.load_digits()
    images = torch.from_numpy(np.asarray(data.images, dtype=np.float32) / 16)[:, None]
    labels = torch.from_numpy(np.asarray(data.target, dtype=np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[:held_out], order[held_out:]
    return DigitSplit(images[train], labels[train], images[test], labels[test])


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, images, labels) -> what is to become small."""


def cross_entropy(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of the network's answers."""
    return F.cross_entropy(network(images), labels)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    """Adam with a one-cycle rate on random batches of 100, in place; gives the network in eval mode.

    On one thread: the networks are so small that two only wait for each other, and on a busy machine for long;
    and the same seed then gives the same network whatever the number of threads.
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
    """The share of images whose best class is right; (n, classes, 1, 1) counts as (n, classes)."""
    return float((network(images).flatten(1).argmax(1) == labels).double().mean())
