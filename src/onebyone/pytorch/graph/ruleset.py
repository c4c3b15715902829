"""Which rule each operator has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from onebyone.pytorch.graph.counting import operator_name
from onebyone.pytorch.graph.match import argument
from onebyone.pytorch.graph.orders import significant
from onebyone.pytorch.graph.reshaping import groups_between, reshape_rule
from onebyone.pytorch.graph.rules import (
    AlongAxes,
    ChannelSecond,
    Concatenate,
    Element,
    ElementwiseRule,
    Expand,
    Fixed,
    Normalise,
    Relabel,
    Rule,
    axes_of,
    has_unknown_size,
    shape,
    tensor,
    tensor_operands,
)

POINTWISE = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "true_divide",
        "floor_divide",
        "remainder",
        "pow",
        "neg",
        "abs",
        "sign",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log1p",
        "log10",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "square",
        "sin",
        "cos",
        "tan",
        "tanh",
        "sinh",
        "cosh",
        "atan",
        "asin",
        "acos",
        "erf",
        "erfc",
        "sigmoid",
        "logit",
        "relu",
        "relu6",
        "gelu",
        "silu",
        "mish",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "softplus",
        "softsign",
        "softshrink",
        "hardshrink",
        "tanhshrink",
        "threshold",
        "log_sigmoid",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "where",
        "masked_fill",
        "addcmul",
        "addcdiv",
        "lerp",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "logical_and",
        "logical_or",
        "logical_not",
        "logical_xor",
        "bitwise_and",
        "bitwise_or",
        "bitwise_not",
        "isnan",
        "isinf",
        "isfinite",
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
        "to",
        "_to_copy",
        "type_as",
        "detach",
        "alias",
        "lift_fresh_copy",
        "zeros_like",
        "ones_like",
        "full_like",
        "atan2",
        "hypot",
        "xlogy",
        "sgn",
        "nan_to_num",
    ]
)
COPYING = frozenset(["contiguous", "clone"])
# operator → (place of its axis argument, its default, whether it lists axes)
ALONG: dict[str, tuple[int, Any, bool]] = {
    **dict.fromkeys(
        ["softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "logsumexp"], (1, None, False)
    ),
    **dict.fromkeys(["slice", "select", "narrow", "index_select", "unbind"], (1, 0, False)),
    "glu": (1, -1, False),
    "flip": (1, None, True),
    "roll": (2, None, True),
    **dict.fromkeys(["split", "split_with_sizes", "chunk"], (2, 0, False)),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "var", "std"], (1, None, True)),
    **dict.fromkeys(["var_mean", "std_mean"], (1, None, True)),
    "linalg_vector_norm": (2, None, True),
}
MOMENTS = frozenset(["var_mean", "std_mean"])
LISTS = frozenset(["unbind", "split", "split_with_sizes", "chunk"])
DROPS = frozenset(["select", "unbind"])
SECOND = frozenset(["batch_norm", "group_norm", "instance_norm", "prelu"])
RESHAPING = frozenset(["reshape", "view", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as"])


def rule_for(node: Node, rules: dict[Node, Rule]) -> Rule:
    """The rule of one node; `rules` holds those of the nodes before it."""
    name = operator_name(node)
    fixed = Fixed(node, axes_of(node), tensor_operands(node))
    if node.op != "call_function":
        return fixed
    if name == "getitem":
        return _element(node, rules) or fixed
    makers = (_pointwise, _copying, _permuting, _reshaping, _along, _others)
    values = [n for n in (node, *fixed.operands) if tensor(n) is not None]
    if any(has_unknown_size(n) or any(size == 0 for size in shape(n)) for n in values):
        return fixed
    for maker in makers:
        rule = maker(name, node)
        if rule is not None:
            return rule
    return fixed


def _element(node: Node, rules: dict[Node, Rule]) -> Rule | None:
    parent = node.args[0]
    if (
        not isinstance(parent, Node)
        or operator_name(parent) not in LISTS | MOMENTS
        or isinstance(rules[parent], Fixed)
    ):
        return None
    return Element(node, axes_of(node), (parent,), rules[parent].axes)


def _pointwise(name: str, node: Node) -> Rule | None:
    inert = name in ("dropout", "feature_dropout", "alpha_dropout") and argument(node, 2, "train") is False
    kept = name == "clone" and any(user.op == "output" for user in node.users)
    if not (name in POINTWISE or inert or kept) or tensor(node) is None:
        return None
    operands = tensor_operands(node)
    ranks = [len(shape(n)) for n in operands if tensor(n) is not None]
    if len(ranks) != len(operands) or not ranks or max(ranks) != len(shape(node)):
        return None
    return ElementwiseRule(node, axes_of(node), operands)


def _relabel(node: Node) -> Rule | None:
    x = node.all_input_nodes[0]
    before, after = axes_of(x), axes_of(node)
    if len(before) != len(after):
        return None
    return Relabel(node, after, (x,), dict(zip(before, after, strict=True)))


def _copying(name: str, node: Node) -> Rule | None:
    return _relabel(node) if name in COPYING | {"squeeze", "unsqueeze"} else None


def permutation(name: str, node: Node) -> list[int] | None:
    """For each axis of the result, the axis of the input it is."""
    x = node.args[0]
    if not isinstance(x, Node) or tensor(x) is None:
        return None
    rank = len(shape(x))
    places = list(range(rank))
    if name == "permute":
        return [int(d) % rank for d in argument(node, 1, "dims")]
    if name in ("transpose", "swapaxes", "swapdims"):
        a, b = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
        places[a], places[b] = b, a
        return places
    if name in ("t", "numpy_T") or (name in ("matrix_H", "mT") and rank == 2):
        return places[::-1] if name != "matrix_H" else None
    if name == "mT":
        return [*places[:-2], rank - 1, rank - 2]
    if name in ("movedim", "moveaxis"):
        return _moved(argument(node, 1, "source"), argument(node, 2, "destination"), rank)
    return None


def _moved(source: Any, destination: Any, rank: int) -> list[int]:
    sources = [s % rank for s in (source if isinstance(source, list | tuple) else [source])]
    destinations = [
        d % rank for d in (destination if isinstance(destination, list | tuple) else [destination])
    ]
    placed = dict(zip(destinations, sources, strict=True))
    rest = iter(a for a in range(rank) if a not in sources)
    return [placed[i] if i in placed else next(rest) for i in range(rank)]


def _permuting(name: str, node: Node) -> Rule | None:
    dims = permutation(name, node)
    if dims is None:
        return None
    axes = axes_of(node)
    return Relabel(node, axes, (node.all_input_nodes[0],), {dims[b]: b for b in axes})


def _reshaping(name: str, node: Node) -> Rule | None:
    if name not in RESHAPING or not isinstance(node.args[0], Node):
        return None
    given = argument(node, 1, "size") if name in ("reshape", "view", "_unsafe_view") else None
    if name in ("reshape", "view", "_unsafe_view") and not isinstance(given, list | tuple):
        return None  # view as another dtype
    x = node.args[0]
    if all(len(a) == len(b) == 1 for a, b in groups_between(shape(x), shape(node))):
        return _relabel(node)
    return reshape_rule(node, tuple(given) if given is not None else None)


def _along(name: str, node: Node) -> Rule | None:
    if name not in ALONG:
        return None
    place, default, listed = ALONG[name]
    x = node.args[0]
    if not isinstance(x, Node) or tensor(x) is None:
        return None
    given = argument(node, place, "dims" if name in ("flip", "roll") else "dim", default)
    if given is None or (isinstance(given, list | tuple) and not given):
        return None
    rank = len(shape(x))
    dims = tuple(int(d) % rank for d in (given if isinstance(given, list | tuple) else [given]))
    if any(d not in axes_of(x) for d in dims):
        return None
    return _along_rule(name, node, x, dims, place, listed)


def _along_rule(name: str, node: Node, x: Node, dims: tuple[int, ...], place: int, listed: bool) -> Rule:
    value = node.meta["val"]
    result = value[0] if isinstance(value, list | tuple) else value
    drops = name in DROPS or (name not in LISTS and result.dim() < len(shape(x)))
    left = [a for a in range(len(shape(x))) if not (drops and a in dims)]
    renumbered = {a: i for i, a in enumerate(left)}
    kept = tuple(renumbered[a] for a in axes_of(x) if a in renumbered)
    axes = kept if name in LISTS else significant(tuple(result.shape))
    names = {a: b for a, b in renumbered.items() if a in axes_of(x) and b in axes}
    rest = tuple(n for n in tensor_operands(node) if n is not x)
    return AlongAxes(node, axes, (x, *rest), names, dims, place, listed, drops)


def _others(name: str, node: Node) -> Rule | None:
    makers: dict[str, Callable[[Node], Rule | None]] = {
        "cat": _cat,
        "expand": _expand,
        "layer_norm": _layer_norm,
        "rms_norm": _layer_norm,
        **dict.fromkeys(SECOND, _channel_second),
    }
    return makers[name](node) if name in makers else None


def _cat(node: Node) -> Rule | None:
    operands = tensor_operands(node)
    rank = len(shape(node))
    dim = int(argument(node, 1, "dim", 0)) % rank
    if any(len(shape(n)) != rank for n in operands) or dim not in axes_of(node):
        return None
    return Concatenate(node, axes_of(node), operands, dim)


def _expand(node: Node) -> Rule | None:
    sizes = shape(node)
    if not all(isinstance(s, int) for s in sizes):
        sizes = tuple(argument(node, 1, "size"))
    return Expand(node, axes_of(node), (node.all_input_nodes[0],), sizes)


def _layer_norm(node: Node) -> Rule | None:
    x = node.args[0]
    assert isinstance(x, Node)
    rank, count = len(shape(x)), len(argument(node, 1, "normalized_shape"))
    over = tuple(range(rank - count, rank))
    if any(a not in axes_of(x) for a in over):
        return None
    return Normalise(node, axes_of(node), tensor_operands(node), over, operator_name(node) == "rms_norm")


def _channel_second(node: Node) -> Rule | None:
    x = node.args[0]
    if not isinstance(x, Node) or len(shape(x)) < 2:
        return None
    return ChannelSecond(node, axes_of(node), tensor_operands(node))
