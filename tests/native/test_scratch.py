"""The scratch memory of linear steps: no part of the rows writes beyond what is reserved for it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import product

import pytest
import torch

from onebyone.native.kernels.program import kernel
from onebyone.native.kernels.strassen import panel_vectors
from onebyone.native.maps import Map
from onebyone.native.steps import LinearStep, Present
from tests.native.build import layer, needs_compiler

pytestmark = needs_compiler
# inputs, outputs, pieces of a gathered row, and whether rows are scaled by channel: each divides its scratch in another
# way (rows that begin 4 KiB apart are copied)
LAYERS = [
    (768, 768, 0, False),
    (96, 40, 0, False),
    (1024, 256, 0, False),
    (576, 128, 9, False),
    (256, 64, 0, True),
]


def overruns(
    rows: range, levels: int, threads: Sequence[int], layer: tuple[int, int, int, bool], guarded: bool
) -> list[tuple[int, ...]]:
    """The (rows, threads, floats) for which a part of the layer writes that many floats beyond its scratch."""
    inputs, outputs, pieces, scaled = layer
    some, lanes = Map((1, 1, 1, 1)), int(kernel().onebyone_lanes())
    step = LinearStep(
        input=some,
        output=some,
        rows=1,
        weight=torch.empty(outputs, inputs),
        index=torch.zeros(1, dtype=torch.int64) if pieces else None,
        pieces=pieces or 1,
        factors=some if scaled else None,
        levels=levels,
        vectors=panel_vectors(outputs >> levels, lanes),
        signs=torch.zeros(1, dtype=torch.uint8) if guarded else None,
    )
    record, wrong = step.record(Present()), []
    for record.fields.linear.rows in rows:
        for n in threads:
            overrun = int(kernel().onebyone_scratch_overrun(ctypes.byref(record), n))
            if overrun > 0:
                wrong.append((record.fields.linear.rows, n, overrun))
    return wrong


@pytest.mark.parametrize(
    "threads",
    [
        pytest.param((1, 2, 3, 4, 7, 16, 64), id="some threads"),
        pytest.param(range(1, 65), id="all threads", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("shape", LAYERS)
def test_no_overrun_up_to_2000_rows_on_up_to_64_threads(
    levels: int, shape: tuple[int, int, int, bool], guarded: bool, threads: Sequence[int]
) -> None:
    assert overruns(range(1, 2001), levels, threads, shape, guarded) == []


@pytest.mark.parametrize("rows", [321, 481, 801])
def test_parts_of_unequal_sizes_do_not_disturb_each_other(rows: int) -> None:
    """321 rows are processed in chunks of 161 and 160, of which the smaller is divided into longer blocks."""
    torch.manual_seed(rows)
    x, weight = (torch.randint(-3, 4, (n, 768)).float() for n in (rows, 768))
    exact = x @ weight.t()
    for threads, levels in product((1, 2), (1, 2)):
        assert torch.equal(layer(x, weight, None, levels, threads=threads), exact)
