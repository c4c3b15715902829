"""Totals over the results of the zoo."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

DENSE, GRAPH = "dense", "graph"
FORMS = ("linear", "conv")


def totals(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the totals as plain data.

    `layers_eligible` is counted independently of the converter; each of these layers is either in `layers_converted` or
    in `exceptions`. `layers_refused` and `dense_refused` are counted by reason. `not_equivalent` and `crashed` count
    steps. Layout operators are those of the exported programs, summed over both directions.
    """
    steps = [s for r in results for s in r["steps"]]
    exceptions = list(missed_layers(results))
    converted = sum(s["figures"].get(f"{form}_converted", 0) for s in steps for form in FORMS)
    dense = [s for s in steps if s["name"] == DENSE]
    return {
        "models": len(results),
        "layers_eligible": converted + len(exceptions),
        "layers_converted": converted,
        "layers_refused": dict(Counter(reason_class(e["reason"]) for e in exceptions).most_common()),
        "dense_converted": sum(s["outcome"] == "converted" for s in dense),
        "dense_exact": sum(is_exact(s) for s in dense),
        "dense_refused": dict(
            Counter(main_reason(s) for s in dense if s["outcome"] == "refused").most_common()
        ),
        "not_equivalent": sum(s["outcome"] == "not equivalent" for s in steps),
        "crashed": sum(s["outcome"] == "crashed" for s in steps),
        "layout_before": _layout(steps, "layout_before"),
        "layout_after": _layout(steps, "layout_after"),
        "seconds": round(sum(r["seconds"] for r in results), 1),
    }


def line(total: dict[str, Any]) -> str:
    """Return the totals in one line."""
    refused = sum(total["layers_refused"].values())
    dense = sum(total["dense_refused"].values())
    parts = [
        f"models: {total['models']}",
        f"layers converted: {total['layers_converted']} of {total['layers_eligible']}",
        f"layers refused: {refused}{_listed(total['layers_refused'])}",
        f"dense converted: {total['dense_converted']} ({total['dense_exact']} exact)",
        f"dense refused: {dense}{_listed(total['dense_refused'])}",
        f"not equivalent: {total['not_equivalent']}",
        f"crashed: {total['crashed']}",
        f"layout operators: {total['layout_before']} before, {total['layout_after']} after",
        f"{total['seconds']:.0f} s",
    ]
    return ", ".join(parts)


def missed_layers(results: Iterable[dict[str, Any]]) -> Iterable[dict[str, str]]:
    """Yield every eligible layer that was not converted: model, path, kind, reason."""
    for result in results:
        for step in result["steps"]:
            for form in FORMS:
                for missed in step["figures"].get(f"{form}_missed", ()):
                    yield {
                        "model": result["key"],
                        **missed,
                        "reason": missed["reason"] or "not reported by the converter",
                    }


def is_exact(step: dict[str, Any]) -> bool:
    """Return whether the dense form equals cropping with at least one context."""
    return step["outcome"] == "converted" and any(
        c.get("exact") for c in step["figures"]["contexts"].values()
    )


def main_reason(step: dict[str, Any]) -> str:
    """Return the first reason that no choice of context resolves, without the numbers of the model."""
    refusals = step["figures"].get("refusals")
    return reason_class(refusals[0]["reason"]) if refusals else reason_class(step["reason"])


def reason_class(reason: str) -> str:
    """Return a reason without the numbers and names of a model, so that equal reasons are counted together."""
    text = re.sub(r"\(?\b\d+(?:[×.]\d+|, \d+)*\b\)?", "N", reason.split(";")[0].split(" (")[0])
    return text.strip()[:110]


def machine() -> dict[str, Any]:
    """Describe the machine on which the figures were measured."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "timm")},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for row in info.read_text(encoding="utf-8").splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _layout(steps: Iterable[dict[str, Any]], which: str) -> int:
    records = [
        s["figures"].get(f"to_{to}", {}) for s in steps if s["name"] == GRAPH for to in ("conv", "linear")
    ]
    return sum(r.get(which, 0) for r in records)


def _listed(counts: dict[str, int]) -> str:
    return f" ({'; '.join(f'{n} {reason}' for reason, n in counts.items())})" if counts else ""
