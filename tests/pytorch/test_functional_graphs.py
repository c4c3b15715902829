"""In-place operators become functional where no other value observes the write, and the result has the same type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter

from onebyone.functional_graphs import functional_graph
from onebyone.pytorch.graph.functional import functional_program
from onebyone.verification.running_error import RunningError


class Call(nn.Module):
    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


def exported(fn: Callable[[Tensor], Tensor], x: Tensor) -> ExportedProgram:
    return torch.export.export(Call(fn), (x,), strict=False)


def sum_with_its_own_view(x: Tensor) -> Tensor:
    y = x + 1
    view = y.view(-1)
    y.relu_()
    return y * view.sum()


def read_under_its_first_name(x: Tensor) -> Tensor:
    y = x - 1
    y.relu_().add_(2)
    return y * x


def writes_to_its_input(x: Tensor) -> Tensor:
    return x.relu_()


def half_plus_float(x: Tensor) -> Tensor:
    y = x.half() - 0.3
    y += x  # in place, the sum is rounded to float16
    return y


X = torch.linspace(-2, 2, 12).reshape(3, 4)


@pytest.mark.parametrize("fn", [sum_with_its_own_view, writes_to_its_input, half_plus_float])
def test_other_graphs_are_left_to_torch(fn: Callable[[Tensor], Tensor]) -> None:
    program = exported(fn, X.clone())
    assert functional_graph(program.graph) is None
    expected = fn(X.clone())
    actual = functional_program(program).module()(X.clone())
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def test_a_value_that_is_read_again_is_the_written_one() -> None:
    program = exported(read_under_its_first_name, X)
    graph = functional_graph(program.graph)
    assert graph is not None
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert targets == ["aten.sub.Tensor", "aten.relu.default", "aten.add.Tensor", "aten.mul.Tensor"]
    (result,) = Interpreter(program.graph_module, graph=graph).run(X)
    assert torch.equal(result, read_under_its_first_name(X))
    assert [node.name for node in program.graph.nodes if "relu" in node.name] == ["relu_"]  # it is a copy


def test_a_graph_without_writes_is_not_copied() -> None:
    program = exported(lambda x: x.relu() + 1, X)
    assert functional_graph(program.graph) is program.graph
    assert functional_program(program) is program


def test_error_bounds_of_in_place_operators_are_those_of_functional_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", never)
    first, last = nn.Linear(4, 5), nn.Linear(5, 2)
    ((value, bound),) = RunningError(nn.Sequential(first, nn.ReLU(inplace=True), last), X)(X)
    ((expected, expected_bound),) = RunningError(nn.Sequential(first, nn.ReLU(), last), X)(X)
    assert torch.equal(value, expected)
    assert torch.equal(bound, expected_bound)
