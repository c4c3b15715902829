"""Inputs of the accuracy check: the example, others of its shapes, and inputs with a few large numbers (outliers).

Trained transformers have tokens and channels that are some thousand times as large as others, and a batch may contain
samples of any scale. An engine that computes rows together must not let large rows make small ones inaccurate. A row
is a sample of an input (N, C), a token of (N, T, C), or a position of (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from onebyone.tuning.call_signature import CallSignature

TOKEN_FACTORS = (1e4, 1e6)
CHANNEL_FACTOR = 1e4
SAMPLE_FACTOR = 255.0
DECADES = 3.0
"""Rows of very different sizes are scaled by 10^-DECADES to 10^DECADES."""
Change = Callable[[Tensor], Tensor]


def shuffled(signature: CallSignature, seed: int) -> CallSignature | None:
    """Return the example with the values of its floating-point tensors permuted; None if it has no such tensor."""
    generator = torch.Generator().manual_seed(seed)

    def permuted(t: Tensor) -> Tensor:
        order = torch.randperm(t.numel(), generator=generator).to(t.device)
        return t.flatten()[order].reshape(t.shape)

    return _changed(signature, permuted, min_axes=0)


def other_batch(signature: CallSignature) -> CallSignature | None:
    """Return the example repeated two and a half times along the batch; None unless the batch is dynamic."""
    if not signature.dynamic_batch:
        return None
    return signature.mapped(lambda t: torch.cat([t, t, t[: (t.shape[0] + 1) // 2]]))


def with_outliers(signature: CallSignature, seed: int) -> Iterator[tuple[CallSignature, ...]]:
    """Yield tuples of inputs with outliers; of each tuple, use the first on which the network's outputs are finite."""
    for choices in (
        (_large_rows(TOKEN_FACTORS), _large_rows(TOKEN_FACTORS[:1])),
        (_large_channels,),
        (_uneven_rows(seed),),
    ):
        changed = [s for change in choices if (s := _changed(signature, change, min_axes=2)) is not None]
        if changed:
            yield tuple(changed)


def perturbed(signature: CallSignature, u: float, seed: int) -> CallSignature | None:
    """Return the example with each number moved up or down by 2u of itself, as rounding would move it."""
    generator = torch.Generator().manual_seed(seed)

    def moved(t: Tensor) -> Tensor:
        signs = torch.randint(0, 2, t.shape, generator=generator).to(t.device) * 2 - 1
        return t * (1 + 2 * u * signs)

    return _changed(signature, moved, min_axes=0)


def _changed(signature: CallSignature, change: Change, min_axes: int) -> CallSignature | None:
    """Apply a change to the floating-point tensors with at least `min_axes` axes; None if there is none."""

    def applies(t: Tensor) -> bool:
        return t.is_floating_point() and t.dim() >= min_axes and t.numel() > 0

    if not any(applies(t) for t in signature.tensors):
        return None
    return signature.mapped(lambda t: change(t) if applies(t) else t)


def _rows(t: Tensor) -> Tensor:
    """Return a view (N, …, C) whose last axis is a row."""
    return t.movedim(1, -1) if t.dim() > 3 else t


def _large_rows(factors: tuple[float, ...]) -> Change:
    """Multiply evenly spaced rows of the first sample by these factors, and the last sample by SAMPLE_FACTOR."""

    def change(t: Tensor) -> Tensor:
        changed = t.clone()
        rows = _rows(changed)
        if t.dim() > 2:
            first = rows[0].flatten(0, -2)  # a copy if the rows are not contiguous
            for i, factor in enumerate(factors, 1):
                first[i * len(first) // (len(factors) + 1)] *= factor
            rows[0] = first.view(rows[0].shape)
        else:
            rows[0] *= factors[-1]
        if len(t) > 1:
            rows[-1] *= SAMPLE_FACTOR
        return changed

    return change


def _large_channels(t: Tensor) -> Tensor:
    changed = t.clone()
    _rows(changed)[..., : (_rows(t).shape[-1] + 1) // 2] *= CHANNEL_FACTOR
    return changed


def _uneven_rows(seed: int) -> Change:
    """Multiply each row by its own random power of ten."""

    def change(t: Tensor) -> Tensor:
        changed = t.clone()
        rows = _rows(changed)
        generator = torch.Generator().manual_seed(seed)
        powers = 2 * torch.rand(rows.shape[:-1], generator=generator) - 1
        rows *= 10 ** (DECADES * powers.to(t.device, t.dtype))[..., None]
        return changed

    return change
