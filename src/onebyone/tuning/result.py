"""What `tune` gives: the model, the plan, and a table of where the time goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebyone.records import by, html_result, html_table, table
from onebyone.tuning.plan import Plan
from onebyone.tuning.tuned_model import TunedModel
from onebyone.verification.result import Verification

_ROWS, _SEARCHED, _FEW = 25, 3, 5


@dataclass(frozen=True, eq=False)
class Tuned:
    """`model`: the fastest equivalent form found, called like the original. `plan`: why, as plain data.

    `verification` is the proof of its form (None where a plan was applied: its outputs were compared). `notes` say
    what a user should know. `print(tuned)` shows where the time goes, form by form.
    """

    model: TunedModel
    plan: Plan
    verification: Verification | None = None
    notes: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan as `.json`, whole or not at all: `tune(model, example, plan=path)` applies it."""
        return self.plan.save(path)

    def __str__(self) -> str:
        parts = [headline(self.plan)]
        parts += [f"\n{table(headers, rows)}" for headers, rows in tables(self.plan) if rows]
        return "\n".join([*parts, *(f"note: {n}" for n in [*remarks(self.plan), *self.notes])])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        parts = [html_table(headers, rows) for headers, rows in tables(self.plan) if rows]
        return html_result(headline(self.plan), *parts, notes=[*remarks(self.plan), *self.notes])


def headline(plan: Plan) -> str:
    """What was chosen and why, in a line."""
    return plan.why


Rows = list[tuple[str, ...]]
Table = tuple[list[str], Rows]


def tables(plan: Plan) -> list[Table]:
    """The candidates, the fastest first, what was refused, and the layers with their forms."""
    timed = sorted((c for c in plan.candidates if _timed(c)), key=lambda c: c["median_ms"])
    eager = next((c["median_ms"] for c in timed if c.get("name") == BASELINE), None)
    rows = [_candidate_row(c, eager, plan.choice) for c in timed]
    reasons: dict[str, list[str]] = {}
    for c in plan.candidates:
        if not _timed(c):
            reasons.setdefault(str(c.get("refused")), []).append(str(c.get("name")))
    refused: Rows = [(reason, _few(names)) for reason, names in reasons.items()]
    return [
        (["candidate", "ms", "spread", "runs", "× eager", "rounding ratio", "worst row", ""], _shown(rows)),
        (["not chosen, because", "candidates"], refused),
        (
            ["layers", "×", "shape", "GMAC", "forms (ms, one call)", "chosen", "GFLOP/s", "of peak"],
            _layer_rows(plan),
        ),
    ]


BASELINE = "eager:original"


def _shown(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The first rows, a few of the search over layers, and whatever was chosen or is the network as it is."""
    kept: Rows = []
    searched = 0
    for row in rows:
        searched += "#" in row[0]
        first = len(kept) < _ROWS and ("#" not in row[0] or searched <= _SEARCHED)
        if first or row[-1] or row[0] == BASELINE:
            kept.append(row)
    return kept


def _few(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _timed(candidate: Mapping[str, Any]) -> bool:
    return candidate.get("median_ms") is not None and not candidate.get("refused")


def _candidate_row(c: Mapping[str, Any], eager: float | None, choice: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = c.get("name") == choice.get("name")
    faster = f"{eager / c['median_ms']:.2f}" if eager else ""
    ratios = [c.get("rounding_ratio"), c.get("row_ratio")]
    return (
        str(c.get("name")),
        milliseconds(c["median_ms"]),
        milliseconds(c.get("spread_ms")),
        str(c.get("runs")),
        faster,
        *(f"{r:.3g}" if isinstance(r, int | float) else "–" for r in ratios),
        "chosen" if chosen else "",
    )


def _layer_rows(plan: Plan) -> list[tuple[str, ...]]:
    rows: Rows = []
    for layer in sorted(plan.layers, key=lambda layer: -_own_ms(layer))[:_ROWS]:
        paths, forms = layer["paths"], [f for f in layer["forms"] if f.get("median_ms") is not None]
        best = min((f["median_ms"] for f in forms), default=None)
        told = ", ".join(
            f"{f['form']} {milliseconds(f['median_ms'])}{'*' if f['median_ms'] == best else ''}"
            for f in forms
        )
        name = str(paths[0] if len(paths) == 1 else layer.get("pattern") or paths[0]) or "(top level)"
        of_peak = layer.get("of_peak")
        rows.append(
            (
                name,
                str(layer.get("calls", len(paths))),
                by(layer["shape"]),
                f"{layer['macs'] * 1e-9:.3g}",
                told or "–",
                str(layer.get("chosen")),
                f"{layer['gflops']:.0f}" if layer.get("gflops") else "–",
                f"{of_peak:.0%}" if of_peak else "–",
            )
        )
    return rows


def _own_ms(layer: Mapping[str, Any]) -> float:
    """What a group's layers take together in the form that is chosen."""
    found = [
        f["median_ms"] for f in layer["forms"] if f["form"] == layer.get("chosen") and f.get("median_ms")
    ]
    return float(found[0]) * layer.get("calls", 1) if found else 0.0


def remarks(plan: Plan) -> list[str]:
    """What a reader should know beside the figures."""
    said = [
        f"{plan.threads} thread{'s' if plan.threads != 1 else ''} on {plan.machine.get('processor')}; "
        f"the largest product rate here is {plan.peak_gflops:.0f} GFLOP/s (float32)"
    ]
    own = sum(_form_ms(layer, layer["forms"][0]["form"]) for layer in plan.layers if layer["forms"])
    eager = next((c["median_ms"] for c in plan.candidates if c.get("name") == BASELINE and _timed(c)), None)
    if own and eager and own <= eager:
        said.append(
            f"the layers above take {own:.3g} ms of the {milliseconds(eager)} ms that the original takes, "
            f"each by itself; the rest goes elsewhere"
        )
    elif own and eager:
        said.append(
            f"the layers above took {own:.3g} ms, each by itself, more than the {milliseconds(eager)} ms of the whole "
            f"original: they were measured while other processes were busy, or wait for more than they compute"
        )
    searched = sum("#" in str(c.get("name")) for c in plan.candidates)
    if searched > _SEARCHED:
        said.append(f"{searched} assignments of forms to single layers were tried; the plan lists them all")
    if plan.fast_products:
        said.append(
            "fast products: rows may be multiplied together without an error bound for each; beside much larger rows "
            "small ones lose digits, and an infinity or NaN reaches other rows"
        )
    if plan.disturbed:
        said.append(
            f"{plan.disturbed} timing rounds were disturbed by other processes and repeated where time allowed"
        )
    return said


def _form_ms(layer: Mapping[str, Any], form: str) -> float:
    found = [f["median_ms"] for f in layer["forms"] if f["form"] == form and f.get("median_ms")]
    return float(found[0]) * layer.get("calls", 1) if found else 0.0


def milliseconds(value: Any) -> str:
    """Three digits, and never a power of ten; a dash for what is no number.

    >>> milliseconds(0.01234), milliseconds(1234.5), milliseconds(None)
    ('0.0123', '1,234', '–')
    """
    if not isinstance(value, int | float):
        return "–"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"
