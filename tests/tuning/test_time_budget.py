"""The time budget, on a simulated clock."""

from __future__ import annotations

import pytest

from onebyone.tuning.selection import final_seconds
from onebyone.tuning.time_budget import FINAL_SHARE, LAYER_SHARE, PEAK_SHARE, PROOF_SHARE, Budget
from tests.tuning.simulated_clock import Time


def test_elapsed_and_remaining_seconds() -> None:
    time = Time()
    time.seconds = 7.0
    budget = Budget(100.0, now=time.now)
    assert (budget.elapsed, budget.left(), budget.left(reserved=0.0)) == (0.0, 80.0, 100.0)
    time.seconds += 30.0
    assert (budget.elapsed, budget.left(), budget.left(reserved=0.5)) == (30.0, 50.0, 20.0)


def test_work_is_allowed_if_the_longest_of_its_kind_would_end_in_time() -> None:
    time = Time()
    budget = Budget(100.0, now=time.now)
    budget.record("a", 30.0)
    budget.record("a", 10.0)
    budget.record("b", 1.0)
    time.seconds = 49.0
    assert budget.allows("a")
    time.seconds = 51.0
    assert not budget.allows("a")
    assert budget.allows("b")
    time.seconds = 80.0
    assert not budget.allows("a kind that never ran")


def test_the_stages_leave_most_of_the_budget_to_candidates() -> None:
    assert LAYER_SHARE + PEAK_SHARE + FINAL_SHARE + PROOF_SHARE < 0.5


@pytest.mark.parametrize(
    ("elapsed", "seconds"),
    [
        (0.0, 15.0),  # its share
        (90.0, 5.0),  # what is left before the share of the proof
        (94.9, 0.5),  # never less than half a second
        (200.0, 0.5),
    ],
)
def test_seconds_of_the_final_comparison(elapsed: float, seconds: float) -> None:
    time = Time()
    budget = Budget(100.0, now=time.now)
    time.seconds = elapsed
    assert final_seconds(budget) == pytest.approx(seconds)
