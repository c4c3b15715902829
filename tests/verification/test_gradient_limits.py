"""Gradients: rounding is told from faults, also for gradients that are zero in exact arithmetic."""

from __future__ import annotations

import torch

from onebyone.verification.gradients import compare_gradients

U = 2.0**-24
LARGE = torch.linspace(-1, 1, 50, dtype=torch.float64)
NOISE = torch.full((5,), 1e-21, dtype=torch.float64)  # what cancelled


def check(found: dict[str, torch.Tensor]) -> bool:
    exact = {"weight": LARGE, "key.bias": NOISE}
    rounded = {"weight": LARGE.float().double(), "key.bias": NOISE + 8e-17}
    return compare_gradients(exact, rounded, found, U, None).ok


def test_noise_of_a_cancelled_gradient_is_no_difference() -> None:
    assert check({"weight": LARGE, "key.bias": NOISE + 8.6e-21})


def test_a_small_but_real_gradient_is_still_compared() -> None:
    assert not check({"weight": LARGE, "key.bias": NOISE + 1e-14})
    assert not check({"weight": LARGE * (1 + 1e-9), "key.bias": NOISE})
    assert not check({"weight": LARGE})
