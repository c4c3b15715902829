"""S5: what width buys a pooled 1×1 head and a flattened FC head, on real digits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from onebyone.compare.digits import SIDE, Digits, accuracy, load_digits, train
from onebyone.compare.row import Figures, Verdict, holds, holds_when, not_as_said
from onebyone.pytorch.convolutionalize import convolutionalize

WIDTHS = (4, 8, 16, 32, 64)
STEPS = 300
CHANNELS, PLACES = 8, (SIDE - 4) ** 2  # of the map that the heads read


def classifier(head: str, width: int, seed: int) -> nn.Sequential:
    """A small trunk and a head, (N, 1, 8, 8) to (N, 10): "pooled" (1×1 convolution, mean, 1×1) or "flattened"
    (two fully connected layers)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = [nn.Conv2d(1, CHANNELS, 3), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3), nn.ReLU()]
        if head == "pooled":
            top = [nn.Conv2d(CHANNELS, width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
            return nn.Sequential(*trunk, *top, nn.Conv2d(width, 10, 1), nn.Flatten())
        first = nn.Linear(CHANNELS * PLACES, width)
        return nn.Sequential(*trunk, nn.Flatten(), first, nn.ReLU(), nn.Linear(width, 10))


def head_parameters(head: str, width: int) -> int:
    """Parameters of the head alone."""
    first = CHANNELS if head == "pooled" else CHANNELS * PLACES
    return (first + 1) * width + (width + 1) * 10


def measure_flexibility(
    digits: Digits | None = None,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = 2,
    steps: int = STEPS,
    seed: int = 0,
) -> Figures:
    """Held-out accuracy over width for both heads, trained from `seeds` starts; and one head in its two forms.

    Raises
    ------
    MissingExtra
        if scikit-learn is not installed.
    """
    digits = digits or load_digits(seed)
    curves: dict[str, list[Figures]] = {}
    last: nn.Module | None = None
    for head in ("pooled", "flattened"):
        for width in widths:
            found = []
            for start in range(seeds):
                last = classifier(head, width, seed + start)
                train(last, digits.train, digits.train_labels, steps=steps, seed=seed + start)
                found.append(accuracy(last, digits.test, digits.test_labels))
            curves.setdefault(head, []).append(
                {
                    "width": width,
                    "parameters": head_parameters(head, width),
                    "accuracy": statistics.fmean(found),
                    "accuracies": found,
                }
            )
    assert last is not None
    return {
        "curves": curves,
        "tested_on": len(digits.test),
        "trained_on": len(digits.train),
        "steps": steps,
        "two_forms": same_head(last, digits),
    }


@torch.no_grad()
def same_head(network: nn.Module, digits: Digits) -> Figures:
    """A trained classifier and its convolutional form on the held-out digits: accuracies and largest difference."""
    converted = convolutionalize(network, (SIDE, SIDE), 1).model
    ours, theirs = network(digits.test), converted(digits.test).flatten(1)
    return {
        "accuracy": [accuracy(m, digits.test, digits.test_labels) for m in (network, converted)],
        "same_class": float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
        "largest_difference": float((ours - theirs).abs().max()),
    }


def judge_flexibility(figures: Figures) -> Verdict:
    """Holds where either head gains from width by more than the test set's noise, and forms agree."""
    forms = figures["two_forms"]
    if forms["accuracy"][0] != forms["accuracy"][1] or forms["same_class"] < 1:
        return not_as_said(f"one head in two forms answers differently: {forms['accuracy']}")
    curves, tested = figures["curves"], figures["tested_on"]
    gains = {head: curve[-1]["accuracy"] - curve[0]["accuracy"] for head, curve in curves.items()}
    noise = {head: _noise(curve, tested) for head, curve in curves.items()}
    gaining = [head for head in curves if gains[head] > noise[head]]
    said = ", ".join(
        f"{head} {c[0]['accuracy']:.1%} → {c[-1]['accuracy']:.1%} with {c[0]['parameters']} → "
        f"{c[-1]['parameters']} parameters"
        for head, c in curves.items()
    )
    said = f"accuracy on held-out digits over width: {said}. {_cheaper(curves, noise)} The same head in its "
    said += "two forms gives the same answers"
    if not gaining:
        return not_as_said(f"width buys neither head more than noise. {said}")
    if len(gaining) < len(curves):
        return holds_when(f"the head is the {gaining[0]} one", said)
    return holds(said)


def _noise(curve: Sequence[Mapping[str, Any]], tested: int) -> float:
    """Two standard errors of the difference between the ends: of the test set's sampling and of the starts."""
    ends = (curve[0], curve[-1])
    variances = [p["accuracy"] * (1 - p["accuracy"]) / tested for p in ends]
    starts = [p["accuracies"] for p in ends if len(p["accuracies"]) > 1]
    variances += [statistics.variance(found) / len(found) for found in starts]
    return 2 * math.sqrt(sum(variances))


def _cheaper(curves: Mapping[str, Sequence[Mapping[str, Any]]], noise: Mapping[str, float]) -> str:
    """Which head reaches what both can reach with the fewest parameters."""
    target = min(max(p["accuracy"] for p in c) for c in curves.values()) - max(noise.values()) / 2
    least = {h: min(p["parameters"] for p in c if p["accuracy"] >= target) for h, c in curves.items()}
    best = min(least, key=lambda h: least[h])
    other = next(h for h in least if h != best)
    return f"{target:.1%} takes {least[best]} parameters {best}, {least[other]} {other}."
