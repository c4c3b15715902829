"""`onebyone::winograd_conv2d`: a 3×3 convolution at stride 1 as 36 linear layers on transformed tiles, in float32.

The operator takes weights that `packed` has transformed (four times as many numbers) and returns a channels-last
tensor; ReLU and a 2×2 max pool can be part of it. It has no gradient. See `onebyone.laws.winograd`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.laws.winograd import F4X3, entries
from onebyone.native.kernels.compiler import library
from onebyone.native.kernels.fork_safety import usable_threads

LANES = 16
"""Channels must be a multiple of this: the floats of the widest vectors."""
ROUNDINGS = 18
"""Roundings of each product besides its sum over channels: 8 in the input transform, 8 in the output transform, one of
the transformed weight, and one of the product."""
_SCHEMA = (
    "winograd_conv2d(Tensor input, Tensor weight, Tensor? bias, int outputs, int[2] padding, bool relu, bool pool)"
    " -> Tensor"
)


def why_not(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> str | None:
    """Why a convolution cannot be computed by Winograd's algorithm; None if it can."""
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (3, 3):
        return "its kernel is not 3×3"
    if {*stride, *dilation} != {1} or groups != 1:
        return "it has strides, dilation or groups"
    if isinstance(padding, str) or not all(0 <= p <= 2 for p in padding):
        return "its padding is not 0, 1 or 2"
    if weight.shape[0] % LANES or weight.shape[1] % LANES:
        return f"its channels are not whole multiples of {LANES}"
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return "it is not in float32 on a CPU"
    return None


class WinogradConvolution(nn.Module):
    """A convolution computed by Winograd's algorithm, for inference. Raises BadInput if it cannot be."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        c: Any = convolution
        reason = why_not(c.weight, c.stride, c.padding, c.dilation, c.groups)
        if reason or c.padding_mode != "zeros" or not isinstance(c, nn.Conv2d):
            raise BadInput(f"convolution: {reason or 'its padding mode is not zeros'}")
        self.outputs, self.padding = c.out_channels, list(c.padding)
        self.register_buffer("weight", packed(c.weight))
        self.register_buffer("bias", None if c.bias is None else c.bias.detach())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """input (N, C, H, W) to (N, O, H', W')."""
        op = torch.ops.onebyone.winograd_conv2d
        y: Tensor = op(input, self.weight, self.bias, self.outputs, self.padding, relu=False, pool=False)
        return y


def packed(weight: Tensor) -> Tensor:
    """Weights (O, C, 3, 3) transformed in float64 and rounded once, in panels: (36, ⌈O/panel⌉, C, panel).

    Raises BadInput if the kernel cannot be compiled.
    """
    panel = _kernel().onebyone_panel()
    g = torch.from_numpy(entries(F4X3.weight, "float64"))
    u = torch.einsum("ij,ocjk,lk->ilco", g, weight.detach().double(), g).reshape(36, weight.shape[1], -1)
    u = F.pad(u, (0, -u.shape[2] % panel))
    u = u.reshape(36, weight.shape[1], -1, panel)
    return u.transpose(1, 2).float().contiguous()


def reference_conv2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None,
    outputs: int,
    padding: list[int],
    relu: bool,
    pool: bool,
) -> Tensor:
    """The same algorithm in plain PyTorch, in any dtype, with weights (O, C, 3, 3) that are not packed.

    >>> x, w = torch.ones(1, 2, 5, 7), torch.ones(3, 2, 3, 3)
    >>> y = reference_conv2d(x, w, None, 3, [0, 0], relu=False, pool=False)
    >>> y.shape, bool(torch.allclose(y, torch.tensor(18.0)))
    (torch.Size([1, 3, 3, 5]), True)
    """
    m = F4X3.outputs
    a, g, b = (
        torch.from_numpy(entries(f, "float64")).to(input) for f in (F4X3.output, F4X3.weight, F4X3.input)
    )
    high, wide = (n + 2 * p - 2 for n, p in zip(input.shape[2:], padding, strict=True))
    down, across = -(-high // m), -(-wide // m)
    reach = [p + m * t + 2 - n - p for p, t, n in zip(padding, (down, across), input.shape[2:], strict=True)]
    x = F.pad(input, (padding[1], reach[1] - padding[1], padding[0], reach[0] - padding[0]))
    tiles = x.unfold(2, F4X3.edge, m).unfold(3, F4X3.edge, m)  # (N, C, down, across, 6, 6)
    u = torch.einsum("ij,ocjk,lk->iloc", g, weight.to(input), g).flatten(0, 1)  # (36, O, C)
    v = torch.einsum("ij,nchwjk,lk->ilcnhw", b, tiles, b).flatten(0, 1).flatten(2)  # (36, C, tiles)
    products = (u @ v).reshape(F4X3.edge, F4X3.edge, outputs, len(input), down, across)
    y = torch.einsum("ij,jkonhw,lk->nohiwl", a, products, a).flatten(4, 5).flatten(2, 3)[:, :, :high, :wide]
    y = y if bias is None else y + bias.to(input)[:, None, None]
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, 2) if pool else y


def _run(
    input: Tensor,  # noqa: A002  the name that conv2d gives it
    weight: Tensor,
    bias: Tensor | None,
    outputs: int,
    padding: list[int],
    relu: bool,
    pool: bool,
) -> Tensor:
    _check_arguments(input, weight, bias, outputs, padding)
    x = input.contiguous(memory_format=torch.channels_last)
    result = _empty(x, outputs, padding, pool)
    if result.numel():
        sizes = (ctypes.c_int64 * 7)(x.shape[0], x.shape[2], x.shape[3], x.shape[1], outputs, *padding)
        offset = None if bias is None else bias.contiguous().data_ptr()
        failed = _kernel().onebyone_winograd(
            x.data_ptr(),
            weight.data_ptr(),
            offset,
            result.data_ptr(),
            sizes,
            relu,
            pool,
            usable_threads(torch.get_num_threads()),
        )
        if failed:
            raise MemoryError("winograd_conv2d: not enough memory for its tiles")
    return result


def _check_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, padding: list[int]
) -> None:
    """Check the arguments: C++ reads as many numbers as these shapes say."""
    panel = _kernel().onebyone_panel()
    shape = (36, -(-outputs // panel), x.shape[1], panel) if x.dim() == 4 else ()
    whole_vectors = outputs % LANES == 0 and x.shape[1] % LANES == 0
    if tuple(weight.shape) != shape or not whole_vectors or not weight.is_contiguous():
        raise BadInput(f"winograd_conv2d: input {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise BadInput(f"winograd_conv2d: bias {tuple(bias.shape)}: expected ({outputs},)")
    if any(t.dtype != torch.float32 for t in (x, weight, bias) if t is not None):
        raise BadInput(f"winograd_conv2d: input is {x.dtype}; expected torch.float32")
    if any(p < 0 or n + 2 * p < 3 for n, p in zip(x.shape[2:], padding, strict=True)):
        raise BadInput(f"winograd_conv2d: padding={padding} on an image of {tuple(x.shape[2:])}")


def _empty(x: Tensor, outputs: int, padding: list[int], pool: bool) -> Tensor:
    step = 2 if pool else 1
    size = [(n + 2 * p - 2) // step for n, p in zip(x.shape[2:], padding, strict=True)]
    shape = (x.shape[0], outputs, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@cache
def _kernel() -> ctypes.CDLL:
    compiled = library("winograd.cpp")
    compiled.onebyone_panel.restype = ctypes.c_int64
    compiled.onebyone_winograd.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int] * 3
    return compiled


_library = torch.library.Library("onebyone", "DEF")  # type: ignore[no-untyped-call]
_library.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
_library.impl("winograd_conv2d", _run, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "onebyone::winograd_conv2d",
    lambda x, weight, bias, outputs, padding, relu, pool: _empty(x, outputs, padding, pool),
    lib=_library,
)
