"""Maps that are made finer: what their positions read, and at which windows they are aligned."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from onebyone.laws.geometry import Field, Sliding
from onebyone.lifting.grid import Grid
from onebyone.lifting.operators import Resize
from onebyone.lifting.rules.resize import resize
from onebyone.lifting.values import Lifted
from tests.lifting.numpy_front_end import Op
from tests.lifting.test_forms import a_call, a_lifter
from tests.lifting.test_numpy_front_end import assert_equals_crops
from tests.lifting.test_numpy_rules import with_head

JUMPS, STARTS, SIZES = (4, 6, 4), (-2, 0, -1), (9, 7, 4)


def coarse(fill: float = 0.0) -> Lifted:
    """A map of 6×5×4 positions on an image of three axes, 4×6×4 pixels apart."""
    grid = Grid.image(2, (22, 31, 15)).through(
        [
            Sliding(k, j, pad_before=-a, pad_after=n)
            for k, j, a, n in zip(SIZES, JUMPS, STARTS, (5, 0, 0), strict=True)
        ]
    )
    assert grid.nominal == (6, 5, 4)
    assert grid.fields == tuple(Field(*f) for f in zip(JUMPS, STARTS, SIZES, strict=True))
    return Lifted(np.full((1, 2, *grid.nominal), fill), grid)


def hull(field: Field, factor: int, neighbours: int) -> Field:
    """The pixels of the positions from q - neighbours to q + neighbours, as seen from each position r·q + t."""
    fine, first, last = field.jump // factor, [], []
    for position in range(factor):
        first.append(-neighbours * field.jump + field.start - position * fine)
        last.append(neighbours * field.jump + field.start + field.size - position * fine)
    return Field(fine, min(first), max(last) - min(first))


@pytest.mark.parametrize("factors", [(2, 3, 1), (4, 2, 2), (1, 6, 4)])
@pytest.mark.parametrize(("mode", "neighbours"), [("nearest", 0), ("linear", 1)])
def test_the_fields_of_a_finer_map(
    mode: Literal["nearest", "linear"], neighbours: int, factors: tuple[int, ...]
) -> None:
    """Those of the positions that it is made from. An axis that keeps its positions keeps its field."""
    value = coarse()
    size = tuple(n * r for n, r in zip(value.grid.nominal, factors, strict=True))
    result = resize(a_lifter(22, 31, 15), a_call(2, *size), Resize(value, size, mode))
    expected = tuple(
        hull(field, factor, neighbours if factor > 1 else 0)
        for field, factor in zip(value.grid.fields, factors, strict=True)
    )
    assert result.grid.fields == expected
    assert result.grid.align == JUMPS
    assert result.handle.shape[2:] == result.grid.nominal == size


@pytest.mark.parametrize("factor", [2, 3, 6])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_finer_map_reads_no_pixel_outside_of_its_fields(
    mode: Literal["nearest", "linear"], factor: int
) -> None:
    """Each coarse position by itself is changed: the finer ones that change have all of its pixels in their fields."""
    base = Lifted(np.zeros((1, 1, 9)), Grid.image(1, (60,)).through([Sliding(12, 6)]))
    (field,) = base.grid.fields
    for changed in range(9):
        base.handle[:] = 0
        base.handle[..., changed] = 1
        operator = Resize(base, (9 * factor,), mode)
        finer = resize(a_lifter(60), a_call(1, 9 * factor), operator)
        (fine,) = finer.grid.fields
        for position in np.flatnonzero(finer.handle[0, 0]):
            first = changed * field.jump + field.start
            assert position * fine.jump + fine.start <= first
            assert first + field.size <= position * fine.jump + fine.start + fine.size


def test_a_map_that_was_made_finer_twice_is_aligned_with_both_coarse_maps() -> None:
    """Every second pixel, made finer by 2, then every third, made finer by 3: windows at multiples of 6 pixels."""
    network = [
        Op("coarse", "convolution", ("image", "kernel", "shift"), {"stride": 2}),
        Op("fine", "repeat", ("coarse",), {"factor": 2}),
        Op("coarser", "max_pool", ("fine",), {"size": 3}),
        Op("finer", "repeat", ("coarser",), {"factor": 3}),
        Op("flat", "reshape", ("finer",), {"shape": (4 * 36,)}),
        Op("last", "linear", ("flat", "weight", "bias")),
    ]
    assert assert_equals_crops(network, with_head(144), (8, 9), (27, 22)) == (6, 6)
