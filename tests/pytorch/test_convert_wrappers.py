"""Layers that others wrap: computed weights, LoRA, lazy and recurrent layers, parallel and sharded
wrappers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import DropIn, PointwiseConvolution
from tests.pytorch.integer_networks import Net, exact, integer

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


@pytest.mark.parametrize("parted", [True, False])
def test_pruned_layers(parted):
    layer = integer(nn.Linear(6, 4))
    prune.random_unstructured(layer, "weight", amount=0.5)
    net = nn.Sequential(layer)
    c = convert_module(net, to="conv", copy=parted)
    x = exact(3, 6)
    assert torch.equal(c.model(x), net(x))
    assert (
        c.model.state_dict().keys() == net.state_dict().keys() == {"0.bias", "0.weight_orig", "0.weight_mask"}
    )
    c.model(x).sum().backward()
    assert torch.equal(c.model[0].weight_orig.grad == 0, (x.sum(0) * layer.weight_mask) == 0)


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
