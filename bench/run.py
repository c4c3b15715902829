"""`python -m bench.run [NAME ...]`: the benchmarks, one after another, each in a process of its own.

Results are JSON under `bench/results/`, with the machine's description. The zoo is long, and has its own `make zoo`.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = {"convert": "bench.convert", "forms": "bench.forms", "models": "bench.models"}


def main(names: list[str]) -> int:
    """Run the benchmarks named, or all; the first failure's exit code, 2 for an unknown name."""
    unknown = [n for n in names if n not in BENCHMARKS]
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names or BENCHMARKS:
        code = subprocess.run([sys.executable, "-m", BENCHMARKS[name]], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
