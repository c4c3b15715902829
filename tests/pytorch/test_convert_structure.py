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
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from onebyone.pytorch.convert import convert_module
from onebyone.pytorch.dropins import DropIn, PointwiseConvolution
from onebyone.pytorch.structure import copy_structure


def exact(*shape: int) -> Tensor:
    return torch.randint(-2, 3, shape).float()


def integer(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(exact(*p.shape))
    return layer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = integer(nn.Linear(3, 3)), integer(nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


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


NORMS = {
    "weight_norm": lambda m: old_weight_norm(m),
    "spectral_norm": lambda m: old_spectral_norm(m),
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "parametrizations.orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("to", ["conv", "linear"])
@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_are_computed(name, to, shared):
    """In training mode too, where spectral norm advances its vectors at each call: equal runs stay equal."""
    kind = nn.Linear if to == "conv" else nn.Conv2d
    shape = (2, 3, 6) if to == "conv" else (2, 6, 3, 4)

    def made() -> nn.Module:  # the older norms leave a tensor that cannot be deep-copied
        torch.manual_seed(0)
        return nn.Sequential(NORMS[name](nn.Linear(6, 4) if to == "conv" else nn.Conv2d(6, 4, 1))).double()

    net, twin = made(), made()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    c = convert_module(net, to=to, copy=not shared)
    assert [change.path for change in c.changes] == ["0"]
    assert isinstance(c.model[0], DropIn)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())  # converting advanced nothing
    x = torch.randn(shape, dtype=torch.float64)
    for _ in range(3):
        a, b = twin(x), c.model(x)
        assert (a - b).abs().max() <= 1e-14 * (1 + a.abs().max())  # 6 terms below 4, 2⁻⁵³ each way
    b.sum().backward()
    assert all(p.grad is not None for p in c.model.parameters())
    assert c.model.state_dict().keys() == net.state_dict().keys()
    back = convert_module(c.model, to="linear" if to == "conv" else "conv").model
    assert isinstance(back[0], kind)
    assert (back(x) - twin(x)).abs().max() <= 1e-14 * (1 + a.abs().max())
    native = convert_module(net, to=to, level="native")
    assert 'level="layers"' in native.refused[0].reason


def test_parametrisations_can_be_taken_off_the_result():
    net = parametrizations.weight_norm(nn.Linear(4, 3))
    model = convert_module(net, to="conv", copy=True).model
    parametrize.remove_parametrizations(model, "weight")
    assert type(model) is PointwiseConvolution
    x = torch.randn(2, 4)
    assert (model(x) - net(x)).abs().max() < 1e-6


@pytest.mark.parametrize("level", ["layers", "native"])
def test_lora_style_wrappers(level):
    class LoraLinear(nn.Module):
        def __init__(self, base: nn.Linear, rank: int) -> None:
            super().__init__()
            self.base_layer = base
            self.lora_A = nn.ModuleDict({"default": integer(nn.Linear(base.in_features, rank, bias=False))})
            self.lora_B = nn.ModuleDict({"default": integer(nn.Linear(rank, base.out_features, bias=False))})

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

        def merged(self) -> Tensor:
            return self.weight + self.lora_B["default"].weight @ self.lora_A["default"].weight

    net = nn.Sequential(LoraLinear(integer(nn.Linear(6, 5)), 2))
    c = convert_module(net, to="conv", level=level)
    assert {change.path for change in c.changes} == {
        "0.base_layer",
        "0.lora_A.default",
        "0.lora_B.default",
    }
    x = exact(3, 6)
    assert torch.equal(c.model(x), net(x))
    assert torch.equal(c.model[0].merged(), net[0].merged())


def test_lazy_layers_convert_once_they_are_there():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    first = convert_module(net, to="conv")
    assert [r.path for r in first.refused] == ["0"]
    x = torch.randn(3, 5)
    first.model(x)  # initialises the shared parameters, through the copy's own hook
    assert type(first.model[0]) is nn.Linear
    assert len(first.model[0]._forward_pre_hooks) == 0
    assert net(x).shape == (3, 2)
    assert type(net[0]) is nn.Linear
    second = convert_module(net, to="conv")
    assert [change.path for change in second.changes] == ["0", "2"]
    assert (second.model(x) - net(x)).abs().max() < 1e-6


def test_recurrent_layers_beside_linear_heads():
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    net = Tagger().eval()
    for copied in (False, True):
        c = convert_module(net, to="conv", copy=copied)
        assert [change.path for change in c.changes] == ["head"]
        x = torch.randn(2, 6, 4)
        assert (c.model(x) - net(x)).abs().max() < 1e-6
        flat = {p.data_ptr() for p in c.model.rnn._flat_weights}
        assert flat == {p.data_ptr() for p in c.model.rnn.parameters()}


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


def test_distributed_wrappers_are_refused_by_name(monkeypatch):
    class Distributed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    Distributed.__module__ = "torch.nn.parallel.distributed"
    Distributed.__qualname__ = "DistributedDataParallel"
    c = convert_module(nn.Sequential(Distributed(), nn.Linear(2, 2)), to="conv")
    assert [change.path for change in c.changes] == ["1"]
    assert "convert its .module" in c.refused[0].reason
    assert c.refused[0].path == "0"


@pytest.fixture
def processes():
    """Two processes, of which this one is the first and the other answers nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_sharded_parameters_are_refused_by_name(processes):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
    sharded = fully_shard(nn.Sequential(nn.Linear(4, 4)), mesh=mesh)
    net = nn.Sequential(layer, sharded, nn.Linear(4, 4))
    for level in ("layers", "native"):
        c = convert_module(net, to="conv", level=level)
        assert [change.path for change in c.changes] == ["2"]
        reasons = {r.path: r.reason for r in c.refused}
        assert reasons.keys() == {"0", "1"}
        assert "DTensor" in reasons["0"]
        assert "FSDP" in reasons["1"]
        assert c.model[1] is sharded


def test_data_parallel_converts_inside():
    net = nn.DataParallel(Net())
    c = convert_module(net, to="conv")
    assert [change.path for change in c.changes] == ["module.a", "module.b"]
    x = exact(2, 3)
    assert torch.equal(c.model(x), net(x))


def test_no_random_numbers_are_drawn():
    net = Net()
    before = torch.get_rng_state()
    for level in ("layers", "native"):
        convert_module(net, to="conv", level=level, copy=True)
    assert torch.equal(before, torch.get_rng_state())
