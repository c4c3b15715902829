"""Read exported graphs: constants, users and arguments of nodes; fold batch norms into convolutions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def own_tensor(network: nn.Module, argument: Any) -> Tensor | None:
    """The parameter or buffer of the network that an argument reads; None for anything else."""
    if not reads_own_tensor(argument):
        return None
    attribute = operator.attrgetter(str(argument.target))(network)
    return attribute.detach() if isinstance(attribute, Tensor) else None


def reads_own_tensor(argument: Any) -> bool:
    """Whether an argument is a node that reads one of the network's own tensors."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def only_user(node: Any) -> Any:
    """The node that reads this one, if there is exactly one; None otherwise."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def pair(setting: Any, default: int) -> list[int]:
    """A setting of two axes, given for both axes, once for both, or not at all (None or empty).

    >>> pair(None, 1), pair([2], 1), pair([2, 3], 1)
    ([1, 1], [2, 2], [2, 3])
    """
    values = list(setting or (default,))
    return values * 2 if len(values) == 1 else values


def convolution_arguments(node: Any) -> dict[str, Any]:
    """The arguments of an `aten.conv2d` by name; `stride`, `padding` and `dilation` as pairs."""
    arguments = dict(zip(_ARGUMENTS, node.args, strict=False))
    defaults = {"stride": 1, "padding": 0, "dilation": 1}
    settings = {name: pair(arguments.get(name), default) for name, default in defaults.items()}
    return {"bias": None, "groups": 1, **arguments, **settings}


def fold_batch_norm(
    network: nn.Module, node: Any, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Any]:
    """The weight and bias of a convolution with the batch norm (in evaluation mode) that alone reads it folded in.

    Returns the weight and bias in float64 and the batch norm's node; or the weight and bias unchanged and None, if
    there is no such batch norm or it cannot be folded.
    """
    norm = only_user(node)
    if norm is None or norm.target is not aten.batch_norm.default:
        return weight, bias, None
    folded = _folded(network, norm, weight, bias)
    return (weight, bias, None) if isinstance(folded, str) else (*folded, norm)


def why_not_folded(network: nn.Module, norm: Any) -> str:
    """Why a batch norm is not folded into the weights of a convolution before it."""
    source = norm.args[0]
    if source.target is not aten.conv2d.default:
        return "it does not follow a convolution"
    if only_user(source) is not norm:
        return "another operator reads the convolution's result too"
    arguments = convolution_arguments(source)
    weight, bias = own_tensor(network, arguments["weight"]), own_tensor(network, arguments["bias"])
    folded = None if weight is None else _folded(network, norm, weight, bias)
    return folded if isinstance(folded, str) else "the convolution's weight is not one of its parameters"


def _folded(
    network: nn.Module, norm: Any, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor] | str:
    """The folded weight and bias in float64, or the reason why they cannot be folded."""
    constants = [own_tensor(network, a) for a in norm.args[1:5]]
    if any(c is None and a is not None for c, a in zip(constants, norm.args[1:5], strict=True)):
        return "its statistics or parameters are not constants"
    scale, shift, mean, variance = (None if c is None else c.double() for c in constants)
    if norm.args[5] or mean is None or variance is None:
        return "it uses the statistics of the batch"
    factor = (variance + norm.args[7]).rsqrt() * (1.0 if scale is None else scale)
    offset = (-mean if bias is None else bias.double() - mean) * factor
    folded = weight.double() * factor[:, None, None, None], offset if shift is None else offset + shift
    if any(_overflows(t) for t in folded):
        return "the folded weights leave the range of float32"
    return folded


def _overflows(tensor: Tensor) -> bool:
    """Whether finite numbers in float64 become infinite in float32."""
    return bool((tensor.isfinite() & ~tensor.float().isfinite()).any())


def pool_arguments(node: Any) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Kernel, stride, padding and dilation of an `aten.max_pool2d` as pairs, and its ceil_mode."""
    _, kernel, stride, padding, dilation, ceil = [*node.args, *[None] * 5][:6]
    return pair(kernel, 0), pair(stride or kernel, 0), pair(padding, 0), pair(dilation, 1), bool(ceil)


POOL_2X2 = ([2, 2], [2, 2], [0, 0], [1, 1], False)
"""`pool_arguments` of a 2×2 max pool at stride 2."""
