"""What the running error analysis exports: which operators are kept, warnings of the network, and reasons."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebyone.verification.running_error import RunningError, error_bound
from tests.verification.test_running_error import Call

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("function", "operators"),
    [
        (lambda x: x.flatten(1).chunk(2, 1)[0], [aten.flatten.using_ints, aten.chunk.default]),
        (lambda x: x.movedim(0, 2).reshape(-1), [aten.movedim.int, aten.reshape.default]),
        (lambda x: x.to(torch.float32).flatten(1), [aten._assert_tensor_metadata.default]),
    ],
)
def test_only_graphs_with_an_operator_without_a_rule_are_decomposed(
    function: Callable[[Tensor], Tensor], operators: list[object]
) -> None:
    """A rule for the operator itself gives the bound with the fewest steps."""
    x = torch.rand(2, 3, 4)
    analysis = RunningError(Call(function), x)
    called = [n.target for n in analysis.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    kept = [target for target in called if target is not aten.view.default]
    assert kept == operators
    ((value, bound),) = analysis(x)
    assert torch.equal(value, function(x))
    assert not bool(bound.any())


def test_warnings_of_the_network_are_shown() -> None:
    """Only those of PyTorch about features of its own are not."""

    def network(x: Tensor) -> Tensor:
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.warn("of the network", category, stacklevel=1)
        return x * 2

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        RunningError(Call(network), torch.ones(2))
    assert {w.category for w in shown if str(w.message) == "of the network"} == {UserWarning}


def test_the_reason_of_a_network_that_cannot_be_exported_has_the_error() -> None:
    def network(x: Tensor) -> Tensor:
        raise KeyError("no such layer")

    bounds, why = error_bound(Call(network), torch.ones(2))
    assert bounds == []
    assert why == "the network cannot be exported (KeyError: 'no such layer')"
