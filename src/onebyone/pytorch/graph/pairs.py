"""Each converted product as a pair of modules, before and after, for the layer-by-layer verification.

The module after the conversion holds the weight of the new program.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.layout.orders import order_of
from onebyone.pytorch.graph.patches import MatchedPatches
from onebyone.pytorch.graph.products import MatchedProduct
from onebyone.pytorch.graph.rewrite import Rewritten
from onebyone.pytorch.graph.weights import StoredShape, tensor_named
from onebyone.pytorch.modules.module_pair import ModulePair

CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class LinearMap(nn.Module):
    """x W (+ b) over the last axis; `weight` is (O, I), or (I, O) where `inputs_first`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, inputs_first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.inputs_first = inputs_first
        self.out_features, self.in_features = weight.shape[::-1] if inputs_first else weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """`(..., I)` → `(..., O)`."""
        return F.linear(x, self.weight.t() if self.inputs_first else self.weight, self.bias)


class PointwiseImage(nn.Module):
    """The same map as a 1×1 convolution: the last axis is moved to the channels of an image, and back."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., I)` → `(..., O)`."""
        rows = x.reshape(1, -1, 1, x.shape[-1])
        y = F.conv2d(rows.permute(0, 3, 1, 2), self.weight, self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.weight.shape[0])


class ChannelMap(nn.Module):
    """A 1×1 convolution as a product: W (O, I) from the left, with the groups and stride of the convolution."""

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.groups, self.stride = groups, stride

    def forward(self, x: Tensor) -> Tensor:
        """`(..., I, *spatial)` → `(..., O, *spatial)`."""
        spatial = len(self.stride)
        for i, step in enumerate(self.stride):
            x = x.movedim(i - spatial, 0)[::step].movedim(0, i - spatial)
        outputs, inputs = self.weight.shape[0], self.weight.shape[1]
        leading, positions = x.shape[: x.dim() - spatial - 1], x.shape[x.dim() - spatial :]
        weight = self.weight.reshape(self.groups, outputs // self.groups, inputs)
        y = torch.matmul(weight, x.reshape(*leading, self.groups, inputs, -1))
        y = y.reshape(*leading, outputs, *positions)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * spatial)


class PatchMap(nn.Module):
    """A convolution on patches as a linear layer, with its patches cut out as the program does it (`FxEmitter`)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., C, *size)` → `(..., O, *positions)`."""
        axes = self.weight.dim() - 1
        first = x.dim() - axes
        for i, extent in enumerate(self.weight.shape[1:]):
            x = x.unfold(first + i, extent, extent)
        rows = x.flatten(-axes).squeeze(first)
        return F.linear(rows, self.weight.flatten(1), self.bias).movedim(-1, first)


def pairs_of(
    products: list[MatchedProduct],
    on_patches: list[MatchedPatches],
    program: ExportedProgram,
    result: Rewritten,
) -> tuple[ModulePair, ...]:
    """One pair for each converted product whose weight is one parameter and whose bias is plain."""
    pairs: dict[str, ModulePair] = {}
    for match in products:
        name, shape = match.weight_name, result.weights.shapes.get(match.weight_name or "")
        if match.path in pairs or name is None or shape is None or not match.product.has_plain_bias:
            continue
        if match.product.bias is not None and match.bias_name is None:
            continue
        before, after = tensor_named(program, name), tensor_named(result.program, name)
        bias = None if match.bias_name is None else tensor_named(program, match.bias_name)
        pair = _pair(match, shape, before, after, bias)
        if pair is not None:
            pairs[match.path] = pair
    for patches in on_patches:
        if patches.path not in pairs and (pair := _pair_on_patches(patches, program, result)) is not None:
            pairs[patches.path] = pair
    return tuple(pairs.values())


def _pair_on_patches(match: MatchedPatches, program: ExportedProgram, result: Rewritten) -> ModulePair | None:
    if match.weight_name is None or (match.rule.bias is not None and match.bias_name is None):
        return None
    bias = None if match.bias_name is None else tensor_named(program, match.bias_name)
    before, after = (tensor_named(p, match.weight_name) for p in (program, result.program))
    if before.shape != match.rule.weight.shape or after.shape != before.shape:
        return None
    outputs, inputs = before.shape[:2]
    layer = _convolution((inputs, outputs), match.rule.kernel, match.rule.kernel, before, bias)
    parameters = (("weight", match.weight_name), ("bias", match.bias_name))
    names = {attribute: name for attribute, name in parameters if name is not None}
    return ModulePair(match.path, layer, PatchMap(after, bias), names)


def _convolution(
    channels: tuple[int, int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    weight: Tensor,
    bias: Tensor | None,
    groups: int = 1,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution without padding from the first to the second number of channels, with the given weight."""
    settings: dict[str, Any] = {"stride": stride, "groups": groups, "bias": bias is not None}
    layer = CONVOLUTIONS[len(stride)](*channels, kernel, **settings, device="meta")  # type: ignore[arg-type]
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _pair(
    match: MatchedProduct, shape: StoredShape, before: Tensor, after: Tensor, bias: Tensor | None
) -> ModulePair | None:
    product = match.product
    inputs, outputs = product.inputs, product.outputs
    parameters = (("weight", match.weight_name), ("bias", match.bias_name))
    names = {attribute: name for attribute, name in parameters if name is not None}
    if match.form == "conv":
        if before.dim() != 2 or tuple(after.shape) != (outputs, inputs, 1, 1):
            return None
        # An axis of size 1 is not in the layout's order, so the sizes decide, and the layout only where they are equal.
        square = outputs == inputs
        inputs_first = (
            order_of(shape.layout) == (1, 0) if square else tuple(before.shape) == (inputs, outputs)
        )
        return ModulePair(
            match.path, LinearMap(before, bias, inputs_first), PointwiseImage(after, bias), names
        )
    if after.dim() != 2:
        return None
    groups, stride = product.groups, product.stride
    layer = _convolution((inputs, outputs), (1,) * len(stride), stride, before, bias, groups)
    return ModulePair(match.path, layer, ChannelMap(after, bias, groups, stride), names)
