"""S5: accuracy over width of a pooled 1×1 head and of a flattened FC head, on real digits."""

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
CHANNELS, POSITIONS = 16, (SIDE - 4) ** 2  # of the map that the heads read
HEADS = ("pooled", "flattened")


def trunk() -> nn.Sequential:
    """Two convolutions, (N, 1, 8, 8) to the map (N, CHANNELS, 4, 4) that the heads read."""
    return nn.Sequential(nn.Conv2d(1, CHANNELS, 3), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3), nn.ReLU())


def head_of(kind: str, width: int) -> nn.Sequential:
    """A head from (N, CHANNELS, 4, 4) to (N, 10).

    "pooled" is a 1×1 convolution, a mean and a 1×1 convolution; "flattened" is two fully connected layers.
    """
    if kind == "pooled":
        top = [nn.Conv2d(CHANNELS, width, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*top, nn.Conv2d(width, 10, 1), nn.Flatten())
    return nn.Sequential(
        nn.Flatten(), nn.Linear(CHANNELS * POSITIONS, width), nn.ReLU(), nn.Linear(width, 10)
    )


def head_parameters(kind: str, width: int) -> int:
    """Parameters of such a head."""
    first = CHANNELS if kind == "pooled" else CHANNELS * POSITIONS
    return (first + 1) * width + (width + 1) * 10


def measure_flexibility(
    digits: DigitSplit | None = None,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = 4,
    steps: int = STEPS,
    seed: int = 0,
) -> Figures:
    """Held-out accuracy over width for both heads, in `seeds` training runs each; and one head in its two forms.

    All heads read the map of the same trunk. It is trained once, together with one head of either kind, and then
    frozen, so that only the heads differ.

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
            maps, test_maps = base(digits.train.images), base(digits.test.images)
        curves: dict[str, list[Figures]] = {}
        for kind in HEADS:
            for width in widths:
                accuracies = []
                for run in range(seeds):
                    head = head_of(kind, width)
                    train(head, maps, digits.train.labels, steps=steps, seed=seed + run, rate=HEAD_RATE)
                    accuracies.append(accuracy(head, test_maps, digits.test.labels))
                curves.setdefault(kind, []).append(
                    {
                        "width": width,
                        "parameters": head_parameters(kind, width),
                        "accuracy": statistics.fmean(accuracies),
                        "accuracies": accuracies,
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
    """A trunk trained with a head of either kind on the sum of their losses, so that it favours neither."""
    base = trunk()
    branches = [nn.Sequential(base, head_of(kind, width)) for kind in HEADS]

    def loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(branch(images), labels) for branch in branches]).sum()

    train(
        nn.ModuleList(branches), digits.train.images, digits.train.labels, steps=steps, seed=seed, loss=loss
    )
    return base.eval().requires_grad_(False)


@torch.no_grad()
def same_head(network: nn.Module, digits: DigitSplit) -> Figures:
    """A trained classifier against its convolutional form on the held-out digits: accuracies, largest difference."""
    converted = convolutionalize(network, (SIDE, SIDE), 1).model
    logits, converted_logits = network(digits.test.images), converted(digits.test.images).flatten(1)
    return {
        "accuracy": [accuracy(m, digits.test.images, digits.test.labels) for m in (network, converted)],
        "same_class": float((logits.argmax(1) == converted_logits.argmax(1)).double().mean()),
        "largest_difference": float((logits - converted_logits).abs().max()),
    }


def flexibility_verdict(figures: Figures) -> Verdict:
    """Holds if both heads gain from width by more than the noise, and the two forms of one head agree."""
    forms = figures["two_forms"]
    if forms["accuracy"][0] != forms["accuracy"][1] or forms["same_class"] < 1:
        return not_as_said(f"the two forms of one head predict differently; accuracies {forms['accuracy']}")
    curves, tested = figures["curves"], figures["tested_on"]
    gains = {head: curve[-1]["accuracy"] - curve[0]["accuracy"] for head, curve in curves.items()}
    noise = {head: _noise(curve, tested) for head, curve in curves.items()}
    gaining = [head for head in curves if gains[head] > noise[head]]
    changes = " and ".join(
        f"from {c[0]['accuracy']:.1%} to {c[-1]['accuracy']:.1%} for the {head} head (with {c[0]['parameters']} and "
        f"{c[-1]['parameters']} parameters)"
        for head, c in curves.items()
    )
    reason = (
        f"with width, the accuracy on held-out digits changes {changes}. {_cheaper(curves, tested)} The two forms of "
        "one head give the same predictions"
    )
    if not gaining:
        return not_as_said(f"width improves neither head by more than noise. {reason}")
    if len(gaining) < len(curves):
        return holds_when(f"the head is the {gaining[0]} one", reason)
    return holds(reason)


def _noise(curve: Sequence[Mapping[str, Any]], tested: int) -> float:
    """Two standard errors of the gain from the smallest to the largest width.

    They cover the sampling of the test set and the variation between training runs.
    """
    ends = (curve[0], curve[-1])
    variances = [p["accuracy"] * (1 - p["accuracy"]) / tested for p in ends]
    runs = [p["accuracies"] for p in ends if len(p["accuracies"]) > 1]
    variances += [statistics.variance(accuracies) / len(accuracies) for accuracies in runs]
    return 2 * math.sqrt(sum(variances))


def _cheaper(curves: Mapping[str, Sequence[Mapping[str, Any]]], tested: int) -> str:
    """Which head reaches, with the fewest parameters, the accuracy that both can reach (to two standard errors)."""
    reached = min(max(p["accuracy"] for p in c) for c in curves.values())
    target = reached - 2 * math.sqrt(reached * (1 - reached) / tested)
    fewest = {h: min(p["parameters"] for p in c if p["accuracy"] >= target) for h, c in curves.items()}
    best = min(fewest, key=lambda h: fewest[h])
    other = next(h for h in fewest if h != best)
    return f"{target:.1%} requires {fewest[best]} parameters in the {best} head, {fewest[other]} in the {other} one."
