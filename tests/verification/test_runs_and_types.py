"""The type that a network computes in, the gradients that a run lacks, and the copies of what it is called with."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.verification import verify
from onebyone.verification.network_run import Runner, observe, plain_call
from onebyone.verification.output_comparison import compare, copies_in, difference, network_runs, unit_of
from onebyone.verification.pytree import cast, leaves, map_tensors
from onebyone.verification.result import Fault, LayerCheck
from tests.verification.test_limits import runs, seen
from tests.verification.test_parts import Output

ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_of_a_network_is_that_of_its_weights_where_the_input_has_none(dtype: torch.dtype) -> None:
    """Such as an embedding of token ids."""
    tokens = torch.tensor([0, 2])
    original, converted = (Runner(nn.Embedding(3, 2, dtype=dtype), tokens, 0) for _ in range(2))
    found = network_runs(original, converted)
    if dtype == torch.float64:
        assert (found.u, found.is_float64) == (2.0**-24, True)
        assert found.wide_original is original
        assert found.original.call.weight.dtype == torch.float32
    else:
        assert (found.u, found.is_float64) == (ROUNDOFF[dtype], False)
        assert found.original is original
        assert found.wide_original.call.weight.dtype == torch.float64


@pytest.mark.parametrize(("dtype", "u"), [*ROUNDOFF.items(), (torch.float64, 2.0**-53)])
def test_the_type_of_a_function_is_that_of_its_input(dtype: torch.dtype, u: float) -> None:
    function = Runner(abs, {"x": torch.ones(2, dtype=dtype)}, 0)
    assert unit_of(function) == u
    found = network_runs(function, function)
    assert (found.u, found.is_float64) == (max(u, 2.0**-24), dtype == torch.float64)
    assert unit_of(Runner(nn.Linear(2, 2), (torch.ones(2, dtype=dtype),), 0)) == max(u, 2.0**-24)


def test_a_converted_network_may_round_less_than_the_original() -> None:
    """In float16, of the value 2: the original is off by 2⁻⁸, the converted network by 2⁻¹⁰ or not at all."""
    for error, ratio in ((2.0**-10, 0.25), (0.0, 0.0)):
        check = compare(runs(2.0**-11), seen(2.0), seen(2.0 + 2.0**-8), seen(2.0), seen(2.0 + error))
        assert (check.rounding_ratio, check.problems) == (ratio, [])


class WithoutDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise NotImplementedError("no derivative\nof this operator")


def test_a_derivative_that_fails_is_the_reason_why_there_are_no_gradients() -> None:
    def network(x: Tensor) -> Any:
        return WithoutDerivative.apply(x)  # type: ignore[no-untyped-call]

    x = torch.ones(2)
    run = observe(Runner(network, x, 0), gradients=True)
    assert (run.error, run.gradients, run.no_gradients) == ("", {}, "NotImplementedError: no derivative")
    assert run.outputs[0][1].tolist() == [2.0, 2.0]
    assert "gradients: NotImplementedError: no derivative" in verify(network, network, x).unverified


def test_the_original_runs_in_eval_mode_beside_a_function() -> None:
    net = nn.Dropout(0.5)
    assert verify(net, lambda x: x + 0, torch.rand(4, 8) + 1).equivalent
    assert net.training


def test_keys_of_dicts_are_not_turned_into_text() -> None:
    tree = {3: torch.ones(1), (1, 2): [torch.ones(2)], "a b": None}
    for copied in (map_tensors(tree, torch.neg), cast(tree, torch.float64)):
        assert list(copied) == [3, (1, 2), "a b"]
    assert observe(Runner(lambda maps: maps[3] + 1, ({3: torch.ones(1)},), 0)).outputs[0][1].tolist() == [2.0]


def test_a_fault_that_was_seen_has_no_reason_why_not() -> None:
    (fault,) = LayerCheck("p", "k", faults=(Fault("f", True),)).to_dict()["faults"]
    assert fault == {
        "name": "f", "seen_by_integers": True, "seen_by_bound": None, "deviation": None, "why": "",
    }  # fmt: skip


def test_only_warnings_of_pytorch_are_hidden_while_networks_are_copied() -> None:
    class Warns(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            warnings.warn("this LeafSpec is deprecated", FutureWarning, stacklevel=1)
            warnings.warn("my LeafSpec is deprecated", UserWarning, stacklevel=1)
            return nn.Identity()

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        copies_in(torch.float64, Warns())
    assert [w.category for w in shown] == [UserWarning]


def test_the_keys_of_mappings_with_a_type_of_their_own_are_kept() -> None:
    tree = Output(first=torch.ones(1), second=Output(third=torch.ones(2)))
    negated = map_tensors(tree, torch.neg)
    assert [(path, t.tolist()) for path, t in leaves(negated)] == [
        ("first", [-1]),
        ("second.third", [-1, -1]),
    ]


def test_a_number_and_an_integer_that_are_equal_do_not_differ() -> None:
    one, two = torch.tensor([1, 2]), torch.tensor([1 + 0j, 2])
    for a, b in ((one, two), (two, one), (one, one.double()), (one.float(), one)):
        assert difference(a, b) == 0.0
    for a, b in ((one, two + 1j), (two - 1j, one), (one.double() + 1, one)):
        assert difference(a, b) == 1.0


def test_of_random_outputs_only_the_rounding_of_their_size_is_known() -> None:
    random = replace(seen(8.0), random=True)
    check = compare(runs(2.0**-11), random, seen(7.0), seen(8.0), seen(9.0))
    assert (check.float64_limit, check.rounding_ratio, check.problems) == (8 * 2.0**-32, None, [])


def test_a_traced_network_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch's own call of such a network prints the generated code around the error."""

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    traced = torch.fx.symbolic_trace(Product())
    with pytest.raises(RuntimeError):
        plain_call(traced)(torch.ones(2, 3))
    assert capfd.readouterr() == ("", "")
