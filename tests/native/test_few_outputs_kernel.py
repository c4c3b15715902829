"""Convolutions with few outputs: the kernel whose vectors run along the numbers that an output reads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from onebyone.laws.bounds import gamma
from onebyone.native.kernels.fusion import _padded
from onebyone.native.kernels.program import kernel
from onebyone.native.maps import Map
from onebyone.native.steps import Activation, ConvolutionStep, GatherStep, SlidingWindow, Step
from tests.native.build import U32, error, input_step, needs_compiler, run, steps_of

pytestmark = needs_compiler


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: SlidingWindow,
    *,
    whole_rows: bool = False,
    addend: Tensor | None = None,
    activation: Activation = Activation.NONE,
    threads: int = 2,
) -> Tensor:
    """The output (N, O, H, W) of one step that uses the kernel, whatever its cost. An addend is read with the input."""
    n, c, high, wide = x.shape
    size = F.conv2d(x[:1, :1], weight[:1, :1], None, window.stride, window.padding, window.dilation).shape[2:]
    shape = (n, len(weight), *map(int, size))
    numbers = x.permute(0, 2, 3, 1).reshape(-1)
    if addend is not None:
        numbers = torch.cat([addend.permute(0, 2, 3, 1).reshape(-1), numbers])
    first, memory = input_step(numbers)
    source: Map = Map((n, c, high, wide), base=memory)
    added: Map | None = None
    before: list[Step] = [first]
    if addend is not None:
        source, added = Map((n, c, high, wide)), Map(shape, base=memory)
        index = torch.tensor([addend.numel()])
        before.append(GatherStep(source=memory, output=source, index=index, length=x.numel()))
    output = Map(shape)
    step = ConvolutionStep(
        input=source,
        output=output,
        weight=weight.permute(0, 2, 3, 1).reshape(len(weight), -1).contiguous(),
        bias=_padded(bias, int(kernel().onebyone_panel())),
        window=window,
        whole_rows=whole_rows,
        few_outputs=True,
        addend=added,
        activation=activation,
    )
    return run(numbers, [*before, step], output, threads).view(shape)


sizes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(7, 15), st.integers(7, 15))
windows = st.builds(
    SlidingWindow,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)


@settings(max_examples=60)
@given(
    size=sizes, window=windows, outputs=st.integers(1, 13), seed=st.integers(0, 2**31), bias=st.booleans(),
    add=st.booleans(), relu=st.booleans(), threads=st.integers(1, 3),
)  # fmt: skip
def test_integers_are_exact(
    size: tuple[int, int, int, int], window: SlidingWindow, outputs: int, seed: int, bias: bool, add: bool,
    relu: bool, threads: int,
) -> None:  # fmt: skip
    """Sums and products of small integers are exact in float32, however they are ordered: any wrong term shows."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, size, generator=g).float()
    weight = torch.randint(-4, 5, (outputs, size[1], *window.kernel), generator=g).float()
    offset = torch.randint(-9, 10, (outputs,), generator=g).float() if bias else None
    exact = F.conv2d(x, weight, offset, window.stride, window.padding, window.dilation)
    addend = torch.randint(-9, 10, exact.shape, generator=g).float() if add else None
    exact = exact if addend is None else exact + addend
    activation = Activation.RELU if relu else Activation.NONE
    got = convolved(x, weight, offset, window, addend=addend, activation=activation, threads=threads)
    assert torch.equal(got, exact.relu() if relu else exact)


@pytest.mark.parametrize("channels", [1, 3, 16, 21])
@pytest.mark.parametrize("kernel_size", [(11, 11), (3, 2), (1, 9)])
def test_rows_of_the_kernel_as_single_runs(channels: int, kernel_size: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(-4, 5, (2, channels, 17, 19), generator=g).float()
    weight = torch.randint(-4, 5, (5, channels, *kernel_size), generator=g).float()
    for stride in (1, 2):
        window = SlidingWindow(kernel_size, (stride, stride))
        got = convolved(x, weight, None, window, whole_rows=True, threads=2)
        assert torch.equal(got, F.conv2d(x, weight, stride=stride))


@settings(max_examples=30)
@given(size=sizes, window=windows, outputs=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_real_numbers_stay_within_the_bound_and_a_wrong_weight_does_not(
    size: tuple[int, int, int, int], window: SlidingWindow, outputs: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=g)
    weight, bias = (
        torch.randn(outputs, size[1], *window.kernel, generator=g),
        torch.randn(outputs, generator=g),
    )
    settings_ = (window.stride, window.padding, window.dilation)
    got = convolved(x, weight, bias, window).double()
    exact = F.conv2d(x.double(), weight.double(), bias.double(), *settings_)
    reach = F.conv2d(x.double().abs(), weight.double().abs(), bias.double().abs(), *settings_)
    allowed = gamma(weight[0].numel() + 1, U32) * reach
    assert bool(((got - exact).abs() <= allowed).all())
    wrong = weight.double()
    wrong[0, 0, 0, 0] += 8.0
    exact = F.conv2d(x.double(), wrong, bias.double(), *settings_)
    if window.padding == (0, 0):  # elsewhere the weight may meet zeros only
        assert bool(((got - exact).abs() > allowed).any())


def test_numbers_that_are_not_finite_stay_at_their_windows() -> None:
    x, weight = torch.ones(1, 5, 9, 9), torch.ones(3, 5, 3, 3)
    x[0, 4, 0, 8] = float("inf")
    x[0, 0, 8, 0] = float("nan")
    got = convolved(x, weight, None, SlidingWindow((3, 3)))
    expected = torch.full((1, 3, 7, 7), 45.0)
    expected[0, :, 0, 6], expected[0, :, 6, 0] = float("inf"), float("nan")
    assert torch.equal(got.nan_to_num(7.0, 8.0), expected.nan_to_num(7.0, 8.0))


@pytest.mark.parametrize(("outputs", "few"), [(1, True), (4, True), (9, True), (16, False), (40, False)])
def test_heads_with_few_outputs_use_it(outputs: int, few: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, outputs, 7), nn.Sigmoid())
    x = torch.randn(1, 3, 20, 24)
    (head,) = (s for s in steps_of(network, x) if s.output.shape[1:] == (outputs, 12, 16))
    assert getattr(head, "few_outputs", False) == few
    assert error(network, x) < 2 * (3 * 9 + 32 * 49 + 2)
