"""Aten operators by kind, and where each names its settings.

An operator is named without its namespace and overload: `aten.permute.default` is `permute`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from onebyone.pytorch.graph.nodes import argument, operator_name

# fmt: off
POINTWISE = frozenset(
    [
        "add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "pow", "neg", "abs",
        "sign", "exp", "exp2", "expm1", "log", "log2", "log1p", "log10", "sqrt", "rsqrt", "reciprocal",
        "square", "sin", "cos", "tan", "tanh", "sinh", "cosh", "atan", "asin", "acos", "erf", "erfc", "sigmoid",
        "logit", "relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "hardtanh",
        "hardswish", "hardsigmoid", "softplus", "softshrink", "hardshrink",
        "threshold", "log_sigmoid", "clamp", "clamp_min", "clamp_max", "clip", "maximum", "minimum", "fmax",
        "fmin", "where", "masked_fill", "addcmul", "addcdiv", "lerp", "eq", "ne", "lt", "le", "gt", "ge",
        "logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not",
        "isnan", "isinf", "isfinite", "floor", "ceil", "round", "trunc", "frac", "to", "_to_copy", "type_as",
        "detach", "alias", "lift_fresh_copy", "zeros_like", "ones_like", "full_like", "atan2", "hypot", "xlogy",
        "sgn", "nan_to_num",
    ]
)
# fmt: on
KEEPING_AXES = frozenset(["contiguous", "clone", "squeeze", "unsqueeze"])
DROPOUT = frozenset(["dropout", "feature_dropout", "alpha_dropout"])
RESHAPES = frozenset(["reshape", "view", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as"])
WITH_SIZES = frozenset(["reshape", "view", "_unsafe_view"])  # the second argument lists the new sizes
CHANNELS_SECOND = frozenset(["batch_norm", "group_norm", "instance_norm", "prelu"])
NORMALISATIONS = frozenset(["layer_norm", "rms_norm"])


@dataclass(frozen=True)
class AxisArgument:
    """Where an operator names the axes along which it works."""

    position: int
    default: Any = None
    is_list: bool = False
    name: str = "dim"


AXIS_ARGUMENTS: dict[str, AxisArgument] = {
    **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"], AxisArgument(1)),
    **dict.fromkeys(["slice", "select", "narrow", "index_select", "unbind", "cat"], AxisArgument(1, 0)),
    "glu": AxisArgument(1, -1),
    "flip": AxisArgument(1, is_list=True, name="dims"),
    "roll": AxisArgument(2, is_list=True, name="dims"),
    **dict.fromkeys(["split", "split_with_sizes", "chunk"], AxisArgument(2, 0)),
    **dict.fromkeys(
        ["logsumexp", "mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean"],
        AxisArgument(1, is_list=True),
    ),
    "linalg_vector_norm": AxisArgument(2, is_list=True),
}
SPLITS = frozenset(["unbind", "split", "split_with_sizes", "chunk"])
MOMENTS = frozenset(["var_mean", "std_mean"])


def permutation_of(node: Node, name: str, rank: int) -> list[int] | None:
    """For each axis of the result, the axis of the input; None where the operator is not a permute."""
    axes = list(range(rank))
    if name == "permute":
        return [int(axis) % rank for axis in argument(node, 1, "dims")]
    if name in ("transpose", "swapaxes", "swapdims"):
        first, second = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
        axes[first], axes[second] = second, first
        return axes
    if name in ("t", "numpy_T"):
        return axes[::-1]
    if name == "mT":
        return [*axes[:-2], rank - 1, rank - 2]
    if name in ("movedim", "moveaxis"):
        return moved_axes(argument(node, 1, "source"), argument(node, 2, "destination"), rank)
    return None


def moved_axes(source: Any, destination: Any, rank: int) -> list[int]:
    """The permutation of `movedim`, whose arguments are integers or lists.

    >>> moved_axes(0, -1, 3)
    [1, 2, 0]
    """
    sources = [s % rank for s in (source if isinstance(source, list | tuple) else [source])]
    destinations = [
        d % rank for d in (destination if isinstance(destination, list | tuple) else [destination])
    ]
    placed = dict(zip(destinations, sources, strict=True))
    others = iter(axis for axis in range(rank) if axis not in sources)
    return [placed[i] if i in placed else next(others) for i in range(rank)]


def sizes_argument(node: Node) -> list[Any] | None:
    """The sizes that a reshape or an expand names, one for each axis of its result; None where it names none."""
    sizes = argument(node, 1, "size") if operator_name(node) in WITH_SIZES | {"expand"} else None
    return list(sizes) if isinstance(sizes, list | tuple) else None
