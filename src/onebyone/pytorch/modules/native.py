"""`level="native"`: real `nn.Conv2d` and `nn.Linear` modules, each in a thin shell that does the reshaping.

For tools that look for those classes and for weights that are parameters of the usual shape. The new
parameter is a view of the old one's storage (a copy where the layer stores its weight transposed, or the weight of a
convolution on patches lies channels last); only its
shape, and so its name in a state dict, is new. To code that reads, writes, deletes or sets the layer's
`weight` and `bias`, a shell behaves as the layer did: everything acts on the real layer's parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from onebyone.pytorch.modules.dropins import on_patches, on_tokens, subsampled
from onebyone.pytorch.modules.layers import (
    CONV,
    LINEAR,
    has_patches,
    kind_of,
    plain_class,
    rule_of,
    transposes,
)


class WeightView(Tensor):
    """The real layer's weight in the shape of the layer that was replaced.

    Computes, trains and is written in place as any view; `data`, `grad` and `requires_grad` are the real
    parameter's, seen in this shape, so that setting them reaches it.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results are plain tensors
    _shell: Shell
    _parameter: nn.Parameter

    @property
    def data(self) -> Tensor:
        """The values, without gradients: the real parameter's storage."""
        return self._shell.seen(self._parameter.data)

    @data.setter
    def data(self, value: Tensor) -> None:
        self._parameter.data = self._shell.held(value)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]

    @property
    def grad(self) -> Tensor | None:
        """The real parameter's gradient."""
        grad = self._parameter.grad
        return None if grad is None else self._shell.seen(grad)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._parameter.grad = None if value is None else self._shell.held(value)

    @property
    def requires_grad(self) -> bool:
        """Whether the real parameter is trained."""
        return self._parameter.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._parameter.requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> WeightView:
        """Have the real parameter trained, or not."""
        self._parameter.requires_grad_(requires_grad)
        return self


class Shell(nn.Module):
    """What the shells share: `weight` and `bias`, which stand for those of the real layer in it (`INNER`)."""

    INNER: ClassVar[str]
    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias"]

    @property
    def layer(self) -> Any:
        """The real layer."""
        return self._modules[self.INNER]

    def seen(self, weight: Tensor) -> Tensor:
        """The real layer's weight in the shape that the replaced layer gave it: a view."""
        raise NotImplementedError

    def held(self, weight: Tensor) -> Tensor:
        """The inverse of `seen`."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight in the shape that the replaced layer gave it, for code that reads and writes it there."""
        parameter = self.layer.weight
        if type(parameter) is not nn.Parameter or torch.compiler.is_compiling():
            return self.seen(parameter)
        view = self.seen(parameter).as_subclass(WeightView)
        view._shell, view._parameter = self, parameter
        return view

    @property
    def bias(self) -> Tensor | None:
        """The bias (O,)."""
        return cast("Tensor | None", self.layer.bias)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            setattr(self.layer, name, self._held(name, value))
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in ("weight", "bias"):
            delattr(self.layer, name)
        else:
            super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As `nn.Module`'s; a weight or bias becomes the real layer's."""
        if name in ("weight", "bias"):
            self.layer.register_parameter(name, self._held(name, param))
        else:
            super().register_parameter(name, param)

    def _held(self, name: str, value: Any) -> Any:
        """What the real layer is given for a new weight or bias: a Parameter stays one, on the same storage."""
        if name == "bias" or not isinstance(value, Tensor):
            return value
        if isinstance(value, WeightView) and value._shell is self:
            return value._parameter
        return new_parameter(value, self.held) if isinstance(value, nn.Parameter) else self.held(value)


class TokensConv2d(Shell):
    """An `nn.Conv2d` of kernel 1 (`.conv`) that takes and gives tokens as the linear layer it replaces:
    (..., C) to (..., O).

    `transposed`: the layer it replaces gave its weight as (C, O).
    """

    conv: nn.Conv2d
    transposed: bool
    INNER = "conv"

    def seen(self, weight: Tensor) -> Tensor:
        """(O, C, 1, 1) as (O, C), or (C, O) where transposed."""
        return weight.flatten(1).t() if self.transposed else weight.flatten(1)

    def held(self, weight: Tensor) -> Tensor:
        """(O, C), or (C, O) where transposed, as (O, C, 1, 1)."""
        return (weight.t() if self.transposed else weight)[..., None, None]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Linear gives it
        """input (..., C) to (..., O)."""
        return on_tokens(self.conv, input, self.conv.weight.shape[0])


class MapsLinear(Shell):
    """An `nn.Linear` (`.linear`) applied at each place of a map: (N, C, *size) to (N, O, *size'), as a 1×1
    convolution.
    """

    linear: nn.Linear
    stride: tuple[int, ...]
    INNER = "linear"

    def seen(self, weight: Tensor) -> Tensor:
        """(O, C) as (O, C, 1, ...)."""
        return weight.reshape(*weight.shape, *(1 for _ in self.stride))

    def held(self, weight: Tensor) -> Tensor:
        """(O, C, 1, ...) as (O, C)."""
        return weight.flatten(1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Conv2d gives it
        """input (N, C, *size) or (C, *size) to the same with O channels, every s-th place kept."""
        axis = -1 - len(self.stride)
        channels_last = not input.is_contiguous() and input.movedim(axis, -1).is_contiguous()
        x = subsampled(input, self.stride)
        y = self.linear(x.movedim(axis, -1)).movedim(-1, axis)
        return cast(Tensor, y if channels_last else y.contiguous())


class LinearOnPatches(Shell):
    """An `nn.Linear` (`.linear`) applied to each patch of a map: (N, C, *size) to (N, O, *positions), as a
    convolution whose kernel is its stride.
    """

    linear: nn.Linear
    in_channels: int
    kernel_size: tuple[int, ...]
    INNER = "linear"

    def seen(self, weight: Tensor) -> Tensor:
        """(O, C·Πkernel) as (O, C, *kernel)."""
        return weight.reshape(weight.shape[0], self.in_channels, *self.kernel_size)

    def held(self, weight: Tensor) -> Tensor:
        """(O, C, *kernel) as (O, C·Πkernel)."""
        return weight.flatten(1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Conv2d gives it
        """input (N, C, *size) or (C, *size) to the same with O channels, one position for each patch."""
        return on_patches(self.linear, input, self.kernel_size)


def why_not_native(module: nn.Module, users: int) -> str | None:
    """Why a layer that can have a drop-in cannot be a real module of the other kind; None if it can.

    `users`: how many places of the network that stay as they are use its weight Parameter too.
    """
    rule = rule_of(plain_class(module))
    weight = vars(module)["_parameters"].get("weight")
    if parametrize.is_parametrized(module):
        return 'its weight is computed by a parametrisation; level="layers" keeps that'
    if weight is None or (rule is not None and rule.weight is not None and not transposes(module)):
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


def stand_native(module: nn.Module, to: str, made: dict[int, nn.Parameter]) -> int:
    """Turn `module`, in place, into a real layer of the other kind, in a shell; the bytes of new storage.

    A linear layer that stores its weight transposed becomes, with `to="linear"`, an `nn.Linear` without a shell.
    `made` remembers the new Parameter of each old one (by id), so that weights tied before are tied after.
    """
    from_linear = kind_of(module) == LINEAR
    transposed = transposes(module)
    state, parameters = vars(module), vars(module)["_parameters"]
    weight, bias = parameters.pop("weight"), parameters.pop("bias", None)
    if id(weight) not in made:
        made[id(weight)] = new_parameter(weight, lambda w: _rearranged(w, to, from_linear, transposed))
    new = made[id(weight)]
    out, channels = new.shape[:2]
    factory = {"bias": bias is not None, "device": "meta", "dtype": weight.dtype}
    inner: nn.Module = (
        nn.Linear(channels, out, **factory) if to == LINEAR else nn.Conv2d(channels, out, 1, **factory)
    )
    inner.weight, inner.bias = new, bias
    inner.training = module.training
    if to == LINEAR and from_linear:
        parameters.update(weight=new, bias=bias)
        state.update(in_features=channels, out_features=out)
        module.__class__ = nn.Linear
    else:
        on_maps = LinearOnPatches if has_patches(module) else MapsLinear
        module.__class__ = TokensConv2d if from_linear else on_maps
        state["_modules"][cast(Any, module).INNER] = inner
        if from_linear:
            state["transposed"] = transposed
    shared = new.untyped_storage()._cdata == weight.untyped_storage()._cdata
    return 0 if shared else weight.numel() * weight.element_size()


def _rearranged(weight: Tensor, to: str, from_linear: bool, transposed: bool) -> Tensor:
    """The weight in the new layer's shape: a view, or a copy where the layer stores it in another order."""
    matrix = weight.t().contiguous() if transposed else weight if from_linear else weight.flatten(1)
    return matrix[..., None, None] if to == CONV else matrix


def new_parameter(old: nn.Parameter, rearranged: Any) -> nn.Parameter:
    """A Parameter of another shape, with the gradient so far; on the same storage where `rearranged` gives a view."""
    new = nn.Parameter(rearranged(old.detach()), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = rearranged(old.grad.detach())
    return new
