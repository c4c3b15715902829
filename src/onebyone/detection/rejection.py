"""Windows that belong to no class, for classifiers that were never trained on background.

With K exclusive classes, z the logits of a window and p = softmax(z):

    entropy         H = −Σ p·ln p / ln K, from 0 (certain) to 1 (all classes are equally probable)
    energy          E = ln Σ exp(z), large where the network has seen such windows in training
    reject class    a class with the constant logit r: p' = exp(z) / (Σ exp(z) + exp(r)) = p / (1 + exp(r − E))

A window is rejected if its entropy is above, or its energy below, a threshold. The reject class lowers the
probabilities instead, so that the confidence threshold applies to them; a window with E < r belongs to it by majority.
Its logit is fitted from windows without objects: of these, at most a given share has E > r.

Sources: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
Networks", 2017; Liu et al., "Energy-based Out-of-distribution Detection", 2020, at temperature 1 and with the opposite
sign, so that larger is more certain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.score_map import ScoreMap
from onebyone.errors import BadInput
from onebyone.laws.scores import ScoreKind


@dataclass(frozen=True)
class Rejection:
    """Which windows are rejected: an entropy above `max_entropy`, an energy below `min_energy`; the `reject_logit`.

    None leaves a criterion out.

    Raises
    ------
    BadInput
        for an entropy outside [0, 1], or another number that is not finite.

    Example
    -------
    >>> scores = np.array([[4.0, 0.0], [0.0, 0.0]], np.float32)  # two classes, two windows
    >>> kind = ScoreKind("logits")
    >>> Rejection(max_entropy=0.5).accepted(scores, kind).tolist()
    [True, False]
    >>> Rejection(reject_logit=0.0).probabilities(np.zeros((3, 1), np.float32), kind).tolist()
    [[0.25], [0.25], [0.25]]
    """

    max_entropy: float | None = None
    min_energy: float | None = None
    reject_logit: float | None = None

    def __post_init__(self) -> None:
        if self.max_entropy is not None and not 0 <= self.max_entropy <= 1:
            raise BadInput(f"max_entropy={self.max_entropy}: expected a number from 0 to 1")
        for name in ("min_energy", "reject_logit"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise BadInput(f"{name}={value}: expected a finite number")

    def require(self, kind: ScoreKind, classes: int) -> None:
        """Raise BadInput where a criterion does not exist for scores of this kind and number of classes."""
        named = [
            name for name in ("max_entropy", "min_energy", "reject_logit") if getattr(self, name) is not None
        ]
        if not named:
            return
        if classes < 2 or kind.classes == "multi-label":
            raise BadInput(f"{named[0]}: needs exclusive classes; the scores are {kind.describe(classes)}")
        if named[-1] != "max_entropy" and kind.values != "logits":
            raise BadInput(f"{named[-1]}: needs logits; the scores are {kind.describe(classes)}")

    def probabilities(self, scores: NDArray[Any], kind: ScoreKind) -> NDArray[np.float32]:
        """The probabilities (classes, …) of scores, with the reject class where it has a logit."""
        values = kind.probabilities(scores)
        if self.reject_logit is None:
            return values
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and the probability 0
            share = 1 / (1 + np.exp(self.reject_logit - energy(scores)))
        result: NDArray[np.float32] = (values * share).astype(np.float32)
        return result

    def accepted(self, scores: NDArray[Any], kind: ScoreKind) -> NDArray[np.bool_]:
        """Which windows (…) of scores (classes, …) are not rejected by entropy or energy."""
        result = np.ones(scores.shape[1:], bool)
        if self.max_entropy is not None:
            result &= entropy(kind.probabilities(scores)) <= self.max_entropy
        if self.min_energy is not None:
            result &= energy(scores) >= self.min_energy
        return result


def entropy(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """The entropy (…) of probabilities (classes, …) as a share of the largest, ln K.

    >>> entropy(np.array([[0.5, 1.0], [0.5, 0.0]])).tolist()
    [1.0, 0.0]
    """
    p = probabilities.astype(np.float64)
    terms = p * np.log(np.where(p > 0, p, 1))  # p·ln p tends to 0 with p
    result: NDArray[np.float64] = np.abs(terms.sum(axis=0)) / math.log(len(p))
    return result


def energy(logits: NDArray[Any]) -> NDArray[np.float64]:
    """ln Σ exp(z) (…) of logits (classes, …), without overflow.

    >>> energy(np.array([[1000.0], [1000.0]])).round(3).tolist()
    [1000.693]
    """
    z = logits.astype(np.float64)
    largest = z.max(axis=0)
    result: NDArray[np.float64] = largest + np.log(np.exp(z - largest).sum(axis=0))
    return result


def fitted_reject_logit(negatives: Sequence[ScoreMap], share: float = 0.001) -> float:
    """The smallest logit of a reject class to which all but a share of the windows of some maps belong by majority.

    The maps are scans of images without objects. They are read part by part; the largest energies are in memory, as
    many as the share.

    Raises
    ------
    BadInput
        for a share outside [0, 1), for scores that are not logits of exclusive classes, and where no window has scores.
    """
    if not 0 <= share < 1:
        raise BadInput(f"negative_share={share}: expected a number from 0 to below 1")
    for score_map in negatives:
        kind = score_map.kind or score_map.assumed_kind()
        Rejection(reject_logit=0.0).require(kind, score_map.scores.shape[0])
    kept = math.floor(share * sum(score_map.windows for score_map in negatives)) + 1
    largest, scored = np.zeros(0), 0
    for score_map in negatives:
        for _, scores in score_map.regions():
            values = energy(scores).ravel()
            values = values[np.isfinite(values)]
            scored += len(values)
            largest = np.sort(np.concatenate([largest, values]))[-kept:]
    if not scored:
        raise BadInput("negatives: no window has scores; expected score maps of images without objects")
    return float(largest[-(math.floor(share * scored) + 1)])
