"""What all tests share: no example of hypothesis is judged by the time it takes, which other processes decide."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("onebyone", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("onebyone")
