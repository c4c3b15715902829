"""What all tests share: no example of hypothesis is judged by the time it takes, which other processes decide."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.native.compiler_cache import share_compiled_kernels

settings.register_profile("onebyone", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("onebyone")


def pytest_configure(config: pytest.Config) -> None:
    """Compile the kernels once for all processes of the session."""
    share_compiled_kernels(config)
