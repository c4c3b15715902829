"""Reads a plan of `onebyone tune` for the page. The file is not trusted, so every part of it is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onebyone.atomic_files import require_file
from onebyone.drawing.number_format import number, percent
from onebyone.errors import BadInput
from onebyone.records import by, first_line
from onebyone.report.figure_text import sentence, words

MAX_BYTES = 16 * 2**20
_TEXT, _NUMBER, _LIST, _CHOICE = "text", "a number", "a list", "text or an object"
_TYPES: dict[str, tuple[type, ...]] = {
    _TEXT: (str,),
    _NUMBER: (int, float),
    _LIST: (list, tuple),
    _CHOICE: (str, Mapping),
}
_FORM = {"form": _TEXT, "median_ms": _NUMBER, "spread_ms": _NUMBER}
_CANDIDATE = _FORM | {"name": _TEXT, "engine": _TEXT, "rounding_ratio": _NUMBER, "refused": _TEXT}
_LAYER = {
    "paths": _LIST,
    "kind": _TEXT,
    "forms": _LIST,
    "chosen": _TEXT,
    "gflops": _NUMBER,
    "of_peak": _NUMBER,
}
_TOP = {"candidates": _LIST, "layers": _LIST, "choice": _CHOICE, "threads": _NUMBER, "peak_gflops": _NUMBER}

Data = dict[str, Any]


def read_plan(plan: Any) -> Data:
    """The plan as plain data, from a path, a mapping, an object with `to_dict`, or an object with such a `plan`.

    Raises
    ------
    BadInput
        if the file cannot be read, is not valid JSON, or a part of it is not what a plan contains.
    """
    if isinstance(plan, str | os.PathLike):
        path = require_file(plan)
        return _checked(_parsed(path), str(path))
    plan = getattr(plan, "plan", plan)
    return _checked(plan.to_dict() if hasattr(plan, "to_dict") else plan, "plan")


def _parsed(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise BadInput(f"{path}: larger than {MAX_BYTES // 2**20} MiB; expected a plan of tune")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({first_line(error)}); expected a plan of tune") from None


def _checked(plan: Any, name: str) -> Data:
    if not isinstance(plan, Mapping):
        raise BadInput(f"{name}: {_kind(plan)}; expected a plan of tune, which is an object")
    _check(plan, _TOP, name)
    if not any(plan.get(key) for key in ("candidates", "layers")):
        raise BadInput(f"{name}: contains neither candidates nor layers; expected a plan of tune")
    for key, fields in (("candidates", _CANDIDATE), ("layers", _LAYER)):
        for place, entry in enumerate(plan.get(key) or ()):
            where = f"{name}: {key}[{place}]"
            _check(_object(entry, where), fields, where)
            for k, form in enumerate(entry.get("forms") or ()):
                _check(_object(form, f"{where}.forms[{k}]"), _FORM, f"{where}.forms[{k}]")
    return dict(plan)


def _object(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise BadInput(f"{where} is {_kind(entry)}; expected an object")
    return entry


def _check(entry: Mapping[str, Any], fields: Mapping[str, str], where: str) -> None:
    for key, expected in fields.items():
        value = entry.get(key)
        if value is None or (isinstance(value, _TYPES[expected]) and not isinstance(value, bool)):
            continue
        raise BadInput(f"{where}: {key} is {_kind(value)}; expected {expected}")


def _kind(value: Any) -> str:
    shown = json.dumps(value, default=str) if isinstance(value, str | int | float | bool | None) else ""
    name = (
        "a list"
        if isinstance(value, list)
        else "an object"
        if isinstance(value, Mapping)
        else type(value).__name__
    )
    return shown[:40] or name


def plan_view(plan: Data) -> Data:
    """The parts of a plan that the page shows, as text: facts, candidates and layers, as far as the plan has them."""
    facts = [
        (name, _fact(plan[name])) for name in ("machine", "versions", "inputs", "threads") if plan.get(name)
    ]
    if plan.get("peak_gflops") is not None:
        facts.append(("peak", f"{number(plan['peak_gflops'])} GFLOP/s"))
    candidates = sorted(plan.get("candidates") or (), key=_speed)
    layers = plan.get("layers") or ()
    return {
        "choice": _choice(plan.get("choice")),
        "why": _sentences(plan.get("why")),
        "facts": [(name, fact) for name, fact in facts if fact],
        "candidates": [_candidate(c, plan.get("choice")) for c in candidates if not c.get("refused")],
        "refused": [_candidate(c, None) for c in candidates if c.get("refused")],
        "layers": [_layer(layer) for layer in layers],
    }


def _choice(choice: Any) -> str:
    """The chosen form as text: its name, or its engine, form and dtype."""
    if not isinstance(choice, Mapping):
        return str(choice or "")
    parts = [f"{key} {choice[key]}" for key in ("engine", "form", "dtype") if choice.get(key)]
    layers = choice.get("layers")
    each = f"{len(layers)} layers with individual forms" if isinstance(layers, Mapping) and layers else ""
    return ", ".join([*parts, *([each] if each else [])])


def _is_chosen(entry: Mapping[str, Any], choice: Any) -> bool:
    if isinstance(choice, Mapping):
        keys = ("engine", "form", "dtype", "layers")
        return any(choice.get(k) for k in keys) and all(
            (entry.get(k) or None) == (choice.get(k) or None) for k in keys
        )
    return bool(choice) and entry.get("name") == choice


def _speed(candidate: Mapping[str, Any]) -> float:
    median = candidate.get("median_ms")
    return float("inf") if median is None else float(median)


def _candidate(entry: Mapping[str, Any], choice: Any) -> Data:
    return {
        "name": entry.get("name") or "–",
        "what": ", ".join(str(entry[k]) for k in ("engine", "form") if entry.get(k)),
        "time": _time(entry),
        "rounding": words(entry.get("rounding_ratio")),
        "refused": entry.get("refused") or "",
        "chosen": not entry.get("refused") and _is_chosen(entry, choice),
    }


def _layer(entry: Mapping[str, Any]) -> Data:
    paths = [str(p) for p in entry.get("paths") or ()]
    more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    shape = entry.get("shape")
    share = entry.get("of_peak")
    forms = entry.get("forms") or ()
    return {
        "paths": (", ".join(paths[:2]) + more) or "–",
        "kind": entry.get("kind") or "–",
        "shape": _fact(shape) or "–",
        "forms": [(str(f.get("form") or "–"), _time(f), f.get("form") == entry.get("chosen")) for f in forms],
        "chosen": entry.get("chosen") or "–",
        "gflops": words(entry.get("gflops")),
        "of_peak": "–" if share is None else percent(float(share)),
    }  # fmt: skip


def _time(entry: Mapping[str, Any]) -> str:
    if entry.get("median_ms") is None:
        return "–"
    spread = entry.get("spread_ms")
    more = f" (interquartile range {number(spread)})" if spread is not None else ""
    return f"{number(entry['median_ms'])} ms{more}"


def _sentences(why: Any) -> list[str]:
    return [sentence(str(w)) for w in (why if isinstance(why, list) else [why]) if w]


def _fact(value: Any) -> str:
    """A fact as text; a plan may describe its machine as text or as an object."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {_fact(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        plain = all(isinstance(v, int) for v in value)
        return by(value) if plain else " ".join(_fact(v) for v in value)
    return words(value)
