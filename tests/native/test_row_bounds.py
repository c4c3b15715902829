"""Linear layers by Strassen's algorithm: each row keeps its own error bound, whatever the other rows contain."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from onebyone.laws import scaling, strassen
from onebyone.native.steps import Activation, LinearStep
from tests.native.build import U32, build, kinds, layer, needs_compiler, steps_of
from tests.native.test_gathered_rows import Scaled

LEVELS = pytest.mark.parametrize("levels", [1, 2])
pytestmark = needs_compiler


def beyond(result: Tensor, x: Tensor, weight: Tensor, levels: int) -> list[int]:
    """The rows with an output that is further from the product in float64 than the bound of `laws.scaling`."""
    gamma = strassen.gamma(weight.shape[1], U32, levels, joined=4**levels)
    allowed = gamma * scaling.reach(x.double().numpy(), weight.double().numpy(), levels)
    error = (result.double() - x.double() @ weight.double().t()).abs().numpy()
    return sorted({int(i) for i in np.argwhere(error > allowed + 2.0**-149)[:, 0]})


def relative(result: Tensor, x: Tensor, weight: Tensor) -> float:
    """The largest relative error of a row, in the Euclidean norm."""
    exact = x.double() @ weight.double().t()
    return float(((result.double() - exact).norm(dim=1) / exact.norm(dim=1)).max())


def normal(rows: int = 196, k: int = 768, n: int = 768) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, k), torch.randn(n, k) / k**0.5


@LEVELS
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("large", [1e4, 1e6, 1e-6, 1e35])
def test_a_large_row_does_not_change_the_error_of_others(levels: int, threads: int, large: float) -> None:
    x, weight = normal()
    even = relative(layer(x, weight, None, levels, threads=threads), x, weight)
    assert even < 4.5**levels * relative(
        layer(x, weight, None, 0), x, weight
    )  # (18/4)^L: the constant of the bound
    x[5] *= large
    result = layer(x, weight, None, levels, threads=threads)
    assert beyond(result, x, weight, levels) == []
    assert relative(result, x, weight) < 2 * even  # ρ = 2, as rows are scaled
    fast = layer(x, weight, None, levels, threads=threads, fast_products=True)
    assert relative(fast, x, weight) > 1e-4  # without scaling the rows are wrong


@LEVELS
def test_large_channels_with_small_weights(levels: int) -> None:
    x, weight = normal()
    even = relative(layer(x, weight, None, levels), x, weight)
    x[:, :384] *= 1e4
    weight[:, :384] /= 1e4
    result = layer(x, weight, None, levels)
    assert beyond(result, x, weight, levels) == []
    assert relative(result, x, weight) < 4 * even  # ρ·τ = 4
    assert relative(layer(x, weight, None, levels, fast_products=True), x, weight) > 1e-3


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 130), st.integers(1, 40), st.integers(1, 60)),
    levels=st.integers(1, 2),
    seed=st.integers(0, 2**31),
    most=st.integers(0, 30),
    channels=st.booleans(),
    threads=st.integers(1, 3),
)
def test_rows_and_channels_of_any_size(
    size: tuple[int, int, int], levels: int, seed: int, most: int, channels: bool, threads: int
) -> None:
    rows, k, n = size[0], size[1] * 2**levels, size[2] * 2**levels
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, k), torch.randn(n, k)
    x *= 10.0 ** torch.randint(-most, most + 1, (rows, 1))
    x[torch.rand(rows) < 0.1] = 0
    if channels:
        by = 10.0 ** torch.randint(-6, 7, (k,))
        by[torch.rand(k) < 0.1] = torch.inf  # channels whose weights are zeros
        weight /= by
        x = torch.where(by.isinf(), x, x * by.nan_to_num(posinf=1.0) ** 0.5)
    result = layer(x, weight, None, levels, threads=threads)
    assert beyond(result, x, weight, levels) == []
    assert bool((result[(x == 0).all(1)] == 0).all())


@LEVELS
@pytest.mark.parametrize("threads", [1, 3])
def test_infinities_and_nan_stay_in_their_rows_as_in_a_direct_product(levels: int, threads: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randint(-4, 5, (37, 36)).float(), torch.randint(-4, 5, (44, 36)).float()
    bias, inf = torch.randint(-9, 10, (44,)).float(), torch.inf
    x[1] = 0
    x[3, 7] = torch.nan
    x[8, 30] = inf
    x[20, 2], x[20, 9] = inf, -inf
    x[36] = -inf
    exact = F.linear(x, weight, bias)
    assert exact.isnan().any(1).sum() == 4  # zero weights too
    assert exact.isinf().any(1).sum() >= 2
    assert torch.equal(layer(x, weight, bias, levels, threads=threads).nan_to_num(7.5), exact.nan_to_num(7.5))
    result = layer(x, weight, bias, levels, activation=Activation.RELU, threads=threads)
    assert torch.equal(result.nan_to_num(7.5), exact.relu().nan_to_num(7.5))
    square = torch.randint(-4, 5, (36, 36)).float()
    result = layer(x, square, None, levels, add=True, threads=threads)
    assert torch.equal(result.nan_to_num(7.5), (F.linear(x, square) + x).nan_to_num(7.5))


@LEVELS
def test_rows_at_the_ends_of_the_range(levels: int) -> None:
    """±3·10³⁸ overflows only where the product does, and 10⁻³⁸ keeps its digits."""
    x, weight = normal(64, 64, 64)
    x = x.sign() * 3e38
    weight /= 8 * weight.abs().max()
    x[7] *= 1e-38
    x[9] *= 1e-38
    x[9] *= 1e-38
    result = layer(x, weight, None, levels)
    assert bool(result.isfinite().all())
    assert beyond(result, x, weight, levels) == []
    assert relative(result[[0, 7]], x[[0, 7]], weight) < 1e-6
    tiny = layer(
        x.sign() * 1.2e-38, weight * 2**10, None, levels
    )  # scaled, their products keep all their digits
    assert relative(tiny, x.sign() * 1.2e-38, weight * 2**10) < 1e-6
    assert bool(layer(x.sign() * 3e38, weight.sign(), None, levels).isinf().any())


@LEVELS
@pytest.mark.parametrize("rows", [9, 33, 63, 130, 321])
@pytest.mark.parametrize("threads", [1, 2])
def test_bias_sum_and_activation_of_scaled_rows(levels: int, rows: int, threads: int) -> None:
    """Exact on integers times powers of two; rows that do not fill the parts, in several chunks per thread."""
    torch.manual_seed(rows)
    x, weight = (torch.randint(-3, 4, (n, 256)).float() for n in (rows, 256))
    bias = torch.randint(-9, 10, (256,)).float()
    x[::3] *= 2.0**16
    x[1::5] *= 2.0**-9
    for activation, apply in ((Activation.NONE, torch.clone), (Activation.RELU6, F.relu6)):
        exact = apply(F.linear(x.double(), weight.double(), bias.double()) + x.double()).float()
        result = layer(x, weight, bias, levels, add=True, activation=activation, threads=threads)
        assert torch.equal(result, exact)


def test_weights_without_a_bound_are_multiplied_directly() -> None:
    """Infinite weights would reach other outputs; very large ones overflow in sums."""
    for value in (torch.inf, torch.nan, 3e38):
        network = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 512)).requires_grad_(False)
        network[1].weight[3, 4] = value
        x = torch.randn(1, 64, 256)
        linears = [s for s in steps_of(network, x) if isinstance(s, LinearStep)]
        assert [bool(s.levels) for s in linears] == [True, False]
        result = build(network, x)(x)
        assert torch.equal(result.isfinite(), network(x).isfinite())


def test_gathered_rows_of_a_convolution() -> None:
    """A large pixel changes only the positions whose windows contain it."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 384, 16, 16)), torch.randn(2, 3, 128, 112)
    assert kinds(network, x) == ["INPUT", "LINEAR"]
    call = build(network.requires_grad_(False), x)
    before, exact = call(x), copy.deepcopy(network).double()
    for value in (1e6, torch.inf, torch.nan):
        changed = x.clone()
        changed[1, 1, 40, 50] = value
        result, right = call(changed), exact(changed.double())
        reached = torch.zeros_like(result, dtype=torch.bool)
        reached[1, :, 2, 3] = True
        assert float((result - before)[~reached].abs().max()) < 1e-5
        assert torch.equal(result.isnan(), right.isnan())
        assert torch.equal(result.isinf(), right.isinf())


def test_rows_multiplied_by_factors() -> None:
    """Squeeze-and-excitation: a sample with large numbers or NaN does not change the others."""
    torch.manual_seed(0)
    network, x = Scaled(256, 384, "pointwise"), torch.randn(3, 3, 9, 8)
    (step,) = (s for s in steps_of(network, x) if isinstance(s, LinearStep) and s.factors is not None)
    assert step.levels
    call = build(network.requires_grad_(False), x)
    before, exact = call(x), copy.deepcopy(network).double()
    for value in (1e6, torch.nan):
        changed = x.clone()
        changed[1] *= value
        result, right = call(changed), exact(changed.double())
        assert float((result - before)[[0, 2]].abs().max()) < 1e-5 * float(before.abs().max())
        assert torch.equal(result.isnan(), right.isnan())


class Mapped(nn.Module):
    """Winograd, depthwise and strided convolutions, squeeze-and-excitation, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tiles = nn.Conv2d(3, 64, 4, 4), nn.Conv2d(64, 64, 3, padding=1)
        self.deep, self.down = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 256, 2, 2)
        self.project, self.head = nn.Conv2d(256, 256, 1), nn.Linear(256, 32)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 64, 64) to (N, 32)."""
        x = self.deep(self.tiles(self.stem(x)).relu())
        x = self.down(F.max_pool2d(x, 3, 1, 1))
        out: Tensor = self.head(self.project(x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)))
        return out


class Attending(nn.Module):
    """Norms, attention of four heads and two layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(128), nn.Linear(128, 384), nn.Linear(128, 128)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 49, 128) to the same."""
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 32).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = x + self.out(y)
        return out


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)), (4, 49, 256)),
        (Mapped, (4, 3, 64, 64)),
        (Attending, (4, 49, 128)),
    ],
)
def test_samples_of_a_batch_do_not_change_each_other(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network, x = make().eval(), torch.randn(shape)
    call = build(network.requires_grad_(False), x)
    before, right = call(x), copy.deepcopy(network).double()(x.double())
    for value in (255.0, 1e6, torch.inf, torch.nan):
        changed = x.clone()
        changed[2] *= value
        others = [0, 1, 3]
        assert float((call(changed) - right)[others].abs().max()) < 4 * float((before - right).abs().max())
