"""The limits of whole-network comparisons, on observations made by hand: just inside, just outside, every reason."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.verification.end_to_end import _depends_on_seed
from onebyone.verification.gradients import compare_gradients
from onebyone.verification.network_run import INPUT, Observation, Runner, as_callable, observe
from onebyone.verification.output_comparison import (
    NetworkCheck,
    NetworkRuns,
    compare,
    compare_directly,
    difference,
    limit64,
    network_runs,
    own_dtype,
    quotient,
    shorter,
)

U32, U64 = 2.0**-24, 2.0**-53


def runs(u: float = U32, is_float64: bool = False) -> NetworkRuns:
    runner = Runner(lambda: None, None, 0)
    return NetworkRuns(runner, runner, runner, runner, u, is_float64)


def seen(value: float | Tensor, dtype: torch.dtype = torch.float64, path: str = "") -> Observation:
    tensor = value if isinstance(value, Tensor) else torch.tensor([1.0, value], dtype=torch.float64)
    return Observation([(path, tensor.to(dtype) if tensor.is_floating_point() else tensor)])


def compared(
    own_error: float = 0.0, error64: float = 0.0, error: float = 0.0, network: NetworkRuns | None = None
) -> NetworkCheck:
    """One output, 1 and 2 in exact arithmetic, with the given errors of the original and of the converted network."""
    exact = seen(2.0)
    return compare(
        network or runs(), exact, seen(2.0 + own_error), seen(2.0 + error64), seen(2.0 + own_error + error)
    )


@pytest.mark.parametrize("own_error", [0.0, 1e-5], ids=["floor", "measured"])
def test_the_limit_in_float64(own_error: float) -> None:
    """e·√(u64/u): e is the original's own error, and at least u times the largest value (2 here)."""
    limit = max(own_error, 2 * U32) * math.sqrt(U64 / U32)
    inside, outside = (compared(own_error, error64=f * limit) for f in (0.99, 1.01))
    assert inside.problems == []
    assert inside.float64_error == pytest.approx(0.99 * limit, rel=1e-3)
    assert inside.float64_limit == pytest.approx(limit, rel=1e-3)
    (problem,) = outside.problems
    assert problem.startswith("the output differs by ")
    assert " in float64, limit " in problem


@pytest.mark.parametrize(
    ("u", "ratio"),
    [(U32, 2.0**6.5), (2.0**-11, 16.0), (2.0**-8, 2.0**2.5)],
    ids=["float32", "float16", "bfloat16"],
)
def test_the_limit_of_the_rounding_ratio(u: float, ratio: float) -> None:
    """√(u'/u) times the original's own rounding error, u' the roundoff of the next shorter type."""
    own = 2 * u
    inside, outside = (compared(error=f * ratio * own, network=runs(u)) for f in (0.99, 1.01))
    assert inside.problems == []
    assert inside.rounding_ratio == pytest.approx(0.99 * ratio, rel=1e-6)
    assert inside.max_error == pytest.approx(0.99 * ratio * own, rel=1e-6)
    (problem,) = outside.problems
    assert (
        problem == f"the output has {1.01 * ratio:.3g} times the original's rounding error, limit {ratio:.3g}"
    )


def test_the_ratio_is_over_the_originals_own_error() -> None:
    """An original with a large error of its own allows its converted form as much."""
    check = compared(own_error=1e-3, error=1e-3)
    assert check.problems == []
    assert check.rounding_ratio == pytest.approx(2.0, rel=1e-6)


def test_networks_in_float64() -> None:
    """Their own error is that of a float32 copy, scaled by u64/u32; the next shorter type is float32."""
    own = 2 * U32
    scale, limit = own * U64 / U32, own * math.sqrt(U64 / U32)
    allowed = math.sqrt(U32 / U64)
    assert limit == pytest.approx(scale * allowed)
    inside, outside = (compared(error64=f * limit, network=runs(U32, True)) for f in (0.99, 1.01))
    assert inside.problems == []
    assert inside.rounding_ratio == pytest.approx(0.99 * allowed, rel=1e-3)
    assert inside.max_error == pytest.approx(0.99 * limit, rel=1e-3)
    assert len(outside.problems) == 2


def test_each_output_has_its_own_limit() -> None:
    large, small = torch.tensor([1e6]), torch.tensor([1e-6])
    exact, wrong = (Observation([("a", large.double()), ("b", t.double())]) for t in (small, small * 1.001))
    check = compare(runs(), exact, exact, wrong, exact)
    (problem,) = check.problems
    assert problem.startswith("output b differs by 1e-09 in float64")
    assert check.float64_error == pytest.approx(1e-9, rel=1e-3)


def test_an_output_of_zeros_is_noted() -> None:
    zeros = Observation([("", torch.zeros(3, dtype=torch.float64))])
    check = compare(runs(), zeros, zeros, zeros, zeros)
    assert check.problems == []
    assert check.rounding_ratio == 1.0
    assert check.unverified == ["the output is all zeros: it shows nothing of the operators before it"]
    tiny = Observation([("", torch.full((3,), 1e-300, dtype=torch.float64))])
    assert compare(runs(), zeros, zeros, tiny, zeros).problems != []
    assert compare(runs(), zeros, zeros, zeros, tiny).problems != []
    empty = Observation([("", torch.zeros(0, dtype=torch.float64))])
    assert compare(runs(), empty, empty, empty, empty).unverified == [
        "the output has no values: it shows nothing of the operators before it"
    ]


def test_integer_outputs_must_be_equal() -> None:
    right, wrong = (Observation([("best", torch.tensor([i]))]) for i in (3, 4))
    assert compare(runs(), right, right, right, right).problems == []
    for float64, own in ((wrong, right), (right, wrong)):
        check = compare(runs(), right, right, float64, own)
        assert check.problems == ["output best (torch.int64) differs"]


def test_random_outputs_are_compared_under_one_seed_in_float64_alone() -> None:
    exact = replace(seen(2.0), random=True)
    # the float32 run draws other numbers: it says nothing of the rounding error
    check = compare(runs(), exact, seen(5.0), seen(2.0), seen(7.0))
    assert check.problems == []
    assert check.rounding_ratio is None
    assert any("draws random numbers in eval mode" in note for note in check.unverified)
    limit = 2 * U32 * math.sqrt(U64 / U32)
    assert compare(runs(), exact, seen(5.0), seen(2.0 + 1.01 * limit), seen(7.0)).problems != []


def test_structure_and_failures_come_first() -> None:
    right, other = seen(2.0), seen(2.0, path="b")
    for float64, own in ((other, right), (right, other)):
        (problem,) = compare(runs(), right, right, float64, own).problems
        assert problem == "outputs have the paths and shapes [('b', (2,))], the original's have [('', (2,))]"
    failed = Observation(error="RuntimeError: no kernel")
    assert compare(runs(), right, right, failed, right).problems == [
        "the converted network fails in float64: RuntimeError: no kernel"
    ]
    assert compare(runs(), right, right, right, failed).problems == [
        "the converted network fails: RuntimeError: no kernel"
    ]
    nothing = Observation()
    assert compare(runs(), nothing, nothing, nothing, nothing).problems == [
        "the original returns no tensor to compare"
    ]
    infinite = seen(math.inf)
    for group in range(4):
        four = [right] * 4
        four[group] = infinite
        (problem,) = compare(runs(), *four).problems
        assert problem.endswith("the output holds NaN or infinity")
        assert problem.startswith("original" if group < 2 else "converted")


@pytest.mark.parametrize("moved", [0.0, 1e-4], ids=["floor", "perturbed"])
def test_the_limit_of_a_direct_comparison(moved: float) -> None:
    """√(u'/u) times the own error: u·max|y|, or what the outputs move by when each weight moves by one roundoff."""
    own = max(2 * U32, moved)
    limit = math.sqrt(2.0**-11 / U32) * own
    perturbed = seen(2.0 + moved)
    inside, outside = (
        compare_directly(seen(2.0), seen(2.0 + f * limit), U32, perturbed) for f in (0.99, 1.01)
    )
    assert inside.problems == []
    assert inside.max_error == pytest.approx(0.99 * limit, rel=1e-6)
    (problem,) = outside.problems
    assert problem.startswith("the output differs by ")


def test_direct_comparisons_name_the_output() -> None:
    expected, other = (Observation([("a", torch.ones(1)), ("b", torch.full((1,), v))]) for v in (2.0, 3.0))
    assert compare_directly(expected, other, U32).problems[0].startswith("output b differs by 1, limit ")
    assert (
        compare_directly(seen(2.0), seen(3.0), U32).problems[0].startswith("the output differs by 1, limit ")
    )


def test_direct_comparisons_name_the_network_that_is_not_finite() -> None:
    for pair, network in (((math.nan, 2.0), "original"), ((2.0, math.inf), "converted")):
        check = compare_directly(seen(pair[0]), seen(pair[1]), U32)
        assert check.problems == [f"{network}: the output holds NaN or infinity"]


def test_direct_comparisons_ignore_a_perturbed_run_that_failed() -> None:
    wrong = seen(2.0 + 1e-4)
    for perturbed in (None, Observation(error="it fails"), seen(math.nan), seen(9.0, path="other")):
        assert compare_directly(seen(2.0), wrong, U32, perturbed).problems != []
    right = Observation([("", torch.tensor([3]))])
    assert compare_directly(right, right, U32).problems == []
    assert compare_directly(right, Observation([("", torch.tensor([4]))]), U32).problems != []
    large = Observation([("", torch.tensor([2**53]))])  # float64 rounds the next integer to this one
    assert compare_directly(large, Observation([("", torch.tensor([2**53 + 1]))]), U32).problems != []
    assert compare_directly(seen(2.0), seen(math.nan), U32).problems != []
    assert compare_directly(seen(2.0), Observation(error="E"), U32).problems != []


@pytest.mark.parametrize("other", [0.0, torch.finfo(torch.float32).max], ids=["zero", "infinity"])
def test_outputs_that_are_not_finite_depend_on_the_seed_too(other: float) -> None:
    """NaN with one seed and zero with another, or the largest number and infinity."""
    special = math.nan if other == 0 else math.inf

    def drawn() -> Tensor:
        return torch.where(torch.rand(64) < 0.5, special, other)

    assert _depends_on_seed(Runner(drawn, (), 0))
    assert not _depends_on_seed(Runner(lambda: torch.full((2,), special), (), 0))


# ---------------------------------------------------------------- gradients


def gradient(value: float, size: float = 1.0) -> Tensor:
    return torch.tensor([size, value], dtype=torch.float64)


@pytest.mark.parametrize("own_error", [0.0, 1e-5], ids=["floor", "measured"])
def test_the_limit_of_gradients(own_error: float) -> None:
    limit = max(own_error, U32) * math.sqrt(U64 / U32)
    exact, rounded = {"w": gradient(0.5)}, {"w": gradient(0.5 + own_error)}
    inside, outside = (
        compare_gradients(exact, rounded, {"w": gradient(0.5 + f * limit)}, U32, None) for f in (0.99, 1.01)
    )
    assert inside.ok, inside.why
    assert (inside.compared, inside.worst) == (1, "w")
    assert inside.error_ratio == pytest.approx(0.99, rel=1e-3)
    assert inside.max_error == pytest.approx(0.99 * limit, rel=1e-3)
    assert not outside.ok
    assert outside.why.startswith("differ: w by ")


def test_gradients_that_cancel_to_zero_have_the_rounding_of_the_others() -> None:
    """Four units of float64 roundoff of the largest gradient: 4000·2⁻⁵³ here."""
    exact = {"large": gradient(0.0, 1000.0), "zero": torch.zeros(2, dtype=torch.float64)}
    for factor, passes in ((0.99, True), (1.01, False)):
        converted = exact | {"zero": torch.full((2,), factor * 4000 * U64, dtype=torch.float64)}
        check = compare_gradients(exact, exact, converted, U32, None)
        assert check.ok == passes
        assert check.worst == "zero"


def test_gradients_without_a_counterpart_fail() -> None:
    exact = {"a": gradient(1.0), "b": gradient(2.0)}
    check = compare_gradients(exact, exact, {"a": gradient(1.0)}, U32, None)
    assert (check.ok, check.compared) == (False, 1)
    assert check.why == "1 without a counterpart: b"
    both = compare_gradients(exact, exact, {"a": gradient(5.0)}, U32, None)
    assert both.why.endswith("; 1 without a counterpart: b")
    assert both.why.startswith("differ: a by 4")


def test_gradients_are_mapped_back_and_those_of_inputs_are_not() -> None:
    exact = {INPUT: gradient(1.0), "w": torch.ones(2, 3, dtype=torch.float64)}
    converted = {INPUT: gradient(1.0), "moved.w": torch.ones(6, dtype=torch.float64)}
    names: list[str] = []

    def back(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        names.extend(gradients)
        return {n.removeprefix("moved."): g for n, g in gradients.items()}

    check = compare_gradients(exact, exact, converted, U32, back)
    assert check.ok, check.why  # and one of other axes of the same number is compared in the original's shape
    assert names == ["moved.w"]
    shorter_ = {**converted, "moved.w": torch.ones(5, dtype=torch.float64)}
    assert compare_gradients(exact, exact, shorter_, U32, back).error_ratio == math.inf


# ---------------------------------------------------------------- small parts


def test_differences_and_quotients() -> None:
    assert difference(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0])) == 3.0
    assert difference(torch.zeros(2), torch.zeros(3)) == math.inf
    assert difference(torch.zeros(0), torch.zeros(0)) == 0.0
    assert difference(torch.tensor([math.nan]), torch.tensor([0.0])) == math.inf
    assert [quotient(0, 0), quotient(1, 0), quotient(3, 2)] == [1.0, math.inf, 1.5]
    assert limit64(1.0, U64) == 1.0
    assert limit64(2.0, U32) == 2.0 * math.sqrt(U64 / U32)


def test_the_next_shorter_types() -> None:
    assert [shorter(u) for u in (U64, U32, 2.0**-11, 2.0**-8)] == [U32, 2.0**-11, 2.0**-3, 2.0**-3]


def test_the_dtype_whose_rounding_dominates() -> None:
    assert own_dtype(nn.Linear(2, 2), torch.zeros(1, dtype=torch.float64)) == torch.float32
    assert own_dtype(nn.Linear(2, 2).double(), torch.zeros(1, dtype=torch.bfloat16)) == torch.bfloat16
    assert own_dtype(nn.Linear(2, 2, dtype=torch.complex128), torch.arange(3)) == torch.float64
    assert own_dtype(abs, {"ids": torch.arange(3)}) == torch.float32


def test_the_four_runs_of_a_network() -> None:
    single = network_runs(
        Runner(nn.Linear(2, 2), torch.zeros(1, 2), 0), Runner(nn.Linear(2, 2), torch.zeros(1, 2), 0)
    )
    assert (single.u, single.is_float64) == (U32, False)
    assert next(single.wide_original.call.parameters()).dtype == torch.float64
    assert next(single.original.call.parameters()).dtype == torch.float32
    net = nn.Linear(2, 2).double()
    double = network_runs(*(Runner(net, torch.zeros(1, 2, dtype=torch.float64), 0) for _ in range(2)))
    assert (double.u, double.is_float64) == (U32, True)
    assert double.wide_original.call is net
    assert next(double.original.call.parameters()).dtype == torch.float32
    assert double.original.example.dtype == torch.float32
    # copied together: the two copies share what the networks share
    assert double.original.call is double.converted.call


class Narrowing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().to(x.dtype)


def test_why_a_run_is_no_float64_reference() -> None:
    x = torch.ones(2, dtype=torch.float64)
    assert observe(Runner(nn.Identity(), x, 0)).short_of_float64 == ""
    assert observe(Runner(Narrowing(), x, 0)).short_of_float64 == "it casts to a shorter type inside"
    assert observe(Runner(lambda v: torch.ones(2), x, 0)).short_of_float64 == "its output is torch.float32"
    failed = observe(Runner(lambda v: 1 / 0, x, 0))
    assert failed.short_of_float64 == "ZeroDivisionError: division by zero"
    assert observe(Runner(nn.Dropout(0.5), x, 0)).random
    assert not observe(Runner(nn.Dropout(0.5).eval(), x, 0)).random


def test_gradients_of_a_run() -> None:
    layer = nn.Linear(2, 3)
    layer.weight.requires_grad_(False)
    run = observe(Runner(layer, torch.ones(4, 2), 7), gradients=True)
    assert set(run.gradients) == {INPUT, "weight", "bias"}
    assert not layer.weight.requires_grad  # restored
    signs = torch.randint(2, (4, 3), generator=torch.Generator().manual_seed(7)) * 2.0 - 1
    assert torch.equal(run.gradients["bias"], signs.sum(0))
    assert torch.allclose(run.gradients["weight"], signs.t() @ torch.ones(4, 2))
    ids = observe(Runner(lambda i: i + 1, torch.arange(3), 0), gradients=True)
    assert ids.no_gradients == "no output depends differentiably on an input or a parameter"

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    assert observe(Runner(Detached(), torch.ones(2), 0), gradients=True).no_gradients != ""


def test_a_conversion_in_the_place_of_the_original_is_named() -> None:
    from onebyone.errors import BadInput

    converted = onebyone.convert(nn.Sequential(nn.Linear(3, 2)), to="conv")
    with pytest.raises(
        BadInput, match=r"expected the original network first: verify\(model, converted, example"
    ):
        onebyone.verify(converted, torch.ones(1, 3))


def test_what_is_neither_a_network_nor_callable_is_named() -> None:
    from onebyone.errors import BadInput

    with pytest.raises(BadInput, match="converted is a int, which is neither a network"):
        as_callable(3, "converted")
