"""The forms of single layers, and the conversion of a network to the form that is assigned to each of its layers.

| form | linear layer on tokens (..., C) | 1×1 convolution on maps (N, C, H, W) |
|---|---|---|
| linear | unchanged | x·Wᵀ on views of a channels-last map, W·x on a contiguous map; no layout change |
| conv | a convolution on channels-last views; no layout change | unchanged |
| bmm | one batched product per sample | W·x; a channels-last map is copied first |
| conv-nchw | transpose to NCHW, convolve, transpose back | |
| permute | | permute, linear layer, permute back |
| conv-channels-last | | unchanged, on a channels-last map (as in a network with "+channels_last") |

A convolution with a larger kernel has the forms "conv" (unchanged) and "conv-channels-last". A 3×3 convolution at
stride 1 also has "winograd": 36 linear layers on transformed tiles. A convolution whose kernel size equals its stride
also has "linear": its patches are copied to rows, then multiplied by one matrix.
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
"""Dotted path of a layer → name of its form. Layers that are not named are unchanged."""
LINEAR, CONV, KERNEL, PATCHES, ATTENTION = "linear", "conv", "kernel", "patches", "attention"
"""Kinds of layers: a linear layer, a 1×1 convolution, a convolution with a larger kernel, a convolution whose kernel
size equals its stride, and `nn.MultiheadAttention`, whose four projections change together.
"""
WINOGRAD = "winograd"


class BatchedProduct(PointwiseConvolution):
    """Replaces an `nn.Linear`: tokens (B, ..., C) to (B, ..., O) by one batched product per sample."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's name
        """Map input (..., C) to (..., O)."""
        weight = self.read_weight()
        if input.is_nested or input.dim() < 3 or input.numel() == 0:
            return F.linear(input, weight, self.bias)
        rows = input.reshape(input.shape[0], -1, input.shape[-1])
        matrices = weight.t().expand(rows.shape[0], *weight.t().shape)
        y = torch.bmm(rows, matrices) if self.bias is None else torch.baddbmm(self.bias, rows, matrices)
        return y.reshape(*input.shape[:-1], weight.shape[0])


class TransposedConvolution(PointwiseConvolution):
    """Replaces an `nn.Linear`: tokens are transposed to an NCHW image, convolved, and transposed back."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's name
        """Map input (..., C) to (..., O)."""
        weight = self.read_weight()
        if input.is_nested or input.dim() < 3 or input.numel() == 0:
            return F.linear(input, weight, self.bias)
        image = input.reshape(input.shape[0], 1, -1, input.shape[-1]).permute(0, 3, 1, 2).contiguous()
        y = F.conv2d(image, weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
        return y.reshape(*input.shape[:-1], weight.shape[0])


class PermutedLinear(PointwiseLinear):
    """Replaces a 1×1 convolution: the map is permuted to (N, ..., C), given to a linear layer, and permuted back."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Conv2d's name
        """Map input (N, C, H, W) to (N, O, H', W')."""
        if input.dim() != 4:
            return super().forward(input)
        return super().forward(input.contiguous(memory_format=torch.channels_last)).contiguous()


class ProductFromTheLeft(PointwiseLinear):
    """Replaces a 1×1 convolution by W·x on a contiguous map; a map that is not contiguous is copied."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Conv2d's name
        """Map input (N, C, *size) to (N, O, *size')."""
        return super().forward(input.contiguous())


@dataclass(frozen=True)
class LayerForm:
    """A form of the layers of one kind.

    `module` is the drop-in class that computes it; None if the layer's own class does. `assignable`: one layer of a
    network can take this form alone. Forms that only a whole network can take have `make` instead: it returns the
    layer in this form, for measuring on a channels-last map, or raises BadInput if the layer has no such form.
    """

    name: str
    kind: str
    module: type[nn.Module] | None
    assignable: bool = True
    make: Callable[[nn.Module], nn.Module] | None = None


_LAYER_FORMS: dict[tuple[str, str], LayerForm] = {}


def register_layer_form(form: LayerForm) -> LayerForm:
    """Add a form of single layers. It is measured, and may be chosen if it has a drop-in class."""
    _LAYER_FORMS[form.kind, form.name] = form
    return form


def layer_forms(kind: str) -> tuple[LayerForm, ...]:
    """Return the forms of the layers of a kind, the unchanged form first.

    >>> [f.name for f in layer_forms("linear")]
    ['linear', 'conv', 'bmm', 'conv-nchw']
    """
    return tuple(f for f in _LAYER_FORMS.values() if f.kind == kind)


def layer_form(kind: str, name: str) -> LayerForm:
    """Return one form by name. Raises BadInput if layers of that kind do not have it."""
    if (kind, name) not in _LAYER_FORMS:
        names = ", ".join(f.name for f in layer_forms(kind))
        raise BadInput(f"form={name!r}: expected a form of a layer of kind {kind!r}: {names or 'none'}")
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
    """Convert the layers at the paths of an assignment to the forms that it names; weights are shared.

    Raises
    ------
    BadInput
        for a path without a layer, or a form that the layer does not have.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> type(assigned(net, {"2": "bmm"}).model[2]).__name__
    'BatchedProduct'
    """
    paths_to: dict[str, list[str]] = {"conv": [], "linear": []}
    for path, name in assignment.items():
        form = layer_form(_kind(network, path), name)
        if form.module is not None:
            paths_to["linear" if form.kind in (CONV, PATCHES) else "conv"].append(path)
    conversion: ModuleConversion | None = None
    before = network
    for to, paths in paths_to.items():
        if paths:
            chosen = set(paths)
            step = convert_module(before, to=to, only=lambda path, _, chosen=chosen: path in chosen)
            conversion = step if conversion is None else _joined(conversion, step)
            before = step.model
    if conversion is None:
        raise BadInput("assignment: changes no layer; expected another form for at least one layer")
    modules = dict(conversion.model.named_modules(remove_duplicate=False))
    for path, name in assignment.items():
        _retype(modules[path], layer_form(_kind(network, path), name))
    originals = dict(network.named_modules(remove_duplicate=False))
    pairs = tuple(ModulePair(p.path, originals[p.path], modules[p.path]) for p in conversion.pairs)
    return replace(conversion, to="the assigned forms", pairs=pairs)


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
            f"assignment: {path or '(top level)'} is a {type(module).__name__}, which has no other form"
        )
    return kind


def _retype(module: nn.Module, form: LayerForm) -> None:
    """Change the class of a drop-in to the one of the form; both have the same parameters."""
    if form.module is not None and isinstance(module, DropIn) and form.module is not type(module):
        dropin: Any = module
        dropin.__class__ = changed_class(module, form.module)
