"""The rule of an operator, by its kind, where the conditions of that rule hold.

A front end reads an operator of its framework, and calls the function of its kind with the operator's settings. Each
function returns None where the operator must keep the original order of its operands and result; the front end then
uses `FixedRule`. Values with an axis of size 0, or with a size that depends on the values of other tensors, always need
`FixedRule`. All axes are counted from 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onebyone.layout.normalisations import NormalisationRule, SumNormalisationRule
from onebyone.layout.orders import Order, significant_axes
from onebyone.layout.reshape_groups import reshape_groups
from onebyone.layout.reshape_rules import ExpandRule, ReshapeRule
from onebyone.layout.rules import (
    AxisRule,
    ChannelsSecondRule,
    ConcatenateRule,
    ElementRule,
    LayoutRule,
    PointwiseRule,
    RelabelRule,
)
from onebyone.layout.sizes import Size
from onebyone.layout.stored_tensors import RenamedConstant
from onebyone.layout.values import GraphValue


def pointwise(result: GraphValue, operands: tuple[GraphValue, ...]) -> LayoutRule | None:
    """An elementwise operator whose operands broadcast against each other."""
    ranks = [len(x.shape) for x in operands if x.shape is not None]
    if not ranks or len(ranks) < len(operands) or result.shape is None or max(ranks) != result.rank:
        return None
    return PointwiseRule(result, operands)


def keep_axes(result: GraphValue, x: GraphValue) -> LayoutRule | None:
    """A copy, squeeze or unsqueeze: the significant axes of the operand, in order, are those of the result."""
    if x.shape is None or len(x.axes) != len(result.axes):
        return None
    return RelabelRule(result, (x,), dict(zip(x.axes, result.axes, strict=True)))


def permute(result: GraphValue, x: GraphValue, permutation: Sequence[int]) -> LayoutRule:
    """A permute: axis `i` of the result is axis `permutation[i]` of the operand."""
    return RelabelRule(result, (x,), {permutation[axis]: axis for axis in result.axes})


def reshape(result: GraphValue, x: GraphValue) -> LayoutRule | None:
    """A reshape, view, flatten or unflatten."""
    if x.shape is None or result.shape is None:
        return None
    groups = reshape_groups(x.shape, result.shape)
    if not all(before and after for before, after in groups):
        return None  # a symbolic size that can only be 1, and whose axis has no counterpart
    if all(len(before) == len(after) == 1 for before, after in groups):
        return keep_axes(result, x)
    return ReshapeRule(result, (x,), groups)


def along_axes(
    result: GraphValue,
    operands: tuple[GraphValue, ...],
    along: Sequence[int],
    *,
    drops: bool,
    shape: Sequence[Size] | None = None,
) -> LayoutRule | None:
    """An operator that works along some axes of its first operand and does not touch the others.

    `drops` says that the result has no dimension at these axes. `shape` is the shape of each piece where the result
    is a list; of pieces that differ along an axis, any size other than 1 may be given there.
    """
    x = operands[0]
    shape = result.shape if shape is None else shape
    if x.shape is None or shape is None or not along or any(axis not in x.axes for axis in along):
        return None
    kept = [axis for axis in range(x.rank) if not (drops and axis in along)]
    significant = significant_axes(shape)
    names = {before: after for after, before in enumerate(kept) if before in x.axes and after in significant}
    return AxisRule(result, operands, names, tuple(along), drops)


def element(result: GraphValue, pieces: GraphValue, list_axes: Order) -> LayoutRule:
    """One tensor of a list; `list_axes` are the `axes` of the rule that makes the list."""
    return ElementRule(result, (pieces,), list_axes)


def concatenate(result: GraphValue, operands: tuple[GraphValue, ...], axis: int) -> LayoutRule | None:
    """A concatenation along one axis."""
    if result.shape is None or axis not in result.axes:
        return None
    if any(x.shape is None or x.rank != result.rank for x in operands):
        return None
    return ConcatenateRule(result, operands, axis)


def expand(result: GraphValue, x: GraphValue) -> LayoutRule | None:
    """A broadcast of a tensor to a larger shape."""
    if x.shape is None or result.shape is None:
        return None
    return ExpandRule(result, (x,))


def normalise(
    result: GraphValue,
    x: GraphValue,
    count: int,
    scale: GraphValue | None = None,
    offset: GraphValue | None = None,
) -> LayoutRule | None:
    """Layer or root-mean-square normalisation over the last `count` axes."""
    if x.shape is None:
        return None
    over = tuple(range(x.rank - count, x.rank))
    if any(axis not in x.axes for axis in over):
        return None
    parameters = tuple(value for value in (scale, offset) if value is not None)
    return NormalisationRule(result, (x, *parameters), over, scale, offset)


def normalise_sum(
    result: GraphValue,
    x: GraphValue,
    addends: tuple[GraphValue, ...],
    scale: GraphValue | None,
    offset: GraphValue | None,
) -> LayoutRule | None:
    """Layer or root-mean-square normalisation of a sum over its last axis. `x` has the shape of the result."""
    parameters = tuple(value for value in (scale, offset) if value is not None)
    operands = (x, *addends, *parameters)
    if (
        any(value.shape is None for value in operands)
        or x.shape != result.shape
        or len(set(operands)) < len(operands)
    ):
        return None
    last = x.rank - 1
    if (
        last not in x.axes
        or any(value.rank != 1 for value in parameters)
        or any(a.rank > x.rank for a in addends)
    ):
        return None
    return SumNormalisationRule(result, operands, (last,), scale, offset, addends)


def channels_second(result: GraphValue, operands: tuple[GraphValue, ...]) -> LayoutRule | None:
    """An operator on (N, C, …) whose other operands belong to the channels."""
    x = operands[0]
    return None if x.shape is None or x.rank < 2 else ChannelsSecondRule(result, operands)


def renamed_constants(
    rules: Mapping[GraphValue, LayoutRule], constants: Collection[GraphValue]
) -> dict[GraphValue, RenamedConstant]:
    """The values that are constants with their axes renamed: they can be stored in any order at conversion, too.

    `rules` are in the order of the program.
    """
    renamed: dict[GraphValue, RenamedConstant] = {}
    for value, rule in rules.items():
        if isinstance(rule, RelabelRule) and (rule.operands[0] in constants or rule.operands[0] in renamed):
            renamed[value] = RenamedConstant(rule.operands[0], rule.back())
    return renamed
