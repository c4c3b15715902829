"""Run the tests of a room on mutants, in forks of a process that has loaded all libraries."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import math
import mmap
import os
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

from tools.mutants.mutations import IS_FUNCTION, MODULE, ROOT, Mutant, nested

FAILED_TOOL = 99
"""Exit code of a fork in which this tool failed, as opposed to a test."""
MEMORY = 8 * 2**30
"""Bytes that a fork may allocate."""
QUICK = 1.0
"""Seconds of a test that also runs on mutants of files in which it calls no function."""
IMPORTS = 60.0
"""CPU seconds for the import of the tests and sources."""
BUDGET = 20.0
"""CPU seconds of the tests that run on one mutant; one that they do not notice counts as survived."""

Calls = dict[str, tuple[float, list[str]]]
"""By test: its CPU seconds, and the functions of the mutated files that it calls."""
COLLECTION = "(collection)"
"""The entry of `Calls` for the import of the tests and sources."""


def forked(task: Callable[[], int], seconds: float = math.inf, *, silent: bool = True) -> int | None:
    """The exit code of `task` in a fork with limited CPU time and memory; None if a signal ended it."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        code = FAILED_TOOL
        try:
            if silent:
                null = os.open(os.devnull, os.O_RDWR)
                for stream in (1, 2):
                    os.dup2(null, stream)
            if seconds < math.inf:
                limit_cpu(seconds)
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            code = task()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def limit_cpu(seconds: float) -> None:
    """End this process by a signal after this many more CPU seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))


def run_pytest(paths: Sequence[str], plugin: object) -> int:
    """Collect the tests and doctests of `paths` with `plugin`."""
    import hypothesis

    hypothesis.settings.register_profile(
        "mutants",
        deadline=None,
        derandomize=True,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    options = ["-x", "-q", "-s", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        options += ["-m", "not slow and not gpu", f"--basetemp={folder}/tests"]
        return int(pytest.main([*options, *paths], [plugin]))


class Tests:
    """A plugin that runs single tests, with reproducible settings of Hypothesis."""

    failed = ""

    def pytest_collection(self) -> None:
        """Called before the collection, after conftest.py has selected the settings of the tests."""
        import hypothesis

        hypothesis.settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for every phase of a test."""
        if report.failed:
            self.failed = f"{report.nodeid}\n{report.longreprtext}"

    def failure(self, item: pytest.Item, following: pytest.Item | None) -> str:
        """Why a test fails; "" if it passes or is skipped."""
        self.failed = ""
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        return self.failed


class Selection(Tests):
    """Runs only the named tests, in this order, with modules that `finder` supplies."""

    def __init__(self, names: Sequence[str], finder: Any, calls: Calls) -> None:
        self.order = {name: position for position, name in enumerate(names)}
        self.finder, self.calls = finder, calls

    def pytest_collection(self) -> None:
        """Called before the collection."""
        super().pytest_collection()
        sys.meta_path.insert(
            0, self.finder
        )  # before pytest's own, which would load the original for doctests

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called after the collection."""
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Called before each test."""
        limit_cpu(time_limit([nodeid], self.calls))


class Baseline(Tests):
    """Runs the tests without a mutation, and writes `Calls` to `output`."""

    def __init__(self, files: Sequence[Path], output: Path) -> None:
        self.outermost = dict(pair for file in files for pair in _outermost(file))
        self.output = output
        self.calls: Calls = {}

    def pytest_collection(self) -> None:
        """Called before the collection."""
        super().pytest_collection()
        self._start(COLLECTION)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Called in place of pytest's loop over the tests."""
        self._stop()
        for item in session.items:
            self._start(item.nodeid)
            failed = self.failure(item, None)
            self._stop()
            if failed:
                self.output.write_text(json.dumps({"failed": failed}))
                return True
        self.output.write_text(json.dumps(self.calls))
        return True

    def _start(self, name: str) -> None:
        """Begin to record the functions that are called, under `name`."""
        self.name, self.begin, self.called = name, time.process_time(), set[str]()

        def trace(frame: FrameType, event: str, argument: object) -> None:
            outer = self.outermost.get(name_of(frame.f_code))
            if outer is not None:
                self.called.add(outer)

        threading.settrace(trace)
        sys.settrace(trace)

    def _stop(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        self.calls[self.name] = (time.process_time() - self.begin, sorted(self.called))


class Campaign(Tests):
    """Runs the mutants of functions, each in a fork of the process that has collected the tests."""

    def __init__(
        self, files: Sequence[Path], mutants: Sequence[Mutant], calls: Calls, report: Callable[..., bool]
    ) -> None:
        self.files, self.mutants, self.calls, self.report = files, mutants, calls, report
        self.failing = mmap.mmap(-1, 8)  # shared with the forks: the number of the test that failed
        self.kills: Counter[tuple[str, str]] = Counter()  # by function and test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Called in place of pytest's loop over the tests."""
        items = {item.nodeid: item for item in session.items}
        gc.unfreeze()  # objects that tests/conftest.py has frozen are not listed
        functions, caches = self.live_functions()
        session.config.option.tbstyle = "line"  # a long traceback takes longer than most tests
        gc.freeze()  # so that a collection in a fork neither visits nor copies what the libraries have allocated
        for mutant in self.mutants:
            before, after = mutant.functions or MODULE
            live = functions.get(name_of(before), [])
            function = name_of(before)
            names = [name for name in names_of_tests(mutant, self.calls) if name in items]
            names = within_budget(
                sorted(names, key=lambda name: self.calls[name][0] / (1 + self.kills[function, name])),
                self.calls,
            )
            if not live or not names or len(before.co_freevars) != len(after.co_freevars):
                continue
            selected = [items[name] for name in names]
            task = functools.partial(self.run, selected, live, after, caches)
            code = forked(task, time_limit(names, self.calls))
            if code:
                self.kills[function, names[int.from_bytes(self.failing[:8])]] += 1
            if not self.report(mutant, code, final=name_of(before) not in self.calls[COLLECTION][1]):
                break
        return True

    def live_functions(self) -> tuple[dict[str, list[FunctionType]], list[Any]]:
        """The functions of the files by name, wherever they are referenced, and the caches of onebyone."""
        paths = {str(path) for path in self.files}
        functions: dict[str, list[FunctionType]] = {}
        caches = []
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename in paths:
                functions.setdefault(name_of(thing.__code__), []).append(thing)
            elif type(thing) is functools._lru_cache_wrapper and str(thing.__module__).startswith("onebyone"):
                caches.append(thing)
        return functions, caches

    def run(
        self,
        items: Sequence[pytest.Item],
        live: Sequence[FunctionType],
        code: CodeType,
        caches: Sequence[Any],
    ) -> int:
        """Replace the function's code and run the tests; 1 at the first failure."""
        for function in live:
            function.__code__ = code
        for cache in caches:
            cache.cache_clear()
        for number, (item, following) in enumerate(zip(items, [*items[1:], None], strict=True)):
            self.failing[:8] = number.to_bytes(8)
            limit_cpu(time_limit([item.nodeid], self.calls))
            if self.failure(item, following):
                return 1
        return 0


def run_imported(mutant: Mutant, names: Sequence[str], calls: Calls) -> int:
    """Import the mutated module in place of the original, then run the tests."""
    relative = mutant.path.relative_to(ROOT / "src").with_suffix("")
    module = ".".join(relative.parts).removesuffix(".__init__")

    class Loader(SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType:
            return compile(mutant.source, str(mutant.path), "exec", dont_inherit=True)

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            spec = PathFinder.find_spec(name, path) if name == module else None
            if spec is not None:
                spec.loader = Loader(name, str(mutant.path))
            return spec

    files = {name.split("::", 1)[0] for name in names}
    return run_pytest(sorted(files), Selection(names, Finder, calls))


def names_of_tests(mutant: Mutant, calls: Calls, *, quick: bool = False) -> list[str]:
    """The tests that call the changed function (any function of the file, if none is), the fastest first.

    With `quick`, other fast tests follow: they may notice a constant without calling a function.
    """
    prefix = name_of(mutant.functions[0]) if mutant.functions else f"{mutant.path}:"
    ordered = sorted(calls.keys() - {COLLECTION}, key=lambda name: calls[name][0])
    callers = [name for name in ordered if any(called.startswith(prefix) for called in calls[name][1])]
    others = [name for name in ordered if calls[name][0] < QUICK] if quick else []
    return list(dict.fromkeys([*callers, *others]))


def within_budget(names: Sequence[str], calls: Calls) -> list[str]:
    """The first of these tests, as many as take no more than `BUDGET` together; at least one."""
    ends = itertools.accumulate(calls[name][0] for name in names)
    return [
        name
        for number, (name, end) in enumerate(zip(names, ends, strict=True))
        if end <= BUDGET or not number
    ]


def time_limit(names: Sequence[str], calls: Calls) -> float:
    """CPU seconds after which a mutant is stopped, without those of imports."""
    return 5 + 5 * sum(calls[name][0] for name in names)


def name_of(code: CodeType) -> str:
    """A name for the code of a function."""
    return f"{code.co_filename}:{code.co_qualname}:{code.co_firstlineno}"


def _outermost(path: Path) -> Iterator[tuple[str, str]]:
    """(name, name of the outermost function around it) of every function of a file."""

    def walk(code: CodeType, outer: str | None) -> Iterator[tuple[str, str]]:
        for inner in nested(code):
            is_function = bool(inner.co_flags & IS_FUNCTION)
            around = outer or (name_of(inner) if is_function else None)
            if is_function and around is not None:
                yield name_of(inner), around
            yield from walk(inner, around)

    yield from walk(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), None)
