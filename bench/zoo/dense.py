"""Convert one network to images of any size, with each context that it needs, and compare it with cropped windows.

In addition to `onebyone.verify`, two independent comparisons are made. On an image of exactly one window, the dense
form and the network compute the same sums, including padding and context, so they must agree to rounding, whatever the
geometry states. On an image a few strides larger, this module crops the windows and runs each of them.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import onebyone
from bench.zoo.outcome import NotEquivalentError, summary
from onebyone.errors import InexactWarning, Refused
from onebyone.laws.geometry import Geometry

CONTEXT = "global context"  # part of the reason of refusals that a choice of context resolves
CHOICES = ("window", "image")
#: Strides by which the image is larger than the window, by axis; they differ, so that swapped axes are detected.
LARGER = {1: (5,), 2: (1, 2), 3: (1, 1, 2)}
MAX_WINDOWS = 6


class Flat(nn.Module):
    """A network with its outputs flattened to `(N, ·)`, so that a dense form and its network can be compared."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return all outputs, flattened."""
        return tuple(t.flatten(1) for t in _leaves(self.network(x)))


def dense_step(model: nn.Module, window: tuple[int, ...], channels: int, figures: dict[str, Any]) -> None:
    """Add one record per context to `figures`; raises the error of the first (no context) if no other context helps."""
    contexts: dict[str, Any] = figures.setdefault("contexts", {})
    try:
        contexts["none"] = _one(model, window, channels, None)
        return
    except Refused as refused:
        figures["without_context"] = [r.to_dict() for r in refused.refusals]
        if not any(CONTEXT in r.reason for r in refused.refusals):
            raise
    last: Refused | None = None
    for context in CHOICES:
        try:
            contexts[context] = _one(model, window, channels, context)
        except Refused as refused:
            last = refused
            figures[f"refused_with_{context}"] = [r.to_dict() for r in refused.refusals]
    if not contexts and last is not None:
        raise last


def _one(model: nn.Module, window: tuple[int, ...], channels: int, context: str | None) -> dict[str, Any]:
    start = time.perf_counter()
    with warnings.catch_warnings():  # the deviation is measured below
        warnings.simplefilter("ignore", InexactWarning)
        dense = onebyone.convolutionalize(model, window, channels, context=context)
    record: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 3), "layers": len(dense.changes)}
    geometry = dense.geometry
    record["geometry"] = {**geometry.to_dict(), "inexact_because": geometry.inexact_because[:1]}
    record["reasons_for_inexactness"] = len(geometry.inexact_because)
    record["exact"] = geometry.exact
    generator = torch.Generator().manual_seed(3)
    crop = picture(channels, window, window, generator)
    alone = onebyone.verify(Flat(model).eval(), Flat(dense.model).eval(), crop, gradients=False)
    record["one_window"] = summary(alone)
    if not alone.equivalent:
        raise NotEquivalentError(f"context {context}, one window: " + "; ".join(alone.problems[:3]))
    steps = LARGER[len(window)]
    sizes = [w + s * k + s // 2 for w, s, k in zip(window, geometry.stride, steps, strict=True)]
    image = picture(channels, sizes, window, generator)
    record["crops"] = against_crops(model, dense.model, geometry, image)
    proof = onebyone.verify(model, dense, image, max_windows=MAX_WINDOWS, gradients=False, min_agreement=0)
    record["verification"] = summary(proof) | {"target": proof.target, "windows": proof.windows}
    record["verification"] |= {"max_abs_difference": proof.max_abs_difference, "bound": proof.bound}
    if not proof.equivalent:
        raise NotEquivalentError(f"context {context}: " + "; ".join(proof.problems[:3]))
    return record


def picture(channels: int, sizes: Sequence[int], window: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return an image of patches of a third of a window plus noise, so that windows differ by more than noise."""
    cells = (max(2, w // 3) for w in window)
    coarse = torch.randn(
        1, channels, *(-(-n // cell) for n, cell in zip(sizes, cells, strict=True)), generator=generator
    )
    fine = torch.randn(1, channels, *sizes, generator=generator)
    return 2.0 * nn.functional.interpolate(coarse, size=tuple(sizes)) + 0.5 * fine


@torch.no_grad()
def against_crops(model: nn.Module, dense: nn.Module, geometry: Geometry, image: Tensor) -> dict[str, Any]:
    """Crop every window of `image`, run it alone, and compare it with its position in the dense output.

    Returns `max_abs_difference`; `relative_to_spread`, the same relative to the standard deviation of the outputs of
    all crops; `relative_to_variation`, the root mean square difference relative to the root mean square variation of
    the outputs between windows; and `class_agreement`, the share of windows whose largest output is the same.
    """
    outputs = _leaves(dense(image))
    positions = [
        (n - w) // s + 1 for n, w, s in zip(image.shape[2:], geometry.window, geometry.stride, strict=True)
    ]
    if any(list(t.shape[2 - len(positions) + t.ndim - 2 :]) != positions for t in outputs):
        shapes = [tuple(t.shape) for t in outputs]
        raise NotEquivalentError(f"outputs of shapes {shapes}; expected {positions} positions")
    expected, actual = [], []
    for position in itertools.product(*map(range, positions)):
        window = [
            slice(i * s, i * s + w)
            for i, s, w in zip(position, geometry.stride, geometry.window, strict=True)
        ]
        expected.append(torch.cat([t.flatten() for t in _leaves(model(image[(..., *window)]))]))
        actual.append(torch.cat([t[(..., *position)].flatten() for t in outputs]))
    return _compared(torch.stack(expected).double(), torch.stack(actual).double())


def _compared(expected: Tensor, actual: Tensor) -> dict[str, Any]:
    difference = float((expected - actual).abs().max())
    spread = float(expected.std())
    variation = float((expected - expected.mean(0)).square().mean().sqrt())
    deviation = float((expected - actual).square().mean().sqrt())
    agree = (expected.argmax(1) == actual.argmax(1)).double().mean()
    return {
        "windows": len(expected),
        "max_abs_difference": float(f"{difference:.4g}"),
        "relative_to_spread": float(f"{difference / spread:.4g}") if spread else None,
        "relative_to_variation": float(f"{deviation / variation:.4g}") if variation else None,
        "class_agreement": round(float(agree), 4),
    }


def _leaves(value: Any) -> Sequence[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
