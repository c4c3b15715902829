"""Each converted product by itself, before and after, for the verifier's probes: the converted side holds the
new program's weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.pytorch.graph.orders import order_of
from onebyone.pytorch.graph.rewrite import MatchedProduct, Rewritten
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
        """`(..., I)` to `(..., O)`."""
        return F.linear(x, self.weight.t() if self.inputs_first else self.weight, self.bias)


class PointwiseImage(nn.Module):
    """The same map as a 1×1 convolution: the last axis becomes the channels of an image, and goes back."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., I)` to `(..., O)`."""
        rows = x.reshape(1, -1, 1, x.shape[-1])
        y = F.conv2d(rows.permute(0, 3, 1, 2), self.weight, self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.weight.shape[0])


class ChannelMap(nn.Module):
    """A 1×1 convolution as a product: W (O, I) from the left, over axis 1, grouped and strided as the
    convolution was.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.groups, self.stride = groups, stride

    def forward(self, x: Tensor) -> Tensor:
        """`(..., I, *spatial)` to `(..., O, *spatial)`."""
        spatial = len(self.stride)
        for i, step in enumerate(self.stride):
            x = x.movedim(i - spatial, 0)[::step].movedim(0, i - spatial)
        outputs, inputs = self.weight.shape[0], self.weight.shape[1]
        lead, places = x.shape[: x.dim() - spatial - 1], x.shape[x.dim() - spatial :]
        weight = self.weight.reshape(self.groups, outputs // self.groups, inputs)
        y = torch.matmul(weight, x.reshape(*lead, self.groups, inputs, -1)).reshape(*lead, outputs, *places)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * spatial)


def pairs_of(
    found: list[MatchedProduct], program: ExportedProgram, result: Rewritten
) -> tuple[ModulePair, ...]:
    """One pair for each converted product whose weight is a parameter of its own and whose bias is plain."""
    made: dict[str, ModulePair] = {}
    for f in found:
        shape = result.weights.shapes.get(f.weight_name or "")
        if f.path in made or f.weight_name is None or shape is None or not f.product.plain_bias:
            continue
        if f.product.bias is not None and f.bias_name is None:
            continue
        before = tensor_named(program, f.weight_name)
        after = tensor_named(result.program, f.weight_name)
        bias = None if f.bias_name is None else tensor_named(program, f.bias_name)
        pair = _pair(f, shape, before, after, bias)
        if pair is not None:
            made[f.path] = pair
    return tuple(made.values())


def _pair(
    f: MatchedProduct, shape: StoredShape, before: Tensor, after: Tensor, bias: Tensor | None
) -> ModulePair | None:
    p = f.product
    names = {n: name for n, name in (("weight", f.weight_name), ("bias", f.bias_name)) if name is not None}
    if f.form == "conv":
        outputs, inputs = p.channels[1], p.channels[0]
        if before.dim() != 2 or tuple(after.shape) != (outputs, inputs, 1, 1):
            return None
        # an axis of size one has no order in the frame: the sizes tell, and where they are equal the frame does
        same = outputs == inputs
        inputs_first = order_of(shape.frame) == (1, 0) if same else tuple(before.shape) == (inputs, outputs)
        return ModulePair(f.path, LinearMap(before, bias, inputs_first), PointwiseImage(after, bias), names)
    if after.dim() != 2:
        return None
    kind = CONVOLUTIONS[len(p.stride)]
    with torch.device("meta"):
        layer = kind(p.channels[0], p.channels[1], 1, stride=p.stride, groups=p.groups, bias=bias is not None)  # type: ignore[arg-type]
    layer.weight = nn.Parameter(before.detach(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return ModulePair(f.path, layer, ChannelMap(after, bias, p.groups, p.stride), names)
