"""What each kind of step means, in plain PyTorch and float64 on flat memory: what plans are tested against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.native.kernels.program import Activation, Kind, Map, Meeting, Step

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.NONE: lambda x: x,
    Activation.RELU: F.relu,
    Activation.RELU6: F.relu6,
    Activation.HARDSWISH: F.hardswish,
    Activation.HARDSIGMOID: F.hardsigmoid,
    Activation.SILU: F.silu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}


class Memory:
    """Flat float64 memory, one piece for every map that has no base."""

    def __init__(self) -> None:
        self.pieces: dict[Map, Tensor] = {}

    def flat(self, map_: Map) -> Tensor:
        """All of it; what no step wrote is not a number."""
        whole = map_.memory
        if whole not in self.pieces:
            self.pieces[whole] = torch.full((math.prod(whole.shape),), math.nan, dtype=torch.float64)
        return self.pieces[whole]

    def image(self, map_: Map) -> Tensor:
        """As (N, C, H, W)."""
        n, c, h, w = map_.shape
        return self.flat(map_)[: n * c * h * w].view(n, h, w, c).permute(0, 3, 1, 2)

    def write(self, map_: Map, found: Tensor) -> None:
        """All of it at once."""
        assert found.numel() == math.prod(map_.shape) == self.flat(map_).numel()
        self.flat(map_)[:] = found.reshape(-1)


def interpreted(steps: Sequence[Step], answer: Map, image: Tensor) -> Tensor:
    """What the steps, before their weights are packed, give for an input; flat, in PyTorch's order."""
    memory = Memory()
    for step in steps:
        row = step.row()
        if step.kind == Kind.INPUT:
            assert step.given is not None
            pads = [step.sizes.get(f"pad_{axis}", 0) for axis in "wwhh"]
            memory.write(step.y, F.pad(image.double().reshape(step.given), pads).permute(0, 2, 3, 1))
        elif step.kind in (Kind.CONVOLUTION, Kind.DEPTHWISE):
            memory.write(step.y, convolution(step, row, memory))
        else:
            MEANINGS[step.kind](step, row, memory)
        assert step.kind in (Kind.ROWS,) or not memory.flat(step.y).isnan().any(), step.kind
    return memory.image(answer).reshape(-1)


def double(given: Tensor | None) -> Tensor | None:
    return None if given is None else given.double()


def rows_of(memory: Memory, map_: Map, count: int, length: int, index: Tensor | None = None) -> Tensor:
    """Rows (count, length), one after another or where the index says."""
    begins = torch.arange(count) * length if index is None else index
    assert begins.shape == (count,)
    assert begins.dtype == torch.int64
    assert bool((begins >= 0).all())
    return memory.flat(map_)[begins[:, None] + torch.arange(length)]


def convolution(step: Step, row: Any, memory: Memory) -> Tensor:
    assert step.x is not None
    assert step.weight is not None
    weight, pads = step.weight.double(), (row.pad_h, row.pad_w)
    x = memory.flat(step.x)[: row.samples * row.height * row.width * row.channels]
    x = x.view(row.samples, row.height, row.width, row.channels).permute(0, 3, 1, 2)
    groups = row.channels if step.kind == Kind.DEPTHWISE else 1
    strides, dilations = (row.stride_h, row.stride_w), (row.dilation_h, row.dilation_w or 1)
    found = F.conv2d(x, weight, double(step.bias), strides, pads, dilations, groups).permute(0, 2, 3, 1)
    if step.add is not None:
        found = found + memory.flat(step.add).view(found.shape)
    return ACTIVATIONS[step.activation](found)


def linear(step: Step, row: Any, memory: Memory) -> None:
    assert step.x is not None
    assert step.weight is not None
    assert step.weight.shape == (row.outputs, row.channels)
    found = F.linear(
        rows_of(memory, step.x, row.samples, row.channels), step.weight.double(), double(step.bias)
    )
    if step.add is not None:
        found = found + rows_of(memory, step.add, row.samples, row.outputs)
    memory.write(step.y, ACTIVATIONS[step.activation](found))


def layer_norm(step: Step, row: Any, memory: Memory) -> None:
    assert step.x is not None
    x = rows_of(memory, step.x, row.samples, row.channels, step.index)
    memory.write(
        step.y, F.layer_norm(x, (row.channels,), double(step.weight), double(step.bias), step.number)
    )


def attention(step: Step, row: Any, memory: Memory) -> None:
    assert step.x is not None
    assert step.add is not None
    assert step.third is not None
    batch, heads, high, wide = row.samples, row.height, row.high, row.wide
    apart = [step.apart[i : i + 4] for i in (0, 4, 8)]
    q, k, v = (
        torch.as_strided(memory.flat(m), (batch, heads, rows, columns), (b, h, t, 1), begin)
        for m, (begin, b, h, t), rows, columns in zip(
            (step.x, step.add, step.third),
            apart,
            (high, wide, wide),
            (row.channels, row.channels, row.outputs),
            strict=True,
        )
    )
    scores = step.number * (q @ k.mT)
    if step.weight is not None:
        bias = step.weight.double().contiguous()
        scores = scores + torch.as_strided(
            bias, (batch, heads, high, wide), (step.apart[12], step.apart[13], wide, 1)
        )
    memory.write(step.y, (scores.softmax(-1) @ v).transpose(1, 2))


def rows(step: Step, row: Any, memory: Memory) -> None:
    assert step.index is not None
    assert (step.x is None) != (step.weight is None)
    count, length = row.samples, row.channels
    at = step.index[:, None] + torch.arange(length)
    found = (
        memory.flat(step.x)[at] if step.x is not None else step.weight.double().reshape(-1)[at]  # type: ignore[union-attr]
    )
    i = torch.arange(count)
    begins = row.pad_h + (i // row.high * row.wide + i % row.high * length if row.wide else i * length)
    memory.flat(step.y)[begins[:, None] + torch.arange(length)] = found


def turned(step: Step, row: Any, memory: Memory) -> None:
    assert step.x is not None
    count = row.samples * row.height * row.width
    x = memory.flat(step.x)[:count].view(row.samples, row.height, row.width)
    memory.write(step.y, x.mT)


def elementwise(step: Step, row: Any, memory: Memory) -> None:
    assert step.x is not None
    count, length = row.samples * row.height * row.width, row.channels
    x = rows_of(memory, step.x, count, length)
    if step.pool != Meeting.ALONE:
        if step.add is None:
            assert step.weight is not None
            other = step.weight.double().reshape(-1, length)[torch.arange(count) % (row.levels or count)]
        elif step.pool == Meeting.MULTIPLIED_BY_CHANNEL:
            other = rows_of(memory, step.add, row.samples, length).repeat_interleave(
                row.height * row.width, 0
            )
        else:
            other = rows_of(memory, step.add, count, length, step.index)
        x = x + other if step.pool == Meeting.ADDED else x * other
    memory.write(step.y, ACTIVATIONS[step.activation](x))


def mean(step: Step, row: Any, memory: Memory) -> None:
    assert step.x is not None
    memory.write(step.y, memory.image(step.x).mean((2, 3)))


def max_pool(step: Step, row: Any, memory: Memory) -> None:
    assert step.x is not None
    kernel, stride, pad, dilation = step.settings("kernel", "stride", "pad", "dilation")
    found = F.max_pool2d(memory.image(step.x), kernel, stride, pad, dilation)
    memory.write(step.y, found.permute(0, 2, 3, 1))


MEANINGS: dict[Kind, Callable[[Step, Any, Memory], None]] = {
    Kind.LINEAR: linear,
    Kind.LAYER_NORM: layer_norm,
    Kind.ATTENTION: attention,
    Kind.ROWS: rows,
    Kind.TURNED: turned,
    Kind.ELEMENTWISE: elementwise,
    Kind.MEAN: mean,
    Kind.MAX_POOL: max_pool,
}
