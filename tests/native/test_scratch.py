"""The scratch memory of linear layers: no part of the rows, of any size, writes beyond what is reserved for it."""

from __future__ import annotations

import ctypes
import os
import shutil
from itertools import product

import pytest
import torch

from onebyone.native.kernels.program import Kind, Map, Step, kernel
from onebyone.native.kernels.strassen import vectors
from tests.native.test_linear_kernel import layer

pytestmark = pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or os.environ.get("CI") == "true"),
    reason="there is no g++",
)
# inputs, outputs, taps of the kernel where rows are put together, and whether rows are scaled by channel: each is laid
# out in another way (rows that begin 4 KiB apart are copied)
LAYERS = [
    (768, 768, 0, False),
    (96, 40, 0, False),
    (1024, 256, 0, False),
    (576, 128, 9, False),
    (256, 64, 0, True),
]


def missing(
    rows: range, levels: int, threads: range, layer: tuple[int, int, int, bool], guarded: bool
) -> list[tuple[int, ...]]:
    """The (rows, threads, floats) for which a part of the layer writes that many floats beyond its scratch."""
    inputs, outputs, taps, scaled = layer
    some = Map((1, 1, 1, 1))
    lanes = int(kernel().onebyone_lanes())
    step = Step(
        Kind.LINEAR, some, some, pool=vectors(outputs >> levels, lanes), third=some if scaled else None
    )
    step.index = torch.zeros(1, dtype=torch.int64) if taps else None
    step.signs = torch.zeros(1, dtype=torch.uint8) if guarded else None
    step.sizes = {"channels": inputs, "outputs": outputs, "levels": levels, "kernel_w": taps, "high": 1}
    row, wrong = step.row(), []
    for row.samples in rows:
        for n in threads:
            found = int(kernel().onebyone_scratch_missing(ctypes.byref(row), n))
            if found > 0:
                wrong.append((row.samples, n, found))
    return wrong


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("shape", LAYERS)
def test_scratch_holds_every_part_of_all_rows_to_2000_on_1_to_64_threads(
    levels: int, shape: tuple[int, int, int, bool], guarded: bool
) -> None:
    assert missing(range(1, 2001), levels, range(1, 65), shape, guarded) == []


@pytest.mark.parametrize("rows", [321, 481, 801])
def test_parts_of_unequal_sizes_do_not_disturb_each_other(rows: int) -> None:
    """321 rows go through in parts of 161 and 160, of which the smaller is divided into longer blocks."""
    torch.manual_seed(rows)
    x, weight = (torch.randint(-3, 4, (n, 768)).float() for n in (rows, 768))
    exact = x @ weight.t()
    for threads, levels in product((1, 2), (1, 2)):
        assert torch.equal(layer(x, weight, None, levels, threads=threads), exact)
