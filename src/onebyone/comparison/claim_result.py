"""One row of the comparison: what is said, what was measured, and the verdict that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Figures = dict[str, Any]
"""What an experiment measured: numbers, texts, lists and mappings of such, as JSON holds them."""

HOLDS = "holds"
WHEN = "holds when"
NOT_AS_SAID = "does not hold as usually said"
NOT_AVAILABLE = "not available"


class Verdict(NamedTuple):
    """The verdict in words, and why: one or two sentences made from the figures."""

    text: str
    because: str


def holds(because: str) -> Verdict:
    """The statement is true as it is usually said."""
    return Verdict(HOLDS, because)


def holds_when(condition: str, because: str) -> Verdict:
    """The statement is true under a condition that the usual wording leaves out.

    >>> holds_when("the map has more than one place", "…").text
    'holds when the map has more than one place'
    """
    return Verdict(f"{WHEN} {condition}", because)


def not_as_said(because: str) -> Verdict:
    """The statement is not true as it is usually said."""
    return Verdict(NOT_AS_SAID, because)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "layer"), counted(1200, "layer")
    ('1 layer', '1,200 layers')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def not_available(because: str) -> Verdict:
    """The experiment could not be made; the reason."""
    return Verdict(NOT_AVAILABLE, because)


@dataclass(frozen=True)
class Row:
    """A statement about the two layers, measured.

    `id` is that of the project's list (S1 to S5, D1 to D8, R1 to R4); `verdict` one of "holds",
    "holds when …", "does not hold as usually said", and "not available" where the experiment could not be
    made. It is computed from `figures` by a function of the experiment, and `because` says in words how.
    `pictures` are plain arrays (nested lists) to draw: the support of a Jacobian, a map of errors, a sweep.
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
        """The verdict without its condition: one of the four words above.

        >>> Row("D8", "…", "holds when the map has more than one place", {}, "…").kind
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
