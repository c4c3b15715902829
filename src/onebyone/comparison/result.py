"""The result of `compare`: the rows, and how they are written as text, Markdown, JSON and HTML."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebyone.atomic_files import write_text
from onebyone.comparison.claim_result import Row
from onebyone.errors import BadInput
from onebyone.records import html_table

_WIDTH = 110


@dataclass(frozen=True)
class Comparison:
    """Common claims about the two layers, tested on one network.

    `layers` describes the compared layers and where each comes from, `about` the network, the machine and the seed.
    `conversion` is the result of `convert` on the whole network and `verification` that of `verify` (with row R1);
    `drawing` is the network as `onebyone.draw` describes it (with row R2). Each is None if its row was not requested,
    and a mapping from "not_available" to the reason if it could not be computed.
    `print(comparison)` shows a table; `comparison["D5"]` is one row.
    """

    rows: tuple[Row, ...]
    layers: Mapping[str, Any]
    about: Mapping[str, Any]
    conversion: Mapping[str, Any] | None = None
    verification: Mapping[str, Any] | None = None
    drawing: Mapping[str, Any] | None = None

    def __getitem__(self, row: str) -> Row:
        """The row with an id.

        Raises
        ------
        KeyError
            if there is no such row.
        """
        return {r.id: r for r in self.rows}[row]

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as plain data."""
        return {
            "about": dict(self.about),
            "layers": dict(self.layers),
            "rows": [row.to_dict() for row in self.rows],
            "conversion": self.conversion,
            "verification": self.verification,
            "drawing": self.drawing,
        }

    def to_json(self, indent: int | None = None) -> str:
        """The whole comparison as JSON; infinity and NaN, which JSON cannot hold, are written by name."""
        return json.dumps(finite(self.to_dict()), ensure_ascii=False, allow_nan=False, indent=indent)

    def to_markdown(self) -> str:
        """The rows as a table, and the layers that they were measured on."""
        lines = ["| id | claim | verdict | because |", "|---|---|---|---|"]
        cells = [(r.id, r.statement, f"**{r.verdict}**", r.because) for r in self.rows]
        lines += ["| " + " | ".join(_in_cell(c) for c in row) + " |" for row in cells]
        lines += ["", *(f"- {name}: {text}" for name, text in self.described())]
        return "\n".join(lines) + "\n"

    def described(self) -> list[tuple[str, str]]:
        """The compared layers as pairs (name, description)."""
        return [
            (name, _layer(layer))
            for name, layer in self.layers.items()
            if isinstance(layer, Mapping) and "origin" in layer
        ]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as `.json` or `.md`, atomically.

        Raises
        ------
        BadInput
            for another suffix, or if the path cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".json", ".md"):
            raise BadInput(f"path={str(path)!r}: expected a name that ends in .json or .md")
        write_text(path, self.to_json(indent=1) + "\n" if path.suffix == ".json" else self.to_markdown())
        return path

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        plan: Any = None,
        title: str | None = None,
        links: Sequence[tuple[str, str]] = (),
    ) -> str:
        """The comparison as one self-contained HTML page: rows, figures, interactive views, verification and data.

        The page needs no network connection. If `path` is given, it is written there atomically. `plan` is a plan
        of `onebyone tune` to include: the plan, its plain data, or the path of its JSON file. `title` is the name
        of the network on the page; its class if None. `links` are pairs (text, address) of pages that tell the same
        story, relative to this one; without them, the demo's page is linked to if it is in the same folder.

        Raises
        ------
        BadInput
            if `plan` is not a plan of `tune`, or the path cannot be written.
        MissingExtra
            if Jinja2 is not installed.

        Example
        -------
        >>> import torch, onebyone
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
        >>> page = onebyone.compare(net, torch.randn(1, 3, 2, 2), rows=["D1", "R2"]).to_html()
        >>> page.splitlines()[0], page.count("<article")
        ('<!doctype html>', 2)
        """
        from onebyone.report.comparison_page import comparison_page
        from onebyone.report.html import demo_beside
        from onebyone.report.tuning_plan import read_plan

        shown = None if plan is None else finite(read_plan(plan))
        beside = [] if links or path is None else demo_beside(Path(path))
        page = comparison_page(finite(self.to_dict()), shown, title, links or beside)
        if path is not None:
            write_text(path, page)
        return page

    def __str__(self) -> str:
        parts = [f"{name}: {text}" for name, text in self.described()]
        for row in self.rows:
            because = textwrap.fill(row.because, _WIDTH, initial_indent="    ", subsequent_indent="    ")
            parts += ["", f"{row.id}  {row.statement}", f"    {row.verdict.upper()}", because]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        """The rows as an HTML table, for notebooks."""
        rows = [(r.id, r.statement, r.verdict, r.because) for r in self.rows]
        return html_table(("", "claim", "verdict", "because"), rows)


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: infinity and NaN by name, tuples as lists.

    >>> finite({"a": (1, float("inf"))})
    {'a': [1, 'inf']}
    """
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _layer(layer: Mapping[str, Any]) -> str:
    size = "×".join(str(n) for n in layer["map"])
    path = f"{layer['layer']}, " if layer["layer"] else ""
    return f"{path}{layer['origin']}; {size} → {layer['outputs']} ({layer['sampled']})"
