"""The copy of the module tree: hooks, closures, weak references, ties, flags, parametrisations, wrappers."""

from __future__ import annotations

import functools
import gc
import threading
import types
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.structure import copy_structure
from tests.pytorch.integer_networks import Net, exact, integer


@pytest.mark.parametrize("level", ["layers", "native"])
def test_every_kind_of_hook_is_kept(level):
    """One of each on a converted layer, each visible in the result or in the record."""
    net, seen = Net(), []
    a = net.a
    a.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    a.register_forward_pre_hook(lambda m, args, kwargs: (args, kwargs), with_kwargs=True)
    a.register_forward_hook(lambda m, args, out: out * 2)
    a.register_forward_hook(
        lambda m, args, kwargs, out: seen.append("kwargs"), with_kwargs=True, always_call=True
    )
    a.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    a.register_full_backward_pre_hook(lambda m, go: seen.append("backward pre"))
    a.register_state_dict_post_hook(lambda m, sd, prefix, meta: seen.append(f"state {prefix}"))
    a.register_state_dict_pre_hook(lambda m, prefix, keep: seen.append(f"state pre {prefix}"))
    a.register_load_state_dict_pre_hook(lambda m, *args: seen.append("load pre"))
    a.register_load_state_dict_post_hook(lambda m, keys: seen.append("load"))
    c = convert_module(net, to="conv", level=level)
    x = exact(4, 3).requires_grad_()
    expected = net(x)
    seen.clear()
    y = c.model(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    state = c.model.state_dict()
    c.model.load_state_dict(state)
    assert seen == ["kwargs", "backward pre", "backward", "state pre a.", "state a.", "load pre", "load"]


def test_hooks_registered_later_belong_to_one_tree():
    net = Net()
    handle = net.a.register_forward_hook(lambda *a: None)
    c = convert_module(net, to="conv")
    c.model.b.register_forward_hook(lambda *a: None)
    assert len(net.b._forward_hooks) == 0
    handle.remove()
    assert (len(net.a._forward_hooks), len(c.model.a._forward_hooks)) == (0, 1)


def test_a_handle_kept_in_a_module_removes_from_its_own_tree():
    net = Net()
    net.handle = net.a.register_forward_hook(lambda m, a, out: out + 1)
    c = convert_module(net, to="conv")
    c.model.handle.remove()
    assert (len(net.a._forward_hooks), len(c.model.a._forward_hooks)) == (1, 0)


class Recording(nn.Module):
    """Hooks that lead back into the tree: a bound method, a closure, a partial, and one with the module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.count = integer(nn.Linear(3, 3)), 0
        self.a.register_forward_hook(self.note)
        self.a.register_forward_pre_hook(lambda m, args: self.bump(10))
        self.a.register_forward_hook(functools.partial(Recording.part, self))
        self.register_load_state_dict_pre_hook(Recording.loading)

    def bump(self, n: int) -> None:
        self.count += n

    def note(self, module, args, out) -> None:
        self.bump(1)

    def part(self, module, args, out) -> None:
        self.bump(100)

    def loading(self, *args) -> None:
        self.bump(1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)


def test_hooks_that_hold_a_module_hold_the_new_one():
    net = Recording()
    c = convert_module(net, to="conv")
    c.model(exact(2, 3))
    assert (net.count, c.model.count) == (0, 111)
    c.model.load_state_dict(net.state_dict())
    assert (net.count, c.model.count) == (0, 1111)
    net(exact(2, 3))
    assert (net.count, c.model.count) == (111, 1111)


def test_a_users_recorder_goes_on_recording():
    """A list in a closure, and an object with the network in it, stay the user's own."""
    net, outputs = Net(), []

    class Extractor:
        def __init__(self, model: nn.Module) -> None:
            self.model, self.found = model, []
            model.b.register_forward_hook(self)

        def __call__(self, module, args, out) -> None:
            self.found.append(out)

    extractor = Extractor(net)
    net.a.register_forward_hook(lambda m, a, out: outputs.append(out))
    model = convert_module(net, to="conv").model
    model(exact(2, 3))
    assert len(outputs) == len(extractor.found) == 1


class Paired(NamedTuple):
    first: nn.Module
    second: nn.Module


class Helper:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.again = self

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Referring(nn.Module):
    """Refers to its layers in every way but by name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(integer(nn.Linear(3, 3)) for _ in range(6))
        one, two, three, four, five, six = self.layers
        self.in_list = [one, [two]]
        self.in_dict = {"three": three}
        self.in_tuple = Paired(four, four)
        self.weak = weakref.ref(five)
        self.helper = Helper(six)
        self.bound = one.forward
        self.cache = {}
        self.lock = threading.Lock()
        self.parent = [self]

    def all(self) -> list[nn.Module]:
        inside = [
            self.in_list[0],
            self.in_list[1][0],
            self.in_dict["three"],
            self.in_tuple.first,
            self.weak(),
        ]
        return [*inside, self.helper.layer]

    def forward(self, x: Tensor) -> Tensor:
        self.cache["x"] = x
        for layer in self.all():
            x = layer(x) % 5
        return self.helper(x)


@pytest.mark.parametrize("level", ["layers", "native"])
def test_references_lead_into_the_new_tree(level):
    net = Referring()
    c = convert_module(net, to="conv", level=level)
    assert all(new is made for new, made in zip(c.model.all(), c.model.layers, strict=True))
    assert not any(isinstance(m, nn.Linear) for m in c.model.all())
    assert all(type(m) is nn.Linear for m in net.all())
    assert c.model.parent[0] is c.model
    assert c.model.helper is not net.helper
    assert c.model.helper.again is c.model.helper
    assert c.model.lock is net.lock
    assert c.model.bound.__self__ is c.model.layers[0]
    x = exact(4, 3)
    assert torch.equal(c.model(x), net(x))
    net.cache.clear()
    assert "x" in c.model.cache


def test_nothing_in_the_new_tree_holds_the_old_one():
    """Only the record of pairs does: without it, the old modules can go."""
    net = Referring()
    old = [weakref.ref(m) for m in net.modules()]
    model = convert_module(net, to="conv").model
    del net
    gc.collect()
    assert [r() for r in old] == [None] * len(old)
    model(exact(2, 3))


def test_flags_buffers_and_extra_state_are_kept():
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict:
            return {"mine": 1}

        def set_extra_state(self, state: dict) -> None:
            pass

    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Extra(3, 3))
    net.register_buffer("temporary", torch.ones(2), persistent=False)
    net[0].register_buffer("scale", torch.ones(3))
    net[0].weight.requires_grad_(False)
    net.train()
    net[1].eval()
    c = convert_module(net, to="conv")
    assert [m.training for m in c.model.modules()] == [m.training for m in net.modules()]
    assert c.model.temporary is net.temporary
    assert c.model[0].scale is net[0].scale
    assert list(c.model.state_dict()) == list(net.state_dict())
    assert c.model.state_dict()["2._extra_state"] == {"mine": 1}
    assert not c.model[0].weight.requires_grad
    native = convert_module(net, to="conv", level="native")
    assert not native.model[2].state_dict().keys() ^ net[2].state_dict().keys()
    assert native.model[0].state_dict().keys() == {"scale", "conv.weight", "conv.bias"}
    assert not native.model[0].conv.weight.requires_grad
    assert "get_extra_state" in native.refused[0].reason


def test_copy_keeps_ties_and_parts_everything():
    embed, head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
    head.weight = embed.weight
    net = nn.Sequential(embed, head)
    net.plain = torch.ones(3)
    net.weights = [head.weight]
    net.register_buffer("seen", torch.zeros(1))
    model = convert_module(net, to="conv", copy=True).model
    assert model[0].weight is model[1].weight
    assert model[0].weight is not embed.weight
    assert model.weights[0] is model[1].weight
    olds = {t.data_ptr() for t in (embed.weight, net.plain, net.seen)}
    assert not olds & {t.data_ptr() for t in (model[0].weight, model.plain, model.seen)}
    shared = convert_module(net, to="conv").model
    assert shared[0].weight is shared[1].weight is embed.weight


def test_a_forward_patched_as_accelerate_does_leads_to_the_new_module():
    net = Net()
    old = net.forward

    def patched(module: nn.Module, *args):
        return module._old_forward(*args) + 1

    net._old_forward = old
    net.forward = functools.update_wrapper(functools.partial(patched, net), old)
    c = convert_module(net, to="conv")
    assert c.model.forward.args[0] is c.model
    assert c.model._old_forward.__self__ is c.model
    seen = []
    c.model.a.register_forward_hook(lambda *a: seen.append("conv"))
    x = exact(2, 3)
    assert torch.equal(c.model(x), net(x))
    assert seen == ["conv"]


def test_copy_structure_of_a_cycle_through_a_closure():
    net = Net()

    def make() -> types.FunctionType:
        def again(x: Tensor, depth: int = 1) -> Tensor:
            return again(net.a(x), depth - 1) if depth else net.b(x)

        return again

    net.walk = make()
    twin, _ = copy_structure(net)
    twin.a.weight = nn.Parameter(torch.zeros(3, 3))
    twin.a.bias = nn.Parameter(torch.zeros(3))
    x = exact(2, 3)
    assert torch.equal(twin.walk(x), net.b(torch.zeros(2, 3)))
    assert torch.equal(net.walk(x), net.b(net.a(x)))


def test_no_random_numbers_are_drawn():
    net = Net()
    before = torch.get_rng_state()
    for level in ("layers", "native"):
        convert_module(net, to="conv", level=level, copy=True)
    assert torch.equal(before, torch.get_rng_state())
