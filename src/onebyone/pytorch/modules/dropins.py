"""Drop-in modules: each replaces a layer and computes the same function in the other form.

`PointwiseConvolution` replaces `nn.Linear`, `PointwiseLinear` a 1×1 `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`, and
`PatchLinear` a convolution on adjacent patches (its kernel size is its stride). A drop-in keeps everything that the
replaced module had: parameters of the same shape and name, sizes, hooks, training flag. So code that reads `.weight` or
`.in_features` still works, and every `state_dict` still loads. A drop-in is not an instance of the replaced class. The
laws are `onebyone.laws.pointwise` and `onebyone.laws.patches`. The other form of the weight is a view that is taken at
each call (a copy if the weight of a convolution on patches is stored channels-last).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.errors import BadInput


def pointwise_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` computed as a 1×1 convolution: x (..., C), weight (O, C) and bias (O,) give (..., O).

    In memory, a token tensor (B, T, C) is identical to a channels-last image (B, C, T, 1), so that neither it nor the
    result is copied. A batch of vectors (T, C) is treated as one image with T positions. The parts of a nested (ragged)
    tensor are concatenated first.

    >>> x, w = torch.ones(2, 5, 3), torch.arange(6.0).view(2, 3)
    >>> torch.equal(pointwise_convolution(x, w), F.linear(x, w))
    True
    """
    # (O, C, 1, 1) in channels-last order, so that the convolution reads x without a copy
    kernel = weight[:, None, None, :].permute(0, 3, 1, 2)
    if _is_channels_first(x):
        # The gradient must have the memory format of x. Otherwise a batch norm before this layer, in eval mode and with
        # one image, receives a gradient in another memory format than its input, and PyTorch computes wrong gradients.
        kernel = weight[:, :, None, None]
    return on_tokens(lambda image: F.conv2d(image, kernel, bias), x, weight.shape[0])


def _is_channels_first(x: Tensor) -> bool:
    """Whether tokens (N, …, C) that require a gradient are stored channels-first, as a contiguous image is."""
    if x.is_nested or torch.compiler.is_exporting() or x.dim() < 3:
        return False
    return x.requires_grad and not x.is_contiguous() and x.movedim(-1, 1).is_contiguous()


def on_tokens(convolve: Callable[[Tensor], Tensor], x: Tensor, out: int) -> Tensor:
    """Apply a pointwise convolution of images (N, C, H, W) to tokens x (..., C). Returns (..., out), contiguous."""
    if x.is_nested:
        return _on_ragged(convolve, x, out)
    channels = x.shape[-1]
    if x.numel() == 0 or x.dim() > 4:
        # a convolution accepts an empty batch but no empty image
        images = x.reshape(-1, 1, 1, channels)
    elif x.dim() == 4:
        images = x
    elif x.dim() == 3:
        images = x.unsqueeze(2)
    elif x.dim() == 2 and torch.compiler.is_exporting():
        images = x[
            :, None, None
        ]  # one image per row, so that the batch stays an axis of its own in the program
    else:
        images = x.reshape(1, -1, 1, channels)
    y = convolve(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    y = y if y.is_contiguous() else y.contiguous()
    return y.reshape(*x.shape[:-1], out)


def _on_ragged(convolve: Callable[[Tensor], Tensor], x: Any, out: int) -> Tensor:
    if x.layout == torch.jagged:
        return torch.nested.nested_tensor_from_jagged(on_tokens(convolve, x.values(), out), x.offsets())
    parts = x.unbind()
    joined: Any = on_tokens(convolve, torch.cat([p.flatten(0, -2) for p in parts]), out)
    split = joined.split([p.shape[:-1].numel() for p in parts])
    return torch.nested.as_nested_tensor(
        [y.reshape(*p.shape[:-1], out) for y, p in zip(split, parts, strict=True)]
    )


def pointwise_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, ...] = (),
    groups: int = 1,
) -> Tensor:
    """An unpadded 1×1 convolution in 1, 2 or 3 dimensions, computed as a matrix product at each position.

    x (N, C, *size) or (C, *size), weight (O, C/groups, 1, ...) and bias (O,) give (N, O, *size'); with a stride s,
    every s-th position is kept. `F.linear` reads channels-last maps without a copy. For other maps the product W·x is
    computed, so that no map is transposed. Groups are a batched product, never a block-diagonal matrix.

    >>> x, w = torch.ones(1, 3, 4, 5), torch.arange(6.0).view(2, 3, 1, 1)
    >>> torch.equal(pointwise_linear(x, w, stride=(2, 1)), F.conv2d(x, w, stride=(2, 1)))
    True
    """
    dims = weight.dim() - 2
    if x.dim() == dims + 1:
        return pointwise_linear(x.unsqueeze(0), weight, bias, stride, groups).squeeze(0)
    channels_last = _is_channels_last(x)
    # The output of a 2-d convolution has the memory format of its input; in 1-d, and mostly in 3-d, it is contiguous.
    finish = (lambda y: y.movedim(-1, 1)) if channels_last and dims == 2 else _channels_first
    # With W·x, the weight's gradient would be computed once per image: (N, O, C) instead of (O, C).
    trains = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_exporting()
    x_first = channels_last or trains or groups > 1
    if any(s != 1 for s in stride):
        # one copy, in the order that the product reads; the product would copy a view anyway
        x = _copied(subsampled(x, stride), x_first)
    if groups > 1:
        return finish(_grouped(x, weight, bias, groups))
    if x_first:
        return finish(F.linear(x.movedim(1, -1), weight.flatten(1), bias))
    return _from_the_left(x, weight.flatten(1), bias)


def _copied(x: Tensor, channels_last: bool) -> Tensor:
    if channels_last:
        return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
    return x.clone(memory_format=torch.contiguous_format)


def _channels_first(y: Tensor) -> Tensor:
    return y.movedim(-1, 1).contiguous()


def subsampled(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Every s-th position of a map (..., *size) along each of its last axes: a view."""
    index: tuple[Any, ...] = (..., *(slice(None, None, s) for s in stride))
    return x[index]


def _from_the_left(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """W·x + b on x (N, C, *size), contiguous, without a transposition."""
    columns, rows = x.flatten(2), matrix.expand(x.shape[0], *matrix.shape)
    y = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias[:, None], rows, columns)
    return y.reshape(x.shape[0], matrix.shape[0], *x.shape[2:])


def _grouped(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """x (N, C, *size) to (N, *size, O), one product per group."""
    tokens = x.movedim(1, -1)
    lead = tokens.shape[:-1]
    parts = tokens.reshape(-1, groups, x.shape[1] // groups).transpose(0, 1)  # (G, positions, C/G)
    matrices = weight.view(groups, -1, weight.shape[1]).transpose(1, 2)  # (G, C/G, O/G)
    y = torch.bmm(parts, matrices).transpose(0, 1).reshape(*lead, weight.shape[0])
    if bias is None:
        return y
    return y + (bias if bias.dtype == y.dtype else bias.to(y.dtype))  # the types differ under autocast


def _is_channels_last(x: Tensor) -> bool:
    """Whether a map (N, C, *size) is stored channels-last."""
    if torch.compiler.is_exporting():
        return False  # the question would fix sizes in the program, and the values do not depend on it
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def as_patches(x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """A map (N, C, *size) as its patches (N, C, *positions, *kernel): a view.

    On each axis there are ⌊size / kernel⌋ patches. The remainder at the far edge is dropped, as a convolution drops it.

    Raises
    ------
    BadInput
        if the map is smaller than one patch.

    >>> as_patches(torch.arange(8).view(1, 1, 2, 4), (2, 2)).flatten(0, 3).tolist()
    [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    """
    if any(n < k for n, k in zip(x.shape[2:], kernel, strict=True)):
        size, patch = ("×".join(map(str, sizes)) for sizes in (x.shape[2:], kernel))
        raise BadInput(f"input has size {size}; expected at least one patch of {patch}")
    for axis, k in enumerate(kernel, start=2):
        x = x.unfold(axis, k, k)
    return x


def on_patches(linear: Callable[[Tensor], Tensor], x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Apply a linear map, (..., C·Πkernel) to (..., O), to each patch of a map (N, C, *size) or (C, *size).

    Returns (N, O, *positions) or (O, *positions), in the memory format that a convolution would return. The patches are
    copied once, to rows; the copy is not larger than the map.
    """
    dims = len(kernel)
    if x.dim() == dims + 1:
        return on_patches(linear, x.unsqueeze(0), kernel).squeeze(0)
    if x.dim() != dims + 2:
        shape = tuple(x.shape)
        raise BadInput(f"input has shape {shape}; expected {dims + 2} axes (N, C, ...) or {dims + 1}")
    parts = as_patches(x, kernel).movedim(1, 1 + dims)  # (N, *positions, C, *kernel)
    y = linear(parts.reshape(*parts.shape[: 1 + dims], x.shape[1] * prod(kernel)))
    return y.movedim(-1, 1) if dims == 2 and _is_channels_last(x) else _channels_first(y)


def patch_linear(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: tuple[int, ...]) -> Tensor:
    """A convolution whose kernel size is its stride, computed as a matrix product on patches.

    x (N, C, *size) or (C, *size), weight (O, C, *kernel) and bias (O,) give (N, O, *positions). The patches of a
    channels-first map are copied to columns, in the memory order of the map's rows, and W·x is computed, so that the
    result is not transposed. Otherwise the patches are copied to rows.

    >>> x, w = torch.ones(1, 3, 5, 6), torch.arange(24.0).view(2, 3, 2, 2)
    >>> torch.equal(patch_linear(x, w, None, (2, 2)), F.conv2d(x, w, stride=2))
    True
    """
    matrix, dims = weight.flatten(1), len(kernel)
    if x.dim() == dims + 1:
        return patch_linear(x.unsqueeze(0), weight, bias, kernel).squeeze(0)
    # With W·x, the weight's gradient would be computed once per image: (N, O, C·Πkernel) instead of one matrix.
    trains = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_exporting()
    if x.dim() != dims + 2 or trains or _is_channels_last(x):
        return on_patches(lambda rows: F.linear(rows, matrix, bias), x, kernel)
    parts = as_patches(x, kernel)
    inside, counts = range(2 + dims, 2 + 2 * dims), parts.shape[2 : 2 + dims]
    columns = parts.permute(0, 1, *inside, *range(2, 2 + dims))
    return _from_the_left(columns.reshape(x.shape[0], x.shape[1] * prod(kernel), *counts), matrix, bias)


class DropIn(nn.Module):
    """Base of the drop-ins. `origin` is the class of the replaced layer."""

    origin: type[nn.Module]

    def read_weight(self) -> Tensor:
        """The weight in the shape that `F.linear` or a convolution expects."""
        reader = vars(self).get("weight_reader")
        return cast(Tensor, self.weight if reader is None else reader(self))

    def extra_repr(self) -> str:
        """As that of the replaced class, with its name."""
        sizes = self.origin.extra_repr(cast(Any, self))
        return f"{sizes}, for={self.origin.__name__}"


class PointwiseConvolution(DropIn):
    """Replaces an `nn.Linear` (C → O) and computes it as a 1×1 convolution: (..., C) to (..., O).

    Made by `onebyone.convert(model, to="conv")`.
    """

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as nn.Linear names it
        """(..., C) to (..., O)."""
        return pointwise_convolution(input, self.read_weight(), self.bias)


class ConvolutionDropIn(DropIn):
    """Replaces a convolution and keeps its settings under their names."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    weight: Tensor
    bias: Tensor | None


class PointwiseLinear(ConvolutionDropIn):
    """Replaces a 1×1 convolution (C → O) by a linear layer at each position: (N, C, *size) to (N, O, *size').

    Made by `onebyone.convert(model, to="linear")`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as nn.Conv2d names it
        """(N, C, *size) or (C, *size) to the same with O channels, with the convolution's stride."""
        weight = self.read_weight()
        dims = weight.dim() - 2
        if input.dim() not in (dims + 1, dims + 2):
            shape = tuple(input.shape)
            raise BadInput(f"input has shape {shape}; expected {dims + 2} axes (N, C, ...) or {dims + 1}")
        if not isinstance(self.padding, str) and any(self.padding):
            # zeros around the map give the bias; the other modes repeat positions of the map
            pads = [p for p in reversed(self.padding) for _ in range(2)]
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, pads, mode=mode)  # noqa: A001
        return pointwise_linear(input, weight, self.bias, self.stride, self.groups)


class PatchLinear(ConvolutionDropIn):
    """Replaces a convolution whose kernel size is its stride (C → O) by a linear layer on each patch.

    Shapes: (N, C, *size) to (N, O, *positions).

    Made by `onebyone.convert(model, to="linear")`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as nn.Conv2d names it
        """(N, C, *size) or (C, *size) to the same with O channels, one position for each patch."""
        return patch_linear(input, self.read_weight(), self.bias, self.kernel_size)
