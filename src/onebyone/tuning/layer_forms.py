"""The forms of one layer, and a network with each layer in the form that is assigned to it.

| form | for a linear layer on tokens (..., C) | for a 1×1 convolution on maps (N, C, H, W) |
|---|---|---|
| linear | as it is | x·Wᵀ on a channels-last map's views, W·x on a contiguous one: no layout change |
| conv | a convolution on channels-last views: no layout change | as it is |
| bmm | one product per sample, batched | W·x, a channels-last map copied first |
| conv-nchw | transposed to NCHW, convolution, transposed back | |
| permute | | permute, linear, permute |
| conv-channels-last | | as it is, its map already channels last (what "+channels_last" gives a whole network) |

A convolution with a larger kernel stays as it is, or takes its map channels last; 3×3 at stride 1 may be "winograd",
36 linear layers on transformed tiles. One whose kernel is its stride may be "linear": its patches copied to rows, then
one product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.native.kernels.winograd import WinogradConvolution
from onebyone.pytorch.modules.attention import PointwiseAttention
from onebyone.pytorch.modules.conversion import ModuleConversion
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import DropIn, PatchLinear, PointwiseConvolution, PointwiseLinear
from onebyone.pytorch.modules.layers import changed_class, has_patches, kind_of
from onebyone.pytorch.modules.module_pair import ModulePair

Assignment = Mapping[str, str]
"""Dotted path of a layer → name of the form it takes; layers that are not named stay as they are."""
LINEAR, CONV, KERNEL, PATCHES, ATTENTION = "linear", "conv", "kernel", "patches", "attention"
"""Kinds of layers: a linear layer, a 1×1 convolution, a convolution with a larger kernel, one whose kernel is its
stride, and `nn.MultiheadAttention`, whose four projections change together.
"""
WINOGRAD = "winograd"


class BatchedProduct(PointwiseConvolution):
    """Stands for an `nn.Linear`: tokens (B, ..., C) to (B, ..., O) by one product per sample."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Linear gives it
        """input (..., C) to (..., O)."""
        weight = self.read_weight()
        if input.is_nested or input.dim() < 3 or input.numel() == 0:
            return F.linear(input, weight, self.bias)
        rows = input.reshape(input.shape[0], -1, input.shape[-1])
        matrices = weight.t().expand(rows.shape[0], *weight.t().shape)
        y = torch.bmm(rows, matrices) if self.bias is None else torch.baddbmm(self.bias, rows, matrices)
        return y.reshape(*input.shape[:-1], weight.shape[0])


class TransposedConvolution(PointwiseConvolution):
    """Stands for an `nn.Linear`: tokens transposed to an NCHW image, convolved, and transposed back."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Linear gives it
        """input (..., C) to (..., O)."""
        weight = self.read_weight()
        if input.is_nested or input.dim() < 3 or input.numel() == 0:
            return F.linear(input, weight, self.bias)
        image = input.reshape(input.shape[0], 1, -1, input.shape[-1]).permute(0, 3, 1, 2).contiguous()
        y = F.conv2d(image, weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
        return y.reshape(*input.shape[:-1], weight.shape[0])


class PermutedLinear(PointwiseLinear):
    """Stands for a 1×1 convolution: the map permuted to (N, ..., C), a linear layer, and permuted back."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Conv2d gives it
        """input (N, C, H, W) to (N, O, H', W')."""
        if input.dim() != 4:
            return super().forward(input)
        return super().forward(input.contiguous(memory_format=torch.channels_last)).contiguous()


class ProductFromTheLeft(PointwiseLinear):
    """Stands for a 1×1 convolution: W·x on a contiguous map, which is copied to one where it is not."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name nn.Conv2d gives it
        """input (N, C, *size) to (N, O, *size')."""
        return super().forward(input.contiguous())


@dataclass(frozen=True)
class LayerForm:
    """A form of the layers of one kind: `module` computes it; None where the layer's own does.

    `assignable`: it can be given to one layer of a network by itself. `make`: the layer in this form, to be measured on
    a channels-last map, where it is no drop-in but part of a form of the whole; raises BadInput where there is none.
    """

    name: str
    kind: str
    module: type[nn.Module] | None
    assignable: bool = True
    make: Callable[[nn.Module], nn.Module] | None = None


_LAYER_FORMS: dict[tuple[str, str], LayerForm] = {}


def register_layer_form(form: LayerForm) -> LayerForm:
    """Add a form of single layers: it is measured, and may be chosen where it is a drop-in."""
    _LAYER_FORMS[form.kind, form.name] = form
    return form


def layer_forms(kind: str) -> tuple[LayerForm, ...]:
    """The forms of layers of a kind; the layer's own first.

    >>> [f.name for f in layer_forms("linear")]
    ['linear', 'conv', 'bmm', 'conv-nchw']
    """
    return tuple(f for f in _LAYER_FORMS.values() if f.kind == kind)


def layer_form(kind: str, name: str) -> LayerForm:
    """One form by name. Raises BadInput where layers of that kind have none such."""
    if (kind, name) not in _LAYER_FORMS:
        names = ", ".join(f.name for f in layer_forms(kind))
        raise BadInput(f"form={name!r}: a layer of kind {kind!r} has the forms {names or 'none'}")
    return _LAYER_FORMS[kind, name]


for _form in (
    LayerForm("linear", LINEAR, None),
    LayerForm("conv", LINEAR, PointwiseConvolution),
    LayerForm("bmm", LINEAR, BatchedProduct),
    LayerForm("conv-nchw", LINEAR, TransposedConvolution),
    LayerForm("conv", CONV, None),
    LayerForm("conv-channels-last", CONV, None, assignable=False),
    LayerForm("linear", CONV, PointwiseLinear),
    LayerForm("bmm", CONV, ProductFromTheLeft),
    LayerForm("permute", CONV, PermutedLinear),
    LayerForm("conv", KERNEL, None),
    LayerForm("conv-channels-last", KERNEL, None, assignable=False),
    LayerForm(WINOGRAD, KERNEL, None, assignable=False, make=WinogradConvolution),
    LayerForm("conv", PATCHES, None),
    LayerForm("conv-channels-last", PATCHES, None, assignable=False),
    LayerForm("linear", PATCHES, PatchLinear),
    LayerForm("linear", ATTENTION, None),
    LayerForm("conv", ATTENTION, PointwiseAttention),
):
    register_layer_form(_form)


def assigned(network: nn.Module, assignment: Assignment) -> ModuleConversion:
    """The network with the layers at the assignment's paths in the forms it names; weights are shared.

    Raises
    ------
    BadInput
        for a path that is no layer of the network, or a form that its layers do not have.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> type(assigned(net, {"2": "bmm"}).model[2]).__name__
    'BatchedProduct'
    """
    both: dict[str, list[str]] = {"conv": [], "linear": []}
    for path, name in assignment.items():
        form = layer_form(_kind(network, path), name)
        if form.module is not None:
            both["linear" if form.kind in (CONV, PATCHES) else "conv"].append(path)
    conversion: ModuleConversion | None = None
    before = network
    for to, paths in both.items():
        if paths:
            chosen = set(paths)
            made = convert_module(before, to=to, only=lambda path, _, chosen=chosen: path in chosen)
            conversion = made if conversion is None else _joined(conversion, made)
            before = made.model
    if conversion is None:
        raise BadInput("assignment: leaves every layer as it is; expected a form for some layer")
    modules = dict(conversion.model.named_modules(remove_duplicate=False))
    for path, name in assignment.items():
        _retype(modules[path], layer_form(_kind(network, path), name))
    originals = dict(network.named_modules(remove_duplicate=False))
    pairs = tuple(ModulePair(p.path, originals[p.path], modules[p.path]) for p in conversion.pairs)
    return replace(conversion, to="the forms assigned", pairs=pairs)


def _joined(a: ModuleConversion, b: ModuleConversion) -> ModuleConversion:
    return replace(b, changes=a.changes + b.changes, refused=a.refused + b.refused, pairs=a.pairs + b.pairs)


def _kind(network: nn.Module, path: str) -> str:
    try:
        module = network.get_submodule(path)
    except AttributeError as error:
        raise BadInput(f"assignment: the network has no layer {path!r}") from error
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION
    kind = PATCHES if has_patches(module) else kind_of(module)
    if kind is None:
        raise BadInput(
            f"assignment: {path or '(top level)'} is a {type(module).__name__}, with one form only"
        )
    return kind


def _retype(module: nn.Module, form: LayerForm) -> None:
    """Turn a drop-in of the plain kind into the one that the form asks for."""
    if form.module is not None and isinstance(module, DropIn) and form.module is not type(module):
        thing: Any = module
        thing.__class__ = changed_class(module, form.module)
