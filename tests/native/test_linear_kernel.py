"""Linear layers by Strassen's algorithm: exact on integers, within the bound of `laws.strassen` on real numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebyone.laws import strassen
from onebyone.native.kernels.fusion import lower
from onebyone.native.kernels.program import Program
from onebyone.native.kernels.strassen import best_levels, packed, panel_vectors
from onebyone.native.maps import Map
from onebyone.native.steps import Activation, LinearStep
from tests.native.build import U32, input_step, layer, needs_compiler

pytestmark = needs_compiler


shapes = st.tuples(st.integers(1, 130), st.integers(1, 40), st.integers(1, 60))


@settings(max_examples=80)
@given(
    size=shapes,
    levels=st.integers(0, 2),
    seed=st.integers(0, 2**31),
    bias=st.booleans(),
    threads=st.integers(1, 3),
    fast_products=st.booleans(),
)
def test_integers_are_exact(
    size: tuple[int, int, int], levels: int, seed: int, bias: bool, threads: int, fast_products: bool
) -> None:
    """Sums and products of small integers are exact in float32, however they are ordered: any wrong term shows."""
    rows, k, n = size[0], size[1] * 2**levels, size[2] * 2**levels
    torch.manual_seed(seed)
    x, weight = (torch.randint(-4, 5, shape).float() for shape in ((rows, k), (n, k)))
    offset = torch.randint(-9, 10, (n,)).float() if bias else None
    exact = x @ weight.t() + (0 if offset is None else offset)
    got = layer(x, weight, offset, levels, threads=threads, fast_products=fast_products)
    assert torch.equal(got, exact)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_large_layers(levels: int) -> None:
    """Rows in several blocks, panels of two and three vectors, rows 4 KiB apart, the sum and the activation."""
    for rows, k, n in ((197, 384, 1152), (400, 96, 288), (130, 1024, 64), (33, 2048, 96), (700, 48, 48)):
        torch.manual_seed(rows)
        x, weight = (torch.randint(-3, 4, shape).float() for shape in ((rows, k), (n, k)))
        bias = torch.randint(-9, 10, (n,)).float()
        exact = x @ weight.t() + bias
        assert torch.equal(layer(x, weight, bias, levels), exact)
        assert torch.equal(layer(x, weight, bias, levels, activation=Activation.RELU6), exact.clamp(0, 6))
    square = torch.randint(-3, 4, (256, 256)).float()
    exact = (x_ := square[:90]) @ square.t() + x_
    assert torch.equal(layer(x_, square, None, levels, add=True), exact)
    assert torch.equal(layer(x_, square, None, levels, add=True, activation=Activation.RELU), exact.relu())


@settings(max_examples=60)
@given(size=shapes, levels=st.integers(0, 2), seed=st.integers(0, 2**31))
def test_real_numbers_stay_within_the_bound(size: tuple[int, int, int], levels: int, seed: int) -> None:
    rows, k, n = size[0], size[1] * 2**levels, size[2] * 2**levels
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, k), torch.randn(n, k)
    # which rows are added depends on how threads divide them: one thread has all of them, as in the law
    got = layer(x, weight, None, levels, threads=1, fast_products=True).double().numpy()
    exact = x.double().numpy() @ weight.double().numpy().T
    # rows are padded to a multiple of 2^levels; a running sum goes through four products at each level
    gamma = strassen.gamma(k, U32, levels, joined=4**levels)
    filled = np.pad(x.double().numpy(), ((0, -rows % 2**levels), (0, 0)))
    allowed = gamma * strassen.reach(filled, weight.double().numpy(), levels)[:rows]
    assert (np.abs(got - exact) <= allowed).all()
    wrong = weight.clone()
    wrong[0, 0] += 8.0  # a wrong weight exceeds the bound
    exact = x.double().numpy() @ wrong.double().numpy().T
    assert (np.abs(got - exact) > allowed).any()


def test_memory_behind_the_last_row_has_no_effect() -> None:
    """Rows are padded to pairs and fours with zeros, not with the contents of memory."""
    for levels in (1, 2):
        for rows in (9, 10, 11):
            x = torch.randint(-4, 5, (rows, 32)).float()
            weight = torch.randint(-4, 5, (32, 32)).float()
            start, first = input_step(x)
            second, third, last = (Map((rows, 32, 1, 1)) for _ in range(3))
            nan = torch.full((32,), float("nan"))
            settings = {"rows": rows, "weight": weight, "levels": levels}
            steps = [
                start,
                LinearStep(input=first, output=second, bias=nan, **settings),
                LinearStep(input=first, output=third, **settings),
                LinearStep(input=third, output=last, addend=first, **settings),
            ]
            program = Program(lower(steps, last), last, 2)
            got = program(x.reshape(1, 1, 1, -1)).reshape(rows, 32)
            assert torch.equal(got, x @ weight.t() @ weight.t() + x)


def test_the_weights_are_those_of_the_law() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 12)
    for levels in (0, 1, 2):
        width, columns = 4 * panel_vectors(40 >> levels, 4), -(-(40 >> levels) // 4) * 4
        widths = [min(width, columns - begin) for begin in range(0, columns, width)]
        shape = (7**levels, 12 >> levels)
        panels = packed(weight, levels, 4).split([shape[0] * shape[1] * wide for wide in widths])
        got = torch.cat([p.view(*shape, wide) for p, wide in zip(panels, widths, strict=True)], 2)
        law = strassen.weights(weight.double().t().numpy(), levels)
        for number, matrix in enumerate(law):
            assert torch.equal(got[number, :, : 40 >> levels], torch.from_numpy(matrix).float())


def test_how_often_matrices_are_halved() -> None:
    assert best_levels(196, 768, 3072, 16) == 2
    assert best_levels(197, 384, 1152, 16) >= 1
    assert best_levels(3136, 96, 96, 16) == 0
    assert best_levels(1, 4096, 4096, 16) == 0
    assert best_levels(196, 770, 3072, 16) <= 1
    assert best_levels(196, 771, 3072, 16) == 0
