"""Processes that run a zoo: one for each entry, so that the failure of one does not affect the others.

They are forked from a server that has loaded the libraries. Each process writes the record of every step to a file as
soon as the step ends. If a process dies or is stopped, the step that it was running counts as crashed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from bench.zoo import memory

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 12 * 2**30
#: Seconds that all steps of a network may take.
TIME_LIMIT = 900
FAULTS = ("not equivalent", "crashed")
RENDERING = ("report.py", "__main__.py", "totals.py")


@dataclass(frozen=True)
class Sweep:
    """What is run on which kind of entries; the zoo of networks and the zoo of ONNX files are one each.

    Attributes:
        name: folder of the results below `bench/work`.
        package: folder of the sweep's own sources.
        preload: the module that is imported before the processes are forked.
        run: runs the steps of one entry in its process, and calls its second argument with each record.
        describe: what a result says of its entry.
        libraries: packages on whose versions a result depends.
        parts: folders of `onebyone` on whose sources a result depends.
    """

    name: str
    package: Path
    preload: str
    run: Callable[[Any, Callable[[Any], None]], None]
    describe: Callable[[Any], dict[str, Any]]
    libraries: tuple[str, ...] = ("torch", "torchvision", "timm")
    parts: tuple[str, ...] = (".",)

    @property
    def folder(self) -> Path:
        """Where results are stored between runs."""
        return ROOT / "bench" / "work" / self.name

    def result_path(self, entry: Any) -> Path:
        """Return the path where the result of an entry is stored between runs."""
        return self.folder / (re.sub(r"[^\w.-]+", "-", entry.key) + ".json")

    def fingerprint(self, entry: Any) -> str:
        """Return a hash of what a result depends on: the sources and the entry."""
        return hashlib.sha256((self.sources() + json.dumps(asdict(entry))).encode()).hexdigest()[:16]

    def sources(self) -> str:
        """Return a hash of the sources of the package and the sweep, and of the versions of the libraries."""
        return _sources(self.package, self.libraries, self.parts)

    def kept(self, entry: Any, mark: str | None) -> dict[str, Any] | None:
        """Return the result of an earlier run with the fingerprint `mark`; if None, any result without faults."""
        path = self.result_path(entry)
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if mark is None:
            return None if any(s["outcome"] in FAULTS for s in result["steps"]) else result
        return result if mark == result["fingerprint"] else None


@cache
def _sources(package: Path, libraries: tuple[str, ...], parts: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    of_parts = [path for part in parts for path in (ROOT / "src" / "onebyone" / part).rglob("*.py")]
    for path in sorted([*of_parts, *package.glob("*.py")]):
        if path.parent != package or path.name not in RENDERING:
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    digest.update(json.dumps([version(name) for name in libraries]).encode())
    return digest.hexdigest()[:16]


def _run_entry(sweep: Sweep, entry: Any, log: Path) -> None:
    """Run every step of one entry in a separate process; each record is a line of `log`."""
    import torch

    torch.set_num_threads(1)
    memory.cap(MEMORY)
    warnings.simplefilter("ignore")

    def report(step: Any) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step.to_dict()) + "\n")

    sweep.run(entry, report)


@dataclass
class Job:
    """One entry that is running."""

    sweep: Sweep
    entry: Any
    process: ForkServerProcess
    log: Path
    start: float
    mark: str

    def result(self, late: bool) -> dict[str, Any]:
        """Return all of its records, and one more if the process did not end normally."""
        steps = []
        if self.log.exists():
            steps = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        if late or self.process.exitcode:
            reason = (
                f"stopped after {TIME_LIMIT} seconds"
                if late
                else f"its process ended with {self.process.exitcode}"
            )
            name = f"after {steps[-1]['name']}" if steps else "start"
            ended = {"name": name, "outcome": "crashed", "reason": reason, "figures": {}}
            steps.append(ended | {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0})
        seconds = round(time.monotonic() - self.start, 1)
        marks = {"fingerprint": self.mark, "sources": self.sweep.sources()}
        return {**self.sweep.describe(self.entry), **marks, "seconds": seconds, "steps": steps}


def run_all(
    sweep: Sweep, entries: Sequence[Any], jobs: int
) -> Iterator[tuple[str, Any, dict[str, Any] | None]]:
    """Run the entries, `jobs` at a time; yield ("begun", entry, None) and ("done", entry, result) as they occur."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([sweep.preload])
    waiting, running = list(entries), list[Job]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_begin(context, sweep, waiting.pop(0)))
                yield "begun", running[-1].entry, None
            for job in [j for j in running if not j.process.is_alive() or _late(j)]:
                running.remove(job)
                yield "done", job.entry, _end(job)
            connection.wait([j.process.sentinel for j in running], timeout=1.0)
    finally:
        for job in running:
            job.process.kill()


def _begin(context: Any, sweep: Sweep, entry: Any) -> Job:
    log = sweep.result_path(entry).with_suffix(".steps")
    log.unlink(missing_ok=True)
    process = context.Process(target=_run_entry, args=(sweep, entry, log), daemon=True)
    process.start()
    return Job(sweep, entry, process, log, time.monotonic(), sweep.fingerprint(entry))


def _late(job: Job) -> bool:
    return time.monotonic() - job.start > TIME_LIMIT


def _end(job: Job) -> dict[str, Any]:
    late = job.process.is_alive()
    if late:
        job.process.kill()
    job.process.join()
    result = job.result(late)
    job.sweep.result_path(job.entry).write_text(json.dumps(result), encoding="utf-8")
    job.log.unlink(missing_ok=True)
    return result
