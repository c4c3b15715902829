"""`python -m tests.fuzz --examples 2000`: draw networks, check them, print counts and findings, minimised."""

from __future__ import annotations

import argparse
import sys
import time
import warnings

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.checks import Finding, Tally, check_all
from tests.fuzz.minimise import minimised
from tests.fuzz.networks import Description
from tests.fuzz.strategies import descriptions


def run(examples: int, number: int | None = None, progress: bool = False) -> Tally:
    """Check that many networks: always the same ones, or those of a seed."""
    tally, start = Tally(), time.monotonic()
    seen: set[str] = set()

    def one(description: Description) -> None:
        if repr(description) in seen:
            return
        seen.add(repr(description))
        tally.add("networks")
        check_all(description, tally)
        done = tally.counts[("networks",)]
        if progress and done % 50 == 0:
            print(
                f"\r{done} networks, {time.monotonic() - start:.0f} s, {len(tally.findings)} findings",
                end="",
                file=sys.stderr,
                flush=True,
            )

    test = settings(
        max_examples=examples,
        derandomize=number is None,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(given(descriptions())(one))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: padding="same" with even kernels, and the like
        (test if number is None else seed(number)(test))()
    return tally


def smallest(tally: Tally) -> list[Finding]:
    """Each kind of finding once, on the smallest network it was met on."""
    best: dict[tuple[str, str], Finding] = {}
    for finding in tally.findings:
        held = best.get(finding.bucket)
        if held is None or len(finding.description.ops) < len(held.description.ops):
            best[finding.bucket] = finding
    return list(best.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="other networks than the usual ones")
    parser.add_argument("--keep", action="store_true", help="do not minimise findings")
    args = parser.parse_args()
    tally = run(args.examples, args.seed, progress=True)
    print(f"\n{tally}")
    for finding in smallest(tally):
        many = sum(f.bucket == finding.bucket for f in tally.findings)
        shown = finding if args.keep else minimised(finding)
        print(f"\n{finding.part}: {finding.what}  ({many} networks)\n{shown.description!r}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
