"""Totals over the results of the zoo of ONNX files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from bench.zoo import totals as zoo

DIRECTIONS = ("conv", "linear")
LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxruntime", "transformers", "skl2onnx")


def totals(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the totals over both directions as plain data.

    `layers_eligible` is counted apart from the package (`eligible.py`). `layers_refused` is counted by reason;
    `silent` counts eligible layers that are neither converted nor refused; `not_equivalent` and `crashed` count steps,
    and `crashed` includes files that the package did not take. `grew` counts conversions with more bytes of constants
    than before, beyond the shapes of the new operators. Layout operators are those of the files with changes.
    """
    steps = [s for r in results for s in r["steps"]]
    figures = [s["figures"] for s in steps]
    return {
        "models": len(results),
        "layers_eligible": sum(f.get("eligible", 0) for f in figures),
        "layers_converted": sum(f.get("converted", 0) for f in figures),
        "layers_refused": dict(
            Counter(zoo.reason_class(e["reason"]) for e in exceptions(results) if e["reason"]).most_common()
        ),
        "not_equivalent": sum(s["outcome"] == "not equivalent" for s in steps),
        "crashed": sum(s["outcome"] in ("crashed", "refused") for s in steps),
        "silent": sum(f.get("silent", 0) for f in figures),
        "grew": sum(bool(f.get("grew")) for f in figures),
        "layout_before": sum(f.get("layout_before", 0) for f in figures),
        "layout_after": sum(f.get("layout_after", 0) for f in figures),
        "seconds": round(sum(r["seconds"] for r in results), 1),
    }


def exceptions(results: Iterable[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield every eligible layer that was not converted: file, direction, path, kind, reason."""
    for result in results:
        for step in result["steps"]:
            for missed in step["figures"].get("missed", ()):
                yield {"model": result["key"], "to": step["name"], **missed}


def faults(total: dict[str, Any]) -> int:
    """The number of results that must not occur."""
    return sum(int(total[name]) for name in ("not_equivalent", "crashed", "silent", "grew"))


def line(total: dict[str, Any]) -> str:
    """Return the totals in one line."""
    refused = "; ".join(f"{n} {reason}" for reason, n in total["layers_refused"].items()) or "none"
    counts = ", ".join(
        f"{n.replace('_', ' ')}: {total[n]}" for n in ("not_equivalent", "crashed", "silent", "grew")
    )
    return (
        f"models: {total['models']}, layers converted: {total['layers_converted']} of {total['layers_eligible']}, "
        f"refused: {refused}, {counts}, layout operators: {total['layout_before']} before, "
        f"{total['layout_after']} after, {total['seconds']:.0f} s"
    )


def machine() -> dict[str, Any]:
    """Describe the machine, and the versions of what wrote and ran the files."""
    described = {k: v for k, v in zoo.machine().items() if k in ("cpu", "cores", "system", "python")}
    return described | {name: version(name) for name in LIBRARIES}
