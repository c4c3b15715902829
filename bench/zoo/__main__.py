"""`python -m bench.zoo`: run the model zoo, write `bench/results/zoo.json` and render it as `docs/zoo.md`."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.zoo import report, totals, work
from bench.zoo.models import Entry, chosen, entries

RESULTS = work.ROOT / "bench" / "results" / "zoo.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected networks; return 1 if anything crashed or was not equivalent."""
    options = _parser().parse_args(arguments)
    selected = list(chosen(options.only))
    if options.sample is not None:
        selected = random.Random(options.seed).sample(selected, min(options.sample, len(selected)))
    if not selected:
        _parser().error(f"--only {' '.join(options.only)}: no network of the zoo matches")
    marks = {e.key: None if options.keep else work.fingerprint(e) for e in selected}
    results = {e.key: r for e in selected if not options.fresh and (r := work.kept(e, marks[e.key]))}
    console = Console(stderr=True, emoji=False, markup=False)
    if results:
        console.print(f"{len(results)} results kept from earlier runs (--fresh runs them again)")
    results |= _run([e for e in selected if e.key not in results], options.jobs, console)
    ordered = [results[e.key] for e in selected]
    total = totals.totals(ordered)
    if {e.key for e in selected} == {e.key for e in entries()}:
        write(ordered, total)
        report.main()
    print(totals.line(total))
    return int(bool(total["not_equivalent"] or total["crashed"]))


def write(results: Sequence[dict[str, Any]], total: dict[str, Any]) -> None:
    """Write the results of a complete run, with a description of the machine."""
    page = {
        "machine": totals.machine(),
        "totals": total,
        "states_of_the_sources": len({r["sources"] for r in results}),
        "exceptions": list(totals.missed_layers(results)),
        "models": [{k: v for k, v in r.items() if k not in ("fingerprint", "sources")} for r in results],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(_as_json(page), encoding="utf-8")


def _as_json(page: dict[str, Any]) -> str:
    """Return JSON with one network per line, so that a change of one network changes one line."""
    models = ",\n".join(json.dumps(model) for model in page["models"])
    head = json.dumps({k: v for k, v in page.items() if k != "models"}, indent=1)
    return head.removesuffix("\n}") + ',\n "models": [\n' + models + "\n]}\n"


def _run(selected: Sequence[Entry], jobs: int, console: Console) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        bar, busy = progress.add_task("loading the libraries", total=len(selected)), dict[str, None]()
        for event, entry, result in work.run_all(selected, jobs):
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
    """Describe one network in one line: each step with its outcome."""
    steps = [s for s in result["steps"] if s["name"] != "build" or s["outcome"] != "converted"]
    outcomes = [
        f"{s['name']} {s['outcome']}" + (f" ({s['reason'][:160]})" if s["reason"] else "") for s in steps
    ]
    return f"{result['seconds']:6.1f} s  {result['key']}: " + "; ".join(outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=__doc__)
    parser.add_argument(
        "--only",
        metavar="GLOB",
        action="append",
        help="key (timm:resnet, block:lstm) or source of a network; may be repeated",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="a random sample of N networks")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sample")
    parser.add_argument("--fresh", action="store_true", help="run all networks again")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="also keep results without faults that were made with other versions of the sources",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of networks that run in parallel"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
