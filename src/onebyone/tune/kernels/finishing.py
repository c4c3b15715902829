"""The last look at the steps: which convolutions go by tiles, which pools go with them, and the weights packed."""

from __future__ import annotations

import torch.nn.functional as F

from onebyone.laws.winograd import F4X3
from onebyone.tune.kernels.network import Activation, Kind, Map, Step, in_panels, kernel
from onebyone.tune.kernels.winograd import packed, why_not
from onebyone.tune.reading import HALVES

# multiply-accumulates in the time that it takes to read one byte of weights from memory, roughly
_READING = 3


def finished(steps: list[Step], answer: Map) -> list[Step]:
    """3×3 convolutions by tiles, with the pools behind them; every weight packed as its step wants it."""
    readers: dict[int, int] = {}
    for step in steps:
        for read in (step.x, step.add):
            readers[id(read)] = readers.get(id(read), 0) + 1
    made: list[Step] = []
    for step in steps:
        before = next((s for s in made if s.y is step.x), None)
        if step.kind == Kind.CONVOLUTION and _by_tiles(step):
            step.kind = Kind.WINOGRAD
        elif (
            before is not None
            and _takes_pool(before, step)
            and readers[id(step.x)] == 1
            and step.x is not answer
        ):
            before.y, before.pool = step.y, 1
            continue
        made.append(step)
    for step in made:
        _pack(step)
    return made


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


def _pack(step: Step) -> None:
    weight, panel = step.weight, int(kernel().onebyone_panel())
    if weight is None:
        return
    if step.kind == Kind.WINOGRAD:
        step.weight = packed(weight)
    elif step.kind == Kind.DEPTHWISE:
        step.weight = weight.flatten(1).t().float().contiguous()
    else:
        step.weight = in_panels(weight.permute(0, 2, 3, 1).flatten(1), panel)
    if step.bias is not None:
        filled = 0 if step.kind == Kind.DEPTHWISE else -len(step.bias) % panel
        step.bias = F.pad(step.bias, (0, filled)).float().contiguous()
