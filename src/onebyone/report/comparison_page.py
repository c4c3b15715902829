"""A comparison as one HTML page: the claims with their figures, interactive views, verification, and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from onebyone.drawing.number_format import counted, number
from onebyone.records import by
from onebyone.report.claim_figures import claim_figure
from onebyone.report.figure_text import rows as figure_rows
from onebyone.report.figure_text import sentence, words
from onebyone.report.html import json_in_html, render, script_hash
from onebyone.report.interactive_views import (
    SIDES,
    cost_charts,
    cost_counts,
    pixel_views,
    weight_order_view,
)
from onebyone.report.network_figures import network_figures
from onebyone.report.tuning_plan import plan_view

Data = Mapping[str, Any]
SCRIPTS = ("page.js", "pixel.js", "order.js", "size.js")
GROUPS = (
    ("S", "similarities", "Claimed similarities"),
    ("D", "differences", "Claimed differences"),
    ("R", "replacement", "Claims about replacement"),
)
_KINDS = {
    "holds": ("holds", "✓", "hold"),
    "holds when": ("holds-when", "◐", "hold under a condition"),
    "does not hold as usually said": ("not-as-said", "✗", "do not hold as usually said"),
    "not available": ("not-available", "–", "could not be tested"),
}
"""By verdict: its class, its mark, and its name in the summary."""


def comparison_page(
    data: Data,
    plan: Data | None = None,
    title: str | None = None,
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """The page for a comparison's plain data (`Comparison.to_dict`, finite) and, if given, a checked tuning plan.

    `title` is the name of the network; its class if None. `links` are pairs (text, address) of pages that tell the same
    story, relative to this one. The page loads nothing: it contains its style, script,
    pictures and data, and its content security policy allows no other script.

    Raises
    ------
    MissingExtra
        if Jinja2 is not installed.
    """
    rows = [claim_view(row) for row in data["rows"]]
    script = "\n".join(_asset(name) for name in SCRIPTS)
    return render(
        "comparison.html.j2",
        script=script,
        script_hash=script_hash(script),
        data=json_in_html({**data, "plan": plan}),
        about=data["about"],
        title=title or data["about"]["network"],
        links=links,
        rows=rows,
        summary=_summary(rows),
        groups=_groups(rows),
        layers=_layers(data["layers"]),
        **_views({row["id"]: row for row in data["rows"]}),
        network_figures=network_figures(data.get("drawing")),
        conversion=_conversion(data.get("conversion")),
        verification=_verification(data.get("verification")),
        plan=None if plan is None else plan_view(dict(plan)),
        method=_method(data["about"]),
    )


def _asset(name: str) -> str:
    return (files("onebyone.report") / "assets" / name).read_text(encoding="utf-8")


# rows -------------------------------------------------------------------------------------------------------


def claim_view(row: Data) -> dict[str, Any]:
    """A row of a comparison as the template shows it: verdict, figure, tables and all figures as text."""
    verdict = str(row["verdict"])
    kind = next((k for k in ("holds when", *_KINDS) if verdict.startswith(k)), "not available")
    css, mark, _ = _KINDS[kind]
    return {
        "id": row["id"],
        "statement": row["statement"],
        "verdict": verdict,
        "because": sentence(row["because"]),
        "kind": css,
        "mark": mark,
        "picture": claim_figure(row),
        "tables": _tables(row),
        "lines": list(figure_rows({k: v for k, v in row["figures"].items() if k not in _LONG})),
        "seconds": number(row["seconds"]),
        "try_it": _INTERACTIVE.get(row["id"]) if row["figures"] else None,
    }


_LONG = ("sweep", "counts", "sizes", "probes")
"""Figures that are shown in tables of their own, or are only in the data because they are long."""
_INTERACTIVE = {"D1": "pixel", "D5": "size", "R2": "order"}
"""By row: the id of its interactive view."""


def _tables(row: Data) -> list[dict[str, Any]]:
    """Tables for the rows that a figure would not explain."""
    figures = row["figures"]
    if row["id"] == "D2" and figures:
        return [_sizes(figures["sweep"]), *_leading(figures["linear_alone"])]
    if row["id"] == "R1" and figures.get("probes"):
        cells = [_probe(p) for p in figures["probes"][:12]]
        more = len(figures["probes"]) - len(cells)
        caption = "Layers probed on integers" + (
            f" (the first {len(cells)}; {more} more in the data)" if more else ""
        )
        return [
            {
                "caption": caption,
                "heads": ("layer", "weight", "outputs probed", "results", "faults caught"),
                "lines": cells,
            }
        ]
    return []


def _probe(probe: Data) -> tuple[str, ...]:
    same = "equal bit for bit" if probe["bitwise"] else "DIFFERENT"
    caught = f"{probe['faults_seen']} of {probe['faults']}"
    return (_path(probe["layer"]), by(probe["weight"]), f"{probe['outputs_probed']:,}", same, caught)


def _path(path: str) -> str:
    return path or "(top level)"


def _sizes(sweep: Sequence[Data]) -> dict[str, Any]:
    sizes = list(dict.fromkeys(tuple(s["size"]) for s in sweep))
    cells = {(s["role"], tuple(s["size"])): s for s in sweep}
    return {
        "caption": "Output of each layer on maps of several sizes",
        "heads": ("map", "1×1 convolution", "flatten + FC"),
        "lines": [
            (
                by(size) + _remark(cells.get(("connected", size))),
                _ran(cells.get(("pointwise", size))),
                _ran(cells.get(("connected", size))),
            )
            for size in sizes
        ],
    }


def _remark(entry: Data | None) -> str:
    if entry is None:
        return ""
    if entry["own_size"]:
        return " (size of flatten + FC)"
    return " (as many elements)" if entry["same_elements"] else ""


def _ran(entry: Data | None) -> str:
    """The output of a layer on a map; the two layers may have been tried at different sizes."""
    if entry is None:
        return "not tried"
    return f"✓ {by(entry['output'])}" if entry["ran"] else "✗ error"


def _leading(alone: Sequence[Data]) -> list[dict[str, Any]]:
    if not alone:
        return []
    cells = [(by(a["leading"]) or "none", _ran(a)) for a in alone]
    return [
        {
            "caption": "The linear layer without a flatten, with leading axes",
            "heads": ("leading axes", "output"),
            "lines": cells,
        }
    ]


def _summary(rows: Sequence[Data]) -> list[tuple[str, int, str]]:
    counts = [(css, sum(row["kind"] == css for row in rows), name) for css, _, name in _KINDS.values()]
    return [(css, count, name) for css, count, name in counts if count or css != "not-available"]


def _groups(rows: Sequence[Data]) -> list[dict[str, Any]]:
    groups = [
        {"id": name, "title": title, "rows": [r for r in rows if r["id"].startswith(letter)]}
        for letter, name, title in GROUPS
    ]
    return [group for group in groups if group["rows"]]


# the interactive views --------------------------------------------------------------------------------------


def _views(rows: Mapping[str, Data]) -> dict[str, Any]:
    has = {name: name in rows and bool(rows[name]["figures"]) for name in ("D1", "D5", "R2")}
    d5 = rows["D5"]["figures"] if has["D5"] else {}
    weights = rows["R2"]["pictures"]["filter"] if has["R2"] else {}
    times = d5.get("times", {})
    timed_outputs = times.get("outputs_timed", d5.get("outputs"))
    return {
        "has_views": any(has.values()),
        "pixel_views": pixel_views(rows["D1"]) if has["D1"] else [],
        "order": weight_order_view(weights) if has["R2"] else None,
        "order_layer": weights.get("layer") or weights.get("origin", ""),
        "costs": cost_charts(rows["D5"]) if has["D5"] else [],
        "channels": d5.get("channels", 0),
        "outputs": d5.get("outputs", 0),
        "size_layer": d5.get("layer") or d5.get("origin", ""),
        "crossing": _crossing(times),
        "timed_part": "" if timed_outputs == d5.get("outputs") else f" on the first {timed_outputs} outputs",
        "sides": SIDES,
        "size_rows": _size_rows(d5) if has["D5"] else [],
    }


def _crossing(times: Data) -> str:
    """Between which sizes the measured times cross."""
    if not times.get("table"):
        return ""
    crossings = [
        f"between {by(c['from'])} and {by(c['to'])}, after which {_FASTER[c['faster_after']]} is faster"
        for c in times["crossings"]
    ]
    where = (
        "; ".join(crossings)
        or f"nowhere between {by(times['table'][0]['size'])} and {by(times['table'][-1]['size'])}"
    )
    return f"The numbers of parameters are equal only on a map of one position. The measured times cross {where}."


_FASTER = {"pointwise": "the 1×1 convolution", "connected": "flatten + FC"}


def _size_rows(figures: Data, side: int = 7) -> list[dict[str, Any]]:
    """The table at one size, which is shown initially and without a script."""
    counts = cost_counts(figures, side)
    names = {"parameters": "parameters", "macs": "multiply-accumulates", "bytes": "bytes moved"}
    table = [
        {"key": key, "name": name, "cells": (*_compared(counts[key], number), "exact")}
        for key, name in names.items()
    ]
    timed = next((r for r in figures.get("times", {}).get("table", []) if r["size"] == [side, side]), None)
    cells: tuple[str, ...] = ("–", "–", "–", "not measured at this size")
    if timed:
        medians = {role: timed["seconds"][role]["median"] for role in ("pointwise", "connected")}
        cells = (*_compared(medians, lambda t: f"{number(1e3 * t)} ms"), "measured")
    return [*table, {"key": "seconds", "name": "time", "cells": cells}]


def _compared(values: Mapping[str, float], text: Callable[[float], str]) -> tuple[str, str, str]:
    pointwise, connected = values["pointwise"], values["connected"]
    return text(pointwise), text(connected), f"{number(connected / pointwise)}×"


# layers, conversion, verification, method -------------------------------------------------------------------


def _layers(layers: Data) -> list[tuple[str, str]]:
    chosen = [(name, v) for name, v in layers.items() if isinstance(v, Mapping) and "origin" in v]
    spatial = layers.get("for claims about positions", {})
    chosen += [(f"over positions: {v['name']}", v) for v in spatial.values()]
    return [(name, _layer(layer)) for name, layer in chosen]


def _layer(layer: Data) -> str:
    path = f"{layer['layer']}, " if layer["layer"] else ""
    return f"{path}{layer['origin']}; {by(layer['map'])} → {layer['outputs']} ({layer['sampled']})"


def _conversion(conversion: Data | None) -> dict[str, Any] | None:
    if conversion is None or "not_available" in conversion:
        return None if conversion is None else dict(conversion)
    changes, refused = conversion["changes"], conversion["refused"]
    copied = conversion["copied_bytes"]
    return {
        "not_available": "",
        "result": f"{counted(len(changes), 'layer')} converted, {len(refused)} refused; "
        + (
            "no weight was copied, both forms share them." if not copied else f"{copied:,} bytes were copied."
        ),
        "changes": [{**c, "path": _path(c["path"]), "copied": _bytes(c["copied_bytes"])} for c in changes],
        "refused": [{**r, "path": _path(r["path"])} for r in refused],
    }


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count else "–"


_FACTS = {
    "target": "compared",
    "integer_probe": "integer probes are equal bit for bit",
    "max_error": "largest difference of the network outputs",
    "rounding_ratio": "error relative to the original's rounding error (rounding ratio)",
    "float64_error": "largest difference in float64",
    "float64_limit": "derived bound for float64",
    "first_difference": "first layer that differs",
}


def _verification(verification: Data | None) -> dict[str, Any] | None:
    if verification is None or "not_available" in verification:
        return None if verification is None else dict(verification)
    bits = {True: "equal bit for bit", False: "DIFFERENT", None: "–"}
    layers = [
        {
            "path": _path(layer["path"]),
            "integers": bits[layer["bitwise"]],
            "error": words(layer["max_error"]),
            "bound": words(layer["bound"]),
            "fault": words(layer["planted_fault"]),
            "verdict": ("ok" if layer["ok"] else "FAILS") + (f": {layer['why']}" if layer["why"] else ""),
        }
        for layer in verification["layers"]
    ]
    notes = [f"problem: {p}" for p in verification["problems"]]
    notes += [f"not verified: {u}" for u in verification["unverified"]]
    return {
        "not_available": "",
        "equivalent": verification["equivalent"],
        "facts": [
            (name, words(verification[key]))
            for key, name in _FACTS.items()
            if verification.get(key) is not None
        ],
        "layers": layers,
        "notes": notes,
    }


def _method(about: Data) -> list[tuple[str, str]]:
    names = {
        "network": "network",
        "parameters": "parameters",
        "seed": "random seed",
        "seconds": "duration in seconds",
        "threads": "threads",
        "torch": "torch",
        "onebyone": "onebyone",
    }
    machine = about.get("machine", {})
    parts = [str(machine[k]) for k in ("processor", "system") if machine.get(k)]
    return [
        *((name, words(about[key])) for key, name in names.items() if about.get(key) is not None),
        *([("machine", ", ".join(parts))] if parts else []),
    ]
