"""A neutral description of the nodes of a network, for checks that are the same for every front end.

Operators have their ONNX names, because vendors state their limits for those; `shown` is the name in the network's own
framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, TypeAlias

Sizes: TypeAlias = "tuple[int | None, ...]"

#: Operator of the description of a graph input.
INPUT = "Input"


@dataclass(frozen=True)
class TensorDescription:
    """A tensor that an operation reads or writes.

    Attributes:
        sizes: one per axis, None where a size is not known; None alone if not even the rank is known.
        element_type: such as "float32"; empty if it is not known.
        is_constant: whether its values are known before the network runs.
    """

    name: str
    sizes: Sizes | None
    element_type: str = ""
    is_constant: bool = False

    @property
    def rank(self) -> int | None:
        """Number of axes; None if it is not known."""
        return None if self.sizes is None else len(self.sizes)


@dataclass(frozen=True)
class LayerNumbers:
    """The settings of a convolution, of a pool, or of a product with a constant weight.

    Attributes:
        form: "conv", "pool", or "linear" for a product with a constant.
        input_channels, output_channels: over all groups; None if unknown.
        kernel: size on each spatial axis; empty for a product. A global pool has the sizes of its map.
        pads: amounts at the begin of each axis, then at the end of each.
        is_linear: whether a matrix product computes the same: the kernel is 1×1 or covers the map, without padding.
    """

    form: Literal["conv", "pool", "linear"]
    input_channels: int | None = None
    output_channels: int | None = None
    kernel: Sizes = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    is_linear: bool = False

    @property
    def kernel_area(self) -> int | None:
        """Number of positions under the kernel; None where a size is not known.

        >>> LayerNumbers("conv", kernel=(3, 5)).kernel_area
        15
        """
        known = [size for size in self.kernel if size is not None]
        return prod(known) if len(known) == len(self.kernel) else None


@dataclass(frozen=True)
class NodeDescription:
    """One node of a network.

    Attributes:
        path: its name, unique in the network.
        operator: the ONNX operator that it is or becomes, such as "MatMul".
        shown: its name in the network's own framework.
        inputs: the tensors that it reads; None for an optional one that is left out.
        attributes: the settings that are written down, by their ONNX names.
        layer: its numbers, for convolutions, pools and products with a constant.
    """

    path: str
    operator: str
    shown: str
    inputs: tuple[TensorDescription | None, ...]
    outputs: tuple[TensorDescription, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layer: LayerNumbers | None = None

    @property
    def activations(self) -> tuple[TensorDescription, ...]:
        """The tensors that depend on the network's input: inputs first, then outputs."""
        read = tuple(t for t in self.inputs if t is not None and not t.is_constant)
        return read + self.outputs
