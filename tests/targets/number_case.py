"""One number or word of one constraint of a profile, with what a checker has to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from tests.targets.node_models import NODE

Entry = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One number or word of one constraint.

    Attributes:
        key, value: the key of the constraint and what is tested of it.
        inside, outside: make the models.
        found, allowed: what the offender has to say.
        ignored: the fields of the constraint as they would be if this key were ignored.
        node: the node that offends.
    """

    profile: str
    index: int
    key: str
    value: Any
    operator: str
    inside: Callable[[], ir.Model]
    outside: Callable[[], ir.Model]
    found: Any
    allowed: Any
    ignored: Entry
    node: str = NODE

    def __str__(self) -> str:
        return f"{self.profile}-{self.index}-{self.key}-{self.value}-{self.operator}"


#: Makes the cases of one constraint, whose profile and index it knows.
MakeCase = Callable[..., Case]


def listed_operators(entry: Entry, case: Callable[..., Case]) -> Iterator[Case]:
    """The operators that a constraint lists, each of which would not be checked if it were left out."""
    for operator in entry.get("operators", []):
        others = tuple(name for name in entry["operators"] if name != operator) or ("no operator",)
        yield case(key="operators", value=operator, operator=operator, ignored={"operators": others})
