"""The zoo of networks as a sweep: what runs on an entry, and what its result says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.zoo.models import Entry
from bench.zoo.work import Sweep


def _run(entry: Entry, report: Callable[[Any], None]) -> None:
    from bench.zoo.steps import Run

    Run(entry, report).all()


def _described(entry: Entry) -> dict[str, Any]:
    return {"key": entry.key, "group": entry.group, "source": entry.source, "window": entry.window}


NETWORKS = Sweep("zoo", Path(__file__).parent, "bench.zoo.preload", _run, _described)
