"""Settings of all tests: no deadline for hypothesis examples, what is the same for all tests computed once, and the
longest tests first."""

from __future__ import annotations

import gc
import logging
import random
import sys
from collections.abc import Generator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.library_caches import cache_tables_of_exporters
from tests.native.compiler_cache import share_compiled_kernels

# the time of an example depends on other processes
settings.register_profile("onebyone", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("onebyone")

LONGEST = (
    "tests/test_notebooks.py",
    "tests/test_documents.py",
    "tests/cli/test_own_output.py",
    "tests/demo/",
    "tests/zoo/",
)


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels once for all processes of the session, and leave log records alone.

    pytest's own plugin for logging is off (`addopts` in pyproject.toml): its handlers make torch write a stack trace
    and the text of the graph to its structured log at every step of `torch.export`.
    """
    share_compiled_kernels(config)
    logging.getLogger().addHandler(logging.NullHandler())  # so that no library adds one that prints


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without garbage collections, and run tests with few.

    What exists afterwards, modules and tests, stays until the session ends: later garbage collections do not visit it.
    Exporting a network allocates so many objects that Python's own thresholds would take a tenth of all tests' time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report() -> None:
    """Seed each module's import, which may draw the examples of its tests."""
    _seed(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed fixtures that are made once for several tests, whichever of these tests is the first."""
    _seed(2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random numbers, whichever tests ran before and whatever its fixtures drew."""
    _seed(3)


def _seed(seed: int) -> None:
    """Seed the generators of torch, NumPy and Python, for the CPU only: `torch.manual_seed` takes a stack trace."""
    torch = sys.modules.get("torch")  # the process that only distributes the tests does not import it
    if torch is not None:
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Look for examples to run in the package only: the docstrings of tests contain none."""
    return [collector for collector in (yield) if type(collector) is pytest.Module]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let kernels compile for as long as a busy machine takes, and run the longest tests first.

    The longest tests come first so that no process works alone at the end; the sort keeps the order otherwise. The
    process that only distributes the tests does not collect, so it does not import torch.
    """
    from onebyone.native.kernels import compiler

    cache_tables_of_exporters()
    compiler._MIN_SECONDS = compiler._MAX_SECONDS = 3600.0
    compiler._limit.set(3600.0)
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
