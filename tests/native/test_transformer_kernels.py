"""The kernels for rows of channels, step by step against float64: layer norms, attention, gathers, transposes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebyone.native.maps import Map
from onebyone.native.steps import (
    Activation,
    AttentionStep,
    BinaryOperation,
    ElementwiseStep,
    GatherStep,
    LayerNormStep,
    Step,
    Strides,
    TransposeStep,
)
from tests.native.build import U32, input_step, needs_compiler, run, run_one

INF = math.inf
pytestmark = needs_compiler


def activated(x: Tensor, kind: Activation) -> Tensor:
    return run_one(x, x.numel(), partial(ElementwiseStep, activation=kind))


@settings(max_examples=60)
@given(data=st.data())
def test_layer_norms(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**31)))
    positions, c = draw(st.integers(1, 12)), draw(st.integers(1, 140))
    far, eps = draw(st.sampled_from([0.0, 0.0, 3.0, 100.0])), draw(st.sampled_from([1e-6, 1e-5]))
    x = torch.randn(positions, c) + far
    weight = torch.randn(c) if draw(st.booleans()) else None
    bias = torch.randn(c) if draw(st.booleans()) else None
    rows = x.double()
    index = None
    if draw(st.booleans()):
        chosen = torch.randint(positions, (draw(st.integers(1, 20)),))
        index, rows = chosen * c, rows[chosen]
    norm = partial(
        LayerNormStep,
        rows=len(rows),
        channels=c,
        epsilon=eps,
        weight=None if weight is None else weight.clone(),
        bias=bias,
        index=index,
    )
    got = run_one(x, rows.numel(), norm, draw(st.integers(1, 3)))
    w = torch.ones(c) if weight is None else weight
    exact = F.layer_norm(rows, (c,), w.double(), None if bias is None else bias.double(), eps)
    away = rows - rows.mean(1, keepdim=True)
    rate = (away.square().mean(1, keepdim=True) + eps).rsqrt()
    # four sums side by side in every lane: c / 16 additions at most where a vector holds four numbers
    roundings = (c / 16 + 16) * U32
    sizes = (rows.abs().mean(1, keepdim=True) + away.abs()) * rate * w.double().abs()
    allowed = roundings * sizes * (1 + away.abs() * rate) + 4 * U32 * exact.abs()
    if bias is not None:
        allowed = allowed + 4 * U32 * bias.double().abs()
    assert bool(((got.view_as(exact) - exact).abs() <= allowed).all())


def test_layer_norms_of_infinities_and_nan() -> None:
    x = torch.randn(3, 40)
    x[1, 7], x[2, 39] = math.nan, INF
    got = run_one(x, x.numel(), partial(LayerNormStep, rows=3, channels=40, epsilon=1e-5)).view(3, 40)
    assert bool(got[0].isfinite().all())
    assert bool(got[1:].isnan().all())


def attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, threads: int = 2, together: bool = False
) -> Tensor:
    """q (B, T, H, D), k and v (B, S, H, ·), in one map each or `together` in one of (B, T, 3, H, D)."""
    b, t, h, d = q.shape
    s, out = k.shape[1], v.shape[3]
    if together:
        x, row = torch.stack([q, k, v], 2), 3 * h * d
        strides = [Strides(i * h * d, t * row, d, row) for i in range(3)]
    else:
        x, strides, begin = torch.cat([q.flatten(), k.flatten(), v.flatten()]), [], 0
        for part in (q, k, v):
            _, length, _, width = part.shape
            strides.append(Strides(begin, length * h * width, width, h * width))
            begin += part.numel()
    # an axis of length 1 of the mask serves all samples, or all heads
    shared = [True, True] if mask is None else [n == 1 for n in mask.shape[:2]]
    sample_stride, head_stride = (0 if s else mask.stride(i) for i, s in enumerate(shared))  # type: ignore[union-attr]
    first, source = input_step(x)
    y = Map((1, b * t * h * out, 1, 1))
    step = AttentionStep(
        output=y,
        queries=source,
        keys=source,
        values=source,
        bias=None if mask is None else mask.clone(),
        samples=b,
        heads=h,
        query_rows=t,
        key_rows=s,
        depth=d,
        value_depth=out,
        query_strides=strides[0],
        key_strides=strides[1],
        value_strides=strides[2],
        bias_strides=(sample_stride, head_stride),
        scale=1 / math.sqrt(d),
    )
    return run(x, [first, step], y, threads).view(b, t, h, out)


def check_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, got: Tensor) -> None:
    d, s = q.shape[3], k.shape[1]
    q64, k64, v64 = (part.double().transpose(1, 2) for part in (q, k, v))
    scores, sizes = q64 @ k64.mT / math.sqrt(d), q64.abs() @ k64.mT.abs() / math.sqrt(d)
    errors = (d + 4) * U32 * sizes
    if mask is not None:
        scores = scores + mask.double()
        # errors of scores whose weight underflows do not matter
        errors = torch.where(mask > -90, errors + 2 * U32 * mask.abs(), 0.0)
    weights = scores.softmax(-1)
    # a score's error is its weight's relative error; once for the weight, once for the sum; then roundings of both sums
    errors = (
        2.1 * errors.amax(-1, keepdim=True)
        + (2 * s + 24) * U32
        + U32 * scores.clamp_min(-100).abs().amax(-1, True)
    )
    allowed = errors * (weights @ v64.abs()) + s * 2.0**-119 * v64.abs().amax()
    exact = weights @ v64
    difference = (got.double().transpose(1, 2) - exact).abs()
    assert bool((difference <= allowed).all()), float((difference / allowed).max())


@settings(max_examples=80)
@given(data=st.data())
def test_attention_of_every_geometry(data: st.DataObject) -> None:
    """Few and many rows of any width, in one map or in three, with several kinds of masks."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**31)))
    b, h = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    t, d = draw(st.integers(1, 40)), draw(st.integers(1, 40) | st.sampled_from([48, 64, 80]))
    together = draw(st.booleans())
    s = t if together else draw(st.integers(1, 70))
    out = d if together else draw(st.integers(1, 40))
    q, k, v = torch.randn(b, t, h, d), torch.randn(b, s, h, d), torch.randn(b, s, h, out)
    q *= draw(st.sampled_from([1.0, 1.0, 20.0]))
    hidden = draw(st.sampled_from([None, 0.0, -INF, -100.0, torch.finfo(torch.float32).min]))
    mask = None
    if hidden is not None:
        mask = torch.randn(draw(st.sampled_from([1, b])), draw(st.sampled_from([1, h])), t, s)
        mask = mask.masked_fill(torch.rand(mask.shape) < 0.4, hidden)
        mask[..., draw(st.integers(0, s - 1))] = 0.0
    got = attended(q, k, v, mask, draw(st.integers(1, 3)), together)
    check_attention(q, k, v, mask, got)


def test_attention_over_many_keys() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 15, 1, 16), torch.randn(1, 2048, 1, 16), torch.randn(1, 2048, 1, 16)
    check_attention(q, k, v, None, attended(q, k, v, None))


def test_attention_on_several_numbers_of_threads() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 50, 3, 24) for _ in range(3))
    alone = attended(q, k, v, None, 1)
    for threads in (2, 3):
        check_attention(q, k, v, None, attended(q, k, v, None, threads))
        assert bool((attended(q, k, v, None, threads) - alone).abs().max() <= 1e-6)


def test_only_fully_masked_rows_are_nan() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 20, 2, 16) for _ in range(3))
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 7, :] = -INF
    mask[..., 8, :-1] = -INF
    got = attended(q, k, v, mask)
    assert bool(got[:, 7].isnan().all())
    assert bool(got.isnan().sum() == got[:, 7].numel())
    assert bool(((got[:, 8] - v[:, -1]).abs() <= 4 * U32 * v[:, -1].abs() + 1e-30).all())


def test_attention_propagates_nan() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 20, 2, 16) for _ in range(3))
    q[0, 3, 1, 5], v[0, 0, 0, 2] = math.nan, math.nan
    got = attended(q, k, v, None)
    expected = torch.zeros_like(got, dtype=torch.bool)
    expected[0, 3, 1], expected[0, :, 0, 2] = True, True
    assert torch.equal(got.isnan(), expected)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 50), st.integers(1, 50), st.integers(1, 3))
def test_transposes(samples: int, high: int, wide: int, threads: int) -> None:
    x = torch.randn(samples, high, wide)
    got = run_one(x, x.numel(), partial(TransposeStep, matrices=samples, rows=high, columns=wide), threads)
    assert torch.equal(got.view(samples, wide, high), x.mT)


@settings(max_examples=30)
@given(data=st.data())
def test_rows_gathered_into_parts_of_a_map(data: st.DataObject) -> None:
    """Rows of a constant before rows of a map, for the tokens of several samples."""
    draw = data.draw
    samples, c = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 16, 20]))
    before, behind, positions = draw(st.integers(1, 5)), draw(st.integers(1, 9)), 7
    constant, x = torch.randn(5, c), torch.randn(positions, c)
    first, source = input_step(x)
    block = (before + behind) * c
    y = Map((1, samples * block, 1, 1))
    chosen = torch.randint(5, (samples, before)), torch.randint(positions, (samples, behind))
    steps: list[Step] = [first]
    for number, rows in enumerate(chosen):
        step = GatherStep(
            output=y,
            source=source if number else None,
            numbers=None if number else constant.clone(),
            index=rows.flatten() * c,
            length=c,
            output_begin=before * c * number,
            pieces_per_block=rows.shape[1],
            block_stride=block,
        )
        steps.append(step)
    exact = torch.cat([constant[chosen[0]], x[chosen[1]]], 1)
    assert torch.equal(run(x, steps, y).view_as(exact), exact)


@pytest.mark.parametrize("c", [1, 5, 32])
def test_rows_gathered_one_after_another(c: int) -> None:
    x = torch.randn(11, c)
    index = torch.randint(11, (30,))

    def gather(input: Map, output: Map) -> GatherStep:  # noqa: A002
        return GatherStep(source=input, output=output, index=index * c, length=c)

    assert torch.equal(run_one(x, 30 * c, gather).view(30, c), x[index])


@pytest.mark.parametrize("c", [1, 16, 21])
@pytest.mark.parametrize("operation", [BinaryOperation.SUM, BinaryOperation.PRODUCT])
def test_a_second_operand_from_elsewhere(c: int, operation: BinaryOperation) -> None:
    """Rows of a map in another order, a constant, one that repeats, rows of a constant, one row per sample."""
    torch.manual_seed(0)
    positions = 12
    x, constant, few = torch.randn(positions, c), torch.randn(positions, c), torch.randn(3, c)
    index = torch.randperm(positions)
    cases: list[tuple[Tensor, dict[str, Any]]] = [
        (x[index], {"index": index * c}),
        (constant, {"numbers": constant.clone()}),
        (few.repeat(positions // 3, 1), {"numbers": few.clone(), "period": 3}),
        (constant[index], {"numbers": constant.clone(), "index": index * c}),
        (x[[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], {"positions_per_row": 4}),
    ]
    for second, fields in cases:
        first, source = input_step(x)
        rows = Map((1, c, 1, positions), base=source)
        y = Map((1, x.numel(), 1, 1))
        other = None if "numbers" in fields else source
        step = ElementwiseStep(input=rows, output=y, other=other, operation=operation, **fields)
        exact = x + second if operation == BinaryOperation.SUM else x * second
        assert torch.equal(run(x, [first, step], y).view(positions, c), exact)


def gelu64(x: Tensor, kind: Activation) -> Tensor:
    x = x.double()
    if kind == Activation.GELU:
        return 0.5 * x * torch.erfc(-x / math.sqrt(2))
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@pytest.mark.parametrize("kind", [Activation.GELU, Activation.GELU_TANH])
def test_gelu_of_all_sizes(kind: Activation) -> None:
    sizes = torch.logspace(-30, 30, 3000)
    x = torch.cat([sizes, -sizes, torch.linspace(-20, 20, 40001), torch.zeros(1)])
    got, exact = activated(x, kind).double(), gelu64(x, kind)
    error, allowed = (got - exact).abs(), 4 * U32 * x.double().abs() + 2.0**-140
    assert bool((error <= allowed).all())
    near = x > -1
    assert bool((error <= 16 * U32 * exact.abs() + 2.0**-140)[near].all())
    assert bool((got[x < -10].abs() < 1e-20).all())


@pytest.mark.parametrize("kind", [Activation.GELU, Activation.GELU_TANH])
def test_gelu_of_infinities_and_nan(kind: Activation) -> None:
    got = activated(torch.tensor([math.nan, INF, -INF, 1.0, -1.0]), kind)
    assert got[0].isnan()
    assert got[1] == INF
    assert got[2].isnan()  # as in PyTorch: -∞ times 0
    assert bool(got[3:].isfinite().all())
