"""Running error bounds hold against float64, are close to the error, and refuse operators without a rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.verification.error_rules import NoRuleError
from onebyone.verification.running_error import RunningError, error_bound


class Call(nn.Module):
    def __init__(self, fn: object) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)  # type: ignore[operator, no-any-return]


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.5), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"),
    nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.LeakyReLU(0.2), nn.LeakyReLU(-3.0), nn.ELU(2.0),
    nn.CELU(), nn.SELU(), nn.Softmax(1), nn.LogSoftmax(1), nn.LayerNorm(24), nn.Dropout(0.5), nn.BatchNorm1d(24),
    Call(lambda x: x * x - 2 * x + 1),
    Call(lambda x: torch.cat([x.flip(1)[:, ::2], x[:, 1::2].roll(1, 0)], 1) / 3),
    Call(lambda x: (x @ x.t()) @ x),
    Call(lambda x: torch.rsub(x, 3.0, alpha=2) + torch.add(x, x, alpha=-0.25)),
    Call(lambda x: x - x.mean(1, keepdim=True)),
]  # fmt: skip
MAPS = [
    nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3),
    nn.PixelShuffle(1), nn.ZeroPad2d((1, 2, 0, 1)), nn.ReflectionPad2d(1), nn.Flatten(),
    nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 2, stride=2, bias=False), nn.ConvTranspose2d(3, 2, 3, stride=2),
    nn.Conv2d(3, 4, (1, 3), stride=2, dilation=(1, 2)),
    Call(lambda x: F.pad(x, (1, 1), value=2.0)),
    Call(lambda x: x.unfold(2, 3, 1).permute(0, 4, 1, 2, 3).amax(1)),
    Call(lambda x: torch.relu_(x + 0)),
]  # fmt: skip


def settled(module: nn.Module) -> nn.Module:
    """Statistics and weights of a trained network: none of them 0 or 1."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.2 if "var" in name else torch.randn_like(tensor) * 0.7
                )
    return module.eval()


def held(net: nn.Module, x: Tensor) -> tuple[float, float]:
    """Largest error and largest bound, after checking that each error is within its own bound."""
    ((value, bound),) = RunningError(net, x)(x)
    with torch.no_grad():
        computed = net(x)
        exact = net.double()(x.double())
    for y in (value, computed):
        assert bool(((y.double() - exact).abs() <= bound.double()).all())
    return float((computed.double() - exact).abs().max()), float(bound.max())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda m: str(m)[:30])
def test_vectors(activation: nn.Module) -> None:
    torch.manual_seed(1)
    net = settled(nn.Sequential(nn.Linear(10, 24), activation, nn.Linear(24, 5)))
    error, bound = held(net, torch.randn(6, 10))
    assert 0 < error <= bound < 1e5 * error  # a bound of any use


@pytest.mark.parametrize("operator", MAPS, ids=lambda m: str(m)[:30])
def test_maps(operator: nn.Module) -> None:
    torch.manual_seed(2)
    net = settled(nn.Sequential(nn.Conv2d(2, 3, 3), operator))
    error, bound = held(net, torch.randn(2, 2, 9, 10))
    assert 0 < error <= bound < 1e5 * error


def test_bounds_that_are_known_have_no_reason_why_not() -> None:
    net, x = nn.Linear(3, 2), torch.ones(1, 3)
    (bound,), why = error_bound(net, x)
    assert why == ""
    assert torch.equal(bound, RunningError(net, x)(x)[0][1])


def test_the_order_of_summation_does_not_matter() -> None:
    """The bound of a sum covers the sum of its terms in any order, here the worst of many."""
    torch.manual_seed(3)
    weight, x = torch.randn(1, 500), torch.randn(1, 500)
    layer = nn.Linear(500, 1, bias=False)
    layer.weight.data = weight
    ((_, bound),) = RunningError(layer, x)(x)
    exact = (weight.double() * x.double()).sum()
    terms = (weight * x).flatten()
    for seed in range(50):
        order = torch.randperm(500, generator=torch.Generator().manual_seed(seed))
        total = terms[order].cumsum(0)[-1]
        assert abs(total.double() - exact) <= bound.item()


def test_a_wrong_bound_would_be_seen() -> None:
    """In a chain that amplifies, a bound that ignored earlier errors would be broken."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    nn.init.constant_(net[1].weight, 100.0)
    x = torch.randn(20, 50)
    error, bound = held(net, x)
    last_alone = RunningError(nn.Sequential(net[1].float()), x)(net[0].float()(x).detach())[0][1]
    assert error <= bound
    assert float(last_alone.max()) < bound


def test_float64_bounds_from_the_same_export() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    x = torch.randn(2, 4)
    walker = RunningError(net, x)
    single, double = walker(x)[0][1], walker(x.double())[0][1]
    assert double.dtype == torch.float64
    assert bool((double < 2.0**-25 * single.double()).all())


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda x: torch.special.erfcx(x), "erfcx"),
        (lambda x: x / (1 + x * x), "div"),
        (lambda x: x.sort(-1).values, "sort"),
    ],
)
def test_what_has_no_rule_is_named(fn: object, name: str) -> None:
    bounds, why = error_bound(Call(fn), torch.randn(2, 3))
    assert bounds == []
    assert name in why


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda x: x.softmax(1, dtype=torch.float32), "softmax"),
        (lambda x: x.mean(1, dtype=torch.float32), "mean"),
        (lambda x: x.sum(1, dtype=torch.float32), "sum"),
    ],
)
def test_what_rounds_to_a_shorter_type_inside_has_no_bound(fn: object, name: str) -> None:
    """In float32 it has one; in float64 the result is rounded to float32, of which the rules know nothing."""
    x = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    walker = RunningError(Call(fn), x)
    ((value, bound),) = walker(x)
    assert bool(((value.double() - fn(x.double()).double()).abs() <= bound.double() + 2.0**-24).all())  # type: ignore[operator]
    with pytest.raises(NoRuleError, match=rf"aten\.{name}\.\w+ in torch\.float32"):
        walker(x.double())


def test_positions_of_maxima_have_no_bound() -> None:
    def used(x: Tensor) -> Tensor:
        largest, positions = F.max_pool2d(x, 2, return_indices=True)
        return largest + positions.to(x.dtype)

    def returned(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(x, 2, return_indices=True)  # type: ignore[return-value]

    def unused(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, return_indices=True)[0]

    x = torch.randn(1, 1, 4, 4)
    bounds, why = error_bound(Call(used), x)
    assert bounds == []
    assert why.endswith(" of a result that has no bound, such as the positions of maxima")
    assert error_bound(Call(returned), x) == (
        [], "an output that has no bound, such as the positions of maxima"
    )  # fmt: skip
    (bound,), why = error_bound(Call(unused), x)
    assert (why, bound.shape) == ("", (1, 1, 2, 2))


def test_half_precision_and_constants_are_refused() -> None:
    with pytest.raises(NoRuleError, match="float16"):
        RunningError(nn.Linear(2, 2).half(), torch.ones(1, 2).half())
    with pytest.raises(NoRuleError, match="does not depend"):
        RunningError(Call(lambda x: torch.ones(2)), torch.ones(2))(torch.ones(2))


def test_a_network_that_cannot_be_exported_is_refused_with_the_reason() -> None:
    def by_value(x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x

    bounds, why = error_bound(Call(by_value), torch.randn(2, 3))
    assert bounds == []
    assert why.startswith("the network cannot be exported (")
    assert "\n" not in why


def test_a_bound_that_overflows_is_refused() -> None:
    """In a deep chain that amplifies, an infinite bound would pass every comparison."""
    layers = [nn.Linear(64, 64, bias=False) for _ in range(12)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1e4)
        with torch.no_grad():
            layer.weight[:, ::2] *= -1
    bounds, why = error_bound(nn.Sequential(*layers), torch.ones(1, 64))
    assert bounds == []
    assert why == "a bound that overflows: errors grow too much along the network"


class Several(nn.Module):
    """Buffers of both kinds, a constant in the code, sizes, slices of a split, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([2.0, -3.0, 0.5]))
        self.register_buffer("shift", torch.tensor([1.0, 4.0, -2.0]), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (x * self.scale + self.shift + torch.tensor([0.1, 0.2, 0.3])).split([1, 2], dim=1)
        return first + torch.zeros_like(first), second / x.shape[1]


def test_constants_and_several_outputs() -> None:
    net, x = Several(), torch.randn(4, 3)
    (first, first_bound), (second, second_bound) = RunningError(net, x)(x)
    exact = x.double() * net.scale.double() + net.shift.double() + torch.tensor([0.1, 0.2, 0.3]).double()
    assert first.shape == first_bound.shape == (4, 1)
    for value, bound, y in ((first, first_bound, exact[:, :1]), (second, second_bound, exact[:, 1:] / 3)):
        assert bool(((value.double() - y).abs() <= bound.double()).all())
        assert 0 < float(bound.max()) < 1e-5


def test_casts_to_the_dtype_of_the_export_are_followed_in_float64() -> None:
    """torch.export writes checks of the traced dtype into the graph; the analysis runs in another one too."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0.5).contiguous().to(x.dtype)

    x = torch.randn(2, 3)
    ((value, _),) = RunningError(Halves(), x)(x.double())
    assert value.dtype == torch.float64
    assert torch.equal(value, x.double() * 0.5)


def test_a_change_in_place_whose_result_nobody_reads_is_followed() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 3
            y.mul_(0.5)
            return y

    x = torch.tensor([[-1.0, 0.7]])
    ((value, bound),) = RunningError(InPlace(), x)(x)
    assert torch.equal(value, x * 3 * 0.5)
    assert 0 < float(bound.max()) < 1e-6
