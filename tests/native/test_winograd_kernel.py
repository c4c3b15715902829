"""The Winograd convolution kernel compared with float64 and with its error bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.laws.winograd import F4X3
from onebyone.native.kernels.winograd import ROUNDINGS, WinogradConvolution, packed, reference_conv2d, why_not
from onebyone.native.maps import Map
from onebyone.native.steps import GatherStep, WinogradStep
from tests.native.build import U32, build, input_step, needs_compiler, run, steps_of

pytestmark = needs_compiler


def kernel(
    x: Tensor, w: Tensor, b: Tensor | None, padding: Any = (1, 1), relu: bool = False, pool: bool = False
) -> Tensor:
    op: Any = torch.ops.onebyone.winograd_conv2d
    y: Tensor = op(x, packed(w), b, len(w), list(padding), relu, pool)
    return y


def bound(x: Tensor, w: Tensor, padding: tuple[int, int]) -> Tensor:
    """The a-priori bound for every output, tile by tile."""
    n, c, high, wide = x.shape
    out = [s + 2 * p - 2 for s, p in zip((high, wide), padding, strict=True)]
    down, across = (-(-s // 4) for s in out)
    big = np.zeros((n, c, 4 * down + 2, 4 * across + 2))
    big[:, :, padding[0] : padding[0] + high, padding[1] : padding[1] + wide] = x.double().numpy()[
        :, :, : big.shape[2] - padding[0], : big.shape[3] - padding[1]
    ]
    limit = np.zeros((n, len(w), 4 * down, 4 * across))
    for i in range(down):
        for j in range(across):
            tiles = big[:, :, 4 * i : 4 * i + 6, 4 * j : 4 * j + 6]
            limit[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = F4X3.reach(tiles, w.double().numpy())
    return torch.from_numpy(F4X3.gamma(c, U32, ROUNDINGS) * limit[:, :, : out[0], : out[1]])


@settings(max_examples=40)
@given(
    n=st.integers(1, 2), size=st.tuples(st.integers(3, 18), st.integers(3, 18)), c=st.sampled_from([16, 48]),
    k=st.sampled_from([16, 32, 80]), padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 2**31), channels_last=st.booleans(),
)  # fmt: skip
def test_the_kernel_stays_within_the_bound(
    n: int, size: tuple[int, int], c: int, k: int, padding: tuple[int, int], seed: int, channels_last: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, *size, generator=g)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    w = torch.randn(k, c, 3, 3, generator=g)
    y = kernel(x, w, None, padding)
    exact = F.conv2d(x.double(), w.double(), padding=padding)
    assert bool(((y - exact).abs() <= bound(x, w, padding)).all())
    assert torch.allclose(
        reference_conv2d(x.double(), w, None, k, list(padding), False, False), exact, atol=1e-10
    )


def test_a_wrong_weight_is_beyond_the_bound() -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(1, 16, 9, 9, generator=g), torch.randn(16, 16, 3, 3, generator=g)
    wrong = w.clone()
    wrong[3, 5, 1, 2] += 1e-3
    exact = F.conv2d(x.double(), w.double(), padding=1)
    assert bool(((kernel(x, wrong, None) - exact).abs() > bound(x, w, (1, 1))).any())


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (14, 21), (60, 59)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_relu_and_max_pool_are_fused(size: tuple[int, int], threads: int) -> None:
    g = torch.Generator().manual_seed(1)
    x, w, b = (
        torch.randn(2, 32, *size, generator=g),
        torch.randn(48, 32, 3, 3, generator=g),
        torch.randn(48, generator=g),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain, full = kernel(x, w, b), kernel(x, w, b, relu=True, pool=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(full, F.max_pool2d(F.relu(plain), 2))
    assert torch.equal(plain, kernel(x, w, b))  # the same bits on any number of threads
    assert plain.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "shape", [(1, 64, 112, 112, 64), (1, 128, 40, 40, 256), (3, 256, 14, 14, 256), (1, 16, 30, 4, 16)]
)
def test_every_division_into_blocks(shape: tuple[int, ...]) -> None:
    """A block for each thread, blocks that threads share, one block for all tiles."""
    n, c, high, wide, k = shape
    g = torch.Generator().manual_seed(2)
    x, w = torch.randn(n, c, high, wide, generator=g), torch.randn(k, c, 3, 3, generator=g) / (9 * c) ** 0.5
    exact = F.conv2d(x.double(), w.double(), padding=1)
    assert (
        float((kernel(x, w, None) - exact).abs().max()) < 2e-5
    )  # outputs are of size 1; 18 + C roundings of 6e-8


class Shortcut(nn.Module):
    """A 3×3 convolution at stride 1 to which its input is added."""

    def __init__(self, channels: int, relu: bool, pool: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 3, padding=1)
        self.relu, self.pool = relu, pool

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, H, W), or half of H and W."""
        x = self.first(x)
        y = self.second(x) + x
        y = y.relu() if self.relu else y
        return F.max_pool2d(y, 2) if self.pool else y


@pytest.mark.parametrize("size", [(8, 8), (13, 18), (61, 58)])
@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (False, True), (True, True)])
def test_an_addend_is_fused(size: tuple[int, int], relu: bool, pool: bool) -> None:
    torch.manual_seed(0)
    network, x = Shortcut(32, relu, pool).eval(), torch.randn(2, 3, *size)
    steps = steps_of(network, x)
    assert [s.kind.name for s in steps] == ["INPUT", "CONVOLUTION", "WINOGRAD"]
    (added,) = (s.addend for s in steps if isinstance(s, WinogradStep))
    assert added is not None
    with torch.no_grad():
        inner = F.conv2d(x.double(), network.first.weight.double(), network.first.bias.double())
        w, b = network.second.weight, network.second.bias
        exact = F.conv2d(inner, w.double(), b.double(), padding=1) + inner
        exact = exact.relu() if relu else exact
        exact = F.max_pool2d(exact, 2) if pool else exact
        # the rounding of the first convolution is amplified by the second; its sums are of four numbers
        rounding = 4 * U32 * F.conv2d(x.double().abs(), network.first.weight.double().abs())
        rounding += 4 * U32 * network.first.bias.double().abs()[:, None, None]
        allowed = (
            bound(inner + rounding, w, (1, 1)) + F.conv2d(rounding, w.double().abs(), padding=1) + rounding
        )
        allowed += (
            2 * U32 * (F.conv2d(inner, w.double(), b.double(), padding=1).abs() + inner.abs() + allowed)
        )
        allowed = F.max_pool2d(allowed, 2) if pool else allowed
        error = (build(network, x)(x) - exact).abs()
        assert bool((error <= allowed).all())
        network.first.bias += 0.01  # a wrong addend exceeds the bound
        assert bool(((build(network, x)(x) - exact).abs() > allowed).any())


def test_an_addend_that_is_not_finite_changes_only_its_own_position() -> None:
    g = torch.Generator().manual_seed(3)
    x, addend = (torch.randint(-4, 5, (1, 16, 9, 9), generator=g).float() for _ in range(2))
    w = torch.randint(-4, 5, (16, 16, 3, 3), generator=g).float()
    y = kernel(x, w, None)
    addend[0, 3, 4, 5], addend[0, 7, 0, 0] = float("inf"), float("nan")
    x[0, 2, 8, 8] = float("inf")  # the windows of four outputs hold it, and their tile is computed again
    numbers = torch.cat([part.permute(0, 2, 3, 1).reshape(-1) for part in (addend, x)])
    first, memory = input_step(numbers)
    source, output = Map((1, 16, 9, 9)), Map((1, 16, 9, 9))
    copied = GatherStep(source=memory, output=source, index=torch.tensor([x.numel()]), length=x.numel())
    step = WinogradStep(
        input=source, output=output, weight=packed(w), padding=(1, 1), addend=Map((1, 16, 9, 9), base=memory)
    )
    got = run(numbers, [first, copied, step], output).view(1, 16, 9, 9)
    expected = y + addend
    expected[..., 7:, 7:] = float("nan")
    finite = expected.isfinite()
    # a tile that is computed again has the sums of other numbers: its outputs are equal within the bound
    limit = bound(x.nan_to_num(posinf=0.0), w, (1, 1)) + 2 * U32 * expected.nan_to_num().abs()
    assert torch.equal(got.isfinite(), finite)
    assert bool(((got - expected).abs() <= 2 * limit)[finite].all())
    assert float(got[0, 3, 4, 5]) == float("inf")


def test_relu_and_max_pool_propagate_nan() -> None:
    x = torch.zeros(1, 16, 8, 8)
    x[0, 0, 1, 1] = float("nan")
    y = kernel(x, torch.ones(16, 16, 3, 3), None, relu=True, pool=True)
    assert bool(y[0, :, 0, 0].isnan().all())
    assert not bool(y[0, :, 2:, 2:].isnan().any())


def test_arguments_that_do_not_fit_are_refused() -> None:
    op: Any = torch.ops.onebyone.winograd_conv2d
    x, w = torch.randn(1, 16, 8, 8), packed(torch.randn(16, 16, 3, 3))
    for wrong in (
        (x[:, :8], w, None, 16, [1, 1]),
        (x, w[:20], None, 16, [1, 1]),
        (x, w, torch.zeros(8), 16, [1, 1]),
        (x.double(), w, None, 16, [1, 1]),
        (x, w, None, 160, [1, 1]),
        (x[:, :, :1], w, None, 16, [0, 0]),
        (x[0], w, None, 16, [1, 1]),
    ):
        with pytest.raises(BadInput, match="winograd_conv2d"):
            op(*wrong, False, False)
    assert op(x[:0], w, None, 16, [1, 1], False, False).shape == (0, 16, 8, 8)


@pytest.mark.parametrize(
    ("convolution", "reason"),
    [
        (nn.Conv2d(16, 16, 5), "its kernel is not 3×3"),
        (nn.Conv2d(16, 16, 3, stride=2), "strides"),
        (nn.Conv2d(16, 16, 3, groups=2), "groups"),
        (nn.Conv2d(16, 16, 3, padding="same"), "padding"),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), "padding"),
        (nn.Conv2d(3, 16, 3), "multiples of 16"),
        (nn.Conv2d(16, 16, 3, dtype=torch.float64), "float32"),
    ],
)
def test_other_convolutions_are_refused_by_name(convolution: nn.Conv2d, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        WinogradConvolution(convolution)


def test_why_not_is_none_for_a_supported_convolution() -> None:
    assert why_not(torch.zeros(32, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1) is None
