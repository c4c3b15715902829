"""How long each group's layers take in each of their forms, and the largest product rate this machine reaches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.laws import cost
from onebyone.laws.winograd import F4X3
from onebyone.native.kernels.winograd import why_not
from onebyone.tuning.clock import Call, Clock, Timing
from onebyone.tuning.layer_forms import ATTENTION, CONV, PATCHES, WINOGRAD, LayerForm, assigned, layer_forms
from onebyone.tuning.layer_groups import LayerGroup
from onebyone.verification import output_comparison

_ROUNDS = 15
Layer = partial[Tensor]
"""A layer on its input."""
# products large in every extent, where libraries are near their best: 0.5 to 2 GMAC, and 64 times that on a GPU
_BIG = ((512, 1024, 1024), (1024, 1024, 1024), (3136, 512, 512), (2048, 1024, 1024))


@dataclass(frozen=True)
class LayerTimes:
    """One group, its forms' timings by name (empty where it was not measured), and the cost model's order of them.

    Forms in a shorter type are named `form:type`; `errors` holds their largest error relative to the largest output.
    """

    group: LayerGroup
    timings: Mapping[str, Timing]
    ranking: tuple[str, ...]
    errors: Mapping[str, float] = field(default_factory=dict)

    def saved_ms(self, form: str) -> float:
        """What all calls together save in a form over the layer's own: measured, else by the cost model."""
        own = layer_forms(self.group.kind)[0].name
        if form in self.timings and own in self.timings:
            return (self.timings[own].median_ms - self.timings[form].median_ms) * self.group.calls
        works = work_of(self.group, own), work_of(self.group, form)
        if works[0] is None or works[1] is None:
            return 0.0
        return 1e3 * (cost.DEFAULT.seconds(works[0]) - cost.DEFAULT.seconds(works[1])) * self.group.calls

    def gflops(self, form: str) -> float | None:
        """GFLOP/s of one call in a form; None where it was not measured."""
        timed = self.timings.get(form)
        return 2e-6 * self.group.cost.macs / timed.median_ms if timed and timed.median_ms > 0 else None

    def fastest(self, names: Sequence[str] | None = None) -> str | None:
        """The form of the smallest median (among `names`, where given)."""
        measured = [n for n in self.timings if names is None or n in names]
        return min(measured, key=lambda n: self.timings[n].median_ms, default=None)


def measure_groups(
    groups: Sequence[LayerGroup], clock: Clock, seconds: float, short: str | None = None
) -> list[LayerTimes]:
    """Time every group's forms, those of most MACs first, for about `seconds` in all; the rest is left unmeasured."""
    end, found = clock.now() + seconds, {}
    for group in sorted(groups, key=lambda g: -g.macs):
        if clock.now() < end:
            found[id(group)] = measure_group(group, clock, seconds / len(groups), short)
    return [found.get(id(g)) or LayerTimes(g, {}, ranking_of(g)) for g in groups]


def measure_group(group: LayerGroup, clock: Clock, seconds: float, short: str | None = None) -> LayerTimes:
    """Time every form of a group's first layer on the input that it saw; in the type `short` ("bfloat16") too.

    Runs in inference mode. Forms that raise (a convolution the library does not have in this type) are left out.
    """
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    forms = layer_forms(group.kind) if group.kind != ATTENTION else ()
    for form in forms:
        if form.module is not None and not group.convertible:
            continue
        call = _call(group, form)
        if call is not None:
            calls[form.name] = call
            narrow = _shortened(call, short) if short else None
            if narrow is not None:
                name = f"{form.name}:{short}"
                calls[name], errors[name] = narrow, _relative_error(narrow, call)
    with torch.inference_mode():
        times = clock.interleave(calls, seconds, rounds=_ROUNDS).timings if calls else {}
    return LayerTimes(group, times, ranking_of(group), errors)


def ranking_of(group: LayerGroup, processor: cost.Processor = cost.DEFAULT) -> tuple[str, ...]:
    """The cost model's order of the group's forms, its first choice first; from shapes alone."""
    names = [form.name for form in layer_forms(group.kind)]
    works = [work_of(group, name) for name in names]
    return cost.rank([w for w in works if w is not None], processor)


def work_of(group: LayerGroup, form: str) -> cost.Work | None:
    """What a form of a group's layer does, as the cost model sees it; None for attention."""
    if group.kind == ATTENTION:
        return None
    c = group.cost
    if form == WINOGRAD:
        return _winograd_work(group)
    x = group.sample.element_size() * group.sample.numel()
    weights = group.sample.element_size() * c.parameters
    places = c.bytes_written // max(1, group.sample.element_size() * group.weight[0])
    tokens = group.kind == "linear"
    path = {"linear": "linear", "permute": "linear", "bmm": "batched"}.get(form, "conv")
    if form == "linear" and group.kind in (CONV, PATCHES) and not group.channels_last:
        path = "batched"
    moved = 2 * x if form == "linear" and group.kind == PATCHES else 0
    if form in ("conv-nchw", "permute") or (form == "bmm" and group.channels_last):
        moved = 2 * (x + c.bytes_written)
    if path == "conv":
        lying = (tokens and form == "conv") or form == "conv-channels-last" or group.channels_last
        path = "conv-channels-last" if lying and form != "conv-nchw" else "conv"
    return cost.Work(form, path, c.macs, c.bytes_moved, weights, moved, places)


def _winograd_work(group: LayerGroup) -> cost.Work | None:
    """A quarter of the multiplications, four times the weights, and the tiles written and read once more each way."""
    m: Any = group.module
    c, x = group.cost, group.sample
    if why_not(m.weight, m.stride, m.padding, m.dilation, m.groups) or x.dim() != 4:
        return None
    size, (outputs, channels) = x.element_size(), group.weight[:2]
    places = [n + 2 * p - 2 for n, p in zip(x.shape[2:], m.padding, strict=True)]
    weights = F4X3.edge**2 * channels * outputs * size
    tiles = F4X3.edge**2 * F4X3.tiles(places) * len(x) * size
    bytes_moved = c.bytes_moved - size * c.parameters + weights + 2 * tiles * (channels + outputs)
    macs = F4X3.macs(places, channels, outputs) * len(x)
    return cost.Work(WINOGRAD, "conv-channels-last", macs, bytes_moved, 0, 0, F4X3.tiles(places) * len(x))


def _shortened(call: Layer, short: str) -> Layer | None:
    """The same layer and input in a shorter type; None where it has no such form."""
    dtype = getattr(torch, short)
    (x,), module = call.args, cast(nn.Module, call.func)
    if not x.is_floating_point():
        return None
    narrow = partial(copy.deepcopy(module).to(dtype), x.to(dtype))
    try:
        with torch.inference_mode():
            narrow()
    except (RuntimeError, NotImplementedError):
        return None
    return narrow


def _relative_error(narrow: Layer, call: Layer) -> float:
    """Of a layer in a shorter type, against float64: the largest error over the largest output."""
    with torch.inference_mode():
        exact = copy.deepcopy(cast(nn.Module, call.func)).double()(call.args[0].double())
        size = output_comparison.size_of(exact)
        return output_comparison.difference(exact, narrow()) / size if size else 0.0


def _call(group: LayerGroup, form: LayerForm) -> Layer | None:
    module, x = group.module, group.sample
    if form.name in ("bmm", "conv-nchw") and not (group.channels_last if group.kind == CONV else x.dim() > 2):
        return None  # one and the same as "linear" here
    if form.make is not None:
        if x.dim() != 4 or x.dtype != torch.float32:
            return None
        try:
            x, module = x.contiguous(memory_format=torch.channels_last), form.make(module)
        except BadInput:
            return None
    elif form.module is not None:
        module = assigned(module, {"": form.name}).model
    elif form.name == "conv-channels-last":
        if x.dim() != 4 or group.channels_last:
            return None
        x = x.contiguous(memory_format=torch.channels_last)
        module = copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.inference_mode():
            module(x)
    except (RuntimeError, NotImplementedError):
        return None
    return partial(module, x)


def peak_gflops(clock: Clock, device: torch.device, seconds: float) -> float:
    """GFLOP/s of the fastest big float32 product through either library path, each at its best of several runs."""
    best, end = 0.0, clock.now() + seconds
    scale = 4 if device.type == "cuda" else 1
    with torch.inference_mode():
        for rows, inner, columns in _BIG:
            if best and clock.now() > end:
                break
            flops = 2e-9 * scale**3 * rows * inner * columns
            for call in _products(scale * rows, scale * inner, scale * columns, device):
                try:
                    repeats, first = clock.warm(call, seconds / 16)
                    taken = min([first, *(clock.sample(call, repeats) for _ in range(2))])
                except RuntimeError:
                    continue  # a device too small for it
                best = max(best, flops / max(taken, 1e-9))
    return best


def _products(rows: int, inner: int, columns: int, device: torch.device) -> list[Callable[[], Any]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    x, w = random(rows, inner), random(columns, inner)
    image = x.reshape(1, rows, 1, inner).permute(0, 3, 1, 2)
    kernel = w[:, :, None, None]
    nchw = image.reshape(1, inner, rows, 1).contiguous()
    return [
        partial(F.linear, x, w),
        partial(F.conv2d, nchw, kernel),
        partial(F.conv2d, image, kernel.contiguous(memory_format=torch.channels_last)),
    ]
