"""What `convert` returns in every front end: the converted network, and records of changes and refusals."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from onebyone.records import Change, Readable, Refusal, html_result, html_table, table
from onebyone.results.protocols import LayerPair, StateDict

Model = TypeVar("Model")
TOP_LEVEL = "(top level)"


@dataclass(frozen=True, eq=False)
class Conversion(Readable, ABC, Generic[Model]):
    """A converted network. `print(conversion)` shows what changed and what was refused as a table.

    Attributes
    ----------
    model: the converted network, of the same kind as the original.
    changes: every layer that was converted.
    refused: every layer that was not converted, and why.
    to: the form that was asked for, "conv" or "linear".
    level: "layers", "native" or "graph".
    pairs: the converted layers beside the original ones, for `verify`.
    """

    model: Model
    changes: tuple[Change, ...]
    refused: tuple[Refusal, ...]
    to: str
    level: str
    pairs: tuple[LayerPair, ...] = ()

    #: The columns of the table of changes: a header, and the field of `Change` under it.
    CHANGE_COLUMNS: ClassVar[dict[str, str]] = {
        "path": "path",
        "before": "before",
        "after": "after",
        "law": "law",
    }
    #: The name of a refused item's kind in the table of refusals.
    KIND: ClassVar[str] = "kind"

    @abstractmethod
    def state_dict_from_original(self, state: StateDict) -> dict[str, Any]:
        """A state dict of the original network, with the names and shapes that the converted network has."""

    @abstractmethod
    def state_dict_to_original(self, state: StateDict | None = None) -> dict[str, Any]:
        """A state dict of the converted network (by default its own), with the original's names and shapes."""

    @abstractmethod
    def save(self, path: str | os.PathLike[str], example: Any = None) -> Path:
        """Write the converted network to a file, with the report inside it."""

    def runnable(self, network: Any) -> Any:
        """The original or the converted network as something that can be called with tensors; by default itself."""
        return network

    @property
    def copied_bytes(self) -> int:
        """The new storage that the conversion needed, in bytes."""
        return sum(change.copied_bytes for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        return {
            "to": self.to,
            "level": self.level,
            "copied_bytes": self.copied_bytes,
            "changes": [change.to_dict() for change in self.changes],
            "refused": [refusal.to_dict() for refusal in self.refused],
        }

    def report(self) -> str:
        """The report as the JSON text that is written into files."""
        return json.dumps({"onebyone": "conversion", **self.to_dict()}, indent=1)

    def __str__(self) -> str:
        return "\n".join([self.headline(), *(table(headers, rows) for headers, rows in self._tables())])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return html_result(self.headline(), *(html_table(headers, rows) for headers, rows in self._tables()))

    def headline(self) -> str:
        """One line: how many layers were converted and refused, and what it cost."""
        head = f"to {self.to} ({self.level}): {len(self.changes)} converted, {len(self.refused)} refused"
        return f"{head}, {self.copied_bytes:,} bytes copied"

    def _tables(self) -> list[tuple[list[str], list[tuple[str, ...]]]]:
        """Headers and rows of the changes and of the refusals; a table without rows is left out."""
        fields = self.CHANGE_COLUMNS.values()
        changes = [
            tuple((c.path or TOP_LEVEL) if field == "path" else str(getattr(c, field)) for field in fields)
            for c in self.changes
        ]
        refused = [(r.path or TOP_LEVEL, r.kind, r.reason) for r in self.refused]
        tables = ((list(self.CHANGE_COLUMNS), changes), (["refused", self.KIND, "reason"], refused))
        return [(headers, list[tuple[str, ...]](rows)) for headers, rows in tables if rows]
