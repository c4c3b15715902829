"""`python -m bench.run [NAME ...]`: run the benchmarks one after another, each in its own process.

Results are written as JSON to `bench/results/`, with a description of the machine. The zoo takes long and has its own
command, `make zoo`.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = {"convert": "bench.convert", "forms": "bench.forms", "models": "bench.models"}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; return the exit code of the first failure, 2 for an unknown name."""
    unknown = [n for n in names if n not in BENCHMARKS]
    if unknown:
        print(
            f"unknown benchmark {', '.join(unknown)}; expected some of {', '.join(BENCHMARKS)}",
            file=sys.stderr,
        )
        return 2
    for name in names or BENCHMARKS:
        code = subprocess.run([sys.executable, "-m", BENCHMARKS[name]], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
