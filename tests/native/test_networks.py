"""Compiled networks against float64: the kernels for images, fused steps, in-place operators, and refusals."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.native import UnsupportedError, compile_network
from onebyone.native.planner import Planner
from onebyone.pytorch.files.exporting import quiet
from tests.native.build import U32, build, error, kinds, needs_compiler, traced

pytestmark = needs_compiler


@settings(max_examples=60)
@given(data=st.data())
def test_convolutions_of_every_geometry(data: st.DataObject) -> None:
    """Few channels, pointwise, strided, dilated, padded, Winograd, depthwise; odd channels and sizes."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**31)))
    deep = draw(st.booleans())
    c = draw(st.sampled_from([16, 24, 40])) if deep else draw(st.sampled_from([1, 3, 5, 17]))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    settings_: dict[str, Any] = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "bias": draw(st.booleans()),
    }
    first = nn.Conv2d(3, c, 1) if deep else nn.Identity()
    if deep and draw(st.booleans()):
        k, settings_["groups"] = c, c
    else:
        k = draw(st.sampled_from([1, 7, 16, 33, 48]))
    size = draw(st.tuples(st.integers(10, 23), st.integers(10, 23)))
    network = nn.Sequential(first, nn.Conv2d(c, k, kernel, **settings_))
    x = torch.randn(draw(st.integers(1, 2)), 3 if deep else c, *size)
    taps = kernel[0] * kernel[1] * c
    assert error(network, x, draw(st.integers(1, 3))) < 8 * (
        taps + 40
    )  # the bound γ for so many roundings, of sums of size 1


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, lambda: nn.Hardtanh(0, 6)],
)
def test_activations(activation: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 1), activation(), nn.AdaptiveAvgPool2d(9), activation())
    assert error(network, 4 * torch.randn(2, 3, 9, 9)) < 200


@pytest.mark.parametrize(("function", "kind"), [(torch.sigmoid, nn.Sigmoid), (F.silu, nn.SiLU)])
def test_the_exponential_of_large_arguments(
    function: Callable[[Tensor], Tensor], kind: type[nn.Module]
) -> None:
    x = torch.tensor(
        [-200.0, -104.0, -90.0, -60.0, -20.0, -3.0, -1e-4, 0.0, 1e-4, 3.0, 20.0, 60.0, 100.0, 200.0]
    )
    x = torch.cat([x, torch.linspace(-30, 30, 1010)]).reshape(1, 1, 32, 32)
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), kind())
    nn.init.ones_(network[0].weight)  # type: ignore[arg-type]
    got, exact = build(network, x)(x).double(), function(x.double())
    # the kernel divides by e⁸⁸ at most: smaller results are as large as that quotient
    allowed = 8 * U32 * exact.abs() + (1 + 8 * U32) * math.exp(-88) * x.abs().clamp_min(1)
    assert bool(((got - exact).abs() <= allowed).all())


def test_activations_of_infinities_and_nan() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0]).reshape(1, 1, 2, 2)
    for activation in (nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Sigmoid()):
        network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), activation)
        nn.init.ones_(network[0].weight)  # type: ignore[arg-type]
        got, own = build(network, x)(x), network(x)
        assert torch.equal(got.isnan(), own.isnan())
        assert torch.equal(got.isinf(), own.isinf())
        assert bool((got - own)[own.isfinite()].abs().max() < 1e-6)


def test_an_activation_between_flatten_and_linear() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(), nn.ReLU(), nn.Linear(1024, 2))
    x = torch.randn(2, 3, 8, 8)
    assert len(kinds(network, x)) == 3
    assert error(network, x) < 200


class Block(nn.Module):
    """An inverted residual with squeeze-and-excitation, a shortcut, pools, a head over a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.Hardswish(inplace=True)
        )
        self.expand = nn.Sequential(
            nn.Conv2d(24, 48, 1, bias=False), nn.BatchNorm2d(48), nn.SiLU(inplace=True)
        )
        self.depth = nn.Sequential(
            nn.Conv2d(48, 48, 5, 1, 2, groups=48, bias=False), nn.BatchNorm2d(48), nn.ReLU()
        )
        self.squeeze, self.excite = nn.Conv2d(48, 7, 1), nn.Conv2d(7, 48, 1)
        self.project = nn.Sequential(nn.Conv2d(48, 24, 1, bias=False), nn.BatchNorm2d(24))
        self.tiles = nn.Sequential(
            nn.Conv2d(24, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.shortcut = nn.Conv2d(32, 32, 1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(), nn.Linear(32 * 4 * 4, 20), nn.ReLU(), nn.Linear(20, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to (N, 5)."""
        x = self.stem(x)
        y = self.depth(self.expand(x))
        scale = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(scale * y)
        x = self.pool(self.tiles(x))
        y = self.tiles[1](x)
        y += self.shortcut(x)
        out: Tensor = self.head(F.relu(y) * y.mean((2, 3), keepdim=True))
        return out


@pytest.mark.parametrize("samples", [1, 3])
def test_a_network_of_all_image_steps(samples: int) -> None:
    torch.manual_seed(0)
    network = Block()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.running_mean, 0.0, 0.2)  # type: ignore[arg-type]
    x = torch.randn(samples, 3, 32, 32)
    names = kinds(network, x)
    assert names.count("WINOGRAD") == 1  # the other 3×3 has too few positions
    assert names.count("MAX_POOL") == 1  # the other is fused into it
    assert names.count("INPUT") == 1
    assert error(network, x) < 2000
    call = build(network, x)
    assert torch.equal(call(x), call(x))
    # another number of threads sums in another order
    assert error(network, x, threads=1) < 2000


_FEWER = """
import torch
from tests.native.build import error
from tests.native.test_networks import Block
torch.manual_seed(0)
print(error(Block(), torch.randn(2, 3, 32, 32), threads=2))
"""


def test_fewer_threads_than_requested() -> None:
    """OpenMP may start fewer threads; these do all of the work."""
    env = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _FEWER], env=env, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2000


def test_a_shortcut_is_an_addend_of_the_product() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return F.relu(self.b(x) + self.c(x)) + x

    torch.manual_seed(0)
    network, x = Residual(), torch.randn(1, 3, 8, 8)
    assert kinds(network, x) == ["INPUT", "CONVOLUTION", "LINEAR", "LINEAR", "ELEMENTWISE"]
    assert error(network, x) < 200


class Twice(nn.Module):
    """Reads a value again after it was changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 16, H, W)."""
        x = self.a(x)
        y = F.relu_(x)
        return self.b(y) + x


class Mixed(nn.Module):
    """Numbers of each channel, with and without the axes of the image: PyTorch broadcasts them."""

    def __init__(self, multiply: bool) -> None:
        super().__init__()
        self.a, self.multiply = nn.Conv2d(3, 16, 1), multiply

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 16, N, 16)."""
        x = self.a(x)
        left, right = x.mean((2, 3), keepdim=True), x.mean((2, 3))
        return left * right if self.multiply else left + right


@pytest.mark.parametrize("multiply", [True, False])
def test_operands_that_both_broadcast_are_refused(multiply: bool) -> None:
    with pytest.raises(UnsupportedError, match=r"a (sum|product) of"):
        build(Mixed(multiply), torch.randn(2, 3, 8, 8))


def test_a_value_changed_in_place_is_read_as_it_was_changed() -> None:
    torch.manual_seed(0)
    assert error(Twice(), torch.randn(1, 3, 8, 8)) < 200


def test_reading_a_value_as_it_was_before_a_change_in_place_is_refused() -> None:
    module = traced(Twice(), torch.randn(1, 3, 8, 8))
    nodes = {n.name: n for n in module.graph.nodes}
    nodes["add"].replace_input_with(
        nodes["relu_"], nodes["conv2d"]
    )  # torch.export does not do this, but another graph may
    with pytest.raises(UnsupportedError, match="changes a value that is read again"):
        Planner(module).plan(module.graph)


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "a softmax": (
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), nn.Softmax(-1)),
        (1, 3, 8, 8),
        "aten.softmax.int",
    ),
    "groups": (
        nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2)),
        (1, 4, 8, 8),
        "3×3 convolution in 2 groups",
    ),
    "ceil_mode": (
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.MaxPool2d(2, ceil_mode=True)),
        (1, 3, 9, 9),
        "ceil_mode",
    ),
    "narrow maps": (
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(2)),
        (1, 3, 8, 8),
        "narrower than a vector",
    ),
    "padding that does not count": (
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.AvgPool2d(3, padding=1, count_include_pad=False)),
        (1, 3, 8, 8),
        "padding that does not count",
    ),
    "a very large average": (
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.AvgPool2d(65, 1)),
        (1, 3, 66, 66),
        "65×65",
    ),
    "uneven bins": (
        nn.Sequential(nn.Conv2d(3, 16, 1), nn.AdaptiveAvgPool2d(3)),
        (1, 3, 8, 8),
        "adaptive pool",
    ),
    "other operators": (nn.Sequential(nn.Conv2d(3, 16, 1), nn.Tanh()), (1, 3, 8, 8), "aten.tanh.default"),
    "a vector": (nn.Linear(3, 4), (2, 3), r"expected a float32 input of shape \(N, C, H, W\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_networks_are_refused_with_the_reason(name: str) -> None:
    network, shape, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason):
        build(network, torch.randn(*shape))


class Doubled(nn.Module):
    """Two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Their sum."""
        return x + y


def normed(outputs: int = 16) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    torch.manual_seed(0)
    return nn.Conv2d(3, outputs, 3, padding=1), nn.BatchNorm2d(outputs)


def test_folded_weights_beyond_the_range_of_float32_are_the_reason() -> None:
    convolution, norm = normed()
    with torch.no_grad():
        convolution.weight *= 1e30
        norm.weight[3] = 1e10  # 10⁴⁰ when folded, although the network itself computes finite numbers
        x = 1e-25 * torch.randn(1, 3, 8, 8)
        assert bool(nn.Sequential(convolution, norm).eval()(x).isfinite().all())
    with pytest.raises(UnsupportedError, match="the folded weights leave the range of float32"):
        build(nn.Sequential(convolution, norm), x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda c, n: nn.Sequential(c, nn.ReLU(), n), "it does not follow a convolution"),
        (lambda c, n: Branched(c, n), "another operator reads the convolution's result too"),
        (
            lambda c, n: nn.Sequential(c, nn.BatchNorm2d(16, track_running_stats=False)),
            "the statistics of the batch",
        ),
    ],
)
def test_batch_norms_that_cannot_be_folded_are_the_reason(
    make: Callable[[nn.Module, nn.Module], nn.Module], reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        build(make(*normed()), torch.randn(1, 3, 8, 8))


class Branched(nn.Module):
    """A convolution that two operators read."""

    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 16, H, W)."""
        y = self.convolution(x)
        out: Tensor = self.norm(y) + y
        return out


def test_two_inputs_are_refused() -> None:
    x = torch.randn(1, 3, 8, 8)
    with quiet():
        exported = torch.export.export(Doubled(), (x, x))
    with pytest.raises(UnsupportedError, match="more than one input"):
        compile_network(exported)


def test_inputs_of_other_shapes_and_dtypes_are_refused() -> None:
    call = build(nn.Conv2d(3, 16, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(BadInput, match=r"image: is \(1, 3, 9, 9\)"):
        call(torch.randn(1, 3, 9, 9))
    with pytest.raises(BadInput, match="float64"):
        call(torch.randn(1, 3, 8, 8).double())


def test_its_steps_can_be_timed() -> None:
    times = build(Block(), torch.randn(1, 3, 32, 32)).times(torch.randn(1, 3, 32, 32))
    assert set(times) == {"convolution", "depthwise", "winograd", "max_pool", "mean", "elementwise", "linear"}
    assert all(ms >= 0 for ms in times.values())
