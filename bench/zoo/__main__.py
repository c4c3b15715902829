"""`python -m bench.zoo`: run the model zoo, write `bench/results/zoo.json` and render it as `docs/zoo.md`."""

from __future__ import annotations

from collections.abc import Sequence

from bench.zoo import command, report, totals
from bench.zoo.models import chosen
from bench.zoo.sweep import NETWORKS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected networks; return 1 if anything crashed or was not equivalent."""
    parser = command.parser_of("python -m bench.zoo", __doc__, "timm:resnet, block:lstm")
    results, complete = command.run(NETWORKS, chosen, parser, arguments)
    total = totals.totals(results)
    if complete:
        command.write_results(
            report.RESULTS,
            results,
            machine=totals.machine(),
            totals=total,
            exceptions=totals.missed_layers(results),
        )
        report.main()
    print(totals.line(total))
    return int(bool(total["not_equivalent"] or total["crashed"]))


if __name__ == "__main__":
    raise SystemExit(main())
