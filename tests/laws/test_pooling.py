"""Average pooling commutes with linear, for every small pool, compared with torch and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onebyone.errors import BadInput
from onebyone.laws import pooling
from onebyone.laws.bounds import dot_bound, unit_roundoff
from onebyone.laws.geometry import Sliding
from tests.laws.oracles import integers, starts

OPS = [
    Sliding(k, s, 1, p, p, ceil)
    for k, s, p, ceil in product((1, 2, 3), (1, 2, 3), (0, 1), (False, True))
    if p <= k // 2
]
CASES = [
    (op, size, counted) for op, size, counted in product(OPS, range(1, 8), (True, False)) if op.out_size(size)
]


def averages(values: list[int], op: Sliding, counted: bool) -> list[Fraction]:
    """A pool from its definition: padding is zeros, included in the divisor if `counted`."""
    padded = [0] * op.pad_before + list(values) + [0] * op.pad_after
    real = [False] * op.pad_before + [True] * len(values) + [False] * op.pad_after
    results = []
    for first in starts(op, len(values)):
        begin = first + op.pad_before
        window, is_real = padded[begin : begin + op.kernel], real[begin : begin + op.kernel]
        results.append(Fraction(sum(window), len(window) if counted else sum(is_real)))
    return results


def test_pooling_matrix_is_torchs_pool():
    for op, size, counted in CASES:
        eye = torch.eye(size, dtype=torch.float64)[:, None]
        torchs = F.avg_pool1d(eye, op.kernel, op.stride, op.pad_before, op.ceil_mode, counted)[:, 0].T.numpy()
        # each entry is 1/n, rounded once on each side
        bound = dot_bound(1, torchs, unit_roundoff("float64"))
        assert np.all(np.abs(pooling.pooling_matrix(op, size, counted) - torchs) <= bound), (
            op,
            size,
            counted,
        )


def test_it_is_legal_exactly_when_it_commutes():
    """W = 3, -2 on two channels and b = 5, on every small pool, in exact fractions."""
    legal = 0
    for op, size, counted in CASES:
        first, second = integers(size, seed=1).tolist(), integers(size, seed=2).tolist()
        mapped = [3 * a - 2 * b + 5 for a, b in zip(first, second, strict=True)]
        pooled = zip(averages(first, op, counted), averages(second, op, counted), strict=True)
        commutes = [3 * a - 2 * b + 5 for a, b in pooled] == averages(mapped, op, counted)
        reason = pooling.why_not_commute("average", [op], [size], count_include_pad=counted)
        assert (reason is None) == commutes, (op, size, counted)
        if commutes and op.padded():
            legal += 1
        if pooling.why_not_commute("average", [op], count_include_pad=counted) is None:
            assert commutes, "what is legal on any size is legal on this one"
    assert legal > 50, "a padding that is not counted does not hinder"


def test_without_a_bias_every_average_commutes():
    for op, size, counted in CASES:
        first, second = integers(size, seed=1).tolist(), integers(size, seed=2).tolist()
        mapped = [3 * a - 2 * b for a, b in zip(first, second, strict=True)]
        pooled = zip(averages(first, op, counted), averages(second, op, counted), strict=True)
        assert [3 * a - 2 * b for a, b in pooled] == averages(mapped, op, counted)
        assert pooling.why_not_commute("average", [op], [size], bias=False, count_include_pad=counted) is None


def test_divisor_override_on_two_axes_against_torch():
    """A pool of a map of ones gives ones exactly where the weights sum to 1; n/n is exact in floats."""
    ones = torch.ones(1, 1, 4, 3, dtype=torch.float64)
    for (k, s, p, ceil), divisor, counted in product(
        [
            (1, 1, 0, False),
            (2, 1, 0, False),
            (2, 2, 1, False),
            (2, 2, 1, True),
            (3, 2, 0, True),
            (2, 3, 0, True),
        ],
        (None, 1, 2, 4, 6, 9),
        (True, False),
    ):
        ops = [Sliding(k, s, 1, p, p, ceil)] * 2
        pooled = F.avg_pool2d(ones, k, s, p, ceil, counted, divisor)
        reason = pooling.why_not_commute(
            "average", ops, (4, 3), count_include_pad=counted, divisor_override=divisor
        )
        assert (reason is None) == bool((pooled == 1).all()), (ops, divisor, counted)
        if (
            pooling.why_not_commute("average", ops, count_include_pad=counted, divisor_override=divisor)
            is None
        ):
            assert reason is None


def test_a_global_pool_is_a_windowed_pool_and_commutes_to_the_class_map():
    """Mean, then W, at every window of a larger map = 1×1 convolution, then the pool at stride 1."""
    x, weight, bias = (
        integers(1, 3, 8, 7).astype(float),
        integers(4, 3).astype(float),
        integers(4, seed=9).astype(float),
    )
    size = (4, 2)  # powers of two, so that means of integers are exact in float64
    ops = pooling.windowed(size)
    assert pooling.why_not_commute("average", ops) is None
    class_map = F.conv2d(torch.tensor(x), torch.tensor(weight)[..., None, None], torch.tensor(bias))
    pooled = F.avg_pool2d(class_map, [op.kernel for op in ops], [op.stride for op in ops])[0].numpy()
    folded = F.conv2d(torch.tensor(x), torch.tensor(pooling.pooled_kernel(weight, size)), torch.tensor(bias))[
        0
    ].numpy()
    assert pooled.shape == folded.shape == (4, 5, 6)
    for i, j in product(range(5), range(6)):
        expected = weight @ x[0, :, i : i + 4, j : j + 2].mean(axis=(1, 2)) + bias
        np.testing.assert_array_equal(pooled[:, i, j], expected)
        np.testing.assert_array_equal(folded[:, i, j], expected)
    assert not np.array_equal(pooled, pooled[::-1])


def test_the_folded_kernel_takes_no_memory_of_its_own():
    kernel = pooling.pooled_kernel(np.ones((5, 3)), (7, 7))
    assert kernel.shape == (5, 3, 7, 7)
    assert kernel.strides[2:] == (0, 0)
    with pytest.raises(BadInput, match="a linear weight has shape"):
        pooling.pooled_kernel(np.ones((5, 3, 1)), (7, 7))


def test_a_maximum_does_not_commute_and_is_refused():
    x, weight = integers(1, 2, 6).astype(float), integers(3, 2).astype(float)
    before = np.einsum("oc,ncp->nop", weight, F.max_pool1d(torch.tensor(x), 2).numpy())
    after = F.max_pool1d(torch.tensor(np.einsum("oc,ncp->nop", weight, x)), 2).numpy()
    assert not np.array_equal(before, after)
    for kind in ("max", "lp", "median"):
        reason = pooling.why_not_commute(kind, [Sliding(2, stride=2)], bias=False)
        assert reason == f"a {kind} pool is not linear: only an average pool commutes with a linear layer"


def test_a_place_of_padding_alone_has_no_average():
    with pytest.raises(BadInput, match="position 0 of the pool reads only padding"):
        pooling.pooling_matrix(Sliding(1, pad_before=1), 2, count_include_pad=False)
    with pytest.raises(BadInput, match="expected 1 numbers, one per axis"):
        pooling.why_not_commute("average", [Sliding(2)], [2, 3])


def test_the_size_of_the_map_decides_where_it_is_known():
    """A padding or a partial window that no position reads at this size does not matter."""
    unread = [Sliding(2, stride=2, pad_after=1)]
    assert pooling.why_not_commute("average", unread, (4,)) is None
    assert "padding is included" in str(pooling.why_not_commute("average", unread, (5,)))
    assert "padding is included" in str(pooling.why_not_commute("average", unread))
    partial = [Sliding(2, stride=2, ceil_mode=True)]
    assert pooling.why_not_commute("average", partial, (4,), divisor_override=2) is None
    for sizes in ((5,), None):
        assert "divisor_override 2" in str(
            pooling.why_not_commute("average", partial, sizes, divisor_override=2)
        )
    assert pooling.why_not_commute("average", [Sliding(2), Sliding(3)], divisor_override=6) is None
    padded = [Sliding(1, pad_before=1)]  # its first position averages no element, so its weights sum to 0
    for sizes in ((3,), None):
        assert "divisor_override 1" in str(
            pooling.why_not_commute("average", padded, sizes, divisor_override=1)
        )


def test_a_dilated_pool_averages_its_taps():
    assert pooling.pooling_matrix(Sliding(2, dilation=2), 4).tolist() == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]
