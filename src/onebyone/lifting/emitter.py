"""The `MapEmitter` protocol: the operations on maps that rules emit, one method each.

A front end implements it once; PyTorch's writes into an fx graph. A *map* has the shape `(N, C, *positions)`, and
`axes` is its number of spatial axes. Arguments called `source` and results are handles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import Integers
from onebyone.lifting.index import Gather, Stencil
from onebyone.lifting.values import Handle


class MapEmitter(Protocol):
    """What rules ask of a front end."""

    # sliding operators on maps, one `Sliding` for each spatial axis

    def convolution(
        self, source: Handle, weight: Handle, bias: Handle | None, ops: Sequence[Sliding], groups: int
    ) -> Handle:
        """A convolution with the kernel `weight` `(O, C / groups, *kernel)`."""

    def linear(
        self, source: Handle, weight: Handle, bias: Handle | None, stencil: Stencil, channels: int
    ) -> Handle:
        """A linear layer with `weight` `(O, F)` on the F features of a stencil in a map of `channels` channels."""

    def max_pool(self, source: Handle, ops: Sequence[Sliding]) -> Handle:
        """A maximum; padding counts as minus infinity."""

    def mean_pool(
        self,
        source: Handle,
        ops: Sequence[Sliding],
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> Handle:
        """A mean; the operators may have `ceil_mode`."""

    def windows(self, source: Handle, kernel: Sequence[int]) -> Handle:
        """The `kernel` positions from each position on as new last axes, `(N, C, *positions, *kernel)`."""

    # positions and channels

    def gather(self, source: Handle, plan: Gather, channels: int) -> Handle:
        """The gathered map of a map of `channels` channels."""

    def crop_to_common(self, maps: Sequence[Handle], axes: int) -> list[Handle]:
        """The maps cropped at their far edges to their common extent."""

    def strided(self, source: Handle, steps: Sequence[int]) -> Handle:
        """Every `steps`-th position, beginning with the first."""

    def pad(
        self, source: Handle, amounts: Sequence[tuple[int, int]], mode: str = "constant", number: float = 0.0
    ) -> Handle:
        """Padding before and after each spatial axis."""

    def concatenate(self, maps: Sequence[Handle]) -> Handle:
        """Maps of one extent side by side along the channels."""

    def filled(self, source: Handle, number: float, dtype: Any) -> Handle:
        """A map of one channel and of the extent of `source` that holds one number everywhere."""

    def repeat_channels(self, source: Handle, count: int) -> Handle:
        """Each channel `count` times, side by side."""

    def repeat_positions(self, source: Handle, factors: Sequence[int]) -> Handle:
        """Each position repeated `factors` times per axis."""

    def interpolate(self, source: Handle, factors: Sequence[int]) -> Handle:
        """Multilinear interpolation by whole factors, the corners not aligned."""

    def split_channels(self, source: Handle, sizes: Sequence[int]) -> Handle:
        """The channels as several axes, `(N, *sizes, *positions)`; one size may be -1."""

    def merge_channels(self, source: Handle, count: int) -> Handle:
        """The inverse: the first `count` axes after the batch as one."""

    def single_positions(self, source: Handle, axes: int) -> Handle:
        """Spatial axes of one position put before the map's own, `(N, C, 1, …, *positions)`."""

    def as_batch(self, source: Handle, axes: int, shape: Sequence[int]) -> Handle:
        """A map whose channels are a value of `shape` as a batch of such values, one for each position."""

    def from_batch(self, source: Handle, like: Handle, axes: int) -> Handle:
        """The inverse of `as_batch`: a batch of values as the channels of a map, of the extent of `like`."""

    # reductions, normalisation and products

    def reduce(self, source: Handle, reduction: str, axes: Sequence[int], keep_axes: bool = False) -> Handle:
        """A `Reduction` over axes, the batch counted; of a constant too."""

    def standardise_channels(
        self,
        source: Handle,
        weight: Handle | None,
        bias: Handle | None,
        epsilon: float | None,
        root_mean_square: bool,
    ) -> Handle:
        """Layer normalisation over the channels of each position; `weight` and `bias` have one value per channel."""

    def grouped_product(self, source: Handle, weight: Handle) -> Handle:
        """`(N, G, S, K, …)` times `(S, K, O)`, summed over K: `(N, G, S, O, …)`."""

    def select(self, source: Handle, axis: int, index: Handle) -> Handle:
        """The entries along an axis (the batch counted) that a constant vector of integers names."""

    # constants

    def per_channel(self, constant: Handle, ids: Integers, axes: int) -> Handle:
        """Elements `ids` of the flattened constant as one value per channel, shape `(len(ids), 1, …)`."""

    def reshape(self, constant: Handle, shape: Sequence[int]) -> Handle:
        """The constant in another shape; one size may be -1."""

    def permute(self, constant: Handle, order: Sequence[int]) -> Handle:
        """The constant with its axes in another order."""

    def tap(self, weight: Handle, axis: int, position: int) -> Handle:
        """One position of a kernel along an axis, which is removed."""

    def matrix_vector(self, matrix: Handle, vector: Handle) -> Handle:
        """The product of a constant matrix and a constant vector."""

    # arithmetic, by broadcasting; the second operand may be a number

    def add(self, first: Handle, second: Handle | float) -> Handle: ...

    def subtract(self, first: Handle, second: Handle | float) -> Handle: ...

    def multiply(self, first: Handle, second: Handle | float) -> Handle: ...

    def maximum(self, first: Handle, least: float) -> Handle: ...

    def negative(self, source: Handle) -> Handle: ...

    def absolute(self, source: Handle) -> Handle: ...

    def square_root(self, source: Handle) -> Handle: ...

    def reciprocal_root(self, source: Handle) -> Handle: ...
