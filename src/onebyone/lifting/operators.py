"""Neutral operators: what a front end's decoder reads out of its graph, and what the rules in `rules/` lift.

Each class is one kind of operator with its settings parsed: a rule sees `Convolution(stride=(2, 2), …)` and neither
`aten.conv2d` nor an ONNX node. Axes are numbered without the batch: axis 0 is the channels of a map, and spatial
settings have one entry per axis that the operator slides over. Operands are values (`onebyone.lifting.values`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from onebyone.lifting.grid import Integers
from onebyone.lifting.index import Stencil
from onebyone.lifting.values import Cannot, Const, Handle, Lifted, Value

#: Padding before and after, in positions, one pair for each axis.
Padding = Sequence[tuple[int, int]]
#: How elements are reduced to one; "norm" is the root of the sum of squares.
Reduction = Literal["mean", "sum", "max", "min", "norm"]


def axes_without_batch(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes of a tensor of `rank` axes, which may be negative, as sorted axes of the value without its batch.

    None or an empty sequence means all axes. Raises `Cannot` where the batch is among them.

    >>> axes_without_batch((-1, 2), 4), axes_without_batch(1, 4)
    ((1, 2), (0,))
    """
    listed = [axes] if isinstance(axes, int) else list(axes or range(rank))
    numbers = [axis % rank for axis in listed]
    if 0 in numbers:
        raise Cannot("a reduction over the batch")
    return tuple(sorted(axis - 1 for axis in numbers))


@dataclass(frozen=True)
class Call:
    """One call of an operator in the network, whatever its kind.

    Parameters
    ----------
    name: the operator's name as messages give it, such as `aten.conv2d`.
    path: the dotted path of the module that it belongs to, "" at the top level.
    key: a name that no other call in the graph has.
    shapes: the shape of each of its results in one window, without the batch.
    dtype: of its first result, in the front end's own terms.
    operands: its tensor operands, each once, in order.
    apply: emits the operator as it is on other handles, one for each operand; gives the handle of its result.
    """

    name: str
    path: str
    key: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: Any
    operands: tuple[Value, ...]
    apply: Callable[..., Handle]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first result in one window, without the batch."""
        return self.shapes[0]


@dataclass(frozen=True)
class Rearrange:
    """A shape operator: view, permute, slice, flip, repeat, split and the like.

    `run` applies the operator to an integer array of shape `(BATCH, *source.shape)` that numbers the elements, and
    gives the array or arrays that come out. So the rule needs to know no shape operator.
    """

    source: Value
    run: Callable[[Integers], Integers | Sequence[Integers]]


@dataclass(frozen=True)
class Concatenation:
    """Values side by side along an axis."""

    parts: Sequence[Value]
    axis: int


@dataclass(frozen=True)
class Stack:
    """Values side by side along a new axis; `axis` is its number in the result."""

    parts: Sequence[Value]
    axis: int


@dataclass(frozen=True)
class Select:
    """The elements along one axis that a constant vector of indices names, where a checkpoint may change the indices.

    Indices that are part of the code make a `Rearrange`.
    """

    source: Value
    index: Value
    axis: int


@dataclass(frozen=True)
class Pad:
    """Padding by fixed amounts, one pair for each of the last axes; negative amounts crop.

    `mode` is "constant" (with `number`), "reflect", "replicate" or "circular".
    """

    source: Value
    amounts: Padding
    mode: str = "constant"
    number: float = 0.0


@dataclass(frozen=True)
class Convolution:
    """A convolution with a constant kernel `(O, C / groups, *kernel)` and an optional bias `(O,)`."""

    source: Value
    weight: Value
    bias: Value
    stride: Sequence[int]
    padding: Padding
    dilation: Sequence[int]
    groups: int


@dataclass(frozen=True)
class Pool:
    """A pool over the last `len(kernel)` axes.

    `count_padding` and `divisor` are those of a mean: whether padding counts in the divisor, and a fixed divisor.
    """

    source: Value
    reduction: Literal["max", "mean"]
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Padding
    dilation: Sequence[int]
    ceil_mode: bool = False
    count_padding: bool = True
    divisor: int | None = None


@dataclass(frozen=True)
class AdaptivePool:
    """A pool to a fixed number of bins, one number for each of the last axes."""

    source: Value
    reduction: Literal["max", "mean"]
    bins: Sequence[int]


@dataclass(frozen=True)
class Reduce:
    """A reduction over some axes."""

    source: Value
    reduction: Reduction
    axes: Sequence[int]
    keep_axes: bool = False


@dataclass(frozen=True)
class AxisOperator:
    """An operator that mixes the elements along some axes and treats all others alike: softmax, sort, variance.

    `apply(handle, axes)` emits it over other axes (the batch counted) of another handle, without keeping reduced
    axes, and gives one handle for each of the call's results. `reduces` says that its results lose the axes; if not,
    they have one axis, whose elements keep their order. `any_extent` says that it computes a statistic that does not
    depend on how many elements there are, so that it may be taken over a whole image.
    """

    source: Value
    axes: Sequence[int]
    apply: Callable[[Handle, Sequence[int]], Sequence[Handle]]
    reduces: bool
    any_order: bool
    any_extent: bool = False


@dataclass(frozen=True)
class Elementwise:
    """An operator on each element by itself, by broadcasting; `apply` emits it on one handle for each operand."""

    operands: Sequence[Value]
    apply: Callable[..., Handle]


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm with constant statistics; `apply` emits it on a map with these channels.

    On a flattened map its constants depend on the position; then scale and shift are given to the next linear layer.
    """

    source: Value
    mean: Value
    variance: Value
    weight: Value
    bias: Value
    epsilon: float
    apply: Callable[[Handle], Handle]


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm, or a root-mean-square norm, over the last `axes` axes.

    `epsilon` None is the smallest number that the type can add to 1.
    """

    source: Value
    axes: int
    weight: Value
    bias: Value
    epsilon: float | None
    root_mean_square: bool = False


@dataclass(frozen=True)
class GroupNorm:
    """Mean and variance over each group of channels and over all positions; `groups` None: each channel is a group."""

    source: Value
    groups: int | None
    weight: Value
    bias: Value
    epsilon: float


@dataclass(frozen=True)
class Linear:
    """`y = x Wᵀ + b` over an axis, or `y = x W + b` where the weight is `transposed`.

    `axis` is counted from the end. It is the last one, unless the layer is a 1×1 convolution of the network.
    """

    source: Value
    weight: Value
    bias: Value
    transposed: bool = False
    axis: int = -1


@dataclass(frozen=True)
class Einsum:
    """A sum of products: one term of letters for each operand and one for the result, the batch among the letters."""

    operands: Sequence[Value]
    terms: Sequence[str]
    result: str


@dataclass(frozen=True)
class Resize:
    """Interpolation to `size` positions per axis: each position repeated ("nearest"), or multilinear ("linear")."""

    source: Value
    size: Sequence[int]
    mode: Literal["nearest", "linear"]


@dataclass(frozen=True)
class LinearLayer:
    """What the rule for linear layers did, recorded for the verifier.

    The layer reads `source`, whose features are along `axis` (counted from the end), by `stencil`; its weight has the
    shape `(K, O)` where `transposed`, else `(O, K)`.
    """

    call: Call
    source: Lifted
    stencil: Stencil
    weight: Const
    bias: Const | None
    transposed: bool
    axis: int

    @property
    def law(self) -> str:
        """The name of the law by which the layer is a convolution."""
        if self.stencil.is_pointwise:
            return "linear = pointwise convolution"
        return "flatten∘linear = convolution without padding"
