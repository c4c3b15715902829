"""Kinds of classifier outputs, and the probabilities that they represent.

Equation, with z the outputs at one position and p the probabilities:

    logits, exclusive classes             p = softmax(z), over the classes
    logits, one class or multi-label      p = 1 / (1 + exp(−z)), for each class
    probabilities                         p = z
    log-probabilities                     p = exp(z)

Exclusive means that each window belongs to exactly one class (softmax, cross-entropy); multi-label means that every
class is decided independently (sigmoid, binary cross-entropy). Outputs that already are probabilities must not pass
through either function again: the logistic function of 0.001 is 0.50025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput

NAME = "probabilities from a classifier's outputs"
EQUATION = "p = softmax(z), 1 / (1 + exp(−z)), z or exp(z)"
VALUES = ("logits", "probabilities", "log-probabilities")
CLASSES = ("exclusive", "multi-label")
EXPECTED = "logits, probabilities or log-probabilities, alone or followed by :exclusive or :multi-label"

#: How far a probability may be outside its range in a network that ran in half precision (unit roundoff 2^-11).
_SLACK = 2.0**-11

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ScoreKind:
    """The kind of a network's outputs: `values` is one of `VALUES`, `classes` one of `CLASSES`.

    `classes` is None if it is unknown. It matters only for logits, which are then treated as exclusive.

    Raises
    ------
    BadInput
        for any other value.

    Example
    -------
    >>> str(ScoreKind("probabilities", "multi-label"))
    'probabilities:multi-label'
    """

    values: str
    classes: str | None = None

    def __post_init__(self) -> None:
        if self.values not in VALUES or self.classes not in (None, *CLASSES):
            raise BadInput(f"score_kind={str(self)!r}: expected {EXPECTED}")

    def __str__(self) -> str:
        return self.values if self.classes is None else f"{self.values}:{self.classes}"

    def describe(self, count: int) -> str:
        """A phrase that describes `count` outputs and how they are converted to probabilities.

        >>> ScoreKind("logits").describe(1)
        'logits; the logistic function gives the probability of each class'
        """
        if self.values == "logits":
            if self._independent(count):
                return "logits; the logistic function gives the probability of each class"
            return "logits, treated as exclusive classes; softmax gives the probabilities"
        how = {
            None: "",
            "exclusive": " of exclusive classes",
            "multi-label": " of independent classes",
        }[self.classes]
        if self.values == "probabilities":
            return f"probabilities{how}"
        return f"log-probabilities{how}; their exponential gives the probabilities"

    def _independent(self, count: int) -> bool:
        return count == 1 or self.classes == "multi-label"

    def probabilities(self, scores: Floats) -> Floats:
        """The probabilities of scores (classes, …), of the same shape; probabilities are returned unchanged.

        Raises
        ------
        BadInput
            if the scores cannot be of this kind: a probability outside [0, 1], or a log-probability above 0.
        """
        if self.values == "logits":
            return _logistic(scores) if self._independent(scores.shape[0]) else _softmax(scores)
        low, high = _range(scores)
        if self.values == "probabilities":
            if low < -_SLACK or high > 1 + _SLACK:
                raise BadInput(
                    f"score_kind={str(self)!r}: the scores range from {low:.4g} to {high:.4g}; "
                    "expected probabilities from 0 to 1"
                )
            return scores
        if high > _SLACK:
            raise BadInput(f"score_kind={str(self)!r}: the largest score is {high:.4g}; expected at most 0")
        return np.minimum(np.exp(scores), np.float32(1))


def read_kind(kind: str | ScoreKind | None) -> ScoreKind | None:
    """Parse the name of a kind; a ScoreKind or None is returned unchanged. Raises BadInput for an unknown name.

    >>> read_kind("logits:multi-label")
    ScoreKind(values='logits', classes='multi-label')
    """
    if not isinstance(kind, str):
        return kind
    values, colon, classes = kind.partition(":")
    return ScoreKind(values, classes if colon else None)


def assumed_kind(scores: Floats) -> tuple[ScoreKind, str]:
    """The most likely kind of scores (classes, …), and the reason why it is uncertain ("" if it is not).

    Scores that sum to 1 over the classes at every position are probabilities, and scores of either sign are logits. In
    all other cases the kind is uncertain: nonnegative scores above 1 may be logits, but also counts or percentages, and
    the logistic function of a nonnegative number is at least 0.5. Logits of several classes are treated as exclusive.

    >>> assumed_kind(np.array([[0.25], [0.75]], np.float32))
    (ScoreKind(values='probabilities', classes='exclusive'), '')
    """
    low, high = _range(scores)
    several = scores.shape[0] > 1
    if low >= 0 and high <= 1 + _SLACK:
        if several and _sums_to_one(scores):
            return ScoreKind("probabilities", "exclusive"), ""
        return ScoreKind("probabilities"), "every score is from 0 to 1"
    if low >= 0:
        return ScoreKind("logits"), "no score is below 0, but some are above 1"
    if high <= 0 and not (several and _sums_to_one(np.exp(scores))):
        return ScoreKind("logits"), "no score is above 0, as for log-probabilities"
    return ScoreKind("logits"), ""


def _range(scores: Floats) -> tuple[float, float]:
    """The least and the largest score, without those that are not a number (positions that were not scored)."""
    if not scores.size:
        return 0.0, 0.0
    low, high = (float(np.nan_to_num(f.reduce(scores, axis=None))) for f in (np.fmin, np.fmax))
    return low, high


def _sums_to_one(values: Floats) -> bool:
    """Whether the classes sum to 1 at every position, up to the rounding of half precision."""
    slack = 2.0**-11 * (values.shape[0] + 8)
    return bool(
        np.fmax.reduce(np.abs(values.sum(axis=0, dtype=np.float64) - 1), axis=None, initial=0) <= slack
    )


def _softmax(scores: Floats) -> Floats:
    shifted: Any = np.exp(scores - scores.max(axis=0))
    shifted /= shifted.sum(axis=0)
    out: Floats = shifted
    return out


def _logistic(values: Floats) -> Floats:
    """1 / (1 + e^−v), without overflow at either end."""
    small = np.exp(-np.abs(values))
    out: Floats = np.where(values >= 0, 1, small) / (1 + small)
    return out.astype(np.float32, copy=False)
