"""`python -m bench.onnx_zoo`: run the zoo of ONNX files, write `bench/results/onnx_zoo.json` and `docs/onnx_zoo.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.onnx_zoo import report, totals
from bench.onnx_zoo.files import chosen
from bench.onnx_zoo.sweep import FILES
from bench.zoo import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected files; return 1 if any was not equivalent, crashed, grew, or had layers passed over."""
    parser = command.parser_of("python -m bench.onnx_zoo", __doc__, "'text:*', '*qdq*'")
    results, complete = command.run(FILES, chosen, parser, arguments)
    total = totals.totals(results)
    if complete:
        write(results, total)
        report.main()
    print(totals.line(total))
    return int(totals.faults(total) > 0)


def write(results: Sequence[dict[str, Any]], total: dict[str, Any]) -> None:
    """Write the results of a complete run, with a description of the machine."""
    page = {
        "machine": totals.machine(),
        "totals": total,
        "states_of_the_sources": len({r["sources"] for r in results}),
        "exceptions": list(totals.exceptions(results)),
        "models": [{k: v for k, v in r.items() if k not in ("fingerprint", "sources")} for r in results],
    }
    report.RESULTS.write_text(command.as_json(page), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
