"""Inputs on which candidates are judged: the example, others of its shapes, and such in which a few numbers are large.

Trained transformers have tokens and channels that are some thousand times as large as others, and a batch may hold
samples of any scale; an engine that computes rows together must not let them spoil each other. A row is a sample of an
input (N, C), a token of (N, T, C), a position of (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from onebyone.tuning.call_signature import Calling

TOKENS, CHANNELS, SAMPLE, DECADES = (1e4, 1e6), 1e4, 255.0, 3.0
Change = Callable[[Tensor], Tensor]


def shuffled(calling: Calling, seed: int) -> Calling | None:
    """The example with the values of its floating tensors in another order; None where it has none."""
    generator = torch.Generator().manual_seed(seed)

    def reordered(t: Tensor) -> Tensor:
        order = torch.randperm(t.numel(), generator=generator).to(t.device)
        return t.flatten()[order].reshape(t.shape)

    return _changed(calling, reordered, least_axes=0)


def other_batch(calling: Calling) -> Calling | None:
    """The example twice and a half, where any batch is to be taken."""
    if not calling.free_batch:
        return None
    return calling.mapped(lambda t: torch.cat([t, t, t[: (t.shape[0] + 1) // 2]]))


def with_outliers(calling: Calling, seed: int) -> Iterator[tuple[Calling, ...]]:
    """Inputs with a few large numbers. Of each tuple the first on which the network gives finite numbers is meant."""
    for choices in (
        (_large_rows(TOKENS), _large_rows(TOKENS[:1])),
        (_large_channels,),
        (_uneven_rows(seed),),
    ):
        found = [c for change in choices if (c := _changed(calling, change, least_axes=2)) is not None]
        if found:
            yield tuple(found)


def nudged(calling: Calling, u: float, seed: int) -> Calling | None:
    """Each number of the example moved by u of itself, up or down: what rounding it would do."""
    generator = torch.Generator().manual_seed(seed)

    def moved(t: Tensor) -> Tensor:
        signs = torch.randint(0, 2, t.shape, generator=generator).to(t.device) * 2 - 1
        return t * (1 + 2 * u * signs)

    return _changed(calling, moved, least_axes=0)


def _changed(calling: Calling, change: Change, least_axes: int) -> Calling | None:
    """The call with its floating tensors of so many axes changed; None where it has none."""

    def fits(t: Tensor) -> bool:
        return t.is_floating_point() and t.dim() >= least_axes and t.numel() > 0

    if not any(fits(t) for t in calling.tensors):
        return None
    return calling.mapped(lambda t: change(t) if fits(t) else t)


def _rows(t: Tensor) -> Tensor:
    """A view (N, …, C) of which each last axis is a row."""
    return t.movedim(1, -1) if t.dim() > 3 else t


def _large_rows(factors: tuple[float, ...]) -> Change:
    """Rows of the first sample times these, and the last sample times 255."""

    def change(t: Tensor) -> Tensor:
        made = t.clone()
        rows = _rows(made)
        if t.dim() > 2:
            first = rows[0].flatten(0, -2)  # a copy where the rows do not lie one after another
            for i, factor in enumerate(factors, 1):
                first[i * len(first) // (len(factors) + 1)] *= factor
            rows[0] = first.view(rows[0].shape)
        else:
            rows[0] *= factors[-1]
        if len(t) > 1:
            rows[-1] *= SAMPLE
        return made

    return change


def _large_channels(t: Tensor) -> Tensor:
    made = t.clone()
    _rows(made)[..., : (_rows(t).shape[-1] + 1) // 2] *= CHANNELS
    return made


def _uneven_rows(seed: int) -> Change:
    """Each row times a power of ten of its own."""

    def change(t: Tensor) -> Tensor:
        made = t.clone()
        rows = _rows(made)
        generator = torch.Generator().manual_seed(seed)
        powers = 2 * torch.rand(rows.shape[:-1], generator=generator) - 1
        rows *= 10 ** (DECADES * powers.to(t.device, t.dtype))[..., None]
        return made

    return change
