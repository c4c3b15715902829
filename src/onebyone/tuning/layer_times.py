"""Timing of each layer group in each form, and of the peak rate of matrix products on this machine."""

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
from onebyone.tuning.clock import Clock, TimedCall, Timing
from onebyone.tuning.layer_forms import (
    ATTENTION,
    CONV,
    LINEAR,
    PATCHES,
    WINOGRAD,
    LayerForm,
    assigned,
    layer_forms,
)
from onebyone.tuning.layer_groups import LayerGroup
from onebyone.verification import output_comparison

_ROUNDS = 15
LayerCall = partial[Tensor]
"""A layer applied to its input: `func` is the module, `args` the input."""
# (rows, inputs, outputs) of products large in every extent, where libraries reach their highest rates: 0.5 to 2 GMAC,
# and 64 times that on a GPU
_LARGE_PRODUCTS = ((512, 1024, 1024), (1024, 1024, 1024), (3136, 512, 512), (2048, 1024, 1024))


@dataclass(frozen=True)
class LayerTimes:
    """The timings of one group.

    `timings` are those of one call in each form (empty if the group was not measured); forms in a shorter dtype are
    named `form:dtype`. `ranking` is the order of the forms that the cost model predicts, the fastest first. `errors`
    are the errors of the shorter dtypes, relative to the largest output.
    """

    group: LayerGroup
    timings: Mapping[str, Timing]
    ranking: tuple[str, ...]
    errors: Mapping[str, float] = field(default_factory=dict)

    def saved_ms(self, form: str) -> float:
        """Return the milliseconds that all calls save in a form over the unchanged layer.

        They are measured if both forms were, else predicted by the cost model; 0 if it cannot predict them.
        """
        unchanged = layer_forms(self.group.kind)[0].name
        if form in self.timings and unchanged in self.timings:
            return (self.timings[unchanged].median_ms - self.timings[form].median_ms) * self.group.calls
        before, after = work_of(self.group, unchanged), work_of(self.group, form)
        if before is None or after is None:
            return 0.0
        return 1e3 * (cost.DEFAULT.seconds(before) - cost.DEFAULT.seconds(after)) * self.group.calls

    def gflops(self, form: str) -> float | None:
        """Return the GFLOP/s of one call in a form; None if it was not measured."""
        timing = self.timings.get(form)
        return 2e-6 * self.group.cost.macs / timing.median_ms if timing and timing.median_ms > 0 else None

    def fastest(self, names: Sequence[str] | None = None) -> str | None:
        """Return the form with the smallest median (among `names` if given); None if none was measured."""
        measured = [n for n in self.timings if names is None or n in names]
        return min(measured, key=lambda n: self.timings[n].median_ms, default=None)


def measure_groups(
    groups: Sequence[LayerGroup], clock: Clock, seconds: float, short: str | None = None
) -> list[LayerTimes]:
    """Time the forms of every group for about `seconds` in all, in descending order of their MACs.

    Groups that remain when the time is over are returned without timings.
    """
    end, measured = clock.now() + seconds, {}
    for group in sorted(groups, key=lambda g: -g.macs):
        if clock.now() < end:
            measured[id(group)] = measure_group(group, clock, seconds / len(groups), short)
    return [measured.get(id(g)) or LayerTimes(g, {}, ranking_of(g)) for g in groups]


def measure_group(group: LayerGroup, clock: Clock, seconds: float, short: str | None = None) -> LayerTimes:
    """Time every form of a group's first layer on its recorded input, and in the dtype `short` ("bfloat16") if given.

    Runs in inference mode. Forms that raise (because a library lacks an operator in this dtype) are left out.
    """
    calls: dict[str, TimedCall] = {}
    errors: dict[str, float] = {}
    forms = layer_forms(group.kind) if group.kind != ATTENTION else ()
    for form in forms:
        if form.module is not None and not group.convertible:
            continue
        call = layer_call(group, form)
        if call is not None:
            calls[form.name] = call
            short_call = _in_dtype(call, short) if short else None
            if short_call is not None:
                name = f"{form.name}:{short}"
                calls[name], errors[name] = short_call, _relative_error(short_call, call)
    with torch.inference_mode():
        timings = clock.interleave(calls, seconds, rounds=_ROUNDS).timings if calls else {}
    return LayerTimes(group, timings, ranking_of(group), errors)


def ranking_of(group: LayerGroup, processor: cost.Processor = cost.DEFAULT) -> tuple[str, ...]:
    """Return the order of the group's forms that the cost model predicts from shapes alone, the fastest first."""
    names = [form.name for form in layer_forms(group.kind)]
    works = [work_of(group, name) for name in names]
    return cost.rank([w for w in works if w is not None], processor)


def work_of(group: LayerGroup, form: str) -> cost.Work | None:
    """Return the work of a group's layer in a form, as the cost model counts it; None for attention."""
    if group.kind == ATTENTION:
        return None
    c = group.cost
    if form == WINOGRAD:
        return _winograd_work(group)
    input_bytes = group.sample.element_size() * group.sample.numel()
    weights = group.sample.element_size() * c.parameters
    positions = c.bytes_written // max(1, group.sample.element_size() * group.weight[0])
    tokens = group.kind == LINEAR
    path = {"linear": "linear", "permute": "linear", "bmm": "batched"}.get(form, "conv")
    if form == "linear" and group.kind in (CONV, PATCHES) and not group.channels_last:
        path = "batched"
    copied = 2 * input_bytes if form == "linear" and group.kind == PATCHES else 0
    if form in ("conv-nchw", "permute") or (form == "bmm" and group.channels_last):
        copied = 2 * (input_bytes + c.bytes_written)
    if path == "conv":
        channels_last = (tokens and form == "conv") or form == "conv-channels-last" or group.channels_last
        path = "conv-channels-last" if channels_last and form != "conv-nchw" else "conv"
    return cost.Work(form, path, c.macs, c.bytes_moved, weights, copied, positions)


def _winograd_work(group: LayerGroup) -> cost.Work | None:
    """Count the work of Winograd's form: 1/4 of the products, 4 times the weights, tiles written and read back."""
    m: Any = group.module
    c, x = group.cost, group.sample
    if why_not(m.weight, m.stride, m.padding, m.dilation, m.groups) or x.dim() != 4:
        return None
    size, (outputs, channels) = x.element_size(), group.weight[:2]
    output_size = [n + 2 * p - 2 for n, p in zip(x.shape[2:], m.padding, strict=True)]
    weights = F4X3.edge**2 * channels * outputs * size
    tiles = F4X3.edge**2 * F4X3.tiles(output_size) * len(x) * size
    bytes_moved = c.bytes_moved - size * c.parameters + weights + 2 * tiles * (channels + outputs)
    macs = F4X3.macs(output_size, channels, outputs) * len(x)
    return cost.Work(
        WINOGRAD, "conv-channels-last", macs, bytes_moved, 0, 0, F4X3.tiles(output_size) * len(x)
    )


def _in_dtype(call: LayerCall, short: str) -> LayerCall | None:
    """Return the same layer and input in a shorter dtype; None if it does not run in that dtype."""
    dtype = getattr(torch, short)
    (x,), module = call.args, cast(nn.Module, call.func)
    if not x.is_floating_point():
        return None
    short_call = partial(copy.deepcopy(module).to(dtype), x.to(dtype))
    try:
        with torch.inference_mode():
            short_call()
    except (RuntimeError, NotImplementedError):
        return None
    return short_call


def _relative_error(short_call: LayerCall, call: LayerCall) -> float:
    """Return the largest error of a layer in a shorter dtype against float64, relative to the largest output."""
    with torch.inference_mode():
        exact = copy.deepcopy(cast(nn.Module, call.func)).double()(call.args[0].double())
        size = output_comparison.size_of(exact)
        return output_comparison.difference(exact, short_call()) / size if size else 0.0


def layer_call(group: LayerGroup, form: LayerForm) -> LayerCall | None:
    """Return the first layer of a group in a form, applied to its recorded input; None if it has no such form."""
    module, x = group.module, group.sample
    if form.name in ("bmm", "conv-nchw") and not (group.channels_last if group.kind == CONV else x.dim() > 2):
        return None  # the same as "linear" here
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
    """Return the GFLOP/s of the fastest large float32 product, computed as a linear layer or as a convolution."""
    best, end = 0.0, clock.now() + seconds
    scale = 4 if device.type == "cuda" else 1
    with torch.inference_mode():
        for rows, inner, columns in _LARGE_PRODUCTS:
            if best and clock.now() > end:
                break
            flops = 2e-9 * scale**3 * rows * inner * columns
            for call in _products(scale * rows, scale * inner, scale * columns, device):
                try:
                    repeats, first = clock.warm_up(call, seconds / 16)
                    shortest = min([first, *(clock.sample(call, repeats) for _ in range(2))])
                except RuntimeError:
                    continue  # the device has too little memory for it
                best = max(best, flops / max(shortest, 1e-9))
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
