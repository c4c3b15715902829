"""The tensors of the program being written, and the layouts that each value is available in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from onebyone.layout.emitter import LayoutEmitter
from onebyone.layout.orders import (
    Layout,
    Order,
    order_of,
    renamed,
    unit_changes,
    with_order,
    without_leading_units,
)
from onebyone.layout.values import GraphValue

T = TypeVar("T")


@dataclass(frozen=True)
class RenamedConstant:
    """A constant that is another constant with its axes permuted: `axes` maps its axes to those of `source`."""

    source: GraphValue
    axes: Mapping[int, int]


class StoredTensors(Generic[T]):
    """Values of the original program as tensors of the new one; layouts are changed where they are asked for.

    A tensor in a layout that is not available is made from one that is, and kept: with squeezes and unsqueezes where
    the order is available, otherwise with one permute of the tensor that the value's operator wrote.

    `constants` may be stored in any order at conversion; `demands` counts the layouts that they were asked for, from
    which their storage is chosen. `renamed_constants` are read from their source. `best_layouts` are those in which
    the operators after a value read it (`planner.best_layouts`).
    """

    def __init__(
        self,
        emitter: LayoutEmitter[T],
        constants: Collection[GraphValue] = (),
        renamed_constants: Mapping[GraphValue, RenamedConstant] | None = None,
        best_layouts: Mapping[GraphValue, Layout] | None = None,
    ) -> None:
        self.emitter = emitter
        self.demands: dict[GraphValue, Counter[Layout]] = {}
        self._constants = constants
        self._renamed = renamed_constants or {}
        self._best = best_layouts or {}
        self._tensors: dict[GraphValue, dict[Layout, T]] = {}

    def put(self, value: GraphValue, layout: Layout, tensor: T) -> None:
        """Record the tensor that holds a value."""
        self._tensors[value] = {layout: tensor}

    def get(self, value: GraphValue, layout: Layout) -> T:
        """The tensor that holds a value in exactly this layout."""
        constant = self._renamed.get(value)
        if constant is not None:
            return self.get(constant.source, renamed(layout, constant.axes))
        if value in self._constants:
            self.demands.setdefault(value, Counter())[layout] += 1
        available = self._tensors[value]
        if layout not in available:
            same_order = next((have for have in available if order_of(have) == order_of(layout)), None)
            if same_order is not None:
                available[layout] = self.emitter.change_units(available[same_order], same_order, layout)
            else:
                written, tensor = next(iter(available.items()))
                available[layout] = self.emitter.reorder(tensor, written, layout)
        return available[layout]

    def natural(self, value: GraphValue) -> T:
        """The tensor that holds a value in its original layout; a list of tensors, or one of unknown rank, as it is."""
        if value.shape is None:
            return next(iter(self._tensors[value].values()))
        return self.get(value, value.natural_layout)

    def available(self, value: GraphValue) -> Mapping[Layout, T]:
        """The tensors that hold a value, by layout, the written one first; none for a renamed constant."""
        return self._tensors.get(value, {})

    def best_layout(self, value: GraphValue, order: Order) -> Layout:
        """The layout to write a value in whose operator can insert unit dimensions anywhere."""
        best = self._best.get(value)
        return order if best is None else with_order(best, order)

    def nearest(self, value: GraphValue, layout: Layout, last: int = 0) -> Layout:
        """A layout, or the same without leading unit dimensions, whichever takes fewer squeezes and unsqueezes.

        A constant, which takes none, is stored without them, unless it is available with them. Of the `last`
        dimensions none is left out.
        """
        available = self.available(value)
        end = len(layout) - last
        shorter = (*without_leading_units(layout[:end]), *layout[end:])
        if layout in available or value in self._constants:
            return layout if layout in available else shorter
        have = self.layout_with(value, order_of(layout))
        return min(layout, shorter, key=lambda want: sum(map(bool, unit_changes(have, want))))

    def layout_with(self, value: GraphValue, order: Order) -> Layout:
        """An available layout of this order.

        Where there is none, that of the tensor that the value's operator wrote, with its axes in this order, so that
        one permute makes it.
        """
        available = self.available(value)
        for layout in available:
            if order_of(layout) == order:
                return layout
        return with_order(next(iter(available), order), order)

    def any_layout(self, value: GraphValue) -> tuple[Layout, T]:
        """The layout in which a value was written, and its tensor; the original one for a renamed constant."""
        if value in self._renamed:
            return value.natural_layout, self.natural(value)
        return next(iter(self._tensors[value].items()))

    def size(self, value: GraphValue, axis: int) -> int | T:
        """The size of a logical axis: an integer where it is known, else read from the stored tensor."""
        known = value.size(axis)
        if isinstance(known, int):
            return known
        layout, tensor = self.any_layout(value)
        return self.emitter.size(tensor, layout.index(axis))
