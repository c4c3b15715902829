"""A comparison as one page: the rows with their pictures, three interactive views, the proof, and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from onebyone.records import by
from onebyone.report.claim_figures import picture
from onebyone.report.html import json_in_html, render, script_hash
from onebyone.report.interactive_views import SIDES, costs, counted, folding, movers
from onebyone.report.network_figures import network_pictures
from onebyone.report.number_format import counted as counted_noun
from onebyone.report.number_format import lines, number, sentence, words
from onebyone.report.tuning_plan import plan_view

Data = Mapping[str, Any]
SCRIPTS = ("page.js", "pixel.js", "order.js", "size.js")
GROUPS = (
    ("S", "alike", "Said to be alike"),
    ("D", "differ", "Said to differ"),
    ("R", "replacing", "Said of replacing"),
)
_KINDS = {
    "holds": ("holds", "✓", "hold"),
    "holds when": ("holds-when", "◐", "hold under a condition"),
    "does not hold as usually said": ("not-as-said", "✗", "do not hold as usually said"),
    "not available": ("not-available", "–", "could not be measured"),
}
"""By verdict: its class, its mark, and how the tally names it."""


def comparison_page(data: Data, plan: Data | None = None, title: str | None = None) -> str:
    """The page of a comparison's plain data (as `Comparison.to_dict` gives it, finite), and of a checked plan.

    `title` names the network; its class does where it is None.

    It loads nothing: style, script, pictures and data are inside, and its policy lets no other script run.

    Raises
    ------
    MissingExtra
        if Jinja2 is not installed.
    """
    rows = [_row(row) for row in data["rows"]]
    script = "\n".join(_asset(name) for name in SCRIPTS)
    found = {row["id"]: row for row in data["rows"]}
    whole = {**data, "plan": plan}
    return render(
        "comparison.html.j2",
        script=script,
        script_hash=script_hash(script),
        data=json_in_html(whole),
        about=data["about"],
        title=title or data["about"]["network"],
        rows=rows,
        tally=_tally(rows),
        groups=_groups(rows),
        layers=_layers(data["layers"]),
        **_views(found),
        pictures=network_pictures(data.get("drawing")),
        conversion=_conversion(data.get("conversion")),
        verification=_verification(data.get("verification")),
        plan=None if plan is None else plan_view(dict(plan)),
        method=_method(data["about"]),
    )


def _asset(name: str) -> str:
    return (files("onebyone.report") / "assets" / name).read_text(encoding="utf-8")


# rows -------------------------------------------------------------------------------------------------------


def _row(row: Data) -> dict[str, Any]:
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
        "picture": picture(row),
        "tables": _tables(row),
        "lines": list(lines({k: v for k, v in row["figures"].items() if k not in _LONG})),
        "seconds": number(row["seconds"]),
        "try_it": _TRY.get(row["id"]) if row["figures"] else None,
    }


_LONG = ("sweep", "counts", "sizes", "probes")
"""Figures that are tables of their own, or that the data file tells better."""
_TRY = {"D1": "pixel", "D5": "size", "R2": "order"}


def _tables(row: Data) -> list[dict[str, Any]]:
    """Tables that say more than a picture would."""
    figures = row["figures"]
    if row["id"] == "D2" and figures:
        return [_sizes(figures["sweep"]), *_leading(figures["linear_alone"])]
    if row["id"] == "R1" and figures.get("probes"):
        cells = [_probe(p) for p in figures["probes"][:12]]
        more = len(figures["probes"]) - len(cells)
        caption = "Probed on integers" + (
            f" (the first {len(cells)}; {more} more in the data)" if more else ""
        )
        return [
            {
                "caption": caption,
                "heads": ("layer", "weight", "outputs probed", "outputs", "faults caught"),
                "lines": cells,
            }
        ]
    return []


def _probe(probe: Data) -> tuple[str, ...]:
    same = "bit for bit" if probe["bitwise"] else "DIFFERS"
    caught = f"{probe['faults_seen']} of {probe['faults']}"
    return (_path(probe["layer"]), by(probe["weight"]), f"{probe['outputs_probed']:,}", same, caught)


def _path(path: str) -> str:
    return path or "(top level)"


def _sizes(sweep: Sequence[Data]) -> dict[str, Any]:
    sizes = list(dict.fromkeys(tuple(s["size"]) for s in sweep))
    cells = {(s["role"], tuple(s["size"])): s for s in sweep}
    return {
        "caption": "Maps tried, and the output of each layer",
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
    own, same = " (flatten + FC's own)", " (as many elements)"
    return own if entry["own_size"] else same if entry["same_elements"] else ""


def _ran(entry: Data | None) -> str:
    """What a layer gave on a map; the layers' own maps may differ, and then the sizes tried do."""
    if entry is None:
        return "not tried"
    return f"✓ {by(entry['output'])}" if entry["ran"] else "✗ raises"


def _leading(alone: Sequence[Data]) -> list[dict[str, Any]]:
    if not alone:
        return []
    cells = [(by(a["leading"]) or "none", _ran(a)) for a in alone]
    return [
        {
            "caption": "A linear layer alone, with further axes in front",
            "heads": ("leading axes", "output"),
            "lines": cells,
        }
    ]


def _tally(rows: Sequence[Data]) -> list[tuple[str, int, str]]:
    counts = [(css, sum(row["kind"] == css for row in rows), said) for css, _, said in _KINDS.values()]
    return [(css, count, said) for css, count, said in counts if count or css != "not-available"]


def _groups(rows: Sequence[Data]) -> list[dict[str, Any]]:
    found = [
        {"id": name, "title": title, "rows": [r for r in rows if r["id"].startswith(letter)]}
        for letter, name, title in GROUPS
    ]
    return [group for group in found if group["rows"]]


# the interactive views --------------------------------------------------------------------------------------


def _views(found: Mapping[str, Data]) -> dict[str, Any]:
    has = {name: name in found and bool(found[name]["figures"]) for name in ("D1", "D5", "R2")}
    d5 = found["D5"]["figures"] if has["D5"] else {}
    shown = found["R2"]["pictures"]["filter"] if has["R2"] else {}
    times = d5.get("times", {})
    part = times.get("outputs_timed", d5.get("outputs"))
    return {
        "has_views": any(has.values()),
        "movers": movers(found["D1"]) if has["D1"] else [],
        "folding": folding(shown) if has["R2"] else None,
        "folding_layer": shown.get("layer") or shown.get("origin", ""),
        "costs": costs(found["D5"]) if has["D5"] else [],
        "channels": d5.get("channels", 0),
        "outputs": d5.get("outputs", 0),
        "size_layer": d5.get("layer") or d5.get("origin", ""),
        "crossing": _crossing(times),
        "timed_part": "" if part == d5.get("outputs") else f" on the first {part} outputs",
        "sides": SIDES,
        "size_rows": _size_rows(d5) if has["D5"] else [],
    }


def _crossing(times: Data) -> str:
    """Where the measured times cross, in words."""
    if not times.get("table"):
        return ""
    found = [
        f"between {by(c['from'])} and {by(c['to'])}, after which {_FASTER[c['faster_after']]} is faster"
        for c in times["crossings"]
    ]
    where = (
        "; ".join(found)
        or f"nowhere between {by(times['table'][0]['size'])} and {by(times['table'][-1]['size'])}"
    )
    return f"Parameters are equal on a map of one place, and there alone. The measured times cross {where}."


_FASTER = {"pointwise": "the 1×1 convolution", "connected": "flatten + FC"}


def _size_rows(figures: Data, side: int = 7) -> list[dict[str, Any]]:
    """The table at one size, as it stands before anyone slides, and on paper without a script."""
    found = counted(figures, side)
    names = {"parameters": "parameters", "macs": "multiply-accumulates", "bytes": "bytes moved"}
    table = [
        {"key": key, "name": name, "cells": (*_compared(found[key], number), "exact")}
        for key, name in names.items()
    ]
    timed = next((r for r in figures.get("times", {}).get("table", []) if r["size"] == [side, side]), None)
    cells: tuple[str, ...] = ("–", "–", "–", "not measured at this size")
    if timed:
        medians = {role: timed["seconds"][role]["median"] for role in ("pointwise", "connected")}
        cells = (*_compared(medians, lambda t: f"{number(1e3 * t)} ms"), "measured")
    return [*table, {"key": "seconds", "name": "time", "cells": cells}]


def _compared(values: Mapping[str, float], said: Callable[[float], str]) -> tuple[str, str, str]:
    one, whole = values["pointwise"], values["connected"]
    return said(one), said(whole), f"{number(whole / one)}×"


# layers, conversion, verification, method -------------------------------------------------------------------


def _layers(layers: Data) -> list[tuple[str, str]]:
    chosen = [(name, v) for name, v in layers.items() if isinstance(v, Mapping) and "origin" in v]
    places = layers.get("for statements about places", {})
    chosen += [(f"over places: {v['name']}", v) for v in places.values()]
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
        "said": f"{counted_noun(len(changes), 'layer')} converted, {len(refused)} refused; "
        + ("no weight was copied: both forms share them." if not copied else f"{copied:,} bytes copied."),
        "changes": [{**c, "path": _path(c["path"]), "copied": _bytes(c["copied_bytes"])} for c in changes],
        "refused": [{**r, "path": _path(r["path"])} for r in refused],
    }


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count else "nothing"


_FACTS = {
    "target": "compared",
    "integer_probe": "integer probes equal bit for bit",
    "max_error": "largest difference of the whole network",
    "rounding_ratio": "its error over the original's own, against float64",
    "float64_error": "difference in float64",
    "float64_limit": "the limit derived for it",
    "first_difference": "first layer that differs",
}


def _verification(found: Data | None) -> dict[str, Any] | None:
    if found is None or "not_available" in found:
        return None if found is None else dict(found)
    bits = {True: "bit for bit", False: "DIFFER", None: "–"}
    layers = [
        {
            "path": _path(layer["path"]),
            "integers": bits[layer["bitwise"]],
            "error": words(layer["max_error"]),
            "bound": words(layer["bound"]),
            "fault": words(layer["planted_fault"]),
            "verdict": ("ok" if layer["ok"] else "FAILS") + (f": {layer['why']}" if layer["why"] else ""),
        }
        for layer in found["layers"]
    ]
    notes = [f"problem: {p}" for p in found["problems"]] + [f"not verified: {u}" for u in found["unverified"]]
    return {
        "not_available": "",
        "equivalent": found["equivalent"],
        "facts": [(name, words(found[key])) for key, name in _FACTS.items() if found.get(key) is not None],
        "layers": layers,
        "notes": notes,
    }


def _method(about: Data) -> list[tuple[str, str]]:
    names = {
        "network": "network",
        "parameters": "its parameters",
        "seed": "seed",
        "seconds": "seconds taken",
        "threads": "threads",
        "torch": "torch",
        "onebyone": "onebyone",
    }
    machine = about.get("machine", {})
    told = [str(machine[k]) for k in ("processor", "system") if machine.get(k)]
    return [
        *((name, words(about[key])) for key, name in names.items() if about.get(key) is not None),
        *([("machine", ", ".join(told))] if told else []),
    ]
