"""Settings of all tests: no deadline for hypothesis examples, kernels compiled once, and the longest tests first."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from onebyone.native.kernels import compiler
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
    """Compile the kernels once for all processes of the session, for as long as a busy machine takes."""
    share_compiled_kernels(config)
    compiler._MIN_SECONDS = compiler._MAX_SECONDS = 3600.0
    compiler._limit.set(3600.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no process works alone at the end (the sort keeps the order otherwise)."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
