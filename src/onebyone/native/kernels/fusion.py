"""The last look at the steps: which convolutions go by tiles, which pools go with them, and the weights packed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.laws.winograd import F4X3
from onebyone.native.graph_queries import HALVES
from onebyone.native.kernels import strassen
from onebyone.native.kernels.program import Activation, Kind, Map, Meeting, Step, in_panels, kernel
from onebyone.native.kernels.winograd import packed, why_not

# multiply-accumulates in the time that it takes to read one byte of weights from memory, roughly
_READING = 3


def finished(steps: list[Step], answer: Map, fast_products: bool = False) -> list[Step]:
    """3×3 convolutions by tiles, with the pools behind them; pointwise ones as linear layers; every weight packed.

    `fast_products`: linear layers multiply in halves without what keeps their rows apart (`laws.scaling`).
    """
    readers: dict[int, int] = {}
    for step in steps:
        for read in step.reads:
            readers[id(read.memory)] = readers.get(id(read.memory), 0) + 1
    made: list[Step] = []
    for step in steps:
        before = next((s for s in made if s.y is step.x), None)
        if step.kind == Kind.CONVOLUTION and _by_tiles(step):
            step.kind = Kind.WINOGRAD
        elif (
            before is not None
            and step.x is not None
            and _takes_pool(before, step)
            and readers[id(step.x.memory)] == 1
            and step.x.memory is not answer.memory
        ):
            before.y, before.pool = step.y, 1
            continue
        made.append(step)
    for step in made:
        if step.kind == Kind.CONVOLUTION:
            _as_linear(step, fast_products)
    made = _scaled_where_read(made, answer)
    _in_place(made, answer)
    for step in made:
        _pack(step, fast_products)
    return made


def _scaled_where_read(steps: list[Step], answer: Map) -> list[Step]:
    """Numbers for each channel (squeeze-and-excitation) meet the rows when a linear layer is about to read them."""
    left = list(steps)
    for step in steps:
        if step.kind != Kind.ELEMENTWISE or step.pool != Meeting.MULTIPLIED_BY_CHANNEL or step.activation:
            continue
        memory = step.y.memory
        readers = [s for s in steps if any(m.memory is memory for m in s.reads)]
        writers = [s for s in steps if s.y.memory is memory]
        if len(readers) != 1 or len(writers) != 1 or memory is answer.memory:
            continue
        (reader,) = readers
        if (
            reader.kind != Kind.LINEAR
            or reader.x is None
            or reader.index is not None
            or reader.third is not None
        ):
            continue
        rows = reader.x.memory is memory and reader.sizes["channels"] == step.y.shape[1]
        if rows and (reader.add is None or reader.add.memory is not memory):
            reader.x, reader.third = step.x, step.add
            reader.sizes["high"] = reader.sizes["samples"] // step.y.shape[0]
            left.remove(step)
    return left


def _in_place(steps: list[Step], answer: Map) -> None:
    """What is done element by element is done where the elements lie, where nothing reads them afterwards."""
    last = {id(m.memory): i for i, s in enumerate(steps) for m in (s.y, *s.reads)}
    for i, step in enumerate(steps):
        if step.kind != Kind.ELEMENTWISE or step.x is None or step.x.memory is answer.memory:
            continue
        x, y = step.x.memory, step.y
        elsewhere = step.index is not None and step.add is not None and step.add.memory is x
        if last[id(x)] == i and y.base is None and y.floats == x.floats and y is not answer and not elsewhere:
            y.base, last[id(x)] = x, last[id(y)]


def _as_linear(step: Step, fast_products: bool) -> None:
    """A pointwise convolution at stride 1, or a layer on whole maps, is a fully connected layer on rows.

    So is any other, on rows put together for it, where that halves well (Strassen).
    """
    assert step.weight is not None
    ones = ([1, 1], [1, 1])
    kernel_size, stride, pad, dilation = step.settings("kernel", "stride", "pad", "dilation")
    samples, outputs, high, wide = step.y.shape
    rows, weight = samples * high * wide, step.weight.permute(0, 2, 3, 1).flatten(1)
    sizes = {"samples": rows, "channels": weight.shape[1], "outputs": outputs}
    if (kernel_size, stride) != ones or pad != [0, 0] or 0 in dilation:
        if not _depth(rows, weight, fast_products):
            return
        pieces = _pieces(step)
        step.index, sizes["kernel_w"] = pieces.flatten(), pieces.shape[1]
    step.kind, step.weight, step.sizes = Kind.LINEAR, weight, sizes


def _depth(rows: int, weight: Tensor, fast_products: bool) -> int:
    """How often a linear layer of that weight (N, K) is halved."""
    if not (fast_products or strassen.in_halves(weight)):
        return 0
    return strassen.depth(rows, weight.shape[1], len(weight), int(kernel().onebyone_lanes()))


def _pieces(step: Step) -> Tensor:
    """Where the numbers begin that meet each tap of the kernel, at each place: (N·H·W, taps); -1 in the padding.

    A tap is one place of the kernel, or a whole row of it where the map is padded beforehand (`dilation_w` 0).
    """
    assert step.x is not None
    samples, channels, *size = step.x.shape
    axes = []
    settings = zip(*step.settings("kernel", "stride", "pad", "dilation"), strict=True)
    for (taps, stride, pad, dilation), whole, places in zip(settings, size, step.y.shape[2:], strict=True):
        tap = torch.arange(taps if dilation else 1)
        at = torch.arange(places)[:, None] * stride - pad + tap * dilation
        axes.append((at, (at >= 0) & (at < whole)))
    (down, in_down), (across, in_across) = axes
    found = down[:, None, :, None] * size[1] + across[None, :, None, :]
    inside = in_down[:, None, :, None] & in_across[None, :, None, :]
    found = torch.where(inside, found * channels, -1).flatten(2).flatten(0, 1)
    begins = torch.arange(samples)[:, None, None] * (size[0] * size[1] * channels)
    return torch.where(found < 0, -1, found + begins).flatten(0, 1)


def _by_tiles(step: Step) -> bool:
    """Whether it can be computed by tiles, and that is faster: weights are read once, whatever is done with them."""
    assert step.weight is not None
    samples, _, high, wide = step.y.shape
    if step.add is not None or step.activation not in (Activation.NONE, Activation.RELU):
        return False
    stride, padding, dilation = step.settings("stride", "pad", "dilation")
    if why_not(step.weight.float(), stride, padding, dilation, 1) is not None:
        return False
    direct = 9 * (samples * high * wide + 4 * _READING)  # for each pair of channels: 9 weights at every place
    tiled = F4X3.edge**2 * (samples * F4X3.tiles((high, wide)) + 4 * _READING)  # or 36 at every tile
    return bool(tiled < direct)


def _takes_pool(step: Step, pool: Step) -> bool:
    """Whether a pool of 2×2 places at stride 2 can be part of the step before it."""
    if pool.kind != Kind.MAX_POOL or step.kind != Kind.WINOGRAD or step.pool:
        return False
    return (*pool.settings("kernel", "stride", "pad", "dilation"), False) == HALVES


def _as_is(given: Tensor | None) -> Tensor | None:
    return None if given is None else given.float().contiguous()


def _pack(step: Step, fast_products: bool) -> None:
    weight, panel = step.weight, int(kernel().onebyone_panel())
    if weight is None or step.kind in (Kind.LAYER_NORM, Kind.ATTENTION, Kind.ROWS, Kind.ELEMENTWISE):
        step.weight, step.bias = _as_is(weight), _as_is(step.bias)
        return
    if step.kind == Kind.LINEAR:
        lanes = int(kernel().onebyone_lanes())
        levels = step.sizes.setdefault("levels", _depth(step.sizes["samples"], weight, fast_products))
        if levels and not fast_products:
            weight, step.scales, step.signs = strassen.guards(weight)
        step.weight, panel = strassen.packed(weight, levels, lanes), lanes
        step.pool = strassen.vectors(len(weight) >> levels, lanes)
    elif step.kind == Kind.WINOGRAD:
        step.weight = packed(weight)
    elif step.kind == Kind.DEPTHWISE:
        step.weight = weight.flatten(1).t().float().contiguous()
    else:
        step.weight = in_panels(weight.permute(0, 2, 3, 1).flatten(1), panel)
    if step.bias is not None:
        filled = 0 if step.kind == Kind.DEPTHWISE else panel  # read in whole vectors, whatever its length
        step.bias = F.pad(step.bias, (0, filled)).float().contiguous()
