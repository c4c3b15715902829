"""Which modules are linear layers, 1×1 convolutions or convolutions on patches, and why some of them are refused.

Users add their own classes with `register_layer`. The entries at the end of this file use it for layers of other
libraries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from onebyone.errors import BadInput
from onebyone.laws import grouped, patches, pointwise, strided, transposed
from onebyone.pytorch.modules.dropins import DropIn, PatchLinear, PointwiseConvolution, PointwiseLinear

LINEAR, CONV = "linear", "conv"
Reader = Callable[[nn.Module], Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Names that a subclass may define without changing what its base class computes.
HARMLESS = frozenset(
    {
        "__doc__",
        "__qualname__",
        "__weakref__",
        "__parameters__",
        "__slots__",
        "bias",
        "__module__",
        "__dict__",
        "__firstlineno__",
        "extra_repr",
        "reset_parameters",
        "weight",
        "_abc_impl",
        "out_features",
        "__repr__",
        "__init__",
        "__constants__",
        "__annotations__",
        "__static_attributes__",
        "in_features",
        "cls_to_become",
        "__abstractmethods__",
    }
)
QUANTISED = (
    "torch.ao.nn.",
    "torch.nn.quantized.",
    "torchao.",
    "bitsandbytes.",
    "quanto.",
    "optimum.quanto.",
    "auto_gptq.",
    "gptqmodel.",
    "awq.",
    "hqq.",
)


@dataclass(frozen=True)
class LayerRule:
    """How a class of modules is read: its `kind`, "linear" or "conv", and how its weight is computed.

    `weight(module)` returns (O, C) for a linear layer and (O, C/groups, 1, ...) for a convolution. None: the weight is
    `module.weight`.
    """

    kind: str
    weight: Reader | None = None


_RULES: dict[type[nn.Module] | str, LayerRule] = {
    nn.Linear: LayerRule(LINEAR),
    nn.modules.linear.NonDynamicallyQuantizableLinear: LayerRule(LINEAR),
    **{cls: LayerRule(CONV) for cls in CONVOLUTIONS},
}


def register_layer(layer: type[nn.Module] | str, kind: str, weight: Reader | None = None) -> None:
    """Declare that a module class computes W·x + b at each position.

    Parameters
    ----------
    layer: the class, or its full dotted name if it should not be imported.
    kind: "linear" for layers of tokens (..., C), or "conv" for layers of maps (N, C, *size) that have `stride`,
        `padding`, `groups` and `kernel_size` as `nn.Conv2d` has.
    weight: computes the weight from the module, for layers that transpose, scale or standardise it. The bias is
    `.bias`.

    The class must compute nothing else. onebyone does not check that when it converts; `verify` compares the results.

    >>> class Transposed(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight, self.bias = nn.Parameter(torch.ones(3, 2)), None
    ...     def forward(self, x):
    ...         return x @ self.weight
    >>> register_layer(Transposed, "linear", weight=lambda m: m.weight.T)
    """
    if kind not in (LINEAR, CONV):
        raise BadInput(f"kind={kind!r}: expected 'linear' or 'conv'")
    if not isinstance(layer, str) and not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise BadInput(f"layer={layer!r}: expected a subclass of torch.nn.Module, or the full name of one")
    _RULES[layer] = LayerRule(kind, weight)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The module's class without the class that `torch.nn.utils.parametrize` derives from it."""
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) and cls.__bases__ else cls


def rule_of(cls: type[nn.Module]) -> LayerRule | None:
    """The rule that was registered for a class or for its full name."""
    return _RULES.get(cls) or _RULES.get(f"{cls.__module__}.{cls.__qualname__}")


def kind_of(module: nn.Module) -> str | None:
    """ "linear" or "conv" for a module that is, or looks like, a linear layer or a 1×1 convolution; else None."""
    if isinstance(module, DropIn):
        return None
    cls = plain_class(module)
    rule = rule_of(cls)
    if rule is not None or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kind = rule.kind if rule else LINEAR if isinstance(module, nn.Linear) else CONV
        return kind if kind == LINEAR or _is_pointwise(module) else None
    if _is_quantised(cls):
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            return LINEAR
        if hasattr(module, "kernel_size") and hasattr(module, "in_channels") and _is_pointwise(module):
            return CONV
    return None


def has_patches(module: nn.Module) -> bool:
    """Whether a module is a convolution on adjacent patches: its kernel size is its stride and larger than 1.

    Of a class with a rule (`register_layer`) only the 1×1 convolutions are read.

    >>> has_patches(nn.Conv2d(3, 8, 4, stride=4)), has_patches(nn.Conv2d(3, 8, 3, stride=2))
    (True, False)
    """
    if isinstance(module, DropIn) or not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    cls = plain_class(module)
    if cls not in CONVOLUTIONS and rule_of(cls) is not None:
        return False
    return tuple(module.kernel_size) == tuple(module.stride) and not _is_pointwise(module)


def why_not(module: nn.Module) -> str | None:
    """Why a layer of `kind_of` "linear" or "conv", or that `has_patches`, cannot have a drop-in; None if it can."""
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "not initialised yet: run the network once, then convert"
    cls = plain_class(module)
    if _is_quantised(cls):
        return f"quantised ({cls.__module__}.{cls.__qualname__}): {_why_not_quantised(module)}"
    return why_not_tensors(module) or _why_not_class(module, cls) or _why_not_shape(module)


def _why_not_quantised(module: nn.Module) -> str:
    """Why a layer of a quantisation library has no weight that another layer could share."""
    if "weight_fake_quant" in vars(module)["_modules"]:
        return (
            "its weight is fake-quantised at each call, for quantisation-aware training: convert the network "
            "before it is prepared for that"
        )
    weight = vars(module)["_parameters"].get("weight")
    if weight is not None and type(weight) is nn.Parameter and weight.is_floating_point():
        return "its weight is quantised at each call: convert the network before it is quantised"
    return "it has no floating-point weight to share"


def why_not_tensors(module: nn.Module) -> str | None:
    """Why a convolution or linear layer cannot read some tensor of `module`; None if it can read all of them."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        kind = type(tensor.data if type(tensor) is nn.Parameter else tensor)
        if not _is_ordinary(kind):
            full = f"{kind.__module__}.{kind.__qualname__}"
            return f"its {name} is a {full}: a sharded, quantised or wrapped tensor"
        if tensor.layout != torch.strided:
            return f"its {name} is stored as {tensor.layout}, which a convolution cannot read"
        if tensor.is_floating_point() and tensor.itemsize == 1:
            return f"its {name} is {tensor.dtype}: no convolution computes in it"
    return None


def _is_ordinary(kind: type) -> bool:
    # torch.export runs networks on the fake tensors of torch._subclasses
    return kind in (Tensor, nn.Parameter, nn.Buffer) or kind.__module__.startswith("torch._subclasses.")


def _why_not_class(module: nn.Module, cls: type[nn.Module]) -> str | None:
    if "forward" in vars(module):
        return "its forward was replaced on the instance: what it computes is not known"
    if rule_of(cls) is not None:
        return None
    base = next(c for c in cls.__mro__ if c in (nn.Linear, *CONVOLUTIONS))
    between = cls.__mro__[: cls.__mro__.index(base)]
    overridden = sorted({n for c in between if c is not LazyModuleMixin for n in vars(c)} - HARMLESS)
    if overridden and not issubclass(cls, LazyModuleMixin):
        names = ", ".join(overridden[:4])
        what = f"a subclass of nn.{base.__name__} with a {names} of its own"
        return f"{what}: register_layer can say what it computes"
    return None


def sample_weight(module: nn.Module) -> Any:
    """A tensor with the weight's shape and type, made without running parametrisations, some of which have state."""
    rule = rule_of(plain_class(module))
    if parametrize.is_parametrized(module, "weight"):
        like: Any = next(module.parametrizations["weight"].parameters())  # type: ignore[index,union-attr]
        sizes = (
            getattr(module, n, None) for n in ("out_features", "in_features", "out_channels", "in_channels")
        )
        shape = [n for n in sizes if n is not None]
        if isinstance(kernel := getattr(module, "kernel_size", None), tuple):
            shape = [shape[0], shape[1] // _groups(module), *kernel]
        return torch.empty(shape, dtype=like.dtype, device="meta")
    if rule is not None and rule.weight is not None:
        with torch.no_grad():
            return rule.weight(module)
    return module.weight


def transposes(module: nn.Module) -> bool:
    """Whether the layer stores its weight as (C, O): its rule returns exactly the transposed view of `.weight`.

    >>> transposes(nn.Linear(3, 4))  # it is True for Conv1D of transformers
    False
    """
    rule, weight = rule_of(plain_class(module)), vars(module)["_parameters"].get("weight")
    if rule is None or rule.weight is None or rule.kind != LINEAR or weight is None:
        return False
    if transposed.why_not_transposed(weight.shape):
        return False
    with torch.no_grad():
        read = rule.weight(module)
    same_storage = read.untyped_storage()._cdata == weight.untyped_storage()._cdata
    layout = (read.storage_offset(), *read.shape, *read.stride())
    return same_storage and layout == (weight.storage_offset(), *weight.shape[::-1], *weight.stride()[::-1])


def _why_not_shape(module: nn.Module) -> str | None:
    weight = sample_weight(module)
    if not isinstance(weight, Tensor) or not (weight.is_floating_point() or weight.is_complex()):
        return f"its weight is {getattr(weight, 'dtype', type(weight).__name__)}, not floating point"
    if 0 in weight.shape:
        return f"its weight has shape {tuple(weight.shape)}: nothing to multiply"
    bias = getattr(module, "bias", None)
    bias_shape = None if bias is None else tuple(bias.shape)
    if kind_of(module) == LINEAR:
        return pointwise.why_not_pointwise(tuple(weight.shape), bias_shape)
    groups = _groups(module)
    if has_patches(module):
        return _why_not_patches(module) or pointwise.why_not_pointwise(
            (len(weight), weight[0].numel()), bias_shape
        )
    if groups > 1:
        return None
    return pointwise.why_not_linear(tuple(weight.shape), bias_shape)


def _why_not_patches(module: Any) -> str | None:
    # a padding given by name is "valid", because "same" is not defined for strides above 1
    padding = () if isinstance(module.padding, str) else module.padding
    sizes = {"padding": padding, "dilation": module.dilation, "groups": module.groups}
    return patches.why_not_patches(module.kernel_size, module.stride, **sizes)


def _is_pointwise(module: nn.Module) -> bool:
    size = getattr(module, "kernel_size", ())
    return all(k == 1 for k in (size if isinstance(size, tuple) else (size,)))


def _is_quantised(cls: type[nn.Module]) -> bool:
    return any(c.__module__.startswith(QUANTISED) for c in cls.__mro__)


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def law_of(module: nn.Module) -> str:
    """The name of the law that converts `module` to the other form."""
    if isinstance(module, nn.Linear | nn.MultiheadAttention) or kind_of(module) == LINEAR:
        return pointwise.NAME
    if has_patches(module):
        return patches.NAME
    if _groups(module) > 1:
        return grouped.NAME
    stride: Any = getattr(module, "stride", ())
    return strided.NAME if any(s != 1 for s in stride) else pointwise.NAME


def drop_in_for(module: nn.Module) -> type[DropIn]:
    """The class that computes a layer in its other form."""
    if has_patches(module):
        return PatchLinear
    return PointwiseConvolution if kind_of(module) == LINEAR else PointwiseLinear


def install_drop_in(module: nn.Module, drop_in: type[DropIn]) -> None:
    """Replace a layer, in place, by its drop-in.

    Only the module's class changes; its parameters, hooks and attributes stay. Parametrised modules keep the properties
    that compute their weight.
    """
    origin = plain_class(module)
    rule = rule_of(origin)
    module.__class__ = changed_class(module, drop_in)
    vars(module)["origin"] = origin
    if rule is not None and rule.weight is not None:
        vars(module)["weight_reader"] = rule.weight


def restore(module: DropIn) -> None:
    """Turn a drop-in, in place, back into the layer that it replaced."""
    origin = vars(module).pop("origin")
    vars(module).pop("weight_reader", None)
    module.__class__ = changed_class(module, origin)


def with_plain_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """A layer that computes its weight, as an ordinary layer (or the drop-in of one) with the weight `weight`."""
    bias = cast("nn.Parameter | None", getattr(module, "bias", None))
    if isinstance(module, DropIn):
        plain: nn.Module = object.__new__(type(module))
        vars(plain).update({k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()})
        del plain.weight_reader
    elif kind_of(module) == LINEAR:
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        conv: Any = module
        cls: type[Any] = CONVOLUTIONS[weight.dim() - 3]
        sizes = (weight.shape[1] * conv.groups, weight.shape[0], 1, conv.stride, conv.padding, 1, conv.groups)
        plain = cls(*sizes, bias is not None, getattr(conv, "padding_mode", "zeros"), device="meta")
    table = {"weight": nn.Parameter(weight.detach(), requires_grad=False), "bias": bias}
    vars(plain)["_parameters"] = table
    return plain.train(module.training)


def changed_class(module: nn.Module, cls: type[Any]) -> type[Any]:
    """`cls`, or, for a parametrised module, a subclass of it with the properties that compute the module's tensors."""
    if not parametrize.is_parametrized(module):
        return cls
    top = type(module)
    kept = {
        k: v for k, v in vars(top).items() if k not in ("__dict__", "__weakref__", "__module__", "__doc__")
    }
    return type(top.__name__, (cls,), kept)


# Layers of other libraries, by name, so that the libraries are not imported.


def _transposed(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.T


def _standardised(module: Any) -> Tensor:
    """Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
    2019, §2.
    """
    rows = module.weight.reshape(1, module.out_channels, -1)
    return F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=module.eps).reshape_as(
        module.weight
    )


def _scaled_standardised(module: Any) -> Tensor:
    """Brock, De and Smith, "Characterizing signal propagation to close the performance gap ...", 2021,
    §4.1.
    """
    rows, gain = module.weight.reshape(1, module.out_channels, -1), (module.gain * module.scale).view(-1)
    normed = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=module.eps)
    return normed.reshape_as(module.weight)


register_layer("timm.layers.linear.Linear", LINEAR)
register_layer("transformers.pytorch_utils.Conv1D", LINEAR, _transposed)
# TensorFlow's "same" padding pads nothing for a 1×1 kernel, whatever the stride
register_layer("timm.layers.conv2d_same.Conv2dSame", CONV)
register_layer("timm.layers.conv2d_same.Conv2dSameExport", CONV)
for _name in ("StdConv2d", "StdConv2dSame"):
    register_layer(f"timm.layers.std_conv.{_name}", CONV, _standardised)
for _name in ("ScaledStdConv2d", "ScaledStdConv2dSame"):
    register_layer(f"timm.layers.std_conv.{_name}", CONV, _scaled_standardised)
