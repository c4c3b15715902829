"""The meaning of each kind of step, in plain PyTorch and float64 on flat memory: plans are tested against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.native.maps import Map
from onebyone.native.steps import (
    Activation,
    AttentionStep,
    BinaryOperation,
    ConvolutionStep,
    DepthwiseStep,
    ElementwiseStep,
    GatherStep,
    InputStep,
    LayerNormStep,
    LinearStep,
    MaxPoolStep,
    MeanStep,
    Step,
    Strides,
    TransposeStep,
)

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
        """All of it; elements that no step wrote are NaN."""
        owner = map_.memory
        if owner not in self.pieces:
            self.pieces[owner] = torch.full((math.prod(owner.shape),), math.nan, dtype=torch.float64)
        return self.pieces[owner]

    def image(self, map_: Map) -> Tensor:
        """As (N, C, H, W)."""
        n, c, h, w = map_.shape
        return self.flat(map_)[: n * c * h * w].view(n, h, w, c).permute(0, 3, 1, 2)

    def write(self, map_: Map, result: Tensor) -> None:
        """All of it at once."""
        assert result.numel() == math.prod(map_.shape) == self.flat(map_).numel()
        self.flat(map_)[:] = result.reshape(-1)

    def write_image(self, map_: Map, result: Tensor) -> None:
        """All of it, from (N, C, H, W)."""
        assert tuple(result.shape) == map_.shape
        self.write(map_, result.permute(0, 2, 3, 1))


def interpreted(steps: Sequence[Step], answer: Map, image: Tensor) -> Tensor:
    """The result of steps whose weights are not packed yet; flat, in PyTorch's order."""
    memory = Memory()
    for step in steps:
        if isinstance(step, InputStep):
            (pad_h, pad_w), x = step.padding, image.double().reshape(step.shape)
            memory.write_image(step.output, F.pad(x, (pad_w, pad_w, pad_h, pad_h)))
        else:
            MEANINGS[type(step)](step, memory)
        assert isinstance(step, GatherStep) or not memory.flat(step.output).isnan().any(), step.kind
    return memory.image(answer).reshape(-1)


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def rows_of(memory: Memory, map_: Map, count: int, length: int, index: Tensor | None = None) -> Tensor:
    """Rows (count, length), one after another or where the index says."""
    begins = torch.arange(count) * length if index is None else index
    assert begins.shape == (count,)
    assert begins.dtype == torch.int64
    assert bool((begins >= 0).all())
    return memory.flat(map_)[begins[:, None] + torch.arange(length)]


def convolution(step: ConvolutionStep | DepthwiseStep, memory: Memory) -> None:
    window, groups = step.window, step.input.shape[1] if isinstance(step, DepthwiseStep) else 1
    result = F.conv2d(
        memory.image(step.input),
        step.weight.double(),
        double(step.bias),
        window.stride,
        window.padding,
        window.dilation,
        groups,
    )
    if isinstance(step, ConvolutionStep) and step.addend is not None:
        addend = memory.flat(step.addend).view(result.permute(0, 2, 3, 1).shape)
        result = result + addend.permute(0, 3, 1, 2)
    memory.write_image(step.output, ACTIVATIONS[step.activation](result))


def linear(step: LinearStep, memory: Memory) -> None:
    assert step.weight.shape == (step.outputs, step.inputs)
    x = rows_of(memory, step.input, step.rows, step.inputs)
    result = F.linear(x, step.weight.double(), double(step.bias))
    if step.addend is not None:
        result = result + rows_of(memory, step.addend, step.rows, step.outputs)
    memory.write(step.output, ACTIVATIONS[step.activation](result))


def layer_norm(step: LayerNormStep, memory: Memory) -> None:
    x = rows_of(memory, step.input, step.rows, step.channels, step.index)
    result = F.layer_norm(x, (step.channels,), double(step.weight), double(step.bias), step.epsilon)
    memory.write(step.output, result)


def attention(step: AttentionStep, memory: Memory) -> None:
    def operand(map_: Map, rows: int, columns: int, strides: Strides) -> Tensor:
        size, s = (step.samples, step.heads, rows, columns), strides
        return torch.as_strided(memory.flat(map_), size, (s.sample, s.head, s.row, 1), s.begin)

    q = operand(step.queries, step.query_rows, step.depth, step.query_strides)
    k = operand(step.keys, step.key_rows, step.depth, step.key_strides)
    v = operand(step.values, step.key_rows, step.value_depth, step.value_strides)
    scores = step.scale * (q @ k.mT)
    if step.bias is not None:
        strides = (*step.bias_strides, step.key_rows, 1)
        scores = scores + torch.as_strided(step.bias.double().contiguous(), scores.shape, strides)
    memory.write(step.output, (scores.softmax(-1) @ v).transpose(1, 2))


def gather(step: GatherStep, memory: Memory) -> None:
    assert (step.source is None) != (step.numbers is None)
    source = memory.flat(step.source) if step.source is not None else step.numbers.double().reshape(-1)  # type: ignore[union-attr]
    within = torch.arange(step.length)
    i = torch.arange(len(step.index))
    begins = i * step.length
    if step.block_stride:
        block, piece = i // step.pieces_per_block, i % step.pieces_per_block
        begins = block * step.block_stride + piece * step.length
    to = (step.output_begin + begins)[:, None] + within
    memory.flat(step.output)[to] = source[step.index[:, None] + within]


def transpose(step: TransposeStep, memory: Memory) -> None:
    count = step.matrices * step.rows * step.columns
    x = memory.flat(step.input)[:count].view(step.matrices, step.rows, step.columns)
    memory.write(step.output, x.mT)


def elementwise(step: ElementwiseStep, memory: Memory) -> None:
    n, length, h, w = step.input.shape
    count = n * h * w
    x = rows_of(memory, step.input, count, length)
    if step.operation != BinaryOperation.FIRST_OPERAND:
        positions = torch.arange(count)
        if step.numbers is not None:
            rows = step.numbers.double().reshape(-1, length)
            other = rows[positions % (step.period or count)]
        elif step.positions_per_row:
            assert step.other is not None
            rows = rows_of(memory, step.other, count // step.positions_per_row, length)
            other = rows[positions // step.positions_per_row]
        else:
            assert step.other is not None
            other = rows_of(memory, step.other, count, length, step.index)
        x = x + other if step.operation == BinaryOperation.SUM else x * other
    memory.write(step.output, ACTIVATIONS[step.activation](x))


def mean(step: MeanStep, memory: Memory) -> None:
    memory.write(step.output, memory.image(step.input).mean((2, 3)))


def max_pool(step: MaxPoolStep, memory: Memory) -> None:
    w = step.window
    memory.write_image(
        step.output, F.max_pool2d(memory.image(step.input), w.kernel, w.stride, w.padding, w.dilation)
    )


MEANINGS: dict[type[Step], Callable[[Any, Memory], None]] = {
    ConvolutionStep: convolution,
    DepthwiseStep: convolution,
    LinearStep: linear,
    LayerNormStep: layer_norm,
    AttentionStep: attention,
    GatherStep: gather,
    TransposeStep: transpose,
    ElementwiseStep: elementwise,
    MeanStep: mean,
    MaxPoolStep: max_pool,
}
