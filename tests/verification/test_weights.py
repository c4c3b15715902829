"""Weights are compared bit for bit: every injected change of one value is seen, at every level, without an example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.verification import verify
from onebyone.verification.weights import compare_weights


class Mixed(nn.Module):
    """A strided and a grouped 1×1 convolution, batch norm, linear layers, a plain tensor and both kinds of buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.groups = nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 8, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = nn.Linear(32, 6), nn.Linear(6, 6)
        self.register_buffer("scale", torch.rand(6))
        self.register_buffer("shift", torch.rand(6), persistent=False)
        self.plain = torch.rand(6)
        self.norm.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.groups(self.narrow(x)))).flatten(1)
        return self.second(F.relu(self.first(x)) * self.scale + self.shift + self.plain)


class Attention(nn.Module):
    """Tied embeddings and an attention, whose projections are one packed parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)
        self.head.weight = self.embed.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class Products(nn.Module):
    """Weights that belong to no layer, one of them stored inputs first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.weight, self.bias = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5))
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(x @ self.weight + self.bias))


MIXED, IDS, ROWS = torch.randn(2, 3, 4, 4), torch.arange(6).reshape(2, 3), torch.randn(2, 5)
Case = tuple[Any, Any, dict[str, Any]]
CASES: dict[str, Callable[[], Case]] = {
    "layers to conv": lambda: (Mixed(), None, {"to": "conv"}),
    "layers to linear": lambda: (Mixed(), None, {"to": "linear"}),
    "native to conv": lambda: (Mixed(), None, {"to": "conv", "level": "native"}),
    "native to linear": lambda: (Mixed(), None, {"to": "linear", "level": "native"}),
    "graph to conv": lambda: (Mixed(), MIXED, {"to": "conv", "level": "graph"}),
    "graph to linear": lambda: (Mixed(), MIXED, {"to": "linear", "level": "graph"}),
    "attention, layers": lambda: (Attention(), None, {"to": "conv"}),
    "attention, graph": lambda: (Attention(), IDS, {"to": "conv", "level": "graph"}),
    "products, graph": lambda: (Products(), ROWS, {"to": "conv", "level": "graph"}),
    "program to conv": lambda: (torch.export.export(Mixed().eval(), (MIXED,)), None, {"to": "conv"}),
    "program to linear": lambda: (torch.export.export(Mixed().eval(), (MIXED,)), None, {"to": "linear"}),
    "half precision": lambda: (Mixed().to(torch.bfloat16), None, {"to": "conv", "level": "native"}),
    "double precision": lambda: (Mixed().double(), None, {"to": "linear", "level": "native"}),
    "complex": lambda: (nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)), None, {"to": "conv"}),
}


@contextmanager
def changed(tensor: Tensor, amount: str) -> Iterator[None]:
    """One value, the last, moved by its last bit, or by 10⁻³ of the tensor's largest; put back after."""
    with torch.no_grad():
        kept = tensor.clone()
        flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        place = (-1,) * flat.dim()
        value = flat[place].clone()
        if not flat.is_floating_point():
            flat[place] = value + 1
        elif amount == "one ulp":
            infinite = torch.full_like(value, torch.inf)
            flat[place] = torch.nextafter(value, infinite)
        else:
            step = max(1e-3, torch.finfo(flat.dtype).eps)  # a thousandth is lost in eight bits
            flat[place] = value + step * max(1e-3, float(flat.abs().max()))
        assert not torch.equal(kept, tensor)
        yield
        tensor.copy_(kept)


def tensors_of(network: Any) -> dict[str, Tensor]:
    """Each tensor once: parameters, buffers of both kinds, plain attributes; of a program, its state and constants."""
    if isinstance(network, torch.export.ExportedProgram):
        named = {**network.state_dict, **network.constants}
    else:
        named = {**dict(network.named_buffers()), **dict(network.named_parameters())}
        for path, module in network.named_modules():
            named |= {f"{path}.{n}": v for n, v in vars(module).items() if isinstance(v, Tensor)}
    return dict({id(t): (n, t) for n, t in named.items()}.values())


@pytest.mark.parametrize("name", CASES)
def test_every_weight_changed_by_itself_is_seen(name: str) -> None:
    """The planted faults: one value of one tensor of the converted network; none may stay unseen."""
    network, example, options = CASES[name]()
    conversion = onebyone.convert(network, copy=True, example=example, **options)
    assert conversion.changes
    right = verify(network, conversion)
    assert right.equivalent, str(right)
    unseen, planted = [], 0
    for tensor_name, tensor in tensors_of(conversion.model).items():
        for amount in ("one ulp", "a thousandth"):
            with changed(tensor, amount):
                found = verify(network, conversion)
            planted += 1
            if found.equivalent or not any("differs" in p for p in found.problems):
                unseen.append(f"{tensor_name} by {amount}")
    assert planted >= 4
    assert unseen == []
    assert verify(network, conversion).equivalent


def dense_networks() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6),
        nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    flat = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3)
    )
    return {
        "batch norms": net.eval(),
        "batch norm of a flattened map, folded into the next layer": flat.eval(),
    }


@pytest.mark.parametrize("name", dense_networks())
def test_every_weight_of_a_dense_form_is_seen(name: str) -> None:
    net = dense_networks()[name]
    dense = onebyone.convolutionalize(copy.deepcopy(net), 8)
    found = verify(net, dense)
    assert found.equivalent, found.problems
    assert found.weights is not None
    assert found.weights.compared >= len(list(net.parameters()))
    names = {n for n, _ in [*net.named_parameters(), *net.named_buffers()]}
    held = {n: t for n, t in tensors_of(dense.model).items() if n in names}
    unseen = []
    for tensor_name, tensor in held.items():
        for amount in ("one ulp", "a thousandth"):
            with changed(tensor, amount):
                if compare_weights(net, dense.model, subset=True).ok:
                    unseen.append(f"{tensor_name} by {amount}")
    assert {n for n, _ in net.named_parameters()} <= set(held)
    assert unseen == []
    last = held[[n for n in held if n.endswith("weight")][-1]]
    with changed(last, "one ulp"):  # and the whole verification says so
        assert any("differs from the original's in 1 of" in p for p in verify(net, dense).problems)


def test_what_differs_is_told_by_name_and_size() -> None:
    net = Mixed().eval()
    conversion = onebyone.convert(net, level="native", copy=True)
    with torch.no_grad():
        conversion.model.first.conv.weight[2, 3] += 0.5
    found = verify(net, conversion)
    assert not found.equivalent
    assert found.weights is not None
    (difference,) = found.weights.differing
    assert (difference.name, difference.differing, difference.values) == ("first.weight", 1, 192)
    assert difference.largest == pytest.approx(0.5, rel=1e-6)
    assert found.first_difference == "first"
    assert "first.weight differs from the original's in 1 of 192 values, by up to 0.5" in str(found)
    data = found.to_dict()
    assert data["weights"]["ok"] is False
    assert data["weights"]["differing"][0]["name"] == "first.weight"


@pytest.mark.parametrize("level", ["layers", "native"])
def test_random_weights_are_never_equivalent(level: str) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 5)).eval()
    conversion = onebyone.convert(net, level=level, copy=True)
    for p in conversion.model.parameters():
        p.data.normal_()
    found = verify(net, conversion)
    assert not found.equivalent
    assert len(found.weights.differing) == 4


def test_the_sign_of_a_zero_and_nan_are_compared_by_their_bits() -> None:
    net = nn.Sequential(nn.Linear(2, 2)).eval()
    nn.init.zeros_(net[0].bias)
    net.register_buffer("mask", torch.tensor([float("-inf"), float("nan")]), persistent=False)
    conversion = onebyone.convert(net, copy=True)
    assert conversion.model.state_dict().keys() == net.state_dict().keys()
    assert compare_weights(net, conversion.model).ok  # NaN equals itself
    with torch.no_grad():
        conversion.model[0].bias[0] = -0.0
    check = compare_weights(net, conversion.model)
    assert [d.name for d in check.differing] == ["0.bias"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization")
def test_a_quantised_neighbour_is_compared_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 4)
    net[1] = quantised
    conversion = onebyone.convert(net, copy=True)
    assert [c.path for c in conversion.changes] == ["0", "2"]
    found = verify(net, conversion)
    assert found.equivalent, str(found)
    weight = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)
    conversion.model[1].set_weight_bias(weight, None)
    assert not verify(net, conversion).equivalent


def test_maps_that_do_not_lead_back_are_caught() -> None:
    """The planted fault: a conversion whose two maps agree with each other and not with its network."""
    net = nn.Sequential(nn.Linear(3, 3)).eval()
    conversion = onebyone.convert(net, copy=True)
    with torch.no_grad():
        conversion.model[0].weight.copy_(net[0].weight.t())

    class Transposing(ModuleConversion):
        def state_dict_to_original(self, state: Any = None) -> Any:
            return {n: t.t() if t.dim() == 2 else t for n, t in state.items()}

    found = verify(net, Transposing(**vars(conversion)))
    assert not found.equivalent
    assert any("state_dict_from_original() gives other values" in p for p in found.problems)


class Refusing(nn.Linear):
    """Computes something of its own: refused."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


def test_nothing_converted_is_nothing_verified() -> None:
    net = nn.Sequential(Refusing(3, 2)).eval()
    conversion = onebyone.convert(net)
    assert (len(conversion.changes), len(conversion.refused)) == (0, 1)
    found = verify(net, conversion)
    assert not found.equivalent
    assert found.nothing_verified
    assert found.problems == ("nothing was verified: no layer was converted (1 refused)",)
    assert str(found).startswith("NOTHING VERIFIED")
    with pytest.raises(onebyone.errors.NotEquivalent, match="nothing was verified"):
        found.check()
    # with an example the two networks are compared, and are the same
    compared = verify(net, conversion, torch.randn(2, 3))
    assert compared.equivalent
    assert not compared.nothing_verified


def test_a_network_without_layers_is_nothing_verified() -> None:
    net = nn.Sequential(nn.ReLU())
    found = verify(net, onebyone.convert(net))
    assert found.nothing_verified
    assert found.problems == ("nothing was verified: the network has no layer to convert",)
