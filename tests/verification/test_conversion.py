"""Correct conversions pass, and the same code catches every injected fault."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.errors import BadInput, NotEquivalent
from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.verification import verify
from tests.verification.standins import ConvertedByHand, ConvInPlaceOfLinear, net, swap


def image() -> Tensor:
    return torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(1))


def test_a_right_conversion_is_equivalent() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    v = verify(model, swap(model), image())
    assert v.equivalent, str(v)
    assert v.check() is v
    assert v.integer_probe is True
    assert [layer.path for layer in v.layers] == ["conv", "first", "second"]
    for layer in v.layers:
        assert layer.max_error is not None
        assert layer.bound is not None
        assert layer.planted_fault is not None
        assert layer.max_error <= layer.bound < layer.planted_fault
        assert all(f.seen_by_integers and f.seen_by_bound for f in layer.faults)
    assert v.gradients is not None
    assert v.gradients.ok
    assert v.gradients.compared == 1 + len(list(model.parameters()))
    assert v.rounding_ratio is not None
    assert 0 < v.rounding_ratio < 10
    assert v.unverified == ()
    assert v.first_difference is None
    # nothing of the user's was touched
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_networks_of_another_front_end_are_made_runnable_both() -> None:
    """Neither network is a module or can be called: only the conversion knows what to run of them."""

    class Stored(ConvertedByHand):
        def runnable(self, network: Any) -> nn.Module:
            (module,) = network
            return module

    model = nn.Linear(3, 2)
    after = ConvInPlaceOfLinear(model)
    conversion = Stored([after], (ModulePair("", model, after),))
    v = verify([model], conversion, torch.randn(4, 3))
    assert v.equivalent, str(v)
    assert v.integer_probe is True
    assert v.max_error is not None


def test_the_random_state_is_left_alone() -> None:
    model = net()
    c = swap(model)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    verify(model, c, image())
    assert torch.equal(torch.rand(3), expected)


def test_without_an_example_layers_are_probed_and_the_rest_is_listed() -> None:
    model = net()
    v = verify(model, swap(model))
    assert v.equivalent
    assert v.integer_probe is True
    assert v.max_error is None
    assert v.rounding_ratio is None
    assert any("whole network" in note for note in v.unverified)


class DropsBias(ConvInPlaceOfLinear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.bias is None else y - self.bias


class Transposed(ConvInPlaceOfLinear):
    """Reads a flatten of (5, 4, 3) as though channels came last."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 60:
            x = x.reshape(*x.shape[:-1], 5, 4, 3).movedim(-3, -1).flatten(-3)
        return super().forward(x)


class RowsSwapped(ConvInPlaceOfLinear):
    """Right for one row, wrong for more: the batch comes back reversed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(0) if x.dim() > 1 else super().forward(x)


class RoundsToHalf(ConvInPlaceOfLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half().to(x.dtype)) if x.dtype == torch.float32 else super().forward(x)


class NoGradient(ConvInPlaceOfLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@pytest.mark.parametrize("fault", [DropsBias, Transposed, RowsSwapped, RoundsToHalf, NoGradient])
def test_faulty_layers_are_caught_and_named(fault: type[ConvInPlaceOfLinear]) -> None:
    model = net()
    wrong = swap(model, make=fault)
    v = verify(model, wrong, image())
    assert not v.equivalent
    assert v.first_difference == "first"
    with pytest.raises(NotEquivalent, match="first differing layer: first") as caught:
        v.check()
    assert caught.value.verification is v


@pytest.mark.parametrize("fault", [DropsBias, Transposed, RowsSwapped, NoGradient])
def test_structural_faults_are_caught_without_an_example(fault: type[ConvInPlaceOfLinear]) -> None:
    model = net()
    v = verify(model, swap(model, make=fault))
    assert not v.equivalent
    assert v.integer_probe is False


class Alike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


@pytest.mark.parametrize("x", [None, torch.ones(2, 4)])
def test_swapped_layers_are_caught(x: Tensor | None) -> None:
    model = Alike()
    right = swap(model)
    a, b = right.model.a, right.model.b
    right.model.a, right.model.b = b, a
    v = verify(model, right, x)
    assert not v.equivalent
    assert "not the layer recorded" in v.problems[0]
    if x is not None:
        assert v.first_difference == "a"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def test_an_untied_weight_is_caught_and_a_tied_one_passes() -> None:
    model = Tied()
    ids = torch.arange(6).reshape(2, 3)
    good = swap(model)
    assert verify(model, good, ids).equivalent
    good.model.head.weight = nn.Parameter(good.model.head.weight.detach().clone())
    v = verify(model, good, ids)
    assert not v.equivalent
    assert any("no longer one parameter" in p for p in v.problems)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_never_passes(value: float) -> None:
    model = net()
    with torch.no_grad():
        model.second.weight[2, 3] = value
    for x in (None, image()):
        v = verify(model, swap(model), x)
        assert not v.equivalent
        assert any("second.weight" in p for p in v.problems)


def test_an_input_that_is_not_finite_never_passes() -> None:
    model, x = net(), image()
    x[0, 0, 0, 0] = float("nan")
    v = verify(model, swap(model), x)
    assert not v.equivalent
    assert "the input holds NaN or infinity" in v.problems


def test_an_output_that_is_not_finite_never_passes() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.log(self.layer(x) * 0)

    model = Log()
    v = verify(model, swap(model), torch.randn(2, 3))
    assert not v.equivalent
    assert any("NaN or infinity" in p for p in v.problems)


def test_a_changed_weight_outside_the_layers_is_caught() -> None:
    model = net()
    c = swap(model)
    c.model.norm.weight = nn.Parameter(c.model.norm.weight.detach() * 1.001)
    v = verify(model, c)
    assert not v.equivalent
    assert any(p.startswith("norm.weight differs from the original's in 5 of 5 values") for p in v.problems)
    assert v.first_difference == "norm"


def test_a_wrong_stride_is_caught() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.ReLU())
    wrong = swap(model)
    v = verify(model, wrong, torch.randn(2, 3, 6, 5))
    assert not v.equivalent
    assert v.integer_probe is False


def test_a_zero_bias_is_said_to_hide_its_loss_from_the_bound() -> None:
    model = nn.Linear(5, 4)
    nn.init.zeros_(model.bias)
    v = verify(model, swap(model), torch.randn(3, 5))
    assert v.equivalent
    (layer,) = v.layers
    dropped = next(f for f in layer.faults if f.name == "bias dropped")
    assert dropped.seen_by_integers
    assert not dropped.seen_by_bound
    assert "bias dropped" in layer.why


def test_json_holds_the_figures() -> None:
    model = net()
    v = verify(model, swap(model), image())
    data = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert data["equivalent"] is True
    assert data["integer_probe"] is True
    assert data["layers"][0]["path"] == "conv"
    assert data["layers"][1]["planted_fault"] > data["layers"][1]["bound"]
    text = str(v)
    for word in ("equivalent", "bound", "rounding ratio", "bit for bit", "second"):
        assert word in text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    v = verify(model, swap(model), image().to(dtype))
    assert v.equivalent, str(v)
    assert v.integer_probe
    assert v.rounding_ratio is not None


def test_complex_layers() -> None:
    model = nn.Linear(4, 3, dtype=torch.complex64)
    x = torch.randn(5, 4, dtype=torch.complex64)
    assert verify(model, swap(model), x).equivalent
    assert not verify(model, swap(model, make=DropsBias), x).equivalent


def test_a_converted_network_that_raises_is_not_equivalent() -> None:
    class Broken(ConvInPlaceOfLinear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no kernel")

    model = net()
    v = verify(model, swap(model, make=Broken), image())
    assert not v.equivalent
    assert any("no kernel" in p for p in v.problems)


def test_a_model_that_fails_on_x_is_bad_input() -> None:
    model = net()
    with pytest.raises(BadInput, match="model fails on x"):
        verify(model, swap(model), torch.randn(2, 9))


def test_a_layer_never_called_is_listed() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Unused()
    v = verify(model, swap(model), torch.randn(2, 3))
    assert v.equivalent
    assert any(note.startswith("spare: never called") for note in v.unverified)


def test_parametrised_and_hooked_layers_are_probed_bare() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
    calls = []
    model[2].register_forward_hook(lambda *a: calls.append(1))
    after = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    after[2] = ConvInPlaceOfLinear(model[2])
    pairs = (ModulePair("0", model[0], after[0]), ModulePair("2", model[2], after[2]))
    weight = model[0].weight.detach().clone()
    v = verify(model, ConvertedByHand(after, pairs))
    assert v.equivalent, str(v)
    assert v.integer_probe
    assert not calls
    assert torch.equal(model[0].weight, weight)
    assert torch.nn.utils.parametrize.is_parametrized(model[0])
