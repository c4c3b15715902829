"""Limits on numbers: axes of tensors, sizes of axes, and the settings of layers.

A size that is not known breaks no limit; `requirements.StaticShapes` reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from onebyone.targets.constraint import Constraint, Finding, Scalar
from onebyone.targets.description import LayerNumbers, NodeDescription, TensorDescription


@dataclass(frozen=True, kw_only=True)
class RankLimit(Constraint):
    """The number of axes of the tensors, all of them or only those larger than one."""

    kind: ClassVar[str] = "rank"

    maximum: int | None = None
    minimum: int = 0
    count: Literal["all", "non-singleton"] = "all"

    @property
    def title(self) -> str:
        return "rank" if self.count == "all" else "non-singleton axes"

    def check(self, operation: NodeDescription) -> Finding | None:
        ranks = [(self._rank(t), t.name) for t in operation.activations if t.sizes is not None]
        for rank, name in sorted(ranks, key=lambda pair: -pair[0]):
            if self.maximum is not None and rank > self.maximum:
                return Finding(name, rank, self.maximum)
        for rank, name in ranks:
            if rank < self.minimum:
                return Finding(name, rank, f"≥ {self.minimum}")
        return None

    def describe(self) -> str:
        what = "axes" if self.count == "all" else "axes larger than 1"
        return f"{_interval(self.minimum, self.maximum)} {what}"

    def _rank(self, tensor: TensorDescription) -> int:
        sizes = tensor.sizes or ()
        return len(sizes) if self.count == "all" else sum(size != 1 for size in sizes)


@dataclass(frozen=True, kw_only=True)
class SizeLimit(Constraint):
    """The size of one axis of the tensors.

    Axes have names in tensors of four or five axes (N, C, [D,] H, W), in tensors (N, C), and in those of convolutions
    and pools (N, C, L). "leading" is the product of all axes before the last three, and "last-three" each of these.
    """

    kind: ClassVar[str] = "size"

    axis: Literal["batch", "channels", "height", "width", "every", "leading", "last-three"]
    maximum: int | None = None
    minimum: int = 0
    multiple_of: int = 1

    @property
    def title(self) -> str:
        return "size" if self.axis in ("every", "last-three") else self.axis

    def check(self, operation: NodeDescription) -> Finding | None:
        named = operation.layer is not None and operation.layer.form != "linear"
        worst: Finding | None = None
        for tensor in operation.activations:
            for size in _axis_sizes(tensor, self.axis, named):
                allowed = _violated(size, self.minimum, self.maximum, self.multiple_of)
                if allowed is not None and (worst is None or size > int(worst.found)):
                    worst = Finding(tensor.name, size, allowed)
        return worst

    def describe(self) -> str:
        return f"{self.axis} {_range(self.minimum, self.maximum, self.multiple_of)}"


@dataclass(frozen=True, kw_only=True)
class LayerLimit(Constraint):
    """A number of a convolution, pool or product: see `LayerNumbers`.

    "kernel" is the size on each axis; "weight-passes" is kernel area · ⌈input channels of one group / channel_block⌉;
    "unequal-strides" the difference between the largest and the smallest stride; "pointwise-padding" the padding of a
    convolution whose kernel is 1×1. `depthwise` tells whether the limit holds for depthwise convolutions, with one
    input channel in each group.
    """

    kind: ClassVar[str] = "layer"

    quantity: Literal[
        "input-channels",
        "output-channels",
        "kernel",
        "kernel-height",
        "kernel-width",
        "kernel-area",
        "stride",
        "unequal-strides",
        "padding",
        "pointwise-padding",
        "dilation",
        "groups",
        "weight-passes",
    ]
    maximum: int | None = None
    minimum: int = 0
    multiple_of: int = 1
    channel_block: int = 1
    prime_factors: tuple[int, ...] = ()
    depthwise: bool = True

    @property
    def title(self) -> str:
        return self.quantity

    def applies(self, operation: NodeDescription) -> bool:
        layer = operation.layer
        is_depthwise = layer is not None and layer.groups > 1 and layer.groups == layer.input_channels
        return super().applies(operation) and (self.depthwise or not is_depthwise)

    def check(self, operation: NodeDescription) -> Finding | None:
        if operation.layer is None or (operation.layer.form == "linear" and "channels" not in self.quantity):
            return None
        for value in sorted(self.values(operation), reverse=True):
            allowed = _violated(value, self.minimum, self.maximum, self.multiple_of)
            if allowed is None and self.prime_factors and not _is_product_of(value, self.prime_factors):
                allowed = f"products of {' and '.join(map(str, self.prime_factors))}"
            if allowed is not None:
                return Finding(self.quantity, value, allowed)
        return None

    def values(self, operation: NodeDescription) -> list[int]:
        """The numbers that are limited, as far as they are known."""
        assert operation.layer is not None
        if self.quantity == "weight-passes":
            found: Iterable[int | None] = [self._passes(operation.layer)]
        else:
            found = _QUANTITIES[self.quantity](operation.layer)
        return [value for value in found if value is not None]

    def _passes(self, layer: LayerNumbers) -> int | None:
        if layer.input_channels is None or layer.kernel_area is None or layer.form == "pool":
            return None
        return layer.kernel_area * -(-(layer.input_channels // layer.groups) // self.channel_block)

    def describe(self) -> str:
        text = f"{self.quantity} {_range(self.minimum, self.maximum, self.multiple_of)}".rstrip()
        if self.prime_factors:
            text += f" products of {' and '.join(map(str, self.prime_factors))}"
        if self.quantity == "weight-passes":
            text += f" (kernel area · ⌈input channels / {self.channel_block}⌉)"
        if not self.depthwise:
            text += " (not of depthwise convolutions)"
        return text


_QUANTITIES: dict[str, Callable[[LayerNumbers], Iterable[int | None]]] = {
    "input-channels": lambda layer: [layer.input_channels],
    "output-channels": lambda layer: [layer.output_channels],
    "kernel": lambda layer: layer.kernel,
    "kernel-height": lambda layer: layer.kernel[-2:-1],
    "kernel-width": lambda layer: layer.kernel[-1:],
    "kernel-area": lambda layer: [layer.kernel_area],
    "stride": lambda layer: layer.strides,
    "unequal-strides": lambda layer: [max(layer.strides) - min(layer.strides)] if layer.strides else [],
    "padding": lambda layer: layer.pads,
    "pointwise-padding": lambda layer: layer.pads if layer.kernel_area == 1 else [],
    "dilation": lambda layer: layer.dilations,
    "groups": lambda layer: [layer.groups],
}


def _axis_sizes(tensor: TensorDescription, axis: str, is_spatial: bool) -> Iterator[int]:
    """The known sizes of the axes of that name."""
    sizes = tensor.sizes
    if not sizes:
        return
    chosen: Iterable[int | None] = [sizes[place] for place in limited_axes(len(sizes), axis, is_spatial)]
    if axis == "leading":
        known = [size for size in chosen if size is not None]
        chosen = [prod(known)] if len(known) == max(len(sizes) - 3, 1) else []
    yield from (size for size in chosen if size is not None)


def limited_axes(rank: int, axis: str, is_spatial: bool) -> Sequence[int]:
    """The positions of the axes of that name, in a tensor of `rank` axes; a map of three axes `is_spatial`.

    >>> limited_axes(4, "channels", False), limited_axes(3, "channels", False), limited_axes(5, "last-three", False)
    ([1], [], range(2, 5))
    """
    first = max(rank - 3, 1)  # the axes before the last three, and one at least
    match axis:
        case "every":
            return range(rank)
        case "last-three":
            return range(first, rank)
        case "leading":
            return range(min(first, rank))
        case "batch":
            return range(min(1, rank))
    if rank == 3 and not is_spatial:
        return []
    place = {
        "channels": 1,
        "height": rank - 2 if rank > 3 else rank,
        "width": rank - 1 if rank > 2 else rank,
    }[axis]
    return [place] if place < rank else []


def _violated(size: int, minimum: int, maximum: int | None, multiple_of: int) -> Scalar | None:
    """What is allowed where a number violates it, else None."""
    if maximum is not None and size > maximum:
        return maximum
    if size < minimum:
        return f"≥ {minimum}"
    return f"a multiple of {multiple_of}" if size % multiple_of else None


def _is_product_of(value: int, factors: tuple[int, ...]) -> bool:
    for factor in factors:
        while value and value % factor == 0:
            value //= factor
    return value == 1


def _interval(minimum: int, maximum: int | None) -> str:
    if maximum is None:
        return f"≥ {minimum}"
    return (
        f"≤ {maximum}" if minimum == 0 else (str(maximum) if minimum == maximum else f"{minimum}…{maximum}")
    )


def _range(minimum: int, maximum: int | None, multiple_of: int) -> str:
    parts = [] if minimum == 0 and maximum is None else [_interval(minimum, maximum)]
    return ", ".join([*parts, *([f"a multiple of {multiple_of}"] if multiple_of > 1 else [])])
