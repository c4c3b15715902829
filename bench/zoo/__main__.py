"""`python -m bench.zoo`: run the model zoo, write `bench/results/zoo.json` and render it as `docs/zoo.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.zoo import command, report, totals, work
from bench.zoo.models import chosen
from bench.zoo.sweep import NETWORKS

RESULTS = work.ROOT / "bench" / "results" / "zoo.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected networks; return 1 if anything crashed or was not equivalent."""
    parser = command.parser_of("python -m bench.zoo", __doc__, "timm:resnet, block:lstm")
    ordered, complete = command.run(NETWORKS, chosen, parser, arguments)
    total = totals.totals(ordered)
    if complete:
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
    RESULTS.write_text(command.as_json(page), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
