"""An emitter of the layout planner that evaluates on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from onebyone.layout.emitter import LayoutEmitter
from onebyone.layout.orders import UNIT, Layout, order_of
from onebyone.layout.values import GraphValue

if TYPE_CHECKING:
    from tests.layout.numpy_program import NumpyProgram


def stored(array: np.ndarray, layout: Layout) -> np.ndarray:
    """An array of the original shape, stored in a layout."""
    order = order_of(layout)
    units = tuple(axis for axis in range(array.ndim) if axis not in order)
    remaining = [axis for axis in range(array.ndim) if axis in order]
    array = np.squeeze(array, units).transpose([remaining.index(axis) for axis in order])
    for position, axis in enumerate(layout):
        if axis == UNIT:
            array = np.expand_dims(array, position)
    return array


class NumpyEmitter(LayoutEmitter[Any]):
    """Evaluates at once; `T` is an array, or a tuple of arrays. Permutes of the arrays in `not_counted` are free."""

    def __init__(self, program: NumpyProgram) -> None:
        self.program = program
        self.permutes = 0
        self.copies = 0  # of maps, as patches
        self.reshapes = 0
        self.images: list[tuple[int, ...]] = []  # the shapes of the inputs of convolutions
        self.not_counted: list[np.ndarray] = []
        self.fused: list[GraphValue] = []  # the operators repeated as they were
        self.normalised: list[GraphValue] = []  # the normalisations written with elementary operators

    def repeat(
        self, result: GraphValue, operands: Mapping[GraphValue, Any], axes: Sequence[int] | None = None
    ) -> Any:
        self.fused.append(result)
        arrays = [operands[x] for x in self.program.operands[result]]
        return self.program.compute[result](arrays, None if axes is None else tuple(axes))

    def argument_size(self, result: GraphValue, axis: int) -> Any:
        return self.program.sizes[result][axis]

    def normalise(self, result: GraphValue, x: Any, position: int, scale: Any, offset: Any) -> Any:
        self.normalised.append(result)
        x = x - x.max(position, keepdims=True)
        x = x if scale is None else x * scale
        return x if offset is None else x + offset

    def permute(self, x: Any, permutation: Sequence[int]) -> Any:
        self.permutes += not any(np.may_share_memory(x, constant) for constant in self.not_counted)
        return x.transpose(permutation)

    def squeeze(self, x: Any, positions: Sequence[int]) -> Any:
        assert all(x.shape[position] == 1 for position in positions)
        return np.squeeze(x, tuple(positions))

    def unsqueeze(self, x: Any, position: int) -> Any:
        return np.expand_dims(x, position)

    def reshape(self, x: Any, sizes: Sequence[Any]) -> Any:
        self.reshapes += 1
        return x.reshape(sizes)

    def expand(self, x: Any, sizes: Sequence[Any]) -> Any:
        shape = (1,) * (len(sizes) - x.ndim) + x.shape
        return np.broadcast_to(
            x, [have if want == -1 else want for have, want in zip(shape, sizes, strict=True)]
        )

    def size(self, x: Any, position: int) -> Any:
        return x.shape[position]

    def multiply_sizes(self, sizes: Sequence[Any]) -> Any:
        return prod(sizes)

    def strided_size(self, size: Any, step: int) -> Any:
        return len(range(0, size, step))

    def convolution(self, x: Any, weight: Any, bias: Any) -> Any:
        assert x.ndim == weight.ndim in (4, 5)
        self.images.append(x.shape)
        assert weight.shape[2:] == (1,) * (x.ndim - 2)
        y = np.einsum("nc...,oc->no...", x, weight.reshape(weight.shape[:2]))
        return y if bias is None else y + bias.reshape(-1, *[1] * (x.ndim - 2))

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        assert weight.ndim == 2
        return x @ weight.T if bias is None else x @ weight.T + bias

    def matmul(self, first: Any, second: Any) -> Any:
        return first @ second

    def add(self, x: Any, other: Any, factor: float = 1.0) -> Any:
        return x + factor * other

    def scale(self, x: Any, factor: float) -> Any:
        return factor * x

    def split_rows(self, weight: Any, groups: int) -> Any:
        return weight.reshape(groups, -1, weight.shape[1])

    def subsample(self, x: Any, steps: Mapping[int, int], image_axes: int) -> Any:
        assert image_axes == 0 or x.ndim in (image_axes + 1, image_axes + 2)
        return x[tuple(slice(None, None, steps.get(position)) for position in range(x.ndim))]

    def patches(self, x: Any, cuts: Sequence[tuple[int, int]]) -> Any:
        """By the definition, patch after patch."""
        extents = [extent for _, extent in cuts]
        counts = list(x.shape)
        for position, extent in cuts:
            counts[position] //= extent
        rows = np.empty((*counts, prod(extents)))
        for patch in np.ndindex(*counts):
            for i, offset in enumerate(np.ndindex(*extents)):
                where = list(patch)
                for (position, extent), o in zip(cuts, offset, strict=True):
                    where[position] = patch[position] * extent + o
                rows[(*patch, i)] = x[tuple(where)]
        self.copies += 1
        return rows

    def as_matrix(self, weight: Any) -> Any:
        return weight.reshape(weight.shape[0], -1)


class UntouchedTensors(NumpyEmitter):
    """Refuses to move, insert or remove a dimension, for operators that can take every tensor as it is stored."""

    def permute(self, x: Any, permutation: Sequence[int]) -> Any:
        raise AssertionError(f"a permute of {x.shape} by {permutation}")

    def squeeze(self, x: Any, positions: Sequence[int]) -> Any:
        raise AssertionError(f"a squeeze of {x.shape} at {positions}")

    def unsqueeze(self, x: Any, position: int) -> Any:
        raise AssertionError(f"an unsqueeze of {x.shape} at {position}")
