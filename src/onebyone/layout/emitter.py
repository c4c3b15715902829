"""What a front end supplies: the operators with which a planned program is written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from onebyone.layout.orders import UNIT, Layout, permutation_between, unit_changes
from onebyone.layout.values import GraphValue

T = TypeVar("T")


class LayoutEmitter(Protocol[T]):
    """Writes operators of one framework. `T` is a tensor of the new program: a graph node, or an array.

    A front end subclasses this protocol and implements the abstract methods; the others have a default. A size is an
    integer or, where it is not known, a `T` that holds it. Positions are dimensions of stored tensors, not logical
    axes.
    """

    # -- the program's own operators

    @abstractmethod
    def repeat(
        self, result: GraphValue, operands: Mapping[GraphValue, T], axes: Sequence[int] | None = None
    ) -> T:
        """The operator that computes `result`, on other tensors as its operands.

        `axes` replaces the operator's axis argument (of softmax, mean, split, concatenation …) by these positions.
        """

    @abstractmethod
    def argument_size(self, result: GraphValue, axis: int) -> int | T | None:
        """A size of the result as the operator's arguments name it (of a reshape or an expand); None if they do not."""

    @abstractmethod
    def normalise(self, result: GraphValue, x: T, position: int, scale: T | None, offset: T | None) -> T:
        """The normalisation that computes `result`, written with elementary operators along one dimension of `x`."""

    def shape_of(self, result: GraphValue, source: GraphValue, x: T, layout: Layout) -> T:
        """The sizes of `source`, which `x` holds in `layout`, for a program with tensors that hold shapes.

        A front end whose shapes are no tensors does not make a `ShapeRule`, and leaves this out.
        """
        raise TypeError(f"{result.name}: the shape of {source.name} is no tensor of this program")

    # -- moving data and changing shapes

    @abstractmethod
    def permute(self, x: T, permutation: Sequence[int]) -> T:
        """Dimension `i` of the result is dimension `permutation[i]` of `x`. This is the layout operator."""

    @abstractmethod
    def squeeze(self, x: T, positions: Sequence[int]) -> T:
        """Remove dimensions of size 1."""

    @abstractmethod
    def unsqueeze(self, x: T, position: int) -> T:
        """Insert a dimension of size 1."""

    @abstractmethod
    def reshape(self, x: T, sizes: Sequence[int | T]) -> T:
        """A row-major reshape; at most one size may be −1, which is inferred."""

    @abstractmethod
    def expand(self, x: T, sizes: Sequence[int | T]) -> T:
        """Repeat dimensions of size 1 and add leading ones, up to `sizes`; −1 keeps a size."""

    # -- sizes

    @abstractmethod
    def size(self, x: T, position: int) -> int | T:
        """The size of one dimension."""

    @abstractmethod
    def multiply_sizes(self, sizes: Sequence[int | T]) -> int | T:
        """The product of sizes; 1 for none."""

    @abstractmethod
    def strided_size(self, size: int | T, step: int) -> int | T:
        """The number of elements that every `step`-th of `size` are: (size − 1) // step + 1."""

    # -- products with a constant weight

    @abstractmethod
    def convolution(self, x: T, weight: T, bias: T | None) -> T:
        """A 1×1 convolution of `x` (N, C, *spatial) with a weight (O, C, 1, …)."""

    @abstractmethod
    def linear(self, x: T, weight: T, bias: T | None) -> T:
        """x Wᵀ + b over the last dimension, with a weight (O, I)."""

    @abstractmethod
    def matmul(self, first: T, second: T) -> T:
        """The matrix product over the last two dimensions; leading dimensions broadcast."""

    @abstractmethod
    def add(self, x: T, other: T, factor: float = 1.0) -> T:
        """x + factor · other, with broadcasting."""

    @abstractmethod
    def scale(self, x: T, factor: float) -> T:
        """factor · x."""

    @abstractmethod
    def split_rows(self, weight: T, groups: int) -> T:
        """A weight (O, I) as (groups, O / groups, I)."""

    @abstractmethod
    def subsample(self, x: T, steps: Mapping[int, int], image_axes: int) -> T:
        """Keep every step-th element along some positions, from the first.

        Where `image_axes` is not 0, `x` is an image (N, C, *spatial) or (C, *spatial) with that many spatial
        dimensions, so that a pooling operator may be used.
        """

    # -- convolutions on patches, of a front end that makes a `PatchRule`

    def patches(self, x: T, cuts: Sequence[tuple[int, int]]) -> T:
        """Adjacent patches as rows: the last dimension of the result holds the elements of one patch.

        `cuts` gives positions, and the extent of a patch there; of the elements of a patch, those along the last cut
        follow each other. At a position of extent k and size n there are ⌊n / k⌋ patches. This is one layout operator,
        unless it is a view.
        """
        raise TypeError(f"patches of {x}: convolutions on patches are not rewritten in this kind of program")

    def as_matrix(self, weight: T) -> T:
        """A kernel (O, C, *kernel) as a matrix (O, C·Πkernel): a view."""
        raise TypeError(f"{weight}: convolutions on patches are not rewritten in this kind of program")

    # -- derived

    def change_units(self, x: T, have: Layout, want: Layout) -> T:
        """The same tensor with other unit dimensions; both layouts have one order."""
        squeeze, unsqueeze = unit_changes(have, want)
        if squeeze:
            x = self.squeeze(x, squeeze)
        for position in unsqueeze:
            x = self.unsqueeze(x, position)
        return x

    def reorder(self, x: T, have: Layout, want: Layout) -> T:
        """A tensor stored in `have`, in the layout `want` of another order: one permute, of unit dimensions too.

        Where the layouts have different numbers of unit dimensions, the difference is inserted or removed before it.
        """
        missing = len(want) - len(have)
        padded = (*have, *(UNIT,) * missing)
        for _ in range(-missing):
            place = padded.index(UNIT)
            padded = padded[:place] + padded[place + 1 :]
        if missing:
            x = self.change_units(x, have, padded)
        return self.permute(x, permutation_between(padded, want))
