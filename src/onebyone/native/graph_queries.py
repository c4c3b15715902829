"""Reading exported graphs: constants, only readers, arguments, and batch norms put into the convolution before them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def constant(network: nn.Module, given: Any) -> Tensor | None:
    """The tensor that a node stands for; None where it is not one of the network's own."""
    if not is_constant(given):
        return None
    found = operator.attrgetter(str(given.target))(network)
    return found.detach() if isinstance(found, Tensor) else None


def is_constant(given: Any) -> bool:
    """Whether a node reads one of the network's own tensors."""
    return isinstance(given, fx.Node) and given.op == "get_attr"


def only_user(node: Any) -> Any:
    """The one node that reads this one; None where there are more, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def pair(given: Any, default: int) -> list[int]:
    """A setting of two axes as it is given: both, one for both, or none."""
    values = list(given or (default,))
    return values * 2 if len(values) == 1 else values


def convolution_arguments(node: Any) -> dict[str, Any]:
    """What an `aten.conv2d` is called with: nodes, and the settings of both axes; `groups`."""
    given = dict(zip(_ARGUMENTS, node.args, strict=False))
    settings = {k: pair(given.get(k), v) for k, v in (("stride", 1), ("padding", 0), ("dilation", 1))}
    return {"bias": None, "groups": 1, **given, **settings}


def with_norm(
    network: nn.Module, node: Any, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Any]:
    """A convolution's weight and bias, with the batch norm in them that alone reads it (in evaluation mode); its node.

    The weight and bias as they are, and None, where there is no such norm, or its statistics are no constants.
    """
    norm = only_user(node)
    if norm is None or norm.target is not aten.batch_norm.default or norm.args[5]:
        return weight, bias, None
    made = _normalised(network, norm, weight, bias)
    return (weight, bias, None) if made is None else (*made, norm)


def _normalised(
    network: nn.Module, norm: Any, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """In float64; None where the statistics are no constants."""
    given = [constant(network, a) for a in norm.args[1:5]]
    if any(c is None and a is not None for c, a in zip(given, norm.args[1:5], strict=True)):
        return None
    scale, shift, mean, variance = (None if c is None else c.double() for c in given)
    if mean is None or variance is None:
        return None
    factor = (variance + norm.args[7]).rsqrt() * (1.0 if scale is None else scale)
    offset = (-mean if bias is None else bias.double() - mean) * factor
    return weight.double() * factor[:, None, None, None], offset if shift is None else offset + shift


def pool_arguments(node: Any) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Of an `aten.max_pool2d`: kernel, stride, padding and dilation on both axes, and ceil_mode."""
    _, kernel, stride, padding, dilation, ceil = [*node.args, *[None] * 5][:6]
    return pair(kernel, 0), pair(stride or kernel, 0), pair(padding, 0), pair(dilation, 1), bool(ceil)


HALVES = ([2, 2], [2, 2], [0, 0], [1, 1], False)
"""`pool_arguments` of a pool that takes 2×2 places at stride 2."""
