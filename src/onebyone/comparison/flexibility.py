"""S5: what width buys a pooled 1×1 head and a flattened FC head, on real digits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.comparison.claim_result import Figures, Verdict, holds, holds_when, not_as_said
from onebyone.comparison.digits import SIDE, DigitSplit, accuracy, load_digits, train
from onebyone.pytorch.lift.convolutionalize import convolutionalize

WIDTHS = (2, 4, 8, 16, 32)
STEPS = 250
HEAD_RATE = 1e-2
CHANNELS, PLACES = 16, (SIDE - 4) ** 2  # of the map that the heads read
HEADS = ("pooled", "flattened")


def trunk() -> nn.Sequential:
    """Two convolutions, (N, 1, 8, 8) to the map (N, CHANNELS, 4, 4) that the heads read."""
    return nn.Sequential(nn.Conv2d(1, CHANNELS, 3), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3), nn.ReLU())


def head_of(kind: str, width: int) -> nn.Sequential:
    """A head, (N, CHANNELS, 4, 4) to (N, 10): "pooled" (1×1 convolution, mean, 1×1) or "flattened" (two fully
    connected layers)."""
    if kind == "pooled":
        top = [nn.Conv2d(CHANNELS, width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*top, nn.Conv2d(width, 10, 1), nn.Flatten())
    return nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * PLACES, width), nn.ReLU(), nn.Linear(width, 10))


def head_parameters(kind: str, width: int) -> int:
    """Parameters of the head alone."""
    first = CHANNELS if kind == "pooled" else CHANNELS * PLACES
    return (first + 1) * width + (width + 1) * 10


def measure_flexibility(
    digits: DigitSplit | None = None,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = 4,
    steps: int = STEPS,
    seed: int = 0,
) -> Figures:
    """Held-out accuracy over width for both heads, trained from `seeds` starts; and one head in its two forms.

    All heads read the map of one trunk, which is trained once, with a head of either kind on it at once, and
    then left as it is: what differs is the head alone.

    Raises
    ------
    MissingExtra
        if scikit-learn is not installed.
    """
    digits = digits or load_digits(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = _trained_trunk(digits, max(widths), steps, seed)
        with torch.no_grad():
            maps, test_maps = base(digits.train), base(digits.test)
        curves: dict[str, list[Figures]] = {}
        for kind in HEADS:
            for width in widths:
                found = []
                for start in range(seeds):
                    head = head_of(kind, width)
                    train(head, maps, digits.train_labels, steps=steps, seed=seed + start, rate=HEAD_RATE)
                    found.append(accuracy(head, test_maps, digits.test_labels))
                curves.setdefault(kind, []).append(
                    {
                        "width": width,
                        "parameters": head_parameters(kind, width),
                        "accuracy": statistics.fmean(found),
                        "accuracies": found,
                    }
                )
    return {
        "curves": curves,
        "tested_on": len(digits.test),
        "trained_on": len(digits.train),
        "steps": steps,
        "two_forms": same_head(nn.Sequential(base, head).eval(), digits),
    }


def _trained_trunk(digits: DigitSplit, width: int, steps: int, seed: int) -> nn.Module:
    """A trunk trained under a head of either kind, their losses added, so that it suits neither more."""
    base = trunk()
    branches = [nn.Sequential(base, head_of(kind, width)) for kind in HEADS]

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(branch(images), labels) for branch in branches]).sum()

    train(nn.ModuleList(branches), digits.train, digits.train_labels, steps=steps, seed=seed, loss=loss)
    return base.eval().requires_grad_(False)


@torch.no_grad()
def same_head(network: nn.Module, digits: DigitSplit) -> Figures:
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
    said = f"accuracy on held-out digits over width: {said}. {_cheaper(curves, tested)} The same head in its "
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


def _cheaper(curves: Mapping[str, Sequence[Mapping[str, Any]]], tested: int) -> str:
    """Which head reaches what both can reach, to two standard errors of the test set, with the fewest parameters."""
    reached = min(max(p["accuracy"] for p in c) for c in curves.values())
    target = reached - 2 * math.sqrt(reached * (1 - reached) / tested)
    least = {h: min(p["parameters"] for p in c if p["accuracy"] >= target) for h, c in curves.items()}
    best = min(least, key=lambda h: least[h])
    other = next(h for h in least if h != best)
    return f"{target:.1%} takes {least[best]} parameters {best}, {least[other]} {other}."
