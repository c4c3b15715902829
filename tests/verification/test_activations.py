"""Recorded inputs of layers, and the first module whose output differs, on small networks with known values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from onebyone.verification import activations
from onebyone.verification.activations import first_difference, record_inputs, sample


class InPlace(nn.Module):
    """Changes the first layer's input after the layer read it, and calls a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        x += 100
        return self.b(input=self.b(y))


def test_the_first_input_is_copied_before_it_changes() -> None:
    net, x = InPlace(), torch.ones(3, 2)
    with torch.no_grad():
        inputs = record_inputs(lambda: net(x), net, {"a": net.a, "b": net.b, "missing": nn.Linear(2, 2)})
        first = net.a(torch.ones(3, 2))
    assert set(inputs) == {"a", "b"}
    assert torch.equal(inputs["a"], torch.ones(3, 2))
    assert torch.equal(inputs["b"], first)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_hooks_are_removed_after_an_error() -> None:
    net = InPlace()
    with pytest.raises(RuntimeError):
        record_inputs(lambda: net(torch.ones(3, 5)), net, {"a": net.a})
    assert not any(m._forward_pre_hooks for m in net.modules())


class Product(nn.Module):
    """Multiplies with a layer's weight without calling the layer."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.layer, self.other, self.order = nn.Linear(3, 2), nn.Linear(3, 2), order

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "transposed first":
            _ = self.layer.weight @ torch.ones(3, 7)  # not an input of the layer: it has no 3 features
        return x @ self.layer.weight.t()


@pytest.mark.parametrize("order", ["", "transposed first"])
def test_a_layer_that_is_not_called_is_recognised_by_its_weight(order: str) -> None:
    net, x = Product(order), torch.randn(4, 3)
    inputs = record_inputs(lambda: net(x), net, {"layer": net.layer, "other": net.other})
    if order:
        # the first value does not fit the layer, and later ones are not kept: no input, instead of a wrong one
        assert inputs == {}
    else:
        assert set(inputs) == {"layer"}
        assert torch.equal(inputs["layer"], x)


def test_products_of_weights_are_no_inputs() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.a.weight @ self.b.weight).t()

    net = Fused()
    assert record_inputs(lambda: net(torch.ones(1, 2)), net, {"a": net.a, "b": net.b}) == {}


@pytest.mark.parametrize(
    ("layer", "shape", "sampled"),
    [
        (nn.Linear(4, 3), (1000, 4), (128, 4)),
        (nn.Linear(4, 3), (50, 4), (50, 4)),
        (nn.Linear(4, 3), (20, 30, 4), (20, 6, 4)),
        (nn.Conv2d(4, 3, 1), (2, 4, 40, 40), (2, 4, 2, 32)),
        # a kernel above 1 needs neighbours: samples alone are left out
        (nn.Conv2d(4, 3, 3), (200, 4, 9, 9), (128, 4, 9, 9)),
    ],
    ids=str,
)
def test_samples_keep_features_and_spread_over_positions(
    layer: nn.Module, shape: tuple[int, ...], sampled: tuple[int, ...]
) -> None:
    x = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    taken = sample(x, layer)
    positions = taken.numel() // 4
    if not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)):
        assert positions <= activations.POSITIONS
        assert positions > activations.POSITIONS // 3 or taken.shape == x.shape
    assert taken.shape == sampled
    # the first and the last position are among them, with all of their features
    assert taken.flatten()[0] == x.flatten()[0]
    assert taken.flatten()[-1] == x.flatten()[-1]
    assert taken.data_ptr() != x.data_ptr()


def test_few_positions_of_large_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "PRODUCTS", 40)
    assert sample(torch.zeros(100, 4), nn.Linear(4, 2)).shape == (5, 4)
    assert sample(torch.zeros(100, 4), nn.Linear(4, 20)).shape == (4, 4)  # at least four


class Chain(nn.Module):
    def __init__(self, scale: float = 1.0, calls: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.second = nn.Linear(2, 2)
        self.scale, self.calls = scale, calls
        torch.manual_seed(0)
        for p in self.parameters():
            nn.init.uniform_(p, 0.5, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(2):
            x = self.second(x * (self.scale if number == 1 else 1.0))
        return self.second(self.first(x))


def differing(change: Callable[[Chain], None], limit: float = 1e-6) -> str | None:
    a, b, x = Chain(), Chain(), torch.ones(1, 2)
    change(b)
    with torch.no_grad():
        return first_difference(lambda: a(x), lambda: b(x), a, b, lambda t: limit)


def test_the_innermost_first_module_that_differs() -> None:
    def of(module: str) -> Callable[[Chain], None]:
        return lambda net: net.get_submodule(module).bias.data.add_(0.5)  # type: ignore[union-attr, operator, return-value]

    assert differing(lambda net: None) is None
    assert differing(of("first.0")) == "first.0"
    assert differing(of("second")) == "second"
    assert differing(of("first.0"), limit=10.0) is None
    assert differing(of("first.0"), limit=0.4) == "first.0"


def test_calls_of_one_module_are_compared_one_by_one() -> None:
    def second_call_only(net: Chain) -> None:
        net.scale = 1.5

    assert differing(second_call_only) == "second"


def test_outputs_of_another_shape_or_number_differ() -> None:
    class Longer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).repeat(1, 1, 1)

    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> object:
            y = super().forward(x)
            return y, y

    x = torch.ones(1, 2)
    for kind in (Longer, Twice):
        a, b = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(kind(2, 2))
        b.load_state_dict(a.state_dict())
        assert first_difference(lambda a=a: a(x), lambda b=b: b(x), a, b, lambda t: 1e9) == "0"
    nan = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(nan[0].bias, float("nan"))
    a = nn.Sequential(nn.Linear(2, 2))
    assert first_difference(lambda: a(x), lambda: nan(x), a, nan, lambda t: 1e9) == "0"


def test_an_operator_on_a_weight_alone_reads_no_input_of_its_layer() -> None:
    """The layer's weight is not the network's own here, so that only the number of tensors tells."""
    layer = nn.Linear(3, 2)
    uses = activations._WeightUses(nn.Linear(1, 1), {"fc": layer})
    uses.keep(torch.ops.aten.t.default, (layer.weight,), {})
    assert uses.inputs == {}
    x = torch.ones(4, 3)
    uses.keep(torch.ops.aten.linear.default, (x, layer.weight), {})
    assert torch.equal(uses.inputs["fc"], x)
