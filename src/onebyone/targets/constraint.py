"""What every kind of constraint has: its source, the operators it is about, and the check of one operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from onebyone.targets.description import INPUT, NodeDescription

Scalar: TypeAlias = "int | float | str"


@dataclass(frozen=True)
class Finding:
    """One violated constraint: of which tensor or setting, the number found, and the number allowed."""

    subject: str
    found: Scalar
    allowed: Scalar


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What all kinds share.

    Attributes:
        source: where the number is stated.
        official: whether the vendor states it; False for measurements and reports of others.
        operators: ONNX operators that it applies to; empty for all.
        exempt: ONNX operators that it does not apply to. With exempt operators it is about operators, and not about the
            inputs of the network, which an exempt operator may read.
        element_types: it applies only to operations whose first input has one of these types; empty for all.
    """

    kind: ClassVar[str]

    source: str
    official: bool = False
    operators: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()
    element_types: tuple[str, ...] = ()

    def applies(self, operation: NodeDescription) -> bool:
        """Whether the constraint is about this operation."""
        name = operation.operator
        if (self.exempt and name in (INPUT, *self.exempt)) or (self.operators and name not in self.operators):
            return False
        return not self.element_types or (
            bool(operation.activations) and operation.activations[0].element_type in self.element_types
        )

    @property
    def title(self) -> str:
        """The name of the constraint in tables."""
        return self.kind

    def check(self, operation: NodeDescription) -> Finding | None:
        """What the operation violates; None if it keeps to the constraint."""
        raise NotImplementedError

    def describe(self) -> str:
        """The constraint as one phrase, without its operators."""
        raise NotImplementedError
