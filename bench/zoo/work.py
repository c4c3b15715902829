"""Processes that run the zoo: one for each network, so that the failure of one does not affect the others.

They are forked from a server that has loaded the libraries. Each process writes the record of every step to a file as
soon as the step ends. If a process dies or is stopped, the step that it was running counts as crashed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from bench.zoo import memory
from bench.zoo.models import Entry

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "bench" / "work" / "zoo"
MEMORY = 12 * 2**30
#: Seconds that all steps of a network may take.
TIME_LIMIT = 900
FAULTS = ("not equivalent", "crashed")
LIBRARIES = ("torch", "torchvision", "timm")
RENDERING = ("report.py", "__main__.py", "totals.py")


@cache
def sources() -> str:
    """Return a hash of the sources of the package and the zoo, and of the versions of the libraries."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *Path(__file__).parent.glob("*.py")]):
        if path.parent != Path(__file__).parent or path.name not in RENDERING:
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    digest.update(json.dumps([version(name) for name in LIBRARIES]).encode())
    return digest.hexdigest()[:16]


def fingerprint(entry: Entry) -> str:
    """Return a hash of what a result depends on: the sources and the entry."""
    return hashlib.sha256((sources() + json.dumps(asdict(entry))).encode()).hexdigest()[:16]


def result_path(entry: Entry) -> Path:
    """Return the path where a network's result is stored between runs."""
    return WORK / (entry.key.replace(":", "-") + ".json")


def kept(entry: Entry, mark: str | None) -> dict[str, Any] | None:
    """Return the result of an earlier run with the fingerprint `mark`; if that is None, any result without faults."""
    path = result_path(entry)
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if mark is None:
        return None if any(s["outcome"] in FAULTS for s in result["steps"]) else result
    return result if mark == result["fingerprint"] else None


def run_entry(entry: Entry, log: Path) -> None:
    """Run every step of one network in a separate process; each record is a line of `log`."""
    import torch

    from bench.zoo.steps import Run, Step

    torch.set_num_threads(1)
    memory.cap(MEMORY)
    warnings.simplefilter("ignore")

    def report(step: Step) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step.to_dict()) + "\n")

    Run(entry, report).all()


@dataclass
class Job:
    """One network that is running."""

    entry: Entry
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
        marks = {"fingerprint": self.mark, "sources": sources()}
        return {**_described(self.entry), **marks, "seconds": seconds, "steps": steps}


def run_all(entries: Sequence[Entry], jobs: int) -> Iterator[tuple[str, Entry, dict[str, Any] | None]]:
    """Run the entries, `jobs` at a time; yield ("begun", entry, None) and ("done", entry, result) as they occur."""
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.zoo.preload"])
    waiting, running = list(entries), list[Job]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_begin(context, waiting.pop(0)))
                yield "begun", running[-1].entry, None
            for job in [j for j in running if not j.process.is_alive() or _late(j)]:
                running.remove(job)
                yield "done", job.entry, _end(job)
            connection.wait([j.process.sentinel for j in running], timeout=1.0)
    finally:
        for job in running:
            job.process.kill()


def _begin(context: Any, entry: Entry) -> Job:
    log = result_path(entry).with_suffix(".steps")
    log.unlink(missing_ok=True)
    process = context.Process(target=run_entry, args=(entry, log), daemon=True)
    process.start()
    return Job(entry, process, log, time.monotonic(), fingerprint(entry))


def _late(job: Job) -> bool:
    return time.monotonic() - job.start > TIME_LIMIT


def _end(job: Job) -> dict[str, Any]:
    late = job.process.is_alive()
    if late:
        job.process.kill()
    job.process.join()
    result = job.result(late)
    result_path(job.entry).write_text(json.dumps(result), encoding="utf-8")
    job.log.unlink(missing_ok=True)
    return result


def _described(entry: Entry) -> dict[str, Any]:
    return {"key": entry.key, "group": entry.group, "source": entry.source, "window": entry.window}
