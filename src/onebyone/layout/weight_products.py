"""A product with a constant weight, as the planner reads it: which axes it maps, and with which constants."""

from __future__ import annotations

from dataclasses import dataclass

from onebyone.layout.sizes import Size
from onebyone.layout.values import GraphValue


@dataclass(frozen=True, eq=False)
class WeightProduct:
    """One product with a constant weight, independent of how the graph spells it. Axes are logical ones.

    Attributes
    ----------
    x, x_channel
        The operand that is not constant, and its channel axis.
    out_channel
        The channel axis of the result; None where a vector weight leaves no such axis.
    weight, weight_out, weight_in
        A matrix, up to axes of size 1; its axis of outputs (None for a vector) and its axis of inputs.
    bias, alpha, beta
        The result is alpha · (x W) + beta · bias, as in `addmm`.
    groups, stride
        Those of a 1×1 convolution; `stride` has one entry for each spatial axis, and is empty for other products.
    """

    result: GraphValue
    x: GraphValue
    x_channel: int
    out_channel: int | None
    weight: GraphValue
    weight_out: int | None
    weight_in: int
    bias: GraphValue | None = None
    alpha: float = 1.0
    beta: float = 1.0
    groups: int = 1
    stride: tuple[int, ...] = ()

    @property
    def inputs(self) -> Size:
        """The number of input channels; that of the weight where the input's is not known."""
        size = self.x.size(self.x_channel)
        return size if isinstance(size, int) else self.weight.size(self.weight_in) * self.groups

    @property
    def outputs(self) -> Size:
        """The number of output channels."""
        return 1 if self.out_channel is None else self.result.size(self.out_channel)

    @property
    def operands(self) -> tuple[GraphValue, ...]:
        """The input, the weight, and the bias where there is one."""
        return (self.x, self.weight) if self.bias is None else (self.x, self.weight, self.bias)

    @property
    def has_plain_bias(self) -> bool:
        """Whether the bias, if any, is one number for each output that is added as it is."""
        if self.bias is None:
            return True
        return self.alpha == self.beta == 1 and self.bias.shape == (self.outputs,)


def product_of_factors(
    result: GraphValue,
    x: GraphValue,
    weight: GraphValue,
    weight_is_left: bool,
    bias: GraphValue | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> WeightProduct | str:
    """A matrix product of which one factor is a constant weight; or the reason why it is not a layer.

    The weight has no batch axis longer than 1: an `expand` of it has been looked behind by the caller.
    """
    if weight.rank == 1:
        if weight_is_left:
            return "a vector weight on the left leaves no channels"
        return WeightProduct(result, x, x.rank - 1, None, weight, None, 0, bias, alpha, beta)
    if weight.rank > 2 and result.rank != x.rank:
        return "the weight has more axes than the input"
    channel = max(0, x.rank - 2) if weight_is_left else x.rank - 1
    first, second = weight.rank - 2, weight.rank - 1
    weight_out, weight_in = (first, second) if weight_is_left else (second, first)
    if _without(x, channel) != _without(result, channel):
        return "the weight broadcasts the input"
    return WeightProduct(result, x, channel, channel, weight, weight_out, weight_in, bias, alpha, beta)


def _without(value: GraphValue, axis: int) -> tuple[Size, ...]:
    assert value.shape is not None
    return value.shape[:axis] + value.shape[axis + 1 :]
