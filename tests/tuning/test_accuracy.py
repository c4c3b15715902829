"""The accuracy check: equivalent candidates pass, and injected faults are detected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.tuning.accuracy import RUNS, AccuracyChecker
from onebyone.tuning.call_signature import CallSignature
from onebyone.tuning.engines import EngineSettings
from tests.tuning import networks
from tests.tuning.simulated_clock import Time

SETTING = EngineSettings(torch.device("cpu"), 1)


def checked(network: nn.Module, example: Any, change: Any = None, free: bool = False) -> Any:
    calling = CallSignature.of(network.eval(), example, free)
    checker = AccuracyChecker(network, calling)
    call = networks.eager(network, calling, SETTING)
    return checker.check(call if change is None else lambda *a, **k: change(call(*a, **k)))


def test_the_original_has_a_rounding_ratio_of_at_most_one() -> None:
    check = checked(networks.images(), torch.randn(2, 3, 8, 8))
    assert check.problem == ""
    assert check.rounding_ratio is not None
    assert 0 < check.rounding_ratio <= 1
    assert check.max_error == 0.0


def test_the_rounding_ratio_equals_a_second_computation() -> None:
    """The candidate's error ÷ the original's, both against a float64 copy made in this test."""
    network, x = networks.images().eval(), torch.randn(2, 3, 8, 8)
    off = torch.zeros(2, 5)
    off[1, 3] = 1e-5
    calling = CallSignature.of(network, x)
    checker = AccuracyChecker(network, calling)
    checker.references = checker.references[:1]
    with torch.no_grad():
        own = network(x)
        exact = networks.images().double().eval()(x.double())
    check = checker.check(lambda x: own + off)
    unit = 2.0**-24 * float(exact.abs().max())
    expected = float((own + off - exact).abs().max()) / max(float((own - exact).abs().max()), unit)
    assert check.rounding_ratio == pytest.approx(expected)
    assert check.max_error == pytest.approx(1e-5, rel=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y + 1e-3, "times the original's rounding error, limit 90.5"),
        (lambda y: y.bfloat16().float(), "times the original's rounding error"),
        (lambda y: y.roll(1, 1), "times the original's rounding error"),
        (lambda y: y * float("nan"), "contains NaN or infinity"),
        (lambda y: y[:, :4], r"paths and shapes \[\('', \(2, 4\)\)\]"),
        (lambda y: (y, y), "paths and shapes"),
    ],
)
def test_faults_are_detected(change: Any, words: str) -> None:
    import re

    check = checked(networks.images(), torch.randn(2, 3, 8, 8), change)
    assert re.search(words, check.problem)


def test_constant_outputs_are_detected() -> None:
    """They are correct for the example only."""
    network, x = networks.images().eval(), torch.randn(1, 3, 8, 8)
    calling = CallSignature.of(network, x)
    call = networks.constant(network, calling, SETTING)
    assert "rounding error" in AccuracyChecker(network, calling).check(call).problem


class Tokens(nn.Module):
    """A head applied to each of 196 tokens (N, 196, 16)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x) + self.head(self.norm(x))
        return y


def with_wrong_row(y: Tensor) -> Tensor:
    """Change one token by 1 % of its size, which is 10⁻⁵ of the largest number of the output."""
    y = y.clone()
    y[0, 77] += 1e-2 * y[0, 77].abs().max()
    return y


def test_one_wrong_row_of_196_is_detected() -> None:
    network, x = Tokens(), torch.randn(1, 196, 16)
    x[0, 5] *= 1e5  # so that the largest error of the whole output does not show the fault
    check = checked(network, x, with_wrong_row)
    assert "in row 77, limit 90.5" in check.problem
    assert check.row_ratio > 1e4
    calling = CallSignature.of(network, x)
    checker = AccuracyChecker(network, calling, by_row=False)
    assert checker.check(lambda x: with_wrong_row(network(x))).problem == ""
    assert checked(network, x).row_ratio <= 1


def test_rows_that_lose_digits_beside_large_ones_are_detected() -> None:
    """Strassen's products without scaling have such an error, which grows with the largest row."""
    network, x = Tokens().eval(), torch.randn(1, 196, 16)
    check = checked(network, x, lambda y: y + 1e-7 * y.abs().max())
    assert "on an input with outliers" in check.problem
    checker = AccuracyChecker(network, CallSignature.of(network, x), by_row=False)
    assert checker.check(lambda x: network(x) + 1e-7 * network(x).abs().max()).problem == ""


@pytest.mark.parametrize("example", [(3, 196, 16), (3, 16)])
def test_samples_that_influence_each_other_are_detected(example: tuple[int, ...]) -> None:
    check = checked(Tokens(), torch.randn(example), lambda y: y + 1e-6 * y.mean(0))
    assert "in row" in check.problem
    assert "on an input with outliers" in check.problem


class Sometimes:
    """Adds an error in every third call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, y: Tensor) -> Tensor:
        self.calls += 1
        return y + (self.calls % 3 == 0)


@pytest.mark.parametrize("offset", range(3))
def test_faults_in_every_third_call_are_detected(offset: int) -> None:
    fault = Sometimes()
    fault.calls = offset
    assert "rounding error" in checked(networks.tokens(), torch.randn(2, 4, 8), fault).problem


def test_faults_under_load_are_detected() -> None:
    import threading

    def with_race(y: Tensor) -> Tensor:
        return y + any(t.name == "onebyone-load" for t in threading.enumerate())

    assert "rounding error" in checked(networks.tokens(), torch.randn(2, 4, 8), with_race).problem
    assert not any(t.name == "onebyone-load" for t in threading.enumerate())


@pytest.mark.parametrize(
    ("seconds", "thorough", "runs"),
    [
        (0.01, False, 5 + 2 + 5 + 5),  # every input three times, the first of them once more in between
        (0.1, False, 5 + 2),  # repeating seven runs of 0.1 s would take more than a second
        (0.1, True, 5 + 2 + 5 + 5),
        (2.0, True, 5 + 2 + 5 + 3),  # under load, no more than five seconds from the third run on
    ],
)
def test_slow_candidates_run_fewer_times_unless_they_are_chosen(
    seconds: float, thorough: bool, runs: int
) -> None:
    network, x = networks.tokens().eval(), torch.randn(2, 4, 8)
    time = Time()
    checker = AccuracyChecker(network, CallSignature.of(network, x), now=time.now)
    calls = []

    def slow(x: Tensor) -> Tensor:
        calls.append(1)
        time.seconds += seconds
        y: Tensor = network(x)
        return y

    assert (len(checker.references), RUNS) == (5, 3)
    assert checker.check(slow, thorough=thorough).problem == ""
    assert len(calls) == runs


def test_positions_of_a_map_are_compared_with_their_neighbourhood() -> None:
    """Errors near a large value are rounding errors of tiled convolutions; errors far from it are faults."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1)).eval(), torch.randn(1, 3, 80, 80)
    x[..., :8, :8] *= 1e5

    def near(y: Tensor) -> Tensor:
        y = y.clone()
        y[0, :, 9, 9] += 1e-2
        return y

    def far(y: Tensor) -> Tensor:
        y = y.clone()
        y[0, :, 60, 60] += 1e-2
        return y

    checker = AccuracyChecker(network, CallSignature.of(network, x))
    checker.references = checker.references[:1]
    assert checker.check(lambda x: near(network(x))).problem == ""
    assert "in row" in checker.check(lambda x: far(network(x))).problem


def test_a_constant_batch_size_is_detected() -> None:
    network, x = networks.tokens().eval(), torch.randn(2, 4, 8)
    calling = CallSignature.of(network, x, dynamic_batch=True)
    check = AccuracyChecker(network, calling).check(lambda x: network(x.reshape(2, -1, 8)[:, :4]))
    assert "shapes" in check.problem
    checker = AccuracyChecker(network, calling, by_row=False)
    assert [r.signature.tensors[0].shape[0] for r in checker.references] == [2, 2, 5]


def test_the_error_of_a_failing_call_is_reported() -> None:
    def fail(y: Tensor) -> Tensor:
        raise RuntimeError("no luck\nat all")

    assert checked(networks.tokens(), torch.randn(2, 4, 8), fail).problem == "it fails: RuntimeError: no luck"


def test_integers_must_be_equal() -> None:
    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    x = torch.tensor([[1.0, 3.0, 2.0]])
    assert checked(Best(), x).problem == ""
    assert "differs" in checked(Best(), x, lambda y: y + 1).problem


def test_without_a_float64_reference_outputs_are_compared_in_their_own_type() -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x.float())

    check = checked(Casts(), torch.randn(3, 4))
    assert (check.rounding_ratio, check.problem) == (None, "")
    assert "differs by" in checked(Casts(), torch.randn(3, 4), lambda y: y + 1e-3).problem


def test_bfloat16_is_measured_by_bfloat16() -> None:
    network, x = networks.images().eval(), torch.randn(2, 3, 8, 8)
    calling = CallSignature.of(network, x)
    checker = AccuracyChecker(network, calling, short=torch.bfloat16)
    narrow = networks.images().bfloat16().eval()
    check = checker.check(lambda x: narrow(x.bfloat16()).float(), torch.bfloat16)
    assert check.problem == ""
    assert check.rounding_ratio is not None
    assert check.rounding_ratio > 100
    assert checker.check(lambda x: narrow(x.bfloat16()).float()).problem
    assert checker.check(lambda x: 1.5 * narrow(x.bfloat16()).float(), torch.bfloat16).problem
    by_output = AccuracyChecker(network, calling, short=torch.bfloat16, by_row=False)
    assert by_output.check(lambda x: narrow(x.bfloat16()).float(), torch.bfloat16).problem == ""
    assert by_output.check(lambda x: 1.5 * narrow(x.bfloat16()).float(), torch.bfloat16).problem


def test_candidates_in_bfloat16_run_on_inputs_without_outliers_only() -> None:
    network, x = networks.tokens().eval(), torch.randn(2, 4, 8)
    checker = AccuracyChecker(network, CallSignature.of(network, x), short=torch.bfloat16, now=Time().now)
    sizes = []

    def candidate(x: Tensor) -> Tensor:
        sizes.append(float(x.abs().max()))
        return network(x)  # type: ignore[no-any-return]

    assert checker.check(candidate, torch.bfloat16).problem == ""
    assert len(sizes) == 2 + 2 + 2 + 2  # the example and its shuffled copy
    assert max(sizes) == float(x.abs().max())


def test_a_network_that_does_not_run_or_is_not_finite() -> None:
    network = networks.images().eval()
    with pytest.raises(BadInput, match="the network does not run on it"):
        AccuracyChecker(network, CallSignature.of(network, torch.randn(1, 4, 8, 8)))
    with torch.no_grad():
        network[-1].bias[0] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(BadInput, match="NaN or infinity on the example"):
        AccuracyChecker(network, CallSignature.of(network, torch.randn(1, 3, 8, 8)))
