"""Final lowering of steps: the algorithm of each convolution, fusion with neighbouring steps, and packed weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.laws.winograd import F4X3
from onebyone.native.kernels import strassen
from onebyone.native.kernels.program import in_panels, kernel
from onebyone.native.kernels.winograd import packed, why_not
from onebyone.native.maps import Map
from onebyone.native.steps import (
    Activation,
    AttentionStep,
    ConvolutionStep,
    DepthwiseStep,
    ElementwiseStep,
    GatherStep,
    LayerNormStep,
    LinearStep,
    MaxPoolStep,
    SlidingWindow,
    Step,
    WinogradStep,
)

_MACS_PER_BYTE = 3
"""Roughly how many multiply-accumulates a core does in the time in which it reads one byte of weights from memory."""
_SUM_OF_LANES, _WORTHWHILE = 12, 0.7
"""The cost of adding the lanes of a vector, in vector operations, and the share of the cost that must be left."""
_POOL_2X2 = SlidingWindow((2, 2), stride=(2, 2))


def lower(steps: list[Step], answer: Map, fast_products: bool = False) -> list[Step]:
    """The steps as they run: Winograd or linear steps for convolutions, fused neighbours, packed weights.

    `answer` is the map of the network's output. With `fast_products`, linear layers use Strassen's algorithm without
    the scaling that keeps an error bound for each row (`onebyone.laws.scaling`).
    """
    lowered = _with_winograd(steps, answer)
    for step in lowered:
        if isinstance(step, ConvolutionStep):
            step.few_outputs = _few_outputs_are_faster(step)
    lowered = [_as_linear(s, fast_products) if isinstance(s, ConvolutionStep) else s for s in lowered]
    lowered = _apply_factors_in_linear_steps(lowered, answer)
    _run_in_place(lowered, answer)
    for step in lowered:
        _pack(step, fast_products)
    return lowered


def _with_winograd(steps: list[Step], answer: Map) -> list[Step]:
    """Replace 3×3 convolutions by Winograd steps where these are faster, and fuse 2×2 max pools into them."""
    readers: dict[int, int] = {}
    for step in steps:
        for read in step.inputs_read:
            readers[id(read.memory)] = readers.get(id(read.memory), 0) + 1
    lowered: list[Step] = []
    for step in steps:
        if isinstance(step, ConvolutionStep) and _winograd_is_faster(step):
            lowered.append(
                WinogradStep(
                    input=step.input,
                    output=step.output,
                    weight=step.weight,
                    bias=step.bias,
                    padding=step.window.padding,
                    addend=step.addend,
                    relu=step.activation == Activation.RELU,
                )
            )
            continue
        if isinstance(step, MaxPoolStep) and step.window == _POOL_2X2:
            before = next((s for s in lowered if s.output is step.input), None)
            only_reader = readers[id(step.input.memory)] == 1 and step.input.memory is not answer.memory
            if isinstance(before, WinogradStep) and not before.max_pool and only_reader:
                before.output, before.max_pool = step.output, True
                continue
        lowered.append(step)
    return lowered


def _apply_factors_in_linear_steps(steps: list[Step], answer: Map) -> list[Step]:
    """Move products by numbers per channel (squeeze-and-excitation) into the linear steps that read them."""
    left = list(steps)
    for step in steps:
        if not isinstance(step, ElementwiseStep) or not step.positions_per_row or step.activation:
            continue
        memory = step.output.memory
        readers = [s for s in steps if any(m.memory is memory for m in s.inputs_read)]
        writers = [s for s in steps if s.output.memory is memory]
        if len(readers) != 1 or len(writers) != 1 or memory is answer.memory:
            continue
        (reader,) = readers
        if not isinstance(reader, LinearStep) or reader.index is not None or reader.factors is not None:
            continue
        same_rows = reader.input.memory is memory and reader.inputs == step.output.shape[1]
        if same_rows and (reader.addend is None or reader.addend.memory is not memory):
            reader.input, reader.factors = step.input, step.other
            reader.rows_per_factor = reader.rows // step.output.shape[0]
            left.remove(step)
    return left


def _run_in_place(steps: list[Step], answer: Map) -> None:
    """Let elementwise steps write into the memory of their input, if no later step reads that."""
    last = {id(m.memory): i for i, s in enumerate(steps) for m in (s.output, *s.inputs_read)}
    for i, step in enumerate(steps):
        if not isinstance(step, ElementwiseStep) or step.input.memory is answer.memory:
            continue
        x, y = step.input.memory, step.output
        reads_other_rows = step.index is not None and step.other is not None and step.other.memory is x
        free = last[id(x)] == i and y.base is None and y.floats == x.floats and y is not answer
        if free and not reads_other_rows:
            y.base, last[id(x)] = x, last[id(y)]


def _as_linear(step: ConvolutionStep, fast_products: bool) -> ConvolutionStep | LinearStep:
    """A convolution as a linear step on rows, where it is one or where Strassen's algorithm then makes it faster.

    A 1×1 convolution at stride 1 is a linear layer as it is. For any other, rows are put together from the pieces of
    the map that the taps of its kernel read (im2col).
    """
    samples, _, high, wide = step.output.shape
    rows, weight = samples * high * wide, step.weight.permute(0, 2, 3, 1).flatten(1)
    index, pieces, window = None, 1, step.window
    pointwise = window == SlidingWindow((1, 1), dilation=window.dilation)
    if step.few_outputs:
        return step
    if step.whole_rows or not pointwise:
        if not _strassen_levels(rows, weight, fast_products):
            return step
        table = _pieces(step)
        index, pieces = table.flatten(), table.shape[1]
    return LinearStep(
        input=step.input,
        output=step.output,
        rows=rows,
        weight=weight,
        bias=step.bias,
        addend=step.addend,
        activation=step.activation,
        index=index,
        pieces=pieces,
    )


def _strassen_levels(rows: int, weight: Tensor, fast_products: bool) -> int:
    """How often Strassen's algorithm halves a linear layer with that weight (N, K)."""
    if not (fast_products or strassen.has_row_bounds(weight)):
        return 0
    return strassen.best_levels(rows, weight.shape[1], len(weight), int(kernel().onebyone_lanes()))


def _pieces(step: ConvolutionStep) -> Tensor:
    """Where the numbers that each tap of the kernel reads begin: (N·H·W, taps) offsets, -1 in the padding.

    A tap is one position of the kernel, or a whole row of it with `whole_rows`.
    """
    samples, channels, *size = step.input.shape
    window, axes = step.window, []
    taps = (window.kernel[0], 1 if step.whole_rows else window.kernel[1])
    for axis in (0, 1):
        outputs, stride, pad = step.output.shape[2 + axis], window.stride[axis], window.padding[axis]
        tap = torch.arange(taps[axis]) * window.dilation[axis]
        position = torch.arange(outputs)[:, None] * stride - pad + tap
        axes.append((position, (position >= 0) & (position < size[axis])))
    (y, y_inside), (x, x_inside) = axes
    position = y[:, None, :, None] * size[1] + x[None, :, None, :]
    inside = y_inside[:, None, :, None] & x_inside[None, :, None, :]
    offsets = torch.where(inside, position * channels, -1).flatten(2).flatten(0, 1)
    sample_begins = torch.arange(samples)[:, None, None] * (size[0] * size[1] * channels)
    return torch.where(offsets < 0, -1, offsets + sample_begins).flatten(0, 1)


def _winograd_is_faster(step: ConvolutionStep) -> bool:
    """Whether Winograd's algorithm applies, and costs less: its weights are larger, and are read once either way."""
    samples, _, high, wide = step.output.shape
    if step.whole_rows:
        return False
    if step.activation not in (Activation.NONE, Activation.RELU):
        return False
    window = step.window
    if why_not(step.weight.float(), window.stride, window.padding, window.dilation, 1) is not None:
        return False
    # the cost for each pair of channels: 9 weights at every position, or 36 at every tile
    direct = 9 * (samples * high * wide + 4 * _MACS_PER_BYTE)
    winograd = F4X3.edge**2 * (samples * F4X3.tiles((high, wide)) + 4 * _MACS_PER_BYTE)
    return bool(winograd < direct)


def _few_outputs_are_faster(step: ConvolutionStep) -> bool:
    """Whether vectors should run along the numbers that an output reads, because few outputs would not fill them.

    The costs are vector operations for one row of the output. One vector of outputs takes an operation for each number
    of the row. Along the row, each output takes a vector for every `lanes` numbers of a tap, and the sum of its lanes.
    """
    lanes, (outputs, channels, high, wide) = int(kernel().onebyone_lanes()), step.weight.shape
    taps, length = (high, wide * channels) if step.whole_rows else (high * wide, channels)
    across = taps * length * -(-outputs // lanes)
    along = outputs * (taps * -(-length // lanes) + _SUM_OF_LANES)
    return along < across * _WORTHWHILE


def _as_floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _pack(step: Step, fast_products: bool) -> None:
    """Bring the constants of a step into the type and order that its kernel reads."""
    panel = int(kernel().onebyone_panel())
    if isinstance(step, LayerNormStep):
        step.weight, step.bias = _as_floats(step.weight), _as_floats(step.bias)
    elif isinstance(step, AttentionStep):
        step.bias = _as_floats(step.bias)
    elif isinstance(step, ElementwiseStep | GatherStep):
        step.numbers = _as_floats(step.numbers)
    elif isinstance(step, DepthwiseStep):
        step.weight, step.bias = step.weight.flatten(1).t().float().contiguous(), _as_floats(step.bias)
    elif isinstance(step, LinearStep):
        _pack_linear(step, fast_products)
    elif isinstance(step, WinogradStep):
        step.weight, step.bias = packed(step.weight), _padded(step.bias, panel)
    elif isinstance(step, ConvolutionStep):
        rows = step.weight.permute(0, 2, 3, 1).flatten(1)
        step.weight = rows.float().contiguous() if step.few_outputs else in_panels(rows, panel)
        step.bias = _padded(step.bias, panel)


def _pack_linear(step: LinearStep, fast_products: bool) -> None:
    lanes, weight = int(kernel().onebyone_lanes()), step.weight
    if step.levels is None:
        step.levels = _strassen_levels(step.rows, weight, fast_products)
    if step.levels and not fast_products:
        weight, step.channel_scales, step.signs = strassen.guards(weight)
    step.weight = strassen.packed(weight, step.levels, lanes)
    step.vectors = strassen.panel_vectors(step.outputs >> step.levels, lanes)
    step.bias = _padded(step.bias, lanes)


def _padded(bias: Tensor | None, floats: int) -> Tensor | None:
    """A bias with room behind it: kernels read it in whole vectors, whatever its length."""
    return None if bias is None else F.pad(bias, (0, floats)).float().contiguous()
