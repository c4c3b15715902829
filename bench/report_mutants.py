"""The section of `docs/bench.md` on mutation tests, from the summary that `python -m tools.mutants` writes."""

from __future__ import annotations

from typing import Any

SOURCES = {
    "laws": "the mathematics",
    "lifting": "rules for images of any size",
    "layout": "the planner of layouts",
    "verification": "the checks of `verify`",
    "dense": "the planner of scans",
    "detection": "boxes and their pictures",
}
"""What the sources of each room are."""


def mutation_section(summary: dict[str, Any]) -> list[str]:
    """The lines of the section, as Markdown."""
    rows = []
    for name, room in summary["rooms"].items():
        share = f"{room['killed'] / room['tested']:.1%}"
        without = sum(survivor["equivalent"] is None for survivor in room["survivors"])
        left = f"{len(room['survivors']):,}" + (f", {without} of them without a reason" if without else "")
        ran = f"{room['tested']:,}" + (f" of {room['mutants']:,}" if room["tested"] < room["mutants"] else "")
        rows.append(f"| `{name}` | {SOURCES[name]} | {ran} | {room['killed']:,} ({share}) | {left} |")
    return [
        "",
        "## What the tests notice",
        "",
        f"`make mutants` changes the sources in one place at a time, with the mutations of mutmut {summary['mutmut']},",
        "and runs the room's tests on each change, for at most 20 CPU seconds. Changes that no test noticed are",
        "survivors. They are listed in `tools/mutants/equivalent/` with the reason why no test can tell them from the",
        "original.",
        "",
        "| room | sources | changes | noticed by a test | survivors |",
        "|---|---|---|---|---|",
        *rows,
    ]
