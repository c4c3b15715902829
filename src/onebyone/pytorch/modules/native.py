"""`level="native"`: real `nn.Conv2d` and `nn.Linear` modules, each in a thin wrapper ("shell") that reshapes.

This level is for tools that look for those classes, and for weights that are parameters of the usual shape. The new
parameter is a view of the old one's storage. (It is a copy if the layer stores its weight transposed, or if the weight
of a convolution on patches is stored channels-last.) Only its shape, and so its name in a state dict, is new. Code that
reads, writes, deletes or sets the layer's `weight` and `bias` can use a shell as it used the layer: everything acts on
the real layer's parameters.
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

    It computes, trains and is written in place as any view. `data`, `grad` and `requires_grad` are the real
    parameter's, in this shape, so that setting them changes the real parameter.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results are plain tensors
    _shell: Shell
    _parameter: nn.Parameter

    @property
    def data(self) -> Tensor:
        """The values, without gradients: the real parameter's storage."""
        return self._shell.replaced_shape(self._parameter.data)

    @data.setter
    def data(self, value: Tensor) -> None:
        self._parameter.data = self._shell.layer_shape(value)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]

    @property
    def grad(self) -> Tensor | None:
        """The real parameter's gradient."""
        grad = self._parameter.grad
        return None if grad is None else self._shell.replaced_shape(grad)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._parameter.grad = None if value is None else self._shell.layer_shape(value)

    @property
    def requires_grad(self) -> bool:
        """Whether the real parameter is trained."""
        return self._parameter.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._parameter.requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> WeightView:
        """Set whether the real parameter is trained."""
        self._parameter.requires_grad_(requires_grad)
        return self


class Shell(nn.Module):
    """Base of the wrappers: `weight` and `bias` give access to those of the real layer, the child named `INNER`."""

    INNER: ClassVar[str]
    __jit_unused_properties__: ClassVar[list[str]] = ["weight", "bias"]

    @property
    def layer(self) -> Any:
        """The real layer."""
        return self._modules[self.INNER]

    def replaced_shape(self, weight: Tensor) -> Tensor:
        """The real layer's weight in the shape that the replaced layer had: a view."""
        raise NotImplementedError

    def layer_shape(self, weight: Tensor) -> Tensor:
        """The inverse of `replaced_shape`."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight in the shape that the replaced layer had, for code that reads and writes it there."""
        parameter = self.layer.weight
        if type(parameter) is not nn.Parameter or torch.compiler.is_compiling():
            return self.replaced_shape(parameter)
        view = self.replaced_shape(parameter).as_subclass(WeightView)
        view._shell, view._parameter = self, parameter
        return view

    @property
    def bias(self) -> Tensor | None:
        """The bias (O,)."""
        return cast("Tensor | None", self.layer.bias)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            setattr(self.layer, name, self._for_layer(name, value))
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in ("weight", "bias"):
            delattr(self.layer, name)
        else:
            super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As `nn.Module.register_parameter`; a weight or bias is registered with the real layer."""
        if name in ("weight", "bias"):
            self.layer.register_parameter(name, self._for_layer(name, param))
        else:
            super().register_parameter(name, param)

    def _for_layer(self, name: str, value: Any) -> Any:
        """A new weight or bias for the real layer. A Parameter stays a Parameter, on the same storage."""
        if name == "bias" or not isinstance(value, Tensor):
            return value
        if isinstance(value, WeightView) and value._shell is self:
            return value._parameter
        return (
            new_parameter(value, self.layer_shape)
            if isinstance(value, nn.Parameter)
            else self.layer_shape(value)
        )


class TokensConv2d(Shell):
    """An `nn.Conv2d` with kernel size 1 (`.conv`), applied to tokens as the linear layer it replaces: (..., C) to (...,
    O).

    `transposed`: the replaced layer stored its weight as (C, O).
    """

    conv: nn.Conv2d
    transposed: bool
    INNER = "conv"

    def replaced_shape(self, weight: Tensor) -> Tensor:
        """(O, C, 1, 1) as (O, C), or as (C, O) if transposed."""
        return weight.flatten(1).t() if self.transposed else weight.flatten(1)

    def layer_shape(self, weight: Tensor) -> Tensor:
        """(O, C), or (C, O) if transposed, as (O, C, 1, 1)."""
        return (weight.t() if self.transposed else weight)[..., None, None]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as nn.Linear names it
        """(..., C) to (..., O)."""
        return on_tokens(self.conv, input, self.conv.weight.shape[0])


class MapsLinear(Shell):
    """An `nn.Linear` (`.linear`), applied at each position of a map: (N, C, *size) to (N, O, *size')."""

    linear: nn.Linear
    stride: tuple[int, ...]
    INNER = "linear"

    def replaced_shape(self, weight: Tensor) -> Tensor:
        """(O, C) as (O, C, 1, ...)."""
        return weight.reshape(*weight.shape, *(1 for _ in self.stride))

    def layer_shape(self, weight: Tensor) -> Tensor:
        """(O, C, 1, ...) as (O, C)."""
        return weight.flatten(1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as nn.Conv2d names it
        """(N, C, *size) or (C, *size) to the same with O channels; with a stride s, every s-th position."""
        axis = -1 - len(self.stride)
        channels_last = not input.is_contiguous() and input.movedim(axis, -1).is_contiguous()
        x = subsampled(input, self.stride)
        y = self.linear(x.movedim(axis, -1)).movedim(-1, axis)
        return cast(Tensor, y if channels_last else y.contiguous())


class LinearOnPatches(Shell):
    """An `nn.Linear` (`.linear`), applied to each patch of a map: (N, C, *size) to (N, O, *positions).

    It replaces a convolution whose kernel size is its stride.
    """

    linear: nn.Linear
    in_channels: int
    kernel_size: tuple[int, ...]
    INNER = "linear"

    def replaced_shape(self, weight: Tensor) -> Tensor:
        """(O, C·Πkernel) as (O, C, *kernel)."""
        return weight.reshape(weight.shape[0], self.in_channels, *self.kernel_size)

    def layer_shape(self, weight: Tensor) -> Tensor:
        """(O, C, *kernel) as (O, C·Πkernel)."""
        return weight.flatten(1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as nn.Conv2d names it
        """(N, C, *size) or (C, *size) to the same with O channels, one position for each patch."""
        return on_patches(self.linear, input, self.kernel_size)


def why_not_native(module: nn.Module, users: int) -> str | None:
    """Why a layer that can have a drop-in cannot become a real module of the other kind; None if it can.

    `users`: how many modules that are not converted use its weight Parameter too.
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
        return 'its weight is shared with a layer that is not converted; level="layers" keeps them tied'
    if kind_of(module) == CONV:
        conv: Any = module
        if conv.groups > 1:
            return f'nn.Linear for {conv.groups} groups would be block-diagonal; level="layers" uses a batched product'
        if not isinstance(conv.padding, str) and any(conv.padding):
            return 'an nn.Linear has no padding; level="layers" pads'
    return None


def install_native(module: nn.Module, to: str, new_parameters: dict[int, nn.Parameter]) -> int:
    """Turn `module`, in place, into a shell around a real layer of the other kind. Returns the bytes of new storage.

    With `to="linear"`, a linear layer that stores its weight transposed becomes an `nn.Linear` without a shell.
    `new_parameters` keeps the new Parameter of each old one (by id), so that tied weights stay tied.
    """
    from_linear = kind_of(module) == LINEAR
    transposed = transposes(module)
    state, parameters = vars(module), vars(module)["_parameters"]
    weight, bias = parameters.pop("weight"), parameters.pop("bias", None)
    if id(weight) not in new_parameters:
        new_parameters[id(weight)] = new_parameter(
            weight, lambda w: _rearranged(w, to, from_linear, transposed)
        )
    new = new_parameters[id(weight)]
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
    """The weight in the new layer's shape: a view, or a copy if the layer stores it in another order."""
    matrix = weight.t().contiguous() if transposed else weight if from_linear else weight.flatten(1)
    return matrix[..., None, None] if to == CONV else matrix


def new_parameter(old: nn.Parameter, rearranged: Any) -> nn.Parameter:
    """A Parameter of another shape, with the same gradient; on the same storage if `rearranged` returns a view."""
    new = nn.Parameter(rearranged(old.detach()), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = rearranged(old.grad.detach())
    return new
