"""The table of rules: one for each kind of neutral operator. Nothing is registered by importing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onebyone.lifting import operators
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call
from onebyone.lifting.rules.along_axes import along_axes
from onebyone.lifting.rules.context import group_norm
from onebyone.lifting.rules.einsum import einsum
from onebyone.lifting.rules.elementwise import elementwise
from onebyone.lifting.rules.normalisation import batch_norm, layer_norm
from onebyone.lifting.rules.product import linear
from onebyone.lifting.rules.reduce import adaptive_pool, reduce
from onebyone.lifting.rules.resize import resize
from onebyone.lifting.rules.select import select
from onebyone.lifting.rules.shape import concatenate, rearrange, stack
from onebyone.lifting.rules.sliding import convolution, pad, pool

RULES: dict[type, Callable[[Lifter, Call, Any], Any]] = {
    operators.AdaptivePool: adaptive_pool,
    operators.AxisOperator: along_axes,
    operators.BatchNorm: batch_norm,
    operators.Concatenation: concatenate,
    operators.Convolution: convolution,
    operators.Einsum: einsum,
    operators.Elementwise: elementwise,
    operators.GroupNorm: group_norm,
    operators.LayerNorm: layer_norm,
    operators.Linear: linear,
    operators.Pad: pad,
    operators.Pool: pool,
    operators.Rearrange: lambda _lifter, _call, operator: rearrange(operator),
    operators.Reduce: reduce,
    operators.Resize: resize,
    operators.Select: select,
    operators.Stack: stack,
}


def lift(lifter: Lifter, call: Call, operator: Any) -> Any:
    """The value or values of a call whose operator was read as `operator`, one of the classes in `operators`.

    Raises
    ------
    Cannot
        where the operator has no meaning for every window, with the reason.
    """
    return RULES[type(operator)](lifter, call, operator)
