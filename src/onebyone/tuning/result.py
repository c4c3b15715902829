"""The result of `tune`: the model, the plan, and tables of the candidates and layers with their times."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebyone.records import by, html_result, html_table, table
from onebyone.tuning.plan import TuningPlan
from onebyone.tuning.tuned_model import TunedModel
from onebyone.verification.result import Verification

BASELINE = "eager:original"
ONNX_BASELINE = "onnxruntime:original"
"""The candidate that others are compared with, of an ONNX model."""
_MAX_ROWS, _MAX_SEARCHED, _MAX_NAMES = 25, 3, 5
Rows = list[tuple[str, ...]]
Table = tuple[list[str], Rows]


@dataclass(frozen=True, eq=False)
class Tuned:
    """The result of `tune`. `print(tuned)` shows where the time goes, form by form.

    `model` is the fastest equivalent form, called like the original. `plan` says why it was chosen, as plain data.
    `verification` is the proof that its form is equivalent; None if a plan was applied, whose outputs are compared
    instead. `notes` are remarks for the user.
    """

    model: TunedModel
    plan: TuningPlan
    verification: Verification | None = None
    notes: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan as `.json`, atomically; `tune(model, example, plan=path)` applies it."""
        return self.plan.save(path)

    def __str__(self) -> str:
        parts = [headline(self.plan)]
        parts += [f"\n{table(headers, rows)}" for headers, rows in tables(self.plan) if rows]
        return "\n".join([*parts, *(f"note: {n}" for n in [*remarks(self.plan), *self.notes])])

    def _repr_html_(self) -> str:
        """Return the same as HTML, for notebooks."""
        parts = [html_table(headers, rows) for headers, rows in tables(self.plan) if rows]
        return html_result(headline(self.plan), *parts, notes=[*remarks(self.plan), *self.notes])


def headline(plan: TuningPlan) -> str:
    """Return what was chosen and why, in one line."""
    return plan.why


def tables(plan: TuningPlan) -> list[Table]:
    """Return (headers, rows) of three tables: timed candidates, refused candidates, and layers with their forms."""
    timed = sorted((c for c in plan.candidates if _is_timed(c)), key=lambda c: c["median_ms"])
    base = next((c for c in timed if c.get("name") in (BASELINE, ONNX_BASELINE)), None)
    base_ms, beside = (base["median_ms"], str(base.get("engine"))) if base else (None, "eager")
    rows = [_candidate_row(c, base_ms, plan.choice) for c in timed]
    refused: dict[str, list[str]] = {}
    for c in plan.candidates:
        if not _is_timed(c):
            refused.setdefault(str(c.get("refused")), []).append(str(c.get("name")))
    return [
        (
            ["candidate", "ms", "spread", "runs", f"× {beside}", "rounding ratio", "worst row", "choice"],
            _shown_rows(rows),
        ),
        (["not chosen, because", "candidates"], [(reason, _few(names)) for reason, names in refused.items()]),
        (
            ["layers", "×", "shape", "GMAC", "forms (ms, one call)", "chosen", "GFLOP/s", "of peak"],
            _layer_rows(plan),
        ),
    ]


def _shown_rows(rows: Rows) -> Rows:
    """Return the first rows, a few of the search over layers, and always the chosen candidate and the original."""
    shown: Rows = []
    searched = 0
    for row in rows:
        searched += "#" in row[0]
        first = len(shown) < _MAX_ROWS and ("#" not in row[0] or searched <= _MAX_SEARCHED)
        if first or row[-1] or row[0] == BASELINE:
            shown.append(row)
    return shown


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _is_timed(candidate: Mapping[str, Any]) -> bool:
    return candidate.get("median_ms") is not None and not candidate.get("refused")


def _candidate_row(c: Mapping[str, Any], base_ms: float | None, choice: Mapping[str, Any]) -> tuple[str, ...]:
    ratios = [c.get("rounding_ratio"), c.get("row_ratio")]
    return (
        str(c.get("name")),
        milliseconds(c["median_ms"]),
        milliseconds(c.get("spread_ms")),
        str(c.get("runs")),
        f"{base_ms / c['median_ms']:.2f}" if base_ms else "",
        *(f"{r:.3g}" if isinstance(r, int | float) else "–" for r in ratios),
        "chosen" if c.get("name") == choice.get("name") else "",
    )


def _layer_rows(plan: TuningPlan) -> Rows:
    rows: Rows = []
    for layer in sorted(plan.layers, key=lambda layer: -_group_ms(layer, layer.get("chosen")))[:_MAX_ROWS]:
        paths, forms = layer["paths"], [f for f in layer["forms"] if f.get("median_ms") is not None]
        best = min((f["median_ms"] for f in forms), default=None)
        form_times = ", ".join(
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
                form_times or "–",
                str(layer.get("chosen")),
                f"{layer['gflops']:.0f}" if layer.get("gflops") else "–",
                f"{of_peak:.0%}" if of_peak else "–",
            )
        )
    return rows


def remarks(plan: TuningPlan) -> list[str]:
    """Return remarks on the measurement: threads, peak, how much of the time the layers take, disturbances."""
    lines = [
        f"{plan.threads} thread{'s' if plan.threads != 1 else ''} on {plan.machine.get('processor')}; "
        f"the peak rate of float32 products is {plan.peak_gflops:.0f} GFLOP/s"
    ]
    layers_ms = sum(_group_ms(layer, layer["forms"][0]["form"]) for layer in plan.layers if layer["forms"])
    timed = [c for c in plan.candidates if _is_timed(c)]
    eager_ms = next((c["median_ms"] for c in timed if c.get("name") == BASELINE), None)
    if layers_ms and eager_ms and layers_ms <= eager_ms:
        lines.append(
            f"timed one by one, the layers above take {layers_ms:.3g} ms of the {milliseconds(eager_ms)} ms of the "
            f"original; the rest is spent in other operators"
        )
    elif layers_ms and eager_ms:
        lines.append(
            f"timed one by one, the layers above take {layers_ms:.3g} ms, more than the {milliseconds(eager_ms)} ms of "
            f"the whole original: other processes were busy, or the overhead of a call exceeds its computation"
        )
    searched = sum("#" in str(c.get("name")) for c in plan.candidates)
    if searched > _MAX_SEARCHED:
        lines.append(
            f"{searched} assignments of forms to single layers were tried; the plan lists all of them"
        )
    if plan.fast_products:
        lines.append(
            "fast products: rows may be multiplied together without an error bound for each row; small rows beside "
            "much larger ones lose digits, and an infinity or NaN spreads to other rows"
        )
    if plan.disturbed:
        lines.append(
            f"{plan.disturbed} timing rounds were disturbed by other processes and repeated if time allowed"
        )
    return lines


def _group_ms(layer: Mapping[str, Any], form: Any) -> float:
    """Return the milliseconds of all calls of a group's layers in a form; 0 if it was not measured."""
    medians = [f["median_ms"] for f in layer["forms"] if f["form"] == form and f.get("median_ms")]
    return float(medians[0]) * layer.get("calls", 1) if medians else 0.0


def milliseconds(value: Any) -> str:
    """Format a number with three digits and without an exponent; a dash for anything else.

    >>> milliseconds(0.01234), milliseconds(1234.5), milliseconds(None)
    ('0.0123', '1,234', '–')
    """
    if not isinstance(value, int | float):
        return "–"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"
