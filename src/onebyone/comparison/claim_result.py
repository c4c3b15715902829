"""The result of testing one claim: the claim, the measured figures, and the verdict derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Figures = dict[str, Any]
"""What an experiment measured, as JSON holds it: numbers, texts, and lists and mappings of these."""

HOLDS = "holds"
WHEN = "holds when"
NOT_AS_SAID = "does not hold as usually said"
NOT_AVAILABLE = "not available"


class Verdict(NamedTuple):
    """The verdict, and the reason for it in one or two sentences built from the figures."""

    text: str
    because: str


def holds(because: str) -> Verdict:
    """The claim is true as it is usually worded."""
    return Verdict(HOLDS, because)


def holds_when(condition: str, because: str) -> Verdict:
    """The claim is true under a condition that its usual wording omits.

    >>> holds_when("the map has more than one position", "…").text
    'holds when the map has more than one position'
    """
    return Verdict(f"{WHEN} {condition}", because)


def not_as_said(because: str) -> Verdict:
    """The claim is not true as it is usually worded."""
    return Verdict(NOT_AS_SAID, because)


def not_available(because: str) -> Verdict:
    """The experiment could not be run, for this reason."""
    return Verdict(NOT_AVAILABLE, because)


@dataclass(frozen=True)
class Row:
    """One claim about the two layers, and the result of testing it.

    `id` identifies the claim (S1 to S5, D1 to D8, R1 to R4) and `statement` is its text. `verdict` is "holds",
    "holds when …", "does not hold as usually said", or "not available" where the experiment could not be run;
    it is computed from `figures` alone, and `because` explains it. `pictures` holds plain arrays to draw (nested
    lists): the support of a Jacobian, a map of errors, a sweep. `seconds` is the duration of the experiment.
    """

    id: str
    statement: str
    verdict: str
    figures: Mapping[str, Any]
    because: str
    pictures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """The verdict without its condition: one of the four texts above.

        >>> Row("D8", "…", "holds when the map has more than one position", {}, "…").kind
        'holds when'
        """
        return WHEN if self.verdict.startswith(WHEN) else self.verdict

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data for JSON."""
        return {
            "id": self.id,
            "statement": self.statement,
            "verdict": self.verdict,
            "figures": dict(self.figures),
            "because": self.because,
            "pictures": dict(self.pictures),
            "seconds": self.seconds,
        }
