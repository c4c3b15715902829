"""The command of a zoo: selects its entries, runs those without a kept result, and shows the progress."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.zoo import work
from bench.zoo.work import Sweep

Chosen = Callable[[Sequence[str] | None], Sequence[Any]]


def run(
    sweep: Sweep, chosen: Chosen, parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[list[dict[str, Any]], bool]:
    """Run the entries that the arguments select; return their results, and whether those are all entries."""
    options = parser.parse_args(arguments)
    selected = list(chosen(options.only))
    if options.sample is not None:
        selected = random.Random(options.seed).sample(selected, min(options.sample, len(selected)))
    if not selected:
        parser.error(f"--only {' '.join(options.only)}: no entry matches")
    marks = {e.key: None if options.keep else sweep.fingerprint(e) for e in selected}
    results = {e.key: r for e in selected if not options.fresh and (r := sweep.kept(e, marks[e.key]))}
    console = Console(stderr=True, emoji=False, markup=False)
    if results:
        console.print(f"{len(results)} results kept from earlier runs (--fresh runs them again)")
    results |= _run(sweep, [e for e in selected if e.key not in results], options.jobs, console)
    return [results[e.key] for e in selected], len(selected) == len(chosen(None))


def write_results(
    path: Path,
    results: Sequence[dict[str, Any]],
    *,
    machine: dict[str, Any],
    totals: dict[str, Any],
    exceptions: Iterable[Any],
) -> None:
    """Write the results of a complete run as JSON, with its totals and a description of the machine."""
    page = {
        "machine": machine,
        "totals": totals,
        "states_of_the_sources": len({r["sources"] for r in results}),
        "exceptions": list(exceptions),
        "models": [{k: v for k, v in r.items() if k not in ("fingerprint", "sources")} for r in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_as_json(page), encoding="utf-8")


def _as_json(page: dict[str, Any]) -> str:
    """Return JSON with one result per line, so that a change of one changes one line."""
    models = ",\n".join(json.dumps(model) for model in page["models"])
    head = json.dumps({k: v for k, v in page.items() if k != "models"}, indent=1)
    return head.removesuffix("\n}") + ',\n "models": [\n' + models + "\n]}\n"


def _run(sweep: Sweep, selected: Sequence[Any], jobs: int, console: Console) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        bar, busy = progress.add_task("loading the libraries", total=len(selected)), dict[str, None]()
        for event, entry, result in work.run_all(sweep, selected, jobs):
            if result is None:
                busy[entry.key] = None
            else:
                busy.pop(entry.key)
                results[entry.key] = result
                progress.advance(bar)
                console.print(_row(result), highlight=False, soft_wrap=True)
            progress.update(bar, description=", ".join(busy))
            assert event in ("begun", "done")
    return results


def _row(result: dict[str, Any]) -> str:
    """Describe one entry in one line: each step with its outcome."""
    steps = [s for s in result["steps"] if s["name"] != "build" or s["outcome"] != "converted"]
    outcomes = [
        f"{s['name']} {s['outcome']}" + (f" ({s['reason'][:160]})" if s["reason"] else "") for s in steps
    ]
    return f"{result['seconds']:6.1f} s  {result['key']}: " + "; ".join(outcomes)


def parser_of(program: str, description: str | None, keys: str) -> argparse.ArgumentParser:
    """The options of a zoo's command; `keys` are examples of keys, for the help."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument(
        "--only",
        metavar="GLOB",
        action="append",
        help=f"key ({keys}) or source of an entry; may be repeated",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="a random sample of N entries")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sample")
    parser.add_argument("--fresh", action="store_true", help="run all entries again")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="also keep results without faults that were made with other versions of the sources",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of entries that run in parallel"
    )
    return parser
