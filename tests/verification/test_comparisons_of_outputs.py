"""Comparisons of outputs and gradients: equality with a limit, several outputs, and every part of what is returned."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.verification import end_to_end
from onebyone.verification.end_to_end import (
    _compare_gradients,
    _depends_on_seed,
    _identical,
    _perturbed,
    compare_networks,
)
from onebyone.verification.gradients import compare_gradients
from onebyone.verification.network_run import INPUT, Observation, Runner
from onebyone.verification.output_comparison import (
    NetworkCheck,
    compare,
    compare_directly,
    copies_in,
    leaves_finite,
    limit_in_own_dtype,
    size_of,
)
from onebyone.verification.result import GradientCheck
from tests.verification.test_limits import U32, U64, gradient, runs, seen

HALF = 2.0**-11  # the roundoff of float16: the limits are powers of two, and an error can equal them


def outputs(*values: float) -> Observation:
    """Outputs a, b, c, … each with the values 2 and the one given."""
    return Observation(
        [("abc"[i], torch.tensor([2.0, v], dtype=torch.float64)) for i, v in enumerate(values)]
    )


# ---------------------------------------------------------------- equality with a limit


def test_an_output_that_is_off_by_exactly_its_limits_passes() -> None:
    """Of 2 in float16: in float64 2⁻¹⁰·√(2⁻⁵³/2⁻¹¹), in float16 √(2⁻³/2⁻¹¹) times 2⁻¹⁰."""
    check = compare(runs(HALF), seen(2.0), seen(2.0), seen(2.0 + 2.0**-31), seen(2.0 + 2.0**-6))
    assert check == NetworkCheck(2.0**-6, 16.0, 2.0**-31, 2.0**-31)
    for wide, own in ((2.0**-31 * 1.01, 0.0), (0.0, 2.0**-6 * 1.01)):
        off = compare(runs(HALF), seen(2.0), seen(2.0), seen(2.0 + wide), seen(2.0 + own))
        assert len(off.problems) == 1


def test_a_direct_comparison_allows_exactly_its_limit() -> None:
    check = compare_directly(seen(2.0), seen(2.0 + 2.0**-6), HALF)
    assert check == NetworkCheck(max_error=2.0**-6)
    assert compare_directly(seen(2.0), seen(2.0 + 2.0**-6 + 2.0**-40), HALF).problems


def test_a_gradient_that_is_off_by_exactly_its_limit_passes() -> None:
    """Four roundoffs of float64: more than the limit of 1 in float64."""
    limit = 4 * U64
    check = compare_gradients({"w": gradient(0.0)}, {}, {"w": gradient(limit)}, U64, None)
    assert check == GradientCheck(True, 1, "w", limit, 1.0)
    assert not compare_gradients({"w": gradient(0.0)}, {}, {"w": gradient(1.01 * limit)}, U64, None).ok


def test_limits_in_a_networks_own_type() -> None:
    """√(u'/u) times the own error, which is at least u times the largest value."""
    exact = torch.tensor([4.0, -8.0], dtype=torch.float64)
    for error, own in ((0.0, 8 * HALF), (0.25, 0.25)):
        assert limit_in_own_dtype(exact, exact + error, HALF) == 16 * own


# ---------------------------------------------------------------- several outputs


def test_the_worst_of_several_outputs_is_reported() -> None:
    exact = outputs(0.0, 0.0, 0.0)
    for errors in ((1.0, 0.5, 0.25), (0.25, 1.0, 0.5), (0.5, 0.25, 1.0)):
        wide = outputs(*(e * 2.0**-32 for e in errors))
        own = outputs(*(e * 2.0**-7 for e in errors))
        check = compare(runs(HALF), exact, exact, wide, own)
        assert check == NetworkCheck(2.0**-7, 8.0, 2.0**-32, 2.0**-31)
        assert compare_directly(exact, own, HALF) == NetworkCheck(max_error=2.0**-7)


def test_of_equal_ratios_the_last_limit_is_reported() -> None:
    exact = Observation([("a", torch.tensor([2.0]).double()), ("b", torch.tensor([4.0]).double())])
    check = compare(runs(HALF), exact, exact, exact, exact)
    assert (check.float64_error, check.float64_limit) == (0.0, 2.0**-30)


def test_every_output_that_is_wrong_is_a_problem() -> None:
    wrong = compare_directly(outputs(0.0, 0.0, 0.0), outputs(9.0, 0.0, 9.0), HALF)
    assert [problem[:12] for problem in wrong.problems] == ["output a dif", "output c dif"]


# ---------------------------------------------------------------- nothing is compared


def test_outputs_of_another_structure_are_not_compared() -> None:
    sentence = "outputs have the paths and shapes [('b', (2,))], the original's have [('', (2,))]"
    right, other = seen(2.0), seen(2.0, path="b")
    assert compare_directly(right, other, U32) == NetworkCheck(problems=[sentence])
    for pair in ((right, other), (other, right)):
        assert compare(runs(), right, right, *pair) == NetworkCheck(problems=[sentence])
    nothing = NetworkCheck(problems=["the original returns no tensor to compare"])
    assert compare(runs(), *[Observation()] * 4) == nothing
    assert compare_directly(Observation(), Observation(), U32) == nothing


def test_outputs_of_a_network_that_fails_are_not_compared() -> None:
    failed = Observation(error="TypeError: no")
    sentence = "the converted network fails: TypeError: no"
    assert compare_directly(seen(2.0), failed, U32) == NetworkCheck(problems=[sentence])
    assert compare(runs(), seen(2.0), seen(2.0), seen(2.0), failed) == NetworkCheck(problems=[sentence])


def test_each_value_that_is_not_finite_is_named_once() -> None:
    check = NetworkCheck()
    infinite, fine = torch.tensor([1.0, math.inf]), torch.ones(2)
    part = torch.complex(fine, infinite)
    named = [("a", infinite), ("", fine), ("b", part), ("ids", torch.tensor([1]))]
    assert not leaves_finite({"original": named, "original ": named, "other": [("", infinite)]}, check)
    assert check.problems == [
        "original: a holds NaN or infinity",
        "original: b holds NaN or infinity",
        "other: the output holds NaN or infinity",
    ]
    assert leaves_finite({"original": [("", fine)]}, check), "earlier problems do not count"


def test_a_perturbed_run_that_failed_says_nothing() -> None:
    wrong = seen(2.0 + 1e-4)
    perturbed = replace(seen(9.0), error="it fails")
    assert compare_directly(seen(2.0), wrong, U32, perturbed).problems
    assert not compare_directly(seen(2.0), wrong, U32, seen(9.0)).problems


def test_a_tensor_without_values_has_no_size() -> None:
    assert size_of(torch.zeros(0)) == 0.0


# ---------------------------------------------------------------- gradients


def test_gradients_that_are_equal_have_the_ratio_zero() -> None:
    exact = {"a": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    assert compare_gradients(exact, exact, exact, U32, None) == GradientCheck(True, 2, "b", 0.0, 0.0)
    assert compare_gradients({}, {}, {}, U32, None) == GradientCheck(True, 0, "", 0.0, 0.0)


def test_the_worst_of_several_gradients_is_named() -> None:
    exact = {name: gradient(0.0) for name in "abc"}
    limit = U32 * math.sqrt(U64 / U32)
    for worst in "abc":
        other = {n: gradient((0.5 if n == worst else 0.25) * limit) for n in exact}
        check = compare_gradients(exact, exact, other, U32, None)
        assert (check.worst, check.ok, check.compared) == (worst, True, 3)
        assert check.error_ratio == pytest.approx(0.5)
        assert check.max_error == pytest.approx(0.5 * limit)


def test_the_first_three_gradients_are_named() -> None:
    exact = {name: gradient(0.0) for name in "abcde"}
    wrong = compare_gradients(exact, exact, {name: gradient(9.0) for name in "abcde"}, U32, None)
    assert [part.split()[0] for part in wrong.why.removeprefix("differ: ").split("; ")] == ["a", "b", "c"]
    missing = compare_gradients(exact, exact, {}, U32, None)
    assert missing == GradientCheck(False, 0, "", 0.0, 0.0, "5 without a counterpart: a, b, c")


def test_gradients_after_a_missing_one_are_compared_too() -> None:
    exact = {"lost": gradient(0.0), "wrong": gradient(0.0)}
    check = compare_gradients(exact, exact, {"wrong": gradient(9.0)}, U32, None)
    assert (check.worst, check.max_error, check.compared) == ("wrong", 9.0, 1)
    assert check.why.startswith("differ: wrong by 9 (limit ")
    assert check.why.endswith("); 1 without a counterpart: lost")


def test_a_gradient_that_was_not_rounded_has_the_least_error() -> None:
    limit = U32 * math.sqrt(U64 / U32)
    for factor, passes in ((0.99, True), (1.01, False)):
        other = {"w": gradient(factor * limit)}
        assert compare_gradients({"w": gradient(0.0)}, {}, other, U32, None).ok is passes


def test_reasons_why_gradients_are_not_compared() -> None:
    network: Any = SimpleNamespace(u=U32)
    fine = Observation(gradients={"w": gradient(0.0)})
    none = Observation(no_gradients="no gradient")
    random = replace(fine, random=True)
    for exact, rounded, converted, result, notes in (
        (none, fine, fine, None, ["gradients: no gradient"]),
        (fine, none, fine, None, ["gradients: no gradient"]),
        (fine, fine, none, GradientCheck(False, 0, why="the converted network has none: no gradient"), []),
        (random, fine, fine, None, ["gradients: two dtypes draw different random numbers"]),
        (fine, fine, fine, GradientCheck(True, 1, "w", 0.0, 0.0), []),
    ):
        check = NetworkCheck()
        assert _compare_gradients(network, exact, rounded, converted, None, check) == result
        assert check == NetworkCheck(unverified=notes)

    def lost(gradients: Any) -> Any:
        raise KeyError("w")

    why = "cannot be mapped to the original's parameters: KeyError: 'w'"
    check = NetworkCheck()
    assert _compare_gradients(network, fine, fine, fine, lost, check) == GradientCheck(False, 0, why=why)


# ---------------------------------------------------------------- whole networks


def test_gradients_are_compared_in_three_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the original in float64 and in its own type, and the converted network's in float64."""
    given: list[Any] = []
    result = GradientCheck(True, 7)

    def recorded(*arguments: Any) -> GradientCheck:
        given.extend(arguments)
        return result

    monkeypatch.setattr(end_to_end, "compare_gradients", recorded)
    torch.manual_seed(0)
    one, x = nn.Linear(3, 2), torch.randn(4, 3)
    other = nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    outcome = compare_networks(Runner(one, x, 0), Runner(other, x, 0), map_gradients=dict)
    assert outcome.gradients is result
    exact, rounded, converted, u, map_gradients = given
    for gradients, dtype in ((exact, torch.float64), (rounded, torch.float32), (converted, torch.float64)):
        assert gradients.keys() == {INPUT, "weight", "bias"}
        assert {g.dtype for g in gradients.values()} == {dtype}
    assert (u, map_gradients) == (U32, dict)
    assert outcome.runs is not None
    assert outcome.runs.converted.call is other


def test_gradients_of_outputs_that_differ_are_not_compared() -> None:
    one, other, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.ones(4, 3)
    outcome = compare_networks(Runner(one, x, 0), Runner(other, x, 0))
    assert outcome.check.problems
    assert outcome.gradients is None
    assert outcome.runs is not None
    without = compare_networks(Runner(one, x, 0), Runner(one, x, 0), gradients=False)
    assert (without.check.problems, without.gradients) == ([], None)
    assert without.runs is not None


class Only(nn.Module):
    """Runs in one type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.weight = dtype, nn.Parameter(torch.full((3,), 0.3, dtype=dtype))

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        if x.dtype != self.dtype:
            raise TypeError("another type")
        return x * self.weight + shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_fails_in_the_other_type_is_compared_in_its_own(dtype: torch.dtype) -> None:
    one, other, x = Only(dtype), Only(dtype), torch.ones(3, dtype=dtype)
    note = (
        "gradients, rounding_ratio: no float64 reference (TypeError: another type); outputs compared in their own "
        "dtype"
    )
    outcome = compare_networks(Runner(one, x, 0), Runner(other, x, 0))
    assert outcome.check == NetworkCheck(max_error=0.0, unverified=[note])
    assert (outcome.gradients, outcome.runs) == (None, None)
    wrong = compare_networks(Runner(one, {"x": x}, 0), Runner(lambda x: other(x, 0.01), {"x": x}, 0))
    assert len(wrong.check.problems) == 1
    assert wrong.check.max_error == pytest.approx(0.01, rel=1e-4)


def test_perturbed_weights_keep_their_type_and_the_arguments_their_names() -> None:
    class Weights(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, dtype=dtype))
            self.count = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)

        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            return self.weight * x * scale

    for dtype, u in ((torch.float32, U32), (torch.float64, U64)):
        runner = Runner(Weights(dtype), {"x": torch.ones(64, dtype=dtype), "scale": 2.0}, 3)
        drawn = []
        for state in (0, 1):
            torch.manual_seed(state)
            observed = _perturbed(runner, u)
            assert observed is not None
            drawn.append(observed.outputs[0][1])
        assert torch.equal(*drawn), "the same signs again"
        assert drawn[0].dtype == dtype
        assert set((drawn[0] - 2).tolist()) == {4 * u, -4 * u}
    assert _perturbed(Runner(abs, torch.ones(1), 0), U32) is None
    x = torch.ones(64, device="meta")
    elsewhere = _perturbed(Runner(Weights(torch.float32).to("meta"), x, 3), U32)
    assert elsewhere is not None
    assert elsewhere.outputs[0][1].device.type == "meta"


def test_identical_tensors_have_one_type_and_shape() -> None:
    ones = torch.ones(2)
    assert _identical(ones, torch.ones(2))
    for other in (torch.ones(1), torch.ones(2, dtype=torch.float64), torch.tensor([1.0, math.nan])):
        assert not _identical(ones, other)
    nan = torch.tensor([1.0, math.nan])
    assert _identical(nan, nan.clone())
    assert not _identical(torch.tensor([math.nan, 1.0]), nan)


def test_a_shape_that_depends_on_the_seed_is_random() -> None:
    assert _depends_on_seed(Runner(lambda: torch.ones(int(torch.randint(1, 1000, ()))), (), 0))


def test_copies_of_several_layers_with_computed_weights() -> None:
    """Old-style weight normalisation leaves a computed tensor in each layer, which `deepcopy` refuses."""
    with pytest.warns(FutureWarning):
        net = nn.Sequential(*(nn.utils.weight_norm(nn.Linear(2, 2)) for _ in range(2)))
    x = torch.ones(1, 2)
    y = net(x)
    copied, same, bare = copies_in(torch.float64, net, net, len)
    assert copied is same
    assert copied is not net
    assert bare is len
    assert torch.allclose(copied(x.double()), y.double())
    assert {p.dtype for p in copied.parameters()} == {torch.float64}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
