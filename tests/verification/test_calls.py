"""Observation of module, function and operator calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.verification.calls import first_input, observe_functions, observe_modules, observe_operators


class ByName(nn.Module):
    """Calls a layer by keyword, and survives a module that raises."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.fails = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(input=x)
        try:
            self.fails(x)
        except RuntimeError:
            y = y + 1
        return y


def test_modules_are_reported_in_order_with_arguments_and_outputs() -> None:
    net, x = ByName(), torch.ones(1, 3)
    calls: list[tuple[str, str, Any]] = []
    with observe_modules(
        dict(net.named_modules()),
        before=lambda path, module, args, kwargs: calls.append(("before", path, first_input(args, kwargs))),
        after=lambda path, module, args, kwargs, output: calls.append(("after", path, output)),
    ):
        result = net(x)
    assert [(when, path) for when, path, _ in calls] == [
        ("before", ""),
        ("before", "linear"),
        ("after", "linear"),
        ("before", "fails"),
        ("after", ""),
    ]
    assert calls[1][2] is x
    assert torch.equal(calls[2][2], F.linear(x, net.linear.weight, net.linear.bias))
    assert calls[-1][2] is result


def test_a_call_that_raises_is_reported_on_demand() -> None:
    net = ByName()
    outputs: dict[str, Any] = {}
    with observe_modules(
        {"fails": net.fails},
        after=lambda path, module, args, kwargs, output: outputs.update({path: output}),
        even_if_raising=True,
    ):
        net(torch.ones(1, 3))
    assert outputs == {"fails": None}


@pytest.mark.parametrize("raises", [False, True])
def test_hooks_are_removed(raises: bool) -> None:
    net = nn.Sequential(nn.ReLU())
    try:
        with observe_modules(
            {"0": net[0]}, before=lambda *_: None, after=lambda *_: None, even_if_raising=True
        ):
            if raises:
                raise ValueError
    except ValueError:
        assert raises
    assert not net[0]._forward_pre_hooks
    assert not net[0]._forward_hooks
    assert not net[0]._forward_hooks_always_called


def test_functions_are_reported_with_results_and_callbacks_are_not_observed() -> None:
    seen: list[tuple[Any, Tensor]] = []

    def after(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        seen.append((function, result + 0))  # an addition that must not be reported

    with observe_functions(after):
        y = F.linear(torch.ones(1, 2), torch.ones(3, 2))
    functions = [function for function, _ in seen]
    assert functions.count(F.linear) == 1
    assert torch.Tensor.add not in functions
    assert torch.Tensor.__add__ not in functions
    assert torch.equal(seen[-1][1], y)


def test_operators_are_reported_before_they_change_their_arguments() -> None:
    before: list[float] = []
    after: list[float] = []
    x = torch.zeros(1)

    def note(values: list[float]) -> Any:
        return lambda operator, args, kwargs, *result: (
            values.append(float(args[0])) if operator is torch.ops.aten.add_.Tensor else None
        )

    with observe_operators(note(before), note(after)):
        x.add_(1)
    assert (before, after) == ([0.0], [1.0])


def test_functions_are_called_with_their_keywords() -> None:
    weight, bias, x = torch.ones(2, 3), torch.tensor([5.0, 7.0]), torch.ones(1, 3)
    seen: list[dict[str, Any]] = []
    with observe_functions(lambda function, args, kwargs, result: seen.append(dict(kwargs))):
        y = F.linear(x, weight, bias=bias)
    assert torch.equal(y, torch.tensor([[8.0, 10.0]]))
    assert seen[0]["bias"] is bias


def test_operators_are_called_with_their_keywords() -> None:
    seen: list[dict[str, Any]] = []
    with observe_operators(before=lambda operator, args, kwargs: seen.append(dict(kwargs))):
        y = torch.zeros_like(torch.ones(2), dtype=torch.int64)
    assert y.dtype == torch.int64
    assert seen[-1]["dtype"] == torch.int64
