"""`convert_module`: what is converted, what is refused, what stays as it was, and what is bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.laws import grouped, pointwise, strided
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import DropIn
from tests.pytorch.integer_networks import X, integer, network


@pytest.mark.parametrize("level", ["layers", "native"])
def test_to_conv_and_back(level):
    net = network()
    c = convert_module(net, to="conv", level=level)
    assert [change.path for change in c.changes] == ["5", "7"]
    assert {change.law for change in c.changes} == {pointwise.NAME}
    assert c.refused == ()
    assert c.copied_bytes == 0
    assert torch.equal(c.model(X), net(X))
    assert not any(isinstance(m, nn.Linear) for m in c.model.modules())
    assert [p.path for p in c.pairs] == ["5", "7"]
    assert all(p.original is net[int(p.path)] and p.converted is c.model[int(p.path)] for p in c.pairs)


def test_to_linear_names_the_law_of_each():
    net = network()
    c = convert_module(net, to="linear")
    assert [(change.path, change.kind, change.law) for change in c.changes] == [
        ("2", "Conv2d", strided.NAME),
        ("3", "Conv2d", grouped.NAME),
    ]
    assert torch.equal(c.model(X), net(X))
    assert isinstance(c.model[0], nn.Conv2d)


def test_there_and_back_restores_the_layers_themselves():
    net = network()
    for to, back in (("conv", "linear"), ("linear", "conv")):
        c = convert_module(net, to=to)
        again = convert_module(c.model, to=back, only=[change.path for change in c.changes])
        assert [type(m) for m in again.model.modules()] == [type(m) for m in net.modules()]
        assert repr(again.model) == repr(net)
        assert set(vars(again.model[5])) == set(vars(net[5]))
        assert again.model[5].weight is net[5].weight


def test_converting_twice_changes_nothing_more():
    once = convert_module(network(), to="conv")
    twice = convert_module(once.model, to="conv")
    assert twice.changes == ()
    assert twice.refused == ()


def test_the_input_is_left_as_it_was():
    net = network()
    before = [(n, m, type(m), dict(vars(m))) for n, m in net.named_modules()]
    tables = [{k: dict(v) for k, v in vars(m).items() if isinstance(v, dict)} for m in net.modules()]
    for to in ("conv", "linear"):
        for level in ("layers", "native"):
            convert_module(net, to=to, level=level)
    after = list(net.named_modules())
    assert [(n, m) for n, m in after] == [(n, m) for n, m, _, _ in before]
    for (_, m), (_, _, cls, state) in zip(after, before, strict=True):
        assert type(m) is cls
        assert vars(m).keys() == state.keys()
        assert all(vars(m)[k] is state[k] for k in state)
    assert tables == [{k: dict(v) for k, v in vars(m).items() if isinstance(v, dict)} for m in net.modules()]


def test_parameters_are_the_very_objects_and_copy_parts_them():
    net = network()
    shared = convert_module(net, to="conv").model
    assert list(shared.state_dict()) == list(net.state_dict())
    assert all(a is b for a, b in zip(shared.parameters(), net.parameters(), strict=True))
    parted = convert_module(net, to="conv", copy=True).model
    for a, b in zip(parted.parameters(), net.parameters(), strict=True):
        assert a.data_ptr() != b.data_ptr()
        assert torch.equal(a, b)
    with torch.no_grad():
        parted[5].weight.zero_()
    assert net[5].weight.abs().sum() > 0


def test_state_dicts_load_both_ways_at_layers():
    net, other = network(), network()
    c = convert_module(net, to="conv")
    c.model.load_state_dict(other.state_dict())
    assert torch.equal(c.model(X), other(X))
    fresh = network()
    fresh.load_state_dict(c.model.state_dict())
    assert torch.equal(fresh(X), other(X))
    assert c.state_dict_to_original().keys() == net.state_dict().keys()


def test_training_the_result_trains_the_original():
    net = network()
    c = convert_module(net, to="conv")
    c.model(X).sum().backward()
    assert net[5].weight.grad is not None
    assert c.model[5].weight.grad is net[5].weight.grad


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)
        self.twin = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) + self.twin(x)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("body.*", ["body.0", "body.2"]),
        ("*head", ["head"]),
        ("twin", ["head"]),  # the same module at its second path
        (["body.0", "head"], ["body.0", "head"]),
        (lambda path, module: module.out_features == 3, ["head"]),
        (lambda path, module: path.endswith(".2"), ["body.2"]),
    ],
)
def test_only(only, expected):
    c = convert_module(Named(), to="conv", only=only)
    assert [change.path for change in c.changes] == expected
    assert [n for n, m in c.model.named_modules() if isinstance(m, DropIn)] == expected


def test_a_module_used_twice_stays_one():
    model = integer(Named())
    c = convert_module(model, to="conv")
    assert c.model.head is c.model.twin
    assert c.model.head is not model.head
    x = torch.randint(-2, 3, (5, 4)).float()
    assert torch.equal(c.model(x), model(x))
    assert list(c.model.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model is a int: expected a torch.nn.Module"),
        ({"to": ["conv"]}, r"to=\['conv'\]: expected 'conv' or 'linear'"),
        ({"to": "pool"}, "to='pool': expected 'conv' or 'linear'"),
        ({"level": "deep"}, "level='deep': expected"),
        (
            {"only": "*.nothing"},
            r"only='\*.nothing' matches no linear layer of the network; it has body.0, body.2, head",
        ),
        ({"only": ["head", "x"]}, "only='x' matches no linear layer"),
        ({"only": lambda p, m: False}, "matches no linear layer"),
        ({"only": []}, r"only=\[\]: expected a glob"),
        ({"only": [3]}, r"only=\[3\]: expected a glob"),
        ({"optimizer": "sgd"}, "optimizer is a str: expected a torch.optim.Optimizer"),
        (
            {"to": "linear", "only": "head"},
            "matches no 1×1 convolution or convolution on patches of the network; it has none",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(BadInput, match=message):
        convert_module(**{"model": Named(), "to": "conv", **arguments})


def test_root_itself():
    for level in ("layers", "native"):
        layer = integer(nn.Linear(3, 2))
        c = convert_module(layer, to="conv", level=level)
        x = torch.randint(-2, 3, (4, 3)).float()
        assert c.changes[0].path == ""
        assert torch.equal(c.model(x), layer(x))
        other = integer(nn.Linear(3, 2))
        c.model.load_state_dict(c.state_dict_from_original(other.state_dict()))
        assert torch.equal(c.model(x), other(x))
