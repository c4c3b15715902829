"""The indicators of contention, one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onebyone.tuning.contention import (
    MAX_OTHER_LOAD,
    ContentionMonitor,
    busy_seconds,
    involuntary_switches,
    reference_work,
)


def monitor(**replaced: Any) -> ContentionMonitor:
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


def test_no_indicator_reports_contention() -> None:
    one = monitor()
    one.begin()
    assert not one.disturbed()


@pytest.mark.parametrize(("switches", "disturbed"), [(100, False), (104, True)])
def test_involuntary_context_switches(switches: int, disturbed: bool) -> None:
    one = monitor(switches=_then(7, 7 + switches))
    one.begin()
    assert one.disturbed() is disturbed


def test_the_reference_work_is_slower_than_before() -> None:
    one = monitor(reference=_then(*[1.0] * 5, 1.0, 1.0, 1.3, 1.3))
    one.begin()
    assert one.disturbed()


def test_the_best_time_of_the_reference_work_is_updated() -> None:
    one = monitor(reference=_then(*[2.0] * 5, 1.0, 1.0, 1.3, 1.4, 1.0, 1.0, 1.2, 1.2))
    one.begin()
    assert one.disturbed()
    one.begin()
    assert not one.disturbed()


@pytest.mark.parametrize(("excess", "disturbed"), [(-0.05, False), (0.05, True), (1.0, True)])
def test_processor_time_of_other_processes(excess: float, disturbed: bool) -> None:
    """They may use a tenth of a core, plus one step of the counter (10 ms) on each core, in a round of one second."""
    others = MAX_OTHER_LOAD + 0.01 * (os.cpu_count() or 1) + excess
    one = monitor(busy=_then(10.0, 12.0 + others), own=_then(1.0, 3.0))
    one.begin()
    assert one.disturbed() is disturbed


def test_systems_without_counters() -> None:
    one = monitor(busy=lambda: None)
    one.begin()
    assert not one.disturbed()
    assert busy_seconds(Path("/nowhere/stat")) is None


def test_the_counters_of_proc_stat(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 50 6 7 8 0 0\ncpu0 1 2 3 4\n")
    assert busy_seconds(stat) == (100 + 20 + 30 + 6 + 7 + 8) / os.sysconf("SC_CLK_TCK")
    stat.write_text("nothing of the kind")
    assert busy_seconds(stat) is None


def test_the_real_indicators_can_be_read() -> None:
    assert involuntary_switches() >= 0
    assert reference_work(10) > 0
