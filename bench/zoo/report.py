"""`python -m bench.zoo.report`: `docs/zoo.md` from `bench/results/zoo.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "bench" / "results" / "zoo.json", ROOT / "docs" / "zoo.md"

INTRODUCTION = """\
# The model zoo

Made by `make zoo` and `python -m bench.zoo.report` from `bench/results/zoo.json`; do not edit by hand.

Of every timm model file the smallest model, of every torchvision family the smallest (detectors by trunk
and heads), and common blocks by themselves, all with random weights in which no tensor is constant. Each
network's linear layers become 1×1 convolutions and its 1×1 convolutions linear layers, and
`onebyone.verify` proves both; layers that are brought back must give the original's numbers bit for bit.
The exported program is converted both ways too, its layout operators counted before and after. Networks of
images are then made to take images of any size, and compared with cropping every window: all other
torchvision models are converted by structure, on the meta device.
"""

OUTCOMES = """\
An outcome is *converted*, *refused* (with the reason), *not equivalent* (a proof failed) or *crashed* (an
error that is no refusal).
"""

DENSE = """\
*Exact*: equal to cropping every window, to a derived rounding bound. Otherwise the network pads its maps, or
pools over the whole image inside, and the deviation from crops is measured on an image a few strides larger
than the window: *deviation* is the largest difference over the standard deviation of the crops' answers, *of
variation* the root mean square difference over that by which the answers vary from window to window, *same
class* the share of windows whose largest output is the same. Weights are random, so these figures say how far
padding and context reach, and nothing of a trained network's accuracy. On an image of one window every dense
form agrees with its network to rounding, whatever the context.
"""


def page(data: dict[str, Any]) -> str:
    """The page of docs for a whole run."""
    results = data["models"]
    networks = [r for r in results if r["group"] != "structure"]
    structures = [r for r in results if r["group"] == "structure"]
    parts = [
        INTRODUCTION,
        _machine(data["machine"]),
        "## Totals\n",
        _totals(data["totals"]),
        "## Layers\n",
        OUTCOMES,
        _table(LAYERS, [_layers_row(r) for r in networks]),
        *_exceptions(data["exceptions"]),
        "## Images of any size\n",
        DENSE,
        _table(DENSE_HEAD, [row for r in networks for row in _dense_rows(r)]),
        "### Refused\n",
        _table(("network", "model", "reason"), [_refused_row(r) for r in networks if _refused(r)]),
        "## By structure alone\n",
        _table(
            ("model", "parameters", "linear → conv", "1×1 conv → linear"), map(_structure_row, structures)
        ),
        *_faults(results),
    ]
    return "\n".join(parts).rstrip() + "\n"


LAYERS = (
    "network",
    "model",
    "parameters",
    "linear → conv",
    "1×1 conv → linear",
    "graph",
    "layout operators",
    "s",
    "MiB",
)
DENSE_HEAD = (
    "network",
    "context",
    "window",
    "stride",
    "receptive field",
    "exact",
    "deviation",
    "of variation",
    "same class",
    "s",
)


def _step(result: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        (s for s in result["steps"] if s["name"] == name), {"outcome": "–", "figures": {}}
    )
    return found


def _layers_row(result: dict[str, Any]) -> list[str]:
    layers, graph, build = (_step(result, n) for n in ("layers", "graph", "build"))
    figures = graph["figures"]
    layout = [figures.get(f"to_{to}", {}) for to in ("conv", "linear")]
    before, after = (sum(f.get(k, 0) for f in layout) for k in ("layout_before", "layout_after"))
    peak = max((s["peak_bytes"] for s in result["steps"]), default=0)
    return [
        result["key"].partition(":")[2],
        result["source"].partition(":")[2] or result["source"],
        f"{build['figures'].get('parameters', 0):,}",
        _proof(layers, "linear", "to_conv"),
        _proof(layers, "conv", "to_linear"),
        graph["outcome"],
        f"{before} → {after}" if any(layout) else "–",
        f"{result['seconds']:.0f}",
        f"{peak / 2**20:,.0f}",
    ]


def _proof(step: dict[str, Any], form: str, name: str) -> str:
    """Layers converted of those eligible, with how they were proven."""
    figures = step["figures"]
    if f"{form}_converted" not in figures:
        return str(step["outcome"])
    done, missed = figures[f"{form}_converted"], len(figures[f"{form}_missed"])
    proof = figures.get(name, {}).get("verification")
    verdict = "" if proof and proof["equivalent"] else ", **not equivalent**" if proof else ", not verified"
    return f"{done} of {done + missed}{verdict}"


def _dense_rows(result: dict[str, Any]) -> Iterable[list[str]]:
    for context, record in _step(result, "dense")["figures"].get("contexts", {}).items():
        geometry, crops = record["geometry"], record.get("crops", {})
        yield [
            result["key"],
            context,
            _by(geometry["window"]),
            _by(geometry["stride"]),
            _by(geometry["receptive_field"]),
            "yes" if record["exact"] else "no",
            _number(crops.get("relative_to_spread")),
            _number(crops.get("relative_to_variation")),
            f"{crops['class_agreement']:.0%}" if crops else "–",
            f"{record['seconds']:.1f}",
        ]


def _refused(result: dict[str, Any]) -> bool:
    return bool(_step(result, "dense")["outcome"] == "refused")


def _refused_row(result: dict[str, Any]) -> list[str]:
    step = _step(result, "dense")
    refusals = step["figures"].get("refusals", [])
    reasons = list(
        dict.fromkeys(f"`{r['path'] or '(top level)'}` ({r['kind']}): {r['reason']}" for r in refusals)
    )
    more = f"; and {len(reasons) - 2} more" if len(reasons) > 2 else ""
    return [
        result["key"],
        result["source"].partition(":")[2],
        "; ".join(reasons[:2] or [step["reason"]]) + more,
    ]


def _structure_row(result: dict[str, Any]) -> list[str]:
    step, build = _step(result, "structure"), _step(result, "build")
    cells = []
    for form in ("linear", "conv"):
        done, missed = (
            step["figures"].get(f"{form}_converted", 0),
            len(step["figures"].get(f"{form}_missed", ())),
        )
        cells.append(f"{done} of {done + missed}" if step["outcome"] == "converted" else step["outcome"])
    return [result["key"].partition(":")[2], f"{build['figures'].get('parameters', 0):,}", *cells]


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "torchvision", "timm"))
    return (
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, {versions}. "
        "Seconds (s) and MiB of memory at the highest cover conversion and proof; a network runs in one thread.\n"
    )


def _totals(totals: dict[str, Any]) -> str:
    rows = []
    for name, value in totals.items():
        if isinstance(value, dict):
            rows.append((name, sum(value.values())))
            rows += [(f"— {reason}", count) for reason, count in value.items()]
        else:
            rows.append((name, value))
    return _table(("", ""), rows)


def _exceptions(missed: Sequence[dict[str, str]]) -> list[str]:
    if not missed:
        return ["Every eligible layer was converted.\n"]
    rows = [(m["model"], f"`{m['path']}`", m["kind"], m["reason"]) for m in missed]
    return [
        "Eligible layers that were not converted:\n",
        _table(("network", "layer", "kind", "reason"), rows),
    ]


def _faults(results: Iterable[dict[str, Any]]) -> list[str]:
    bad = ("not equivalent", "crashed")
    rows = [
        (r["key"], s["name"], s["outcome"], s["reason"])
        for r in results
        for s in r["steps"]
        if s["outcome"] in bad
    ]
    if not rows:
        return []
    return ["## Faults\n", _table(("network", "step", "outcome", "what"), rows)]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    if not cells:
        return "None.\n"
    lines = [list(head), ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _by(sizes: Sequence[int]) -> str:
    return "×".join(str(n) for n in sizes)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def main() -> int:
    """Read the results, write the page."""
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
