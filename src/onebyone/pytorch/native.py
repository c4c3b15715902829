"""`level="native"`: real `nn.Conv2d` and `nn.Linear` modules, each in a thin shell that does the reshaping.

For tools that look for those classes and for weights that are parameters of the usual shape. The new
parameter is a view of the old one's storage; only its shape, and so its name in a state dict, is new.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from onebyone.pytorch.dropins import on_tokens, subsampled
from onebyone.pytorch.layers import CONV, kind_of, plain_class, rule_of


class TokensConv2d(nn.Module):
    """An `nn.Conv2d` of kernel 1 (`.conv`) that takes and gives tokens as the `nn.Linear` it replaces:
    (..., C) to (..., O).
    """

    conv: nn.Conv2d
    INNER = "conv"

    @property
    def weight(self) -> Tensor:
        """The convolution's weight as (O, C): a view, for code that reads a linear layer's weight."""
        return self.conv.weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The convolution's bias (O,)."""
        return self.conv.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Linear gives it
        """input (..., C) to (..., O)."""
        return on_tokens(self.conv, input, self.conv.out_channels)


class MapsLinear(nn.Module):
    """An `nn.Linear` (`.linear`) applied at each place of a map: (N, C, *size) to (N, O, *size'), as a 1×1
    convolution.
    """

    linear: nn.Linear
    stride: tuple[int, ...]
    INNER = "linear"

    @property
    def weight(self) -> Tensor:
        """The linear layer's weight as (O, C, 1, ...): a view, for code that reads a convolution's weight."""
        weight = self.linear.weight
        return weight.reshape(*weight.shape, *(1 for _ in self.stride))

    @property
    def bias(self) -> Tensor | None:
        """The linear layer's bias (O,)."""
        return self.linear.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Conv2d gives it
        """input (N, C, *size) or (C, *size) to the same with O channels, every s-th place kept."""
        axis = -1 - len(self.stride)
        channels_last = not input.is_contiguous() and input.movedim(axis, -1).is_contiguous()
        x = subsampled(input, self.stride)
        y = self.linear(x.movedim(axis, -1)).movedim(-1, axis)
        return cast(Tensor, y if channels_last else y.contiguous())


def why_not_native(module: nn.Module, users: int) -> str | None:
    """Why a layer that can have a drop-in cannot be a real module of the other kind; None if it can.

    `users`: how many places of the network that stay as they are use its weight Parameter too.
    """
    rule = rule_of(plain_class(module))
    weight = vars(module)["_parameters"].get("weight")
    if parametrize.is_parametrized(module):
        return 'its weight is computed by a parametrisation; level="layers" keeps that'
    if weight is None or (rule is not None and rule.weight is not None):
        return 'its weight is computed at each call; level="layers" keeps that'
    if set(vars(module)["_parameters"]) - {"weight", "bias"} or vars(module)["_modules"]:
        return 'it has parameters or layers besides weight and bias; level="layers" keeps them'
    if users:
        return 'its weight is shared with a layer that stays as it is; level="layers" keeps them tied'
    if kind_of(module) == CONV:
        conv: Any = module
        if conv.groups > 1:
            return f'nn.Linear for {conv.groups} groups would be block-diagonal; level="layers" is not'
        if not isinstance(conv.padding, str) and any(conv.padding):
            return 'an nn.Linear has no padding; level="layers" has'
    return None


def stand_native(module: nn.Module, made: dict[int, nn.Parameter]) -> int:
    """Turn `module`, in place, into a shell around a real layer of the other kind; the bytes of new storage.

    `made` remembers the new Parameter of each old one (by id), so that weights tied before are tied after.
    """
    to_linear = kind_of(module) == CONV
    state, parameters = vars(module), vars(module)["_parameters"]
    weight, bias = parameters.pop("weight"), parameters.pop("bias", None)
    shape = tuple(weight.shape[:2]) if to_linear else (*weight.shape, 1, 1)
    if id(weight) not in made:
        made[id(weight)] = reshaped_parameter(weight, shape)
    out, channels = weight.shape[:2]
    factory = {"bias": bias is not None, "device": "meta", "dtype": weight.dtype}
    inner: nn.Module = (
        nn.Linear(channels, out, **factory) if to_linear else nn.Conv2d(channels, out, 1, **factory)
    )
    inner.weight, inner.bias = made[id(weight)], bias
    inner.training = module.training
    module.__class__ = MapsLinear if to_linear else TokensConv2d
    name = MapsLinear.INNER if to_linear else TokensConv2d.INNER
    state["_modules"][name] = inner
    shared = made[id(weight)].untyped_storage()._cdata == weight.untyped_storage()._cdata
    return 0 if shared else weight.numel() * weight.element_size()


def reshaped_parameter(old: nn.Parameter, shape: tuple[int, ...]) -> nn.Parameter:
    """A Parameter of another shape on the same storage where a view can express it, with the gradient so
    far.
    """
    new = nn.Parameter(old.detach().reshape(shape), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = old.grad.detach().reshape(shape)
    return new
