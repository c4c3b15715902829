"""`python -m bench.onnx_zoo`: run the zoo of ONNX files, write `bench/results/onnx_zoo.json` and `docs/onnx_zoo.md`."""

from __future__ import annotations

from collections.abc import Sequence

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
        command.write_results(
            report.RESULTS,
            results,
            machine=totals.machine(),
            totals=total,
            exceptions=totals.exceptions(results),
        )
        report.main()
    print(totals.line(total))
    return int(totals.faults(total) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
