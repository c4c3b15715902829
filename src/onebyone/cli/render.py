"""Tables of the results. Each is made from the data that `--json` prints, so that both show the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onebyone.records import by, few, size_of, tones

if TYPE_CHECKING:
    from onebyone.dense import ScoreMap
    from onebyone.detection import Detections
    from onebyone.overview import NetworkOverview
    from onebyone.prediction.result import Predictions
    from onebyone.results import Conversion
    from onebyone.tuning import TuningPlan

MOST_ROWS = 60
"""Rows shown of a long table; --json prints all."""

Data = dict[str, Any]


def to_dicts(records: Iterable[Any]) -> list[Data]:
    """Changes or refusals as plain data."""
    return [record.to_dict() for record in records]


def conversion_data(conversion: Conversion[Any], source: str, notes: Sequence[str]) -> Data:
    """The result of `convert`."""
    return {"source": source, **conversion.to_dict(), "notes": list(notes)}


def conversion_tables(data: Data) -> list[RenderableType]:
    """The changes, the refusals and a summary."""
    changes, refused = data["changes"], data["refused"]
    copied = _bytes(data["copied_bytes"]) if data["copied_bytes"] else "nothing"
    summary = f"{len(changes)} {_plural('layer', changes)} converted, {len(refused)} refused, {copied} copied"
    if "weight_bytes_before" in data:
        summary += f", weights {_bytes(data['weight_bytes_before'])} → {_bytes(data['weight_bytes_after'])}"
    if "layout_before" in data:
        before, after = (sum(data[name].values()) for name in ("layout_before", "layout_after"))
        summary += f", layout operators {before} → {after}"
    return [*_changes(changes), *_refusals(refused), _summary(summary, data)]


def _changes(changes: Sequence[Data]) -> list[RenderableType]:
    if not changes:
        return []
    headers = ("layer", "kind", "law", "before", "after", "copied")
    rows = [
        (c["path"] or "(top level)", c["kind"], c["law"], c["before"], c["after"], _bytes(c["copied_bytes"]))
        for c in changes
    ]
    return [table_of("Converted", headers, rows)]


def _refusals(refused: Sequence[Data]) -> list[RenderableType]:
    rows = [(r["path"] or "(top level)", r["kind"], r["reason"]) for r in refused]
    return [table_of("Not converted", ("layer", "kind", "reason"), rows)] if rows else []


_FIGURES = (
    ("target", "compared"),
    ("integer_probe", "integer probes equal bit for bit"),
    ("max_error", "largest difference"),
    ("rounding_ratio", "rounding ratio (converted ÷ original, against float64)"),
    ("windows", "windows compared"),
    ("max_abs_difference", "largest difference of dense scores from crops"),
    ("bound", "derived bound of this difference"),
    ("first_difference", "first layer that differs"),
)


def verification_tables(data: Data) -> list[RenderableType]:
    """One row per layer, the figures, and the verdict."""
    parts: list[RenderableType] = []
    if data["layers"]:
        headers = ("layer", "kind", "integers", "|Δ|", "bound", "smallest injected fault", "verdict")
        parts.append(table_of("Layers", headers, [_layer(layer) for layer in data["layers"]]))
    if data.get("refused"):
        parts += _refusals(data["refused"])
    parts.append(_figures(data))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in data.get("warnings", ())]
    parts += [Text(f"not verified: {note}", style="dim") for note in data["unverified"]]
    parts += [Text(f"problem: {problem}", style="red") for problem in data["problems"]]
    parts.append(_verdict(data))
    return parts


def _layer(layer: Data) -> tuple[str, ...]:
    bits = {True: "bit for bit", False: "DIFFER", None: "–"}[layer["bitwise"]]
    verdict = ("ok" if layer["ok"] else "FAILS") + (f": {layer['why']}" if layer["why"] else "")
    numbers = (_number(layer[name]) for name in ("max_error", "bound", "planted_fault"))
    return (layer["path"] or "(top level)", layer["kind"], bits, *numbers, verdict)


def _figures(data: Data) -> Table:
    rows = [(label, _number(data[name])) for name, label in _FIGURES if data.get(name) is not None]
    if data.get("class_agreement") is not None:
        rows.append(("windows with the same best class", f"{data['class_agreement']:.2%}"))
    weights = data.get("weights")
    if weights:
        verdict = "equal bit for bit" if weights["ok"] else "DIFFER"
        rows.append(("weights", f"{weights['compared']} tensors, {verdict}"))
    gradients = data.get("gradients")
    if gradients:
        rows.append(
            ("gradients", f"{gradients['compared']} tensors, {'agree' if gradients['ok'] else 'DIFFER'}")
        )
    return _pairs(rows)


def _verdict(data: Data) -> Text:
    if data.get("nothing_verified"):
        return Text("nothing verified", style="bold yellow")
    return (
        Text("equivalent", style="bold green")
        if data["equivalent"]
        else Text("NOT equivalent", style="bold red")
    )


def dense_data(dense: Any, source: str, notes: Sequence[str]) -> Data:
    """The result of `convolutionalize`."""
    return {
        "source": source,
        "channels": dense.channels,
        "labels": dense.labels.to_dict(),
        "preprocessing": dense.labels.preprocessing(),
        "outputs": [o.to_dict() for o in dense.outputs],
        "head": dense.head,
        "context": dense.context,
        "geometry": dense.geometry.to_dict(),
        "changes": to_dicts(dense.changes),
        "notes": list(notes),
    }


def dense_tables(data: Data) -> list[RenderableType]:
    """The changes, the outputs, and the window of each prediction in the image."""
    outputs = [(o["name"], str(o["channels"]), o["scores"] or "unknown") for o in data["outputs"]]
    parts = [
        *_changes(data["changes"]),
        table_of("Outputs", ("output", "channels", "scores"), outputs),
        Text(f"preprocessing: {data['preprocessing']}"),
        *geometry_tables(data["geometry"]),
    ]
    if "verification" in data:
        parts += verification_tables(data["verification"])
    return [*parts, _summary(f"any image from {by(data['geometry']['window'])} pixels up", data)]


def geometry_tables(geometry: Data) -> list[RenderableType]:
    """Window, stride, offset, receptive field, and whether dense scores equal those of crops."""
    names = ("window", "stride", "window_offset", "receptive_field", "receptive_field_offset")
    rows = [(name.replace("_", " "), by(geometry[name])) for name in names]
    exact = "yes" if geometry["exact"] else "no: " + "\n".join(_grouped(geometry["inexact_because"]))
    return [_pairs([*rows, ("equals cropping every window", exact)], "Geometry (pixels)")]


def _grouped(reasons: Sequence[str]) -> list[str]:
    """Reasons given as `operator: reason`, each listed once with all its operators."""
    by_reason: dict[str, list[str]] = {}
    for text in reasons:
        operator, colon, reason = text.partition(": ")
        by_reason.setdefault(reason if colon else text, []).append(operator if colon else "")
    return [
        f"{reason} ({few(operators)})" if operators[0] else reason for reason, operators in by_reason.items()
    ]


def scores_data(scores: ScoreMap, source: str, image: os.PathLike[str], output: object) -> Data:
    """A summary of the score map that `scan` returned.

    Windows are counted by their best class; if classes are independent (multi-label), by every class with a
    probability of at least 0.5.
    """
    classes = scores.scores.shape[0]
    independent = classes == 1 or (scores.kind is not None and scores.kind.classes == "multi-label")
    return {
        "source": source,
        "image": os.fspath(image),
        "image_size": list(scores.image_size),
        "places": list(scores.positions),
        "windows": scores.windows,
        "seconds": scores.seconds,
        "device": scores.device,
        "engine": scores.engine,
        "geometry": scores.geometry.to_dict(),
        "labels": scores.labels.to_dict(),
        "preprocessing": scores.labels.preprocessing(),
        "scores": None if scores.kind is None else str(scores.kind),
        "scores_are": scores.kind.describe(classes) if scores.kind else "of unknown kind",
        "counted": "probability at least 0.5" if independent else "best class",
        "classes": dict(zip(scores.classes, scores.windows_by_class(), strict=True)),
        "agreement": None if scores.agreement is None else scores.agreement.to_dict(),
        "agreement_skipped": scores.agreement_skipped,
        "output": None if output is None else str(output),
    }


def scores_tables(data: Data) -> list[RenderableType]:
    """The number of windows, and how many of them each class is the best of."""
    by_count = sorted(data["classes"].items(), key=lambda item: -item[1])
    rows = [(name, f"{count:,}", f"{count / data['windows']:.1%}") for name, count in by_count if count]
    summary = (
        f"{data['windows']:,} windows ({by(data['places'])} positions) in {by(data['image_size'])} pixels "
        f"in {data['seconds']:.2f} s on {data['device']}"
    )
    return [
        Text(f"preprocessing: {data['preprocessing']}"),
        Text(f"scores: {data['scores_are']}"),
        table_of(data["counted"].capitalize(), ("class", "windows", "share"), rows),
        *geometry_tables(data["geometry"]),
        *_agreement(data["agreement"], data["agreement_skipped"]),
        _summary(summary, data),
    ]


def _agreement(agreement: Data | None, skipped: str) -> list[RenderableType]:
    if agreement is None:
        return [Text(f"agreement with cropped windows: not measured; {skipped}")] if skipped else []
    counted = f"{agreement['same']} of {agreement['windows']} sampled ({agreement['share']:.0%})"
    return [_pairs([("same best class as when cropped", counted)], "Agreement with cropped windows")]


def detections_data(detections: Detections, scores: Sequence[str | os.PathLike[str]], output: object) -> Data:
    """The result of `detect` on score maps: boxes from (x1, y1) to (x2, y2) in pixels."""
    return {
        "scores": [os.fspath(name) for name in scores],
        "image_size": list(detections.image_size),
        "objects": detections.to_dicts(),
        "output": None if output is None else str(output),
    }


def detections_tables(data: Data) -> list[RenderableType]:
    """The detections, highest score first."""
    sides = ("x1", "y1", "x2", "y2")
    rows = [(o["class"], f"{o['score']:.3f}", *(f"{o[side]:g}" for side in sides)) for o in data["objects"]]
    summary = _summary(f"{len(rows)} {_plural('object', rows)} in {by(data['image_size'])} pixels", data)
    return [table_of("Objects", ("class", "score", *sides), rows), summary] if rows else [summary]


def comparison_tables(data: Data) -> list[RenderableType]:
    """The layers compared, and one row per claim with its verdict and reason."""
    layers = [
        (name, f"{layer['layer'] or '–'}: {by(layer['map'])} → {layer['outputs']}, {layer['origin']}")
        for name, layer in data["layers"].items()
        if "origin" in layer
    ]
    claims = [(row["id"], row["statement"], row["verdict"], row["because"]) for row in data["rows"]]
    table = table_of("Common claims, tested", ("", "claim", "verdict", "reason"), claims, lines=True)
    about = data["about"]
    summary = f"{len(data['rows'])} rows in {about['seconds']:.0f} s on {about['threads']} threads"
    return [_pairs(layers, "Layers compared"), table, _summary(summary, data)]


def drawing_tables(data: Data) -> list[RenderableType]:
    """The files written, and the figures that could not be drawn with the reason."""
    rows = [
        (file["figure"], file["theme"], f"{file['bytes']:,}", str(file["path"])) for file in data["files"]
    ]
    missing = [
        Text.assemble((name, "yellow"), f" not drawn: {reason}") for name, reason in data["missing"].items()
    ]
    return [table_of("Figures", ("figure", "theme", "bytes", "file"), rows), *missing]


def tuned_tables(plan: TuningPlan) -> list[RenderableType]:
    """The candidates, those not selected, and where the time is spent."""
    from onebyone.tuning.result import headline, remarks, tables

    titles = ("Candidates", "Not selected", "Where the time goes")
    shown = [
        table_of(t, headers, rows) for t, (headers, rows) in zip(titles, tables(plan), strict=True) if rows
    ]
    return [*shown, *(Text(r, style="dim") for r in remarks(plan)), Text(headline(plan), style="bold")]


def overview_tables(overview: NetworkOverview) -> list[RenderableType]:
    """The facts about a network, its layers, and what is refused."""
    from onebyone.overview.result import HEADERS

    refused = [(r.path or "(top level)", r.kind, r.reason) for r in overview.refusals()]
    parts: list[RenderableType] = [_pairs(overview.summary()), table_of("Layers", HEADERS, overview.rows())]
    return [*parts, *([table_of("Refused", ("layer", "kind", "reason"), refused)] if refused else [])]


def predictions_tables(predictions: Predictions) -> list[RenderableType]:
    """One row per image; for a single image its objects too; and the files written."""
    from onebyone.prediction.result import HEADERS

    parts: list[RenderableType] = [
        Text(f"preprocessing of pixel values v: {predictions.labels.preprocessing()}"),
        table_of("Images", HEADERS, predictions.rows()),
    ]
    if len(predictions) == 1:
        parts.append(detections_tables(detections_data(predictions[0].detections, (), None))[0])
    files = [file for item in predictions for file in item.files]
    return [*parts, *([Text(f"wrote {few(files)}", style="bold")] if files else [])]


def demo_tables(summary: Data, folder: os.PathLike[str]) -> list[RenderableType]:
    """The figures of the demo, and the page to open."""
    rows = [
        (str(name).replace("_", " "), _number(value)) for name, value in summary.items() if _is_figure(value)
    ]
    return [
        _pairs(rows, "Results"),
        Text(f"open {os.path.join(folder, 'index.html')}", style="bold"),
    ]


_LEAST_WIDTH = {"verdict": 18}
_STYLES = {"good": "green", "caution": "yellow", "bad": "bold red"}


def table_of(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], *, lines: bool = False
) -> Group:
    """The table of every command: at most MOST_ROWS rows, with cells that judge in colour.

    `lines` separates the rows, for cells of several lines.
    """
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=lines)
    for header in headers:
        table.add_column(header, overflow="fold", min_width=_LEAST_WIDTH.get(header))
    for row in rows[:MOST_ROWS]:
        table.add_row(*_cells(headers, row))
    more = len(rows) - MOST_ROWS
    return (
        Group(table, Text(f"… and {more} more: --json lists all", style="dim")) if more > 0 else Group(table)
    )


def _cells(headers: Sequence[str], row: Sequence[str]) -> list[Text]:
    return [Text(str(c), _STYLES.get(tone, "")) for c, tone in zip(row, tones(headers, row), strict=True)]


def _pairs(rows: Sequence[tuple[str, str]], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(*_cells((), (name, value)))
    return table


def _summary(text: str, data: Data) -> Text:
    wrote = f"; wrote {data['output']}" if data.get("output") else ""
    return Text(text + wrote, style="bold")


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_figure(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _bytes(count: int) -> str:
    return size_of(count) if count else "–"


def _plural(noun: str, things: Sequence[Any]) -> str:
    return noun if len(things) == 1 else noun + "s"
