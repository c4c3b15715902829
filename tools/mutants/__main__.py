"""Mutation testing by room: how many small changes of the sources do the tests notice?

    python -m tools.mutants laws dense         # these rooms; every room without arguments
    python -m tools.mutants laws --minutes 10  # stop after ten minutes; the next call continues
    python -m tools.mutants laws --sample 400  # the same 400 mutants of the room whenever it is called
    python -m tools.mutants laws --sample 150 --seed 2  # 150 others, which no test was written for yet
    python -m tools.mutants laws --survivors   # also run the survivors without a reason again, after tests were added
    python -m tools.mutants laws --listed      # only run the survivors again that the summary lists

mutmut supplies the mutations: swapped operators and comparisons, changed numbers and strings, removed arguments, and so
on. They are applied in memory, and the tests of the room run in forks of a process that has loaded all libraries:

1. One run without a mutation records how long each test takes and which functions it calls.
2. For a mutation inside a function, a fork replaces the function's code and runs the tests that call the function, the
   fastest first, up to the first failure. Tests that killed another mutant of the function are preferred.
3. Mutations outside functions (constants, default values), and those that survive step 2 in functions that are called
   while modules are imported, run in a fork that imports the mutated module.

Not mutated: docstrings, annotations, decorators, texts of messages (f-strings, `raise`, strings with spaces), and
`strict=` of `zip`, which is an assertion. Mutations that do not change the bytecode are not counted.

At most 20 CPU seconds of tests run on a mutant. So a survivor may be one that only slow tests notice, and scores are
lower bounds. Of a sample, the summary has a 95 % confidence interval of the score of the whole room (Wilson's), before
tests were added: tests for the survivors of a sample say nothing about the other mutants. A sample with a seed is drawn
anew from the whole room; the summary has it under "fresh", with its score before and after tests were added.

Outcomes are kept in .mutants/ROOM.json, so a run can be interrupted; bench/results/mutants.json is the summary.
Survivors that no test can notice are listed with the reason in tools/mutants/equivalent/ROOM.json. Exit code 1 if fewer
than 92 % of the mutants of a room are killed, if some have not been run, or if a survivor has no reason.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.mutants.mutations import ROOT, Mutant, mutants_of
from tools.mutants.running import (
    FAILED_TOOL,
    IMPORTS,
    Baseline,
    Calls,
    Campaign,
    forked,
    names_of_tests,
    run_imported,
    run_pytest,
    within_budget,
)

STORE = ROOT / ".mutants"
SUMMARY = ROOT / "bench" / "results" / "mutants.json"
EQUIVALENT = Path(__file__).with_name("equivalent")
REQUIRED = 0.92
PRELOADED = ("numpy", "torch", "torch.export", "torch.fx", "hypothesis", "hypothesis.extra.numpy")
"""Libraries loaded before forking. Nothing of onebyone, because a fork may have to import it mutated."""


@dataclass(frozen=True)
class Room:
    """The mutated sources and the tests that run, as paths in the repository."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """The mutated files."""
        paths = [ROOT / source for source in self.sources]
        return [
            f for p in paths for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p]) if f.stat().st_size
        ]

    @property
    def test_paths(self) -> list[str]:
        """The tests, and the mutated files for their doctests."""
        return [*self.tests, *(str(file.relative_to(ROOT)) for file in self.files)]


ONNX_VERIFICATION = (
    "verification",
    "known_faults",
    "functions",
    "block_scales",
    "computed_biases",
    "missing_inputs",
    "quantised_probes",
    "quantised_groups",
    "shared_verification",
)
"""Tests of `verify` on ONNX models, among those of the front end."""

ROOMS = {
    "laws": Room(("src/onebyone/laws",), ("tests/laws",)),
    "lifting": Room(("src/onebyone/lifting",), ("tests/lifting",)),
    "layout": Room(("src/onebyone/layout",), ("tests/layout",)),
    "verification": Room(
        ("src/onebyone/verification",),
        ("tests/verification", *(f"tests/onnx/test_{name}.py" for name in ONNX_VERIFICATION)),
    ),
    "dense": Room(
        ("src/onebyone/dense/plan.py",), ("tests/dense/test_plan.py", "tests/dense/test_plan_bounds.py")
    ),
    "detection": Room(("src/onebyone/detection",), ("tests/detection",)),
}


class Ledger:
    """The outcomes of a room, kept in a file: "killed", "stopped", "survived" or "killed later" by mutant key.

    "killed later" are survivors that tests notice which were added afterwards.
    """

    def __init__(self, room: str, deadline: float, seed: int | None = None) -> None:
        STORE.mkdir(exist_ok=True)
        room = room if seed is None else f"{room}.{seed}"
        self.path, self.calls_path, self.deadline = (
            STORE / f"{room}.json",
            STORE / f"{room}.calls.json",
            deadline,
        )
        self.outcomes: dict[str, str] = {}
        self.again: set[str] = set()
        self.load()

    def load(self) -> None:
        """Read the outcomes that other processes wrote."""
        if self.path.exists():
            self.outcomes = json.loads(self.path.read_text())

    def report(self, mutant: Mutant, code: int | None, *, final: bool) -> bool:
        """Record the outcome of a fork; False after the deadline. A survivor is recorded only if `final`."""
        if code == FAILED_TOOL:
            raise RuntimeError(f"the mutation tester failed on {mutant.file}:{mutant.line}")
        if code != 0 or final:
            killed = "killed later" if mutant.key in self.again else "killed" if code else "stopped"
            self.outcomes[mutant.key] = "survived" if code == 0 else killed
            self.path.write_text(json.dumps(self.outcomes))
        if code == 0 and final:
            say(f"survived: {mutant.file}:{mutant.line}: {mutant.before}  ->  {mutant.after}")
        return time.monotonic() < self.deadline


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_room(
    name: str, deadline: float, survivors: bool, sample: int | None, seed: int | None
) -> dict[str, Any]:
    """Run the mutants of a room, or of a sample of them, that have no outcome yet, and return its summary."""
    ledger, mutants = Ledger(name, deadline, seed), mutants_of_room(name)
    if survivors:
        ledger.again = {
            m.key
            for m in mutants
            if ledger.outcomes.get(m.key) == "survived" and reason_for(m.describe()) is None
        }
        ledger.outcomes = {
            key: outcome for key, outcome in ledger.outcomes.items() if key not in ledger.again
        }
        ledger.path.write_text(json.dumps(ledger.outcomes))
    # keys are hashes: a random order that is always the same, and another one with a seed
    mutants.sort(
        key=lambda m: m.key if seed is None else hashlib.sha1(f"{seed} {m.key}".encode()).hexdigest()
    )
    pending = [m for m in mutants[:sample] if m.key not in ledger.outcomes]
    say(f"{name}: {len(mutants)} mutants, {len(pending)} to run")
    run_mutants(name, pending, ledger, deadline)
    return summary_of(mutants, ledger.outcomes)


def run_listed(name: str, deadline: float) -> dict[str, Any]:
    """Run the survivors again that the summary lists without a reason; the room's summary without those killed now."""
    listed = read_summary()["rooms"][name]
    ledger = Ledger(f"{name}.listed", deadline)
    ledger.path.unlink(missing_ok=True)
    ledger.outcomes = {}
    explained = [s | {"equivalent": reason_for(s)} for s in listed["survivors"]]
    wanted = {facts_of(s) for s in explained if s["equivalent"] is None}
    pending = [m for m in mutants_of_room(name) if facts_of(m.describe()) in wanted]
    say(f"{name}: {len(wanted)} survivors have no reason, {len(pending)} to run")
    run_mutants(name, pending, ledger, deadline)
    survived = {facts_of(m.describe()) for m in pending if ledger.outcomes.get(m.key) == "survived"}
    killed_now = {facts_of(m.describe()) for m in pending if m.key in ledger.outcomes} - survived
    survivors = [s for s in explained if facts_of(s) not in killed_now]
    killed = listed["killed"] + len(explained) - len(survivors)
    return listed | {
        "killed": killed, "score": round(killed / listed["tested"], 4), "survivors": survivors
    }  # fmt: skip


def facts_of(described: dict[str, Any]) -> tuple[str, ...]:
    """What tells a mutant from others, without its line, which changes."""
    return tuple(described[key] for key in ("file", "function", "before", "after"))


def reason_for(described: dict[str, Any]) -> str | None:
    """Why no test can notice the mutant; None where no reason is known."""
    return reasons().get(facts_of(described))


@functools.cache
def reasons() -> dict[tuple[str, ...], str]:
    """The reasons of tools/mutants/equivalent by mutant."""
    entries = [
        entry for file in EQUIVALENT.glob("*.json") for entry in json.loads(file.read_text(encoding="utf-8"))
    ]
    return {facts_of(entry): entry["reason"] for entry in entries}


def mutants_of_room(name: str) -> list[Mutant]:
    """All mutants of a room's files."""
    return [mutant for file in ROOMS[name].files for mutant in mutants_of(file)]


def run_mutants(name: str, pending: list[Mutant], ledger: Ledger, deadline: float) -> None:
    """Run these mutants of a room in this order, up to the deadline."""
    room = ROOMS[name]
    if pending:
        baseline = Baseline(room.files, ledger.calls_path)
        ledger.calls_path.unlink(missing_ok=True)
        forked(functools.partial(run_pytest, room.test_paths, baseline))
        calls: Calls = json.loads(ledger.calls_path.read_text())
        if "failed" in calls:
            raise SystemExit(f"a test of {name} fails without a mutation: {calls['failed']}")
        seconds = sum(duration for duration, _ in calls.values())
        say(f"{name}: {len(calls)} tests, {seconds:.0f} CPU seconds")
        campaign = Campaign(room.files, pending, calls, ledger.report)
        forked(functools.partial(run_pytest, room.test_paths, campaign), silent=False)
        ledger.load()
        if time.monotonic() >= deadline:
            # those before the last that was run, also beyond the deadline, so that what was run is a random sample
            run = [number for number, mutant in enumerate(pending) if mutant.key in ledger.outcomes]
            pending = pending[: max(run, default=-1) + 1]
        remaining = [mutant for mutant in pending if mutant.key not in ledger.outcomes]
        say(f"{name}: {len(remaining)} mutants by importing their module")
        for mutant in remaining:
            tests = within_budget(names_of_tests(mutant, calls, quick=True), calls)
            task = functools.partial(run_imported, mutant, tests, calls)
            code = forked(task, IMPORTS) if tests else 0
            ledger.report(mutant, code, final=True)


def summary_of(mutants: Sequence[Mutant], outcomes: dict[str, str]) -> dict[str, Any]:
    """Counts, score and survivors of a room."""
    counts = Counter(outcomes.get(m.key, "not run") for m in mutants)
    tested = len(mutants) - counts["not run"]
    first = counts["killed"] + counts["stopped"]
    killed = first + counts["killed later"]
    survivors = []
    for mutant in mutants:
        if outcomes.get(mutant.key) == "survived":
            described = mutant.describe()
            survivors.append(described | {"equivalent": reason_for(described)})
    return {
        "mutants": len(mutants),
        "tested": tested,
        "killed_at_first": first,
        "killed": killed,
        "score": round(killed / tested, 4) if tested else None,
        "interval": interval(first, tested, len(mutants)),
        "survivors": in_order(survivors),
    }


def as_fresh_sample(result: dict[str, Any]) -> dict[str, Any]:
    """The summary of a sample that was drawn with a seed, with the score before tests were added for its survivors."""
    tested, first = result["tested"], result["killed_at_first"]
    return {"score_at_first": round(first / tested, 4) if tested else None} | result


def in_order(survivors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted by file and line."""
    return sorted(survivors, key=lambda survivor: (survivor["file"], survivor["line"], survivor["after"]))


def read_summary() -> dict[str, Any]:
    """The summary of all rooms, empty if there is none yet."""
    empty: dict[str, Any] = {"rooms": {}}
    return json.loads(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.exists() else empty  # type: ignore[no-any-return]


def write_summary(name: str, result: dict[str, Any], seed: int | None) -> None:
    """Add the result of a room, or of a sample of it that was drawn with a seed."""
    stored = read_summary()
    if seed is None:
        stored["rooms"][name] = result
        stored["rooms"] = {room: stored["rooms"][room] for room in ROOMS if room in stored["rooms"]}
    else:
        stored.setdefault("fresh", {}).setdefault(name, {})[str(seed)] = result
    stored["mutmut"] = metadata.version("mutmut")
    SUMMARY.write_text(json.dumps(stored, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def interval(killed: int, tested: int, mutants: int) -> list[float] | None:
    """The 95 % confidence interval of the share of killed mutants (Wilson, 1927); None if all or none were tested."""
    if tested in (0, mutants):
        return None
    z, share = 1.96, killed / tested
    centre = (share + z**2 / (2 * tested)) / (1 + z**2 / tested)
    half = z * math.sqrt(share * (1 - share) / tested + (z / (2 * tested)) ** 2) / (1 + z**2 / tested)
    return [round(centre - half, 4), round(centre + half, 4)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rooms; 1 if the score of one is too low."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("rooms", nargs="*", help=f"some of {', '.join(ROOMS)}; all of them by default")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument(
        "--sample", type=int, help="run only so many mutants of each room, chosen at random once"
    )
    parser.add_argument("--seed", type=int, help="draw the sample anew, with this seed")
    parser.add_argument(
        "--survivors", action="store_true", help="also run the survivors without a reason again"
    )
    parser.add_argument("--listed", action="store_true", help="only run the survivors that the summary lists")
    options = parser.parse_args(arguments)
    if options.seed is not None and options.sample is None:
        parser.error("--seed: is only for a --sample")
    if unknown := set(options.rooms) - set(ROOMS):
        parser.error(f"unknown rooms: {', '.join(sorted(unknown))}; expected some of {', '.join(ROOMS)}")
    for library in PRELOADED:
        importlib.import_module(library)
    deadline = time.monotonic() + 60 * options.minutes
    low = False
    for name in options.rooms or ROOMS:
        if options.listed:
            result = run_listed(name, deadline)
        else:
            result = run_room(name, deadline, options.survivors, options.sample, options.seed)
            if options.seed is not None:
                result = as_fresh_sample(result)
        unexplained = sum(s["equivalent"] is None for s in result["survivors"])
        low |= result["score"] is None or result["score"] < REQUIRED or result["tested"] < result["mutants"]
        low |= unexplained > 0
        say(
            f"{name}: {result['killed']} of {result['tested']} killed ({result['score'] or 0:.1%}), "
            f"{len(result['survivors'])} survived, {unexplained} of them without a reason; "
            f"{result['mutants'] - result['tested']} not run"
        )
        if result["interval"]:
            low_end, high_end = result["interval"]
            say(
                f"{name}: the score of the whole room is {low_end:.1%} to {high_end:.1%} "
                "(95 % confidence, before tests were added for the survivors)"
            )
        write_summary(name, result, options.seed)
    return int(low)


if __name__ == "__main__":
    raise SystemExit(main())
