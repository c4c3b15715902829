"""The witnesses of a disturbance, each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onebyone.tuning.contention import ContentionMonitor, busy_seconds, involuntary_switches, reference_work


def witness(**replaced: Any) -> ContentionMonitor:
    quiet: dict[str, Any] = {
        "reference": lambda: 1.0,
        "switches": lambda: 0,
        "busy": lambda: 0.0,
        "own": lambda: 0.0,
        "now": _counting(),
    }
    return ContentionMonitor(**(quiet | replaced))


def _counting() -> Any:
    seconds = iter(range(10_000))
    return lambda: float(next(seconds))


def _then(*values: float) -> Any:
    left: Iterator[float] = iter(values)
    return lambda: next(left)


def test_nothing_happened() -> None:
    one = witness()
    one.begin()
    assert not one.disturbed()


@pytest.mark.parametrize(("switches", "disturbed"), [(100, False), (104, True)])
def test_the_scheduler_took_the_core(switches: int, disturbed: bool) -> None:
    one = witness(switches=_then(7, 7 + switches))
    one.begin()
    assert one.disturbed() is disturbed


def test_the_fixed_work_took_longer_than_it_ever_has() -> None:
    one = witness(reference=_then(*[1.0] * 5, 1.0, 1.0, 1.3, 1.3))
    one.begin()
    assert one.disturbed()


def test_a_better_best_is_learnt() -> None:
    one = witness(reference=_then(*[2.0] * 5, 1.0, 1.0, 1.3, 1.4, 1.0, 1.0, 1.2, 1.2))
    one.begin()
    assert one.disturbed()
    one.begin()
    assert not one.disturbed()


@pytest.mark.parametrize(("others", "disturbed"), [(0.05, False), (1.0, True)])
def test_others_used_the_processor(others: float, disturbed: bool) -> None:
    """Of the two seconds that all used, this process had all but `others`."""
    one = witness(busy=_then(10.0, 12.0), own=_then(1.0, 3.0 - others))
    one.begin()
    assert one.disturbed() is disturbed


def test_a_system_without_counters() -> None:
    one = witness(busy=lambda: None)
    one.begin()
    assert not one.disturbed()
    assert busy_seconds(Path("/nowhere/stat")) is None


def test_the_counters_of_proc_stat(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 50 6 7 8 0 0\ncpu0 1 2 3 4\n")
    import os

    assert busy_seconds(stat) == (100 + 20 + 30 + 6 + 7 + 8) / os.sysconf("SC_CLK_TCK")
    stat.write_text("nothing of the kind")
    assert busy_seconds(stat) is None


def test_the_real_ones_answer() -> None:
    assert involuntary_switches() >= 0
    assert reference_work(10) > 0
