"""Checks that need no run: which tensors they read, and which layers they look for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.verification import structure_checks, verify
from onebyone.verification.structure_checks import misplaced
from tests.verification.standins import ConvertedByHand, ConvInPlaceOfLinear, swap


def test_each_parameter_is_read_once_where_the_conversion_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    conversion = swap(net)
    own = nn.Parameter(torch.ones(1))
    conversion.model.register_parameter("own", own)
    read: list[int] = []
    is_finite = structure_checks._finite

    def recorded(t: Tensor) -> bool:
        read.append(id(t))
        return is_finite(t)

    monkeypatch.setattr(structure_checks, "_finite", recorded)
    verify(net, conversion)
    assert read == [*(id(p) for p in net.parameters()), id(own)]


def test_a_new_parameter_that_is_not_finite_is_that_of_the_converted_network() -> None:
    """It is not searched for in an original that is not finite itself."""
    net = nn.Sequential(nn.Linear(3, 2))
    conversion = swap(net)
    conversion.model.register_parameter("own", nn.Parameter(torch.tensor([torch.inf])))
    sentence = "converted: weight own holds NaN or infinity"
    assert sentence in verify(net, conversion).problems
    with torch.no_grad():
        net[0].bias[0] = torch.nan
    problems = verify(net, conversion).problems
    assert "original: weight 0.bias holds NaN or infinity" in problems
    assert sentence not in problems


def test_layers_at_their_paths_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the second path of a module: comparing all tensors for each layer of a large network would take long."""

    def refused(*arguments: Any) -> bool:
        raise AssertionError(f"the tensors at {arguments[1]} were searched")

    monkeypatch.setattr(structure_checks, "_holds", refused)
    layer = nn.Linear(2, 2)
    converted = ConvInPlaceOfLinear(layer)
    pairs = [ModulePair(path, layer, converted) for path in ("0", "1")]
    assert misplaced(pairs, nn.Sequential(layer, layer), nn.Sequential(converted, converted)) == []


def test_weights_that_a_program_stores_as_buffers_are_found_under_both_names() -> None:
    """As in a network whose weights were frozen, and one of whose modules is used twice."""

    class Frozen(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            for name, p in layer.named_parameters():
                self.register_buffer(name, p.detach().clone())

    layer = nn.Linear(2, 3)
    frozen = Frozen(layer)
    network = nn.Sequential(frozen, frozen)
    for path in ("0", "1"):
        assert misplaced([ModulePair(path, layer, layer)], network, network) == []
        assert misplaced([ModulePair(path, layer, nn.Linear(2, 3))], network, network) != []


def test_a_weight_that_is_tied_under_two_names_of_one_module_is_tied_once_more() -> None:
    """Names of both networks are those under which a state dict lists the parameter."""
    weight, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))

    def network(*parameters: nn.Parameter) -> nn.Module:
        module = nn.Module()
        for name, p in zip("abc", parameters, strict=True):
            module.register_parameter(name, p)
        return module

    sentence = "the weight tied under a, b, c is no longer one parameter"
    before = network(weight, weight, weight)
    assert structure_checks.untied(before, network(weight, weight, other)) == ([sentence], [])
    assert structure_checks.untied(before, network(other, other, other)) == ([], [])
    elsewhere = "the weight tied under b, c is no longer one parameter"
    before_two, own = network(other, weight, weight), nn.Parameter(torch.ones(2, 2))
    assert structure_checks.untied(before_two, network(weight, weight, own)) == ([elsewhere], [])
    empty = ConvertedByHand(network(other, weight, weight), ())
    assert sentence in verify(before, empty).problems


def test_a_parameter_is_searched_for_in_its_own_module() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    layer = network[0][0]
    for path, problems in (("0.0.weight", 0), ("0.1.weight", 1), ("0.1", 1)):
        assert len(misplaced([ModulePair(path, layer, layer)], network, network)) == problems
