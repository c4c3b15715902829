"""Check the operations of a network against targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

from onebyone.records import Readable, html_result, html_table, table
from onebyone.targets.constraint import Constraint, Scalar
from onebyone.targets.description import NodeDescription
from onebyone.targets.profile import TargetProfile

_HEADERS = ("node", "operator", "target", "constraint", "found", "allowed", "mendable", "how")


@dataclass(frozen=True)
class Offender:
    """One node that a target would not take, and the constraint that it violates.

    Attributes:
        path: the node's name.
        operator: its operator, as the network's framework names it.
        target: the name of the target.
        constraint: what is limited, such as "rank" or "input-channels".
        subject: the tensor or setting that violates it.
        found, allowed: the number (or word) found, and the one allowed.
        source: where the target's limit is stated.
        official: whether the vendor states it.
        mendable: whether `convert` with this target removes the violation; None if that was not tried.
        how: what `convert` does, or why it can't.
        rule: the constraint itself.
    """

    path: str
    operator: str
    target: str
    constraint: str
    subject: str
    found: Scalar
    allowed: Scalar
    source: str
    official: bool
    mendable: bool | None = None
    how: str = ""
    rule: Constraint | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """The node and the constraint; one node violates a constraint at most once."""
        return self.path, f"{self.target}: {self.constraint}: {self.source}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rule"}

    def __str__(self) -> str:
        what = f"{self.constraint} of {self.subject} is {self.found}, allowed {self.allowed}"
        return f"{self.path} ({self.operator}): {what}"


@dataclass(frozen=True)
class TargetCheck(Readable):
    """What targets would not take of a network; `print(check)` is a table.

    Attributes:
        targets: the names of the targets.
        offenders: every violated constraint, in the order of the network's nodes.
        operations: the number of operations that were checked.
        notes: what is no violation, and costs time or memory.
    """

    targets: tuple[str, ...]
    offenders: tuple[Offender, ...]
    operations: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether no constraint is violated."""
        return not self.offenders

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON."""
        return {
            "targets": list(self.targets),
            "operations": self.operations,
            "offenders": [offender.to_dict() for offender in self.offenders],
            "notes": list(self.notes),
        }

    def headline(self) -> str:
        """One line: how many operations were checked, and how many constraints they violate."""
        names = ", ".join(self.targets)
        if self.ok:
            return f"{names}: nothing found in {self.operations} operations that the target would not take"
        nodes = len({o.path for o in self.offenders})
        mendable = sum(bool(o.mendable) for o in self.offenders)
        return (
            f"{names}: {nodes} of {self.operations} operations violate a constraint; "
            f"convert mends {mendable} of {len(self.offenders)} violations"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The offenders as rows of a table."""
        words = {True: "yes", False: "no", None: ""}
        return [
            (
                o.path,
                o.operator,
                o.target,
                f"{o.constraint} of {o.subject}"
                if o.subject not in (o.constraint, o.operator)
                else o.constraint,
                str(o.found),
                str(o.allowed),
                words[o.mendable],
                o.how,
            )
            for o in self.offenders
        ]

    def __str__(self) -> str:
        rows = self.rows()
        return "\n".join([self.headline(), *([table(_HEADERS, rows)] if rows else []), *self.notes])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        rows = self.rows()
        return html_result(self.headline(), *([html_table(_HEADERS, rows)] if rows else []), notes=self.notes)


def padding_notes(
    operations: Sequence[NodeDescription], profiles: Iterable[TargetProfile]
) -> tuple[str, ...]:
    """How much each target pads that pads the last axis to a multiple of a number.

    That is no violation, because the compiler pads by itself, but it costs memory and time. The tensors that operations
    write are counted, as far as all of their sizes are known.
    """
    tensors = {t.name: t.sizes for operation in operations for t in operation.outputs if t.sizes}
    known = {name: [size or 0 for size in sizes] for name, sizes in tensors.items() if all(sizes)}
    notes = []
    for profile in profiles:
        multiple = profile.preferred.width_multiple
        padded = {name: sizes[-1] for name, sizes in known.items() if sizes[-1] % multiple}
        if padded:
            before = sum(prod(sizes) for sizes in known.values())
            after = sum(prod(sizes[:-1]) * -(-sizes[-1] // multiple) * multiple for sizes in known.values())
            name, size = next(iter(padded.items()))
            notes.append(
                f"{profile.name} pads the last axis to a multiple of {multiple}: that of {len(padded)} of {len(known)} "
                f"tensors (the first is {name}, of {size}), {after / before:.3g} times the elements in total"
            )
    return tuple(notes)


def violations(operations: Iterable[NodeDescription], profile: TargetProfile) -> tuple[Offender, ...]:
    """Every constraint of a target that an operation violates, in the order of the operations."""
    return tuple(offender for operation in operations for offender in violations_of(operation, profile))


def violations_of(operation: NodeDescription, profile: TargetProfile) -> Sequence[Offender]:
    """The constraints of a target that one operation violates."""
    found = []
    for constraint in profile.constraints:
        if not constraint.applies(operation):
            continue
        finding = constraint.check(operation)
        if finding is not None:
            found.append(
                Offender(
                    operation.path,
                    operation.shown,
                    profile.name,
                    constraint.title,
                    finding.subject,
                    finding.found,
                    finding.allowed,
                    constraint.source,
                    constraint.official,
                    rule=constraint,
                )
            )
    return found
