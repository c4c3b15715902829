"""What an any-size verification reports of crops and of all its checks: every field, on networks made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.results import ClassMap
from onebyone.verification import verify, window_crops
from onebyone.verification.any_size_checks import _verification, verify_any_size
from onebyone.verification.any_size_setup import AnySizeFindings
from onebyone.verification.crop_comparison import _compare_in_float64, compare_with_crops
from onebyone.verification.output_comparison import NetworkCheck
from onebyone.verification.result import (
    CLASS_MAP,
    DENSE_EXACT,
    DENSE_PADDED,
    DenseCheck,
    GradientCheck,
    LayerCheck,
    Verification,
    WeightCheck,
)
from onebyone.verification.window_crops import all_windows
from tests.verification.test_any_size_parts import Positions, geometry, setup_of
from tests.verification.test_any_size_setup import STRIDE, WINDOW, image
from tests.verification.test_crop_bounds import CHECK, Analysis, compared

# ---------------------------------------------------------------- crops


class Wrong(nn.Module):
    """The means of windows; of an image of 3×4 windows, one is off."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.register_buffer("error", torch.zeros(3, 4))
        self.error[1, 2] = error

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.avg_pool2d(x, WINDOW, STRIDE)
        return y + self.error if y.shape[2:] == self.error.shape else y


class Classifier(nn.Module):
    """The mean of a window; keeps the batches that it was called on."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return x.mean((1, 2, 3)).unsqueeze(1)


def report_of(network: nn.Module, x: Tensor, limit: int = 4096, **changes: Any) -> tuple[Any, ...]:
    steps: list[tuple[int, int]] = []
    findings = AnySizeFindings(["before"])
    classifier = Classifier()
    setup = setup_of(network, x, classifier=classifier, analysed=Positions(WINDOW, STRIDE), **changes)
    check = compare_with_crops(setup, findings, limit, 0.5, lambda *step: steps.append(step))
    return check, findings, steps, classifier.batches


def test_what_is_reported_of_an_exact_network() -> None:
    """One of twelve values is off by 1/8."""
    x = image()
    means = nn.functional.avg_pool2d(x, WINDOW, STRIDE)
    check, findings, steps, batches = report_of(Positions(WINDOW, STRIDE), x)
    assert (check.ok, check.why, findings.problems) == (True, "", ["before"])
    check, findings, steps, batches = report_of(Wrong(0.125), x)
    bound, ratio, limit = check.bound, check.bound_ratio, check.float64_limit
    assert 0 < bound < 1e-5
    assert 0.999 < ratio / (0.125 / bound) < 4, "the largest bound is another window's"
    assert 0 < limit < 1e-13
    shift = float((Wrong(0.125)(x).roll(1, -1) - means).abs().max())
    assert check == DenseCheck(
        DENSE_EXACT, False, 12, (3, 4), (3, 4),
        max_abs_difference=pytest.approx(0.125, rel=1e-5),
        mean_abs_difference=pytest.approx(0.125 / 12, rel=1e-4),
        relative_to_spread=pytest.approx(0.125 / float(means.std()), rel=1e-4),
        bound=bound, bound_ratio=ratio, float64_limit=limit,
        float64_difference=pytest.approx(0.125),
        planted_shift=pytest.approx(shift, rel=1e-5),
        why="; ".join(findings.problems[1:]),
    )  # fmt: skip
    assert findings.problems[0] == "before"
    assert findings.problems[1].startswith("dense and crops differ by 0.125, ")
    assert findings.problems[2].startswith("in float64 dense and crops differ by 0.125, ")
    assert len(findings.problems) == 3
    assert steps == [(12, 12)]
    assert batches == [12]


def test_what_is_reported_of_a_network_that_pads() -> None:
    check, findings, _, _ = report_of(Wrong(0.125), image(), geometry=geometry(exact=False))
    spread = float(nn.functional.avg_pool2d(image(), WINDOW, STRIDE).std())
    assert check == DenseCheck(
        DENSE_PADDED, True, 12, (3, 4), (3, 4),
        max_abs_difference=pytest.approx(0.125, rel=1e-5),
        mean_abs_difference=pytest.approx(0.125 / 12, rel=1e-4),
        relative_to_spread=pytest.approx(0.125 / spread, rel=1e-4),
        why="measured: padding",
    )  # fmt: skip
    assert findings == AnySizeFindings(["before"])
    (constant, *_) = report_of(
        Positions(WINDOW, STRIDE), torch.ones(1, 1, 8, 6), geometry=geometry(exact=False)
    )
    assert constant.relative_to_spread is None, "the outputs are all equal"
    assert constant.max_abs_difference < 1e-6


def test_windows_are_run_in_batches_of_the_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_crops, "_BATCH_VALUES", 60)
    shape = geometry(exact=False)
    _, _, steps, batches = report_of(Positions(WINDOW, STRIDE), image(), geometry=shape)
    assert batches == [5, 5, 5], "60 ÷ (1 channel × 4×3 pixels)"
    assert steps == [(5, 12), (10, 12), (12, 12)]
    _, _, steps, batches = report_of(Positions(WINDOW, STRIDE), image(), geometry=shape, fixed_batch=7)
    assert (batches, steps) == ([7, 7], [(7, 12), (12, 12)])
    check, findings, steps, batches = report_of(Positions(WINDOW, STRIDE), image(), 5, geometry=shape)
    assert (check.windows, steps, batches) == (5, [(5, 5)], [5])
    assert findings.unverified == ["compared on 5 of 12 windows, evenly spread"]
    check, findings, _, _ = report_of(Positions(WINDOW, STRIDE), image(), 12, geometry=shape)
    assert (check.windows, findings.unverified) == (12, [])


def test_what_is_not_compared_says_so() -> None:
    check, findings, _, _ = report_of(Positions(WINDOW, STRIDE, {8: 1}), image())
    assert check == DenseCheck(DENSE_EXACT, False, 0, (3, 4), (4, 4), why="not compared")
    assert findings.problems == ["before", "(8, 6) pixels give (4, 4) positions, (3, 4) are expected"]

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.avg_pool2d(x, WINDOW, STRIDE)
            return torch.cat([y, y], 1)

    check, findings, _, _ = report_of(Twice(), image())
    assert check == DenseCheck(DENSE_EXACT, False, 0, (3, 4), (3, 4), why="not compared")
    assert findings.problems == ["before", "dense outputs and the crops' have different shapes"]
    check, findings, _, _ = report_of(Wrong(math.inf), image())
    assert (check.ok, check.why, check.windows) == (False, "", 12)
    assert (check.max_abs_difference, check.mean_abs_difference) == (math.inf, math.inf)
    assert findings.problems == ["before", "dense outputs, or the crops', hold NaN or infinity"]


def test_a_difference_or_shift_of_exactly_the_bound() -> None:
    """The bound is the float64 number that the comparison itself computes."""
    error = compared(0.125, 1.0)[0].float64_difference
    assert error is not None
    check, problems, _ = compared(0.125, error)
    assert (check.float64_difference, problems) == (error, [])
    shift = compared(0.0, 1.0)[0].planted_shift
    assert shift is not None
    _, _, findings = compared(0.0, shift)
    assert findings.unverified == ["the bound is too coarse to see a shift by one position on this image"]


@pytest.mark.parametrize(("columns", "seen"), [(3, False), (4, True)])
def test_two_positions_can_be_shifted(columns: int, seen: bool) -> None:
    right, analysis = Positions(WINDOW, STRIDE), Analysis(1e-9)
    setup, windows = setup_of(right, image()[..., :columns]), all_windows((3, columns - 2), 1, WINDOW, STRIDE)
    findings = AnySizeFindings()
    check, problems = _compare_in_float64(setup, findings, CHECK, windows, analysis)  # type: ignore[arg-type]
    assert (check.planted_shift is not None) is seen
    assert (problems, findings) == ([], AnySizeFindings())


def test_without_a_bound_the_difference_in_the_networks_own_type_counts() -> None:
    right = Positions(WINDOW, STRIDE)
    setup = setup_of(right, image())
    analysis: Any = Analysis("no rule")
    limits = []
    for difference in (None, 0.25):
        given = replace(CHECK, max_abs_difference=difference)
        windows = all_windows((3, 4), 1, WINDOW, STRIDE)
        check, _ = _compare_in_float64(setup, AnySizeFindings(), given, windows, analysis)
        limits.append(check.float64_limit)
    largest = float(right(image()).max())
    factor = math.sqrt(2.0**-53 / 2.0**-24)
    assert limits == pytest.approx([2.0**-24 * largest * factor, 0.25 * factor])


# ---------------------------------------------------------------- the outcome


def test_every_part_of_the_outcome() -> None:
    findings = AnySizeFindings(["one", "two", "one"], ["u", "v", "u"], ["w"])
    layers = (LayerCheck("a", "Linear"), LayerCheck("b", "Linear", ok=False), LayerCheck("c", "k", ok=False))
    weights, dense = WeightCheck(1, 2), DenseCheck("t", True, 1, (1,), (1,))
    network = NetworkCheck(1.0, 2.0, 3.0, 4.0, ["p"], ["v", "n"])
    gradient = GradientCheck(False, 3, why="differ: w")
    setup = setup_of(None, image(), class_map=ClassMap((2, 2)))
    v = _verification(setup, findings, weights, layers, network, gradient, dense)
    assert v == Verification(
        equivalent=False, target=CLASS_MAP, max_error=1.0, rounding_ratio=2.0, float64_error=3.0,
        float64_limit=4.0, layers=layers, weights=weights, gradients=gradient, dense=dense, first_difference="b",
        problems=("one", "two", "on one window: p", "gradients differ: w"), unverified=("u", "v", "n"),
        warnings=("w",),
    )  # fmt: skip
    fine = _verification(
        setup, AnySizeFindings(), None, layers[:1], NetworkCheck(), GradientCheck(True, 1), None
    )
    assert fine == Verification(True, CLASS_MAP, layers=layers[:1], gradients=GradientCheck(True, 1))


def test_a_weight_that_is_not_finite_ends_the_verification_after_the_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3)).eval()
    dense = convolutionalize(net, window=(4, 4))
    nn.init.constant_(net[2].bias, math.nan)
    steps: list[tuple[int, int]] = []
    v = verify_any_size(net, dense, None, 0, True, 10, 0.5, lambda *step: steps.append(step))
    assert v.problems == ("original: weight 2.bias holds NaN or infinity",)
    assert (v.max_error, v.gradients, v.dense) == (None, None, None)
    assert v.weights is not None
    assert v.weights.ok
    assert (len(v.layers), steps) == (1, [(1, 1)])


def test_both_networks_of_any_size_run_in_eval_mode_and_keep_their_own() -> None:
    """Dropout drops nothing, in either network."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(18, 3)).eval()
    dense = convolutionalize(net, window=(4, 4))
    network = nn.Sequential(dense.model, nn.Dropout(0.5))
    net.train()
    network.train()
    v = verify(net, replace(dense, model=network, pairs=()), torch.randn(1, 1, 6, 5), gradients=False)
    assert v.equivalent, str(v)
    assert (net.training, net[1].training, network.training, network[1].training) == (True,) * 4


def test_an_any_size_network_that_cannot_be_called_is_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    dense: Any = replace(convolutionalize(net, window=(4, 4), channels=1), model=3)
    with pytest.raises(BadInput, match=r"^converted.model is a int, which is neither"):
        verify(net, dense)


class Probabilities(nn.Module):
    """Rounds to float32 in whichever type it runs, as many networks do for the softmax; with a fault on request."""

    def __init__(self, network: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        return (y if self.factor == 1 else y * self.factor).softmax(1, dtype=torch.float32)


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_networks_that_round_to_float32_inside_are_compared_in_float32(factor: float) -> None:
    torch.manual_seed(0)
    logits = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 2, 3))
    net, x = Probabilities(logits), torch.randn(1, 1, 6, 5)
    dense: Any = convolutionalize(net, window=(4, 4), channels=1)
    if factor != 1:
        maps = convolutionalize(logits, window=(4, 4), channels=1).model
        dense = replace(dense, model=Probabilities(maps, factor), pairs=())
    v = verify(net, dense, x, gradients=False)
    assert v.equivalent is (factor == 1), str(v)
    assert v.dense is not None
    assert v.dense.bound_ratio is not None
    assert (v.dense.bound_ratio <= 1) is (factor == 1)
    assert (v.dense.float64_difference, v.dense.float64_limit) == (None, None)
    assert "dense against crops in float64: it casts to a shorter type inside" in v.unverified
