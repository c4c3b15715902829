"""Scans in 16 bits: the error is measured and stated, and the scores are those of a network in that type."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest
import torch

from onebyone.dense import scan
from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.plan import plan_scan
from onebyone.errors import BadInput, InexactWarning
from onebyone.records import Labels
from onebyone.stores.source import ArraySource
from tests.dense.networks import exact_net


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_the_scores_are_those_of_the_network_in_that_type(half: str) -> None:
    net = exact_net()
    with torch.no_grad():
        for p in net.model.parameters():
            p.mul_(1 + 2.0**-10).div_(4)  # not exact in 16 bits
    image = np.random.default_rng(0).integers(0, 4, (40, 50, 1), dtype=np.uint8)
    exact = scan(net, image, channels_last=False).scores
    with pytest.warns(InexactWarning, match=f"{half}: on a tile") as caught:
        scores = scan(net, image, half=half, channels_last=False).scores
    assert scores.dtype == np.float32
    x = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None])
    dtype = getattr(torch, half)
    with torch.no_grad():
        expected = copy.deepcopy(net.model).to(dtype)(x.to(dtype))[0].float().numpy()
    np.testing.assert_array_equal(scores, expected)
    stated = re.search(
        r"at most ([\d.e+-]+), where the largest magnitude is ([\d.e+-]+), and", str(caught[0].message)
    )
    assert stated is not None
    difference = np.abs(scores - exact).max()  # one tile holds the whole map
    assert difference > 0
    assert stated[1] == f"{difference:.2g}"
    assert stated[2] == f"{np.abs(exact).max():.2g}"
    assert next(net.model.parameters()).dtype == torch.float32


def test_scores_beyond_the_range_of_float16_are_refused() -> None:
    net = exact_net()
    image = np.full((40, 50, 1), 250, np.uint8)
    with torch.no_grad():
        for p in net.model.parameters():
            p.abs_().mul_(20)
    with pytest.raises(BadInput, match="half='float16': the scores are not finite"):
        scan(net, image, half="float16")


def test_other_types_and_combinations_are_refused() -> None:
    net, image = exact_net(), np.zeros((40, 50, 1), np.uint8)
    with pytest.raises(BadInput, match="half='float8': expected 'bfloat16' or 'float16'"):
        scan(net, image, half="float8")
    with pytest.raises(BadInput, match="half='bfloat16': expected mode='dense' without tune"):
        scan(net, image, half="bfloat16", tune=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_batches_for_a_gpu_are_in_pinned_memory() -> None:
    net, image = exact_net(), np.random.default_rng(0).integers(0, 4, (60, 70, 1), dtype=np.uint8)
    plan = plan_scan(net.geometry, image.shape[:2])
    reader = BatchReader(ArraySource(image), Labels(), False, pinned=True)
    assert torch.from_numpy(reader(list(plan))).is_pinned()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)
        there = scan(net, image, device="cuda", half="float16", tile=4).scores
    np.testing.assert_array_equal(scan(net, image, device="cuda", tile=4).scores, scan(net, image).scores)
    here = scan(net, image).scores
    # sums of integers below 2048 are exact in float16; larger scores are rounded to 11 bits by each of three layers
    assert np.abs(there - here).max() <= 3 * 2.0**-11 * np.abs(here).max() * 9 * 3
