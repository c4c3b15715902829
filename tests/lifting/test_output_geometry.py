"""The geometry of a lifted network's outputs against loops over image sizes and windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import PERIOD, Grid
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.output_geometry import common_stride, joint_geometry, may_have_surplus, output_map
from onebyone.lifting.values import Lifted
from tests.lifting import numpy_emitter


def grid_of(window: int, operators: Sequence[Sliding]) -> Grid:
    grid = Grid.image(1, (window,))
    for operator in operators:
        grid = grid.through((operator,))
    return grid


def positions(size: int, operators: Sequence[Sliding]) -> int:
    for operator in operators:
        size = operator.out_size(size)
    return size


CHAINS = {
    "exact": [Sliding(3), Sliding(2, 2), Sliding(3)],
    "strided": [Sliding(4, 4), Sliding(2)],
    "padded": [Sliding(3, 1, 1, 1, 1), Sliding(8)],
    "padded and strided": [Sliding(3, 2, 1, 1, 1), Sliding(4)],
    "ceil mode": [Sliding(3, 2, ceil_mode=True), Sliding(3)],
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("multiple", [1, 3])
def test_surplus_positions_are_found_at_every_image_size(name: str, multiple: int) -> None:
    """The loop: the positions that the operators give, every `multiple`-th of them, against the number of windows."""
    operators, window = CHAINS[name], 8
    grid = grid_of(window, operators)
    stride = grid.jump[0] * multiple
    differs = any(
        -(-positions(size, operators) // multiple) != (size - window) // stride + 1
        for size in range(window, window + PERIOD)
    )
    assert may_have_surplus(grid, (stride,), (window,), (window,)) == differs


def test_both_outcomes_occur() -> None:
    outcomes = {
        may_have_surplus(grid, (grid.jump[0] * multiple,), (8,), (8,))
        for multiple, grid in itertools.product((1, 3), (grid_of(8, chain) for chain in CHAINS.values()))
    }
    assert outcomes == {True, False}


def test_beyond_a_period_the_sizes_are_not_known() -> None:
    grid = grid_of(8, [Sliding(8)])
    assert not may_have_surplus(grid, (PERIOD,), (8,), (8,))
    assert may_have_surplus(grid, (PERIOD + 1,), (8,), (8,))


def test_a_class_map_counts_windows_of_another_size() -> None:
    """The sizes start at the network's window; a smaller window of the result has more positions there."""
    operators = [Sliding(2, 2)]
    grid = grid_of(8, operators)
    assert not may_have_surplus(grid, (2,), (2,), (8,))
    assert may_have_surplus(grid, (2,), (8,), (8,))


def test_the_common_stride_covers_jumps_and_alignments() -> None:
    a, b = grid_of(24, [Sliding(4, 4)]), grid_of(24, [Sliding(6, 6)])
    assert common_stride([a]) == (4,)
    assert common_stride([a, b]) == (12,)
    fine = replace(a, align=(10,))
    assert common_stride([fine]) == (20,)
    two_axes = Grid.image(1, (8, 8)).through((Sliding(2, 2), Sliding(3, 3)))
    assert common_stride([two_axes, Grid.image(1, (8, 8))]) == (2, 3)


def test_the_receptive_field_covers_every_output() -> None:
    """The loop: the first and the last pixel that any output reads for the window at the first pixel."""
    wide, shifted = [Sliding(3, 1, 1, 2, 0), Sliding(3)], [Sliding(7, 2), Sliding(3, 1, 2, 0, 3)]
    grids = [grid_of(16, chain) for chain in (wide, shifted)]

    def pixels(chain: Sequence[Sliding]) -> set[int]:
        """Pixels that position 0 reads, those in the padding included."""
        reads = {0}
        for op in reversed(chain):
            reads = {q * op.stride + k * op.dilation - op.pad_before for q in reads for k in range(op.kernel)}
        return reads

    read = pixels(wide) | pixels(shifted)
    geometry = joint_geometry(grids, (4,), (16,), ["padding"], True)
    assert geometry.receptive_field_offset == (-min(read),)
    assert geometry.receptive_field == (max(read) - min(read) + 1,)
    assert (geometry.stride, geometry.window) == ((4,), (16,))
    assert (geometry.exact, geometry.inexact_because, geometry.image_wide) == (False, ("padding",), True)
    assert joint_geometry(grids[:1], (1,), (16,), [], False).exact


def a_value(channels: int, nominal: tuple[int, int], shape: tuple[int, ...]) -> Lifted:
    """All elements of a map, as a value of this shape."""
    image = np.random.default_rng(0).normal(size=(1, channels, *nominal))
    value = Lifted(image, Grid.image(channels, nominal))
    return value.with_index(value.indices().reshape(shape))


@pytest.mark.parametrize(
    ("channels", "nominal", "shape"),
    [
        (3, (6, 5), (90,)),  # flattened
        (3, (6, 5), (9, 10)),
        (12, (1, 1), (3, 2, 2)),  # a vector in the shape of a map
        (4, (1, 1), (4,)),
        (4, (1, 1), (4, 1, 1)),
        (1, (2, 1), (2, 1, 1)),  # flattened, with two axes of one element
    ],
)
def test_the_elements_of_an_output_become_channels(
    channels: int, nominal: tuple[int, int], shape: tuple[int, ...]
) -> None:
    value, lifter = a_value(channels, nominal, shape), Lifter(numpy_emitter, nominal)  # type: ignore[arg-type]
    output = output_map(lifter, 0, value)
    assert output is not None
    assert not lifter.refused
    assert (output.index, output.grid.nominal) == (None, (1, 1))
    np.testing.assert_array_equal(output.handle.ravel(), value.handle.ravel())


@pytest.mark.parametrize("nominal", [(6, 5), (2, 1), (1, 2), (3, 1), (1, 3)])
def test_an_output_that_is_a_map_of_several_positions_is_refused(nominal: tuple[int, int]) -> None:
    value, lifter = a_value(3, nominal, (3, *nominal)), Lifter(numpy_emitter, nominal)  # type: ignore[arg-type]
    assert output_map(lifter, 2, value) is None
    reason = f"gives a map of {nominal[0]}×{nominal[1]} positions for one window, not a vector"
    assert [(r.kind, r.reason) for r in lifter.refused] == [("output 2", reason)]
