"""Bounds on the difference from crops in float64, and the layer that is blamed, each from both sides of its limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.verification.any_size_setup import AnySizeFindings
from onebyone.verification.crop_comparison import _compare_in_float64, _ShortOfFloat64Error
from onebyone.verification.network_run import Runner
from onebyone.verification.output_comparison import NetworkRuns
from onebyone.verification.result import DenseCheck
from onebyone.verification.verifier import _first_difference
from onebyone.verification.window_crops import (
    DifferenceBounds,
    OutputBounds,
    WindowPositions,
    all_windows,
    compare_rows,
)
from tests.verification.test_any_size_parts import Positions, setup_of

WINDOW, STRIDE = (4, 3), (2, 1)
CHECK = DenseCheck("t", False, 1, (1,), (1,))


class Off(nn.Module):
    """The means of windows, one of which is off."""

    def __init__(self, error: float, to: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.means, self.error, self.to_type = Positions(WINDOW, STRIDE), error, to

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.means(x).clone()
        (y * 0).to(self.to_type)
        y[0, 0, 1, 2] += self.error
        return y


class Analysis:
    """In place of a running error analysis: one bound for all, or a reason why there is none."""

    batch = 5

    def __init__(self, bound: float | str) -> None:
        self.bound = bound

    def __call__(self, image: Tensor, windows: WindowPositions) -> OutputBounds:
        assert image.dtype == torch.float64
        if isinstance(self.bound, str):
            return OutputBounds([], self.bound)
        return OutputBounds([torch.full((len(windows), 1), self.bound, dtype=torch.float64)])


def compared(
    error: float, bound: float | str, columns: int = 6, to: torch.dtype = torch.float64
) -> tuple[DenseCheck, list[str], AnySizeFindings]:
    image = torch.rand(1, 1, 8, columns, generator=torch.Generator().manual_seed(0))
    right, wrong = Positions(WINDOW, STRIDE), Off(error, to) if columns > 3 else Positions(WINDOW, STRIDE)
    setup = setup_of(wrong, image, classifier=right, analysed=right)
    windows = all_windows((3, columns - 2), 1, WINDOW, STRIDE)
    findings = AnySizeFindings()
    analysis: Any = Analysis(bound)
    check, problems = _compare_in_float64(setup, findings, CHECK, windows, analysis)
    return check, problems, findings


@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_a_difference_inside_or_outside_of_its_bound(factor: float) -> None:
    bound = 2.0**-20
    check, problems, findings = compared(factor * bound, bound)
    assert check.float64_difference == pytest.approx(factor * bound, rel=1e-6)
    assert check.float64_limit == bound
    assert findings.unverified == []
    assert problems == (
        []
        if factor < 1
        else [f"in float64 dense and crops differ by {factor * bound:.3g}, {factor:.3g} times the limit"]
    )


def test_a_network_that_rounds_inside_may_exceed_the_limit_in_float64() -> None:
    """That says nothing then; at the limit, and of one that does not round inside, it does."""
    difference = compared(0.25, 1.0)[0].float64_difference
    assert difference is not None
    check, problems, _ = compared(0.25, difference, to=torch.float32)
    assert (check.float64_difference, check.float64_limit, problems) == (difference, difference, [])
    for factor in (0.99, 0.4):
        assert compared(0.25, factor * difference)[1] != []
        with pytest.raises(_ShortOfFloat64Error, match=r"^it casts to a shorter type inside$"):
            compared(0.25, factor * difference, to=torch.float32)


def test_a_bound_must_expose_a_shift_by_one_position() -> None:
    image = torch.rand(1, 1, 8, 6, generator=torch.Generator().manual_seed(0)).double()
    means = Positions(WINDOW, STRIDE)(image)
    shift = float((means - means.roll(1, -1)).abs().max())
    for factor, noted in ((1.001, True), (0.999, False)):
        check, problems, findings = compared(0.0, factor * shift)
        assert check.planted_shift == pytest.approx(shift)
        assert problems == []
        note = "the bound is too coarse to see a shift by one position on this image"
        assert findings.unverified == ([note] if noted else [])
    check, _, findings = compared(0.0, 1e6, columns=3)
    assert check.planted_shift is None, "one position has nothing to shift"
    assert findings.unverified == []


def test_without_a_bound_the_limit_of_whole_networks_is_used() -> None:
    """√(2⁻⁵³/2⁻²⁴) times 2⁻²⁴ of the largest mean, or of the difference in float32 where that is larger."""
    image = torch.rand(1, 1, 8, 6, generator=torch.Generator().manual_seed(0)).double()
    largest = float(Positions(WINDOW, STRIDE)(image).max())
    limit = largest * 2.0**-24 * math.sqrt(2.0**-53 / 2.0**-24)
    for factor in (0.99, 1.01):
        check, problems, findings = compared(factor * limit, "aten.erfcx")
        assert check.float64_limit == pytest.approx(limit)
        assert bool(problems) == (factor > 1)
        assert findings.unverified == [
            "no derived bound (aten.erfcx): in float64 the limit for whole networks was used instead"
        ]


def test_the_bounds_of_both_networks_are_added_window_by_window() -> None:
    """And widened for the rounding of the addition; the batch of the last windows is filled up."""
    image = torch.rand(1, 1, 8, 6)
    windows = all_windows((3, 4), 1, WINDOW, STRIDE)
    batches: list[int] = []

    class Original:
        def running_error(self, crops: Tensor) -> list[tuple[Tensor, Tensor]]:
            batches.append(len(crops))
            return [(crops[:, 0, 0, :2], crops[:, 0, 0, :2] / 4)]

    class Dense:
        def running_error(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
            error = torch.arange(24.0).reshape(1, 2, 3, 4)
            return [(error, error)]

    bounds = DifferenceBounds(Original(), Dense(), image, windows, 5)(image, windows)
    assert bounds.missing == ""
    assert batches == [5, 5, 5]
    (bound,) = bounds.bounds
    assert bound.dtype == torch.float64
    for row, (sample, i, j) in enumerate(windows.index.tolist()):
        for k in range(2):
            crop = float(image[sample, 0, 2 * i, j + k]) / 4
            assert float(bound[row, k]) == (crop + float(12 * k + 4 * i + j)) * (1 + 2.0**-50)


def test_rows_are_compared_with_bounds_of_their_own_shape() -> None:
    with pytest.raises(ValueError, match="each output needs bounds of its own shape"):
        compare_rows([torch.zeros(2, 3)], [torch.zeros(2, 3)], [torch.zeros(2, 1)])


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_the_layer_that_is_blamed_differs_beyond_the_limit_of_its_own_output(factor: float) -> None:
    """√(2⁻⁵³/u)·u of the largest value, 4; a smaller difference is rounding, and the next layer is named."""
    u = 2.0**-24
    limit = 4 * u * math.sqrt(2.0**-53 / u)

    class Adding(nn.Module):
        def __init__(self, addend: float) -> None:
            super().__init__()
            self.addend = addend

        def forward(self, x: Tensor) -> Tensor:
            return x + self.addend

    def network(*addends: float) -> nn.Module:
        return nn.Sequential(*(Adding(a) for a in addends))

    x = torch.tensor([1.0, -4.0], dtype=torch.float64)
    runners = [Runner(n, x, 0) for n in (network(0, 0, 0), network(factor * limit, 0.5, 0))]
    runs = NetworkRuns(*runners, *runners, u, False)
    assert _first_difference(runs) == ("1" if factor < 1 else "0")
    same = NetworkRuns(runners[0], runners[0], runners[0], runners[0], u, False)
    assert _first_difference(same) is None
    bare = NetworkRuns(*runners, Runner(network(0).forward, x, 0), runners[1], u, False)
    assert _first_difference(bare) is None
