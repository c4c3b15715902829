"""PyTorch's emitter: the functions of `onebyone.lifting.emitter.MapEmitter` on tensors and on `torch.fx.Proxy`s.

Every function takes either. So what is emitted into the any-size network and what the verifier runs on integers is the
same code. The module itself is the emitter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from onebyone.errors import BadInput
from onebyone.laws.geometry import Sliding
from onebyone.lifting.grid import Integers
from onebyone.lifting.index import Gather, Stencil
from onebyone.pytorch.lift.window_linear import as_convolution, call, linear_on_windows

aten = torch.ops.aten

#: A tensor, or a proxy for one.
Array = Any

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_MEAN_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
_MAX_POOLS: tuple[Callable[..., Any], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


class Recorder(fx.proxy.GraphAppendingTracer):
    """Appends what is done to proxies to a graph; index constants become buffers on `device`, in `buffers` by name."""

    def __init__(self, graph: fx.Graph, device: torch.device) -> None:
        super().__init__(graph)
        self.device = device
        self.buffers: dict[str, torch.Tensor] = {}

    def constant(self, ids: Integers) -> fx.Proxy:
        """A proxy for an index tensor."""
        name = f"_index_{len(self.buffers)}"
        self.buffers[name] = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(self.device)
        return fx.Proxy(self.graph.get_attr(name), self)


def _index_tensor(source: Array, ids: Integers) -> Array:
    """An index tensor on the device of `source`."""
    if isinstance(source, fx.Proxy):
        assert isinstance(source.tracer, Recorder)
        return source.tracer.constant(ids)
    return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(source.device)


# what only the front end itself calls


def require_window(image: torch.Tensor, window: tuple[int, ...], bare: bool = False) -> torch.Tensor:
    """The image itself, if it is at least as large as the window; part of every any-size network.

    A network that is `bare` takes images without a channel axis; then a channel axis of one is added where it is
    missing.

    Raises
    ------
    BadInput
        where the image is smaller than the window, or has another number of axes.
    """
    if isinstance(image, fx.Proxy):
        checked: torch.Tensor = call(require_window, image, window, bare)
        return checked
    axes = ", ".join("HWD"[: len(window)])
    if bare and image.ndim == len(window) + 1:
        image = image.unsqueeze(1)
    if image.ndim != len(window) + 2:
        expected = f"(N, {axes})" if bare else f"(N, C, {axes})"
        raise BadInput(f"image has shape {tuple(image.shape)}; {expected} was expected")
    if any(image.shape[a + 2] < n for a, n in enumerate(window)):
        size = "×".join(str(int(n)) for n in image.shape[2:])
        raise BadInput(f"image is {size}, smaller than the window of {'×'.join(map(str, window))}")
    return image


def limit(source: Array, counts: Sequence[Any]) -> Array:
    """The map's first `counts` positions per axis; the counts may be symbolic."""
    return source[(slice(None), slice(None), *(slice(0, n) for n in counts))]


def window_mean(source: Array, size: Sequence[int]) -> Array:
    """The mean over `size` positions at stride 1."""
    return mean_pool(source, [Sliding(n) for n in size])


# sliding operators


def convolution(
    source: Array, weight: Array, bias: Array | None, ops: Sequence[Sliding], groups: int
) -> Array:
    source, padding = _evenly_padded(source, ops, 0.0)
    stride, dilation = [op.stride for op in ops], [op.dilation for op in ops]
    return call(_CONVOLUTIONS[len(ops) - 1], source, weight, bias, stride, padding, dilation, groups)


def linear(
    source: Array,
    weight: Array,
    bias: Array | None,
    stencil: Stencil,
    channels: int,
    form: Callable[..., Any] = linear_on_windows,
) -> Array:
    """A linear layer on the rows of a stencil: a convolution without padding, or another form in `window_linear`.

    A 1×1 kernel is a convolution at any number of positions: libraries do not reorder its weight.
    """
    axes = len(stencil.step)
    start = source if not any(stencil.start) else _take(source, stencil.start, (1,) * axes)
    order, inverse = (
        None if ids is None else _index_tensor(source, ids) for ids in stencil.feature_order(channels)
    )
    if stencil.is_pointwise and form is linear_on_windows:
        form = as_convolution
    arguments = (weight, bias, order, inverse, (channels, *stencil.kernel), stencil.step)
    # the choice between the forms is made where the network runs
    return call(form, start, *arguments) if form is linear_on_windows else form(start, *arguments)


def max_pool(source: Array, ops: Sequence[Sliding]) -> Array:
    source, padding = _evenly_padded(source, ops, -np.inf)
    settings = [[op.kernel for op in ops], [op.stride for op in ops], padding, [op.dilation for op in ops]]
    if len(ops) > 1:
        return _MAX_POOLS[len(ops) - 1](source, *map(tuple, settings))
    # as images of one pixel in width, since exporting fixes the length of what `max_pool1d` reads
    (kernel,), (stride,), (pad_before,), (dilation,) = settings
    wide = ((kernel, 1), (stride, 1), (pad_before, 0), (dilation, 1))
    return F.max_pool2d(source.unsqueeze(-1), *wide).squeeze(-1)


def mean_pool(
    source: Array, ops: Sequence[Sliding], count_padding: bool = True, divisor: int | None = None
) -> Array:
    if divisor is not None and len(ops) == 1:  # avg_pool1d takes no divisor
        return mean_pool(source.unsqueeze(-1), (*ops, Sliding(1)), count_padding, divisor).squeeze(-1)
    source, padding = _evenly_padded(source, ops, 0.0)
    settings = [[op.kernel for op in ops], [op.stride for op in ops], padding]
    ceil_mode = any(op.ceil_mode for op in ops)
    last = [count_padding] if len(ops) == 1 else [count_padding, divisor]
    return call(_MEAN_POOLS[len(ops) - 1], source, *settings, ceil_mode, *last)


def windows(source: Array, kernel: Sequence[int]) -> Array:
    for axis, length in enumerate(kernel):
        source = source.unfold(2 + axis, length, 1)
    return source


def _evenly_padded(source: Array, ops: Sequence[Sliding], number: float) -> tuple[Array, list[int]]:
    """The map with the padding that PyTorch's operators cannot do, which is equal on both sides; and the rest."""
    even = [min(op.pad_before, op.pad_after) for op in ops]
    more = [(op.pad_before - n, op.pad_after - n) for op, n in zip(ops, even, strict=True)]
    return (pad(source, more, "constant", number) if any(map(any, more)) else source), even


# positions and channels


def gather(source: Array, plan: Gather, channels: int) -> Array:
    """Crops, strides and selected channels; runs of channels are views."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, start in enumerate(plan.starts.T):
        groups.setdefault(tuple(int(s) for s in start), []).append(k)
    if len(groups) == 1:
        ((start, _),) = groups.items()
        return _take(_channels(source, plan.channels, channels), start, plan.steps)
    parts, order = [], []
    for start, members in groups.items():
        parts.append(_take(_channels(source, plan.channels[members], channels), start, plan.steps))
        order += members
    joined = torch.cat(crop_to_common(parts, len(plan.steps)), 1)
    back = np.argsort(np.asarray(order))
    return joined if (back == np.arange(len(back))).all() else _select(joined, 1, back)


def crop_to_common(maps: Sequence[Array], axes: int) -> list[Array]:
    sizes = [_minimum([m.shape[2 + a] for m in maps]) for a in range(axes)]
    return [limit(m, sizes) for m in maps]


def _minimum(sizes: Sequence[Any]) -> Any:
    """The least of some sizes, which may be symbolic."""
    least = sizes[0]
    for size in sizes[1:]:
        least = torch.sym_min(least, size)  # type: ignore[no-untyped-call]
    return least


def strided(source: Array, steps: Sequence[int]) -> Array:
    return _take(source, (0,) * len(steps), steps)


def pad(
    source: Array, amounts: Sequence[tuple[int, int]], mode: str = "constant", number: float = 0.0
) -> Array:
    sides = [n for pair in reversed(amounts) for n in pair]
    return call(aten.pad.default, source, sides, mode, number if mode == "constant" else None)


def concatenate(maps: Sequence[Array]) -> Array:
    return torch.cat(list(maps), 1)


def filled(source: Array, number: float, dtype: torch.dtype) -> Array:
    return torch.full_like(source.narrow(1, 0, 1), number, dtype=dtype)


def repeat_channels(source: Array, count: int) -> Array:
    return source.repeat_interleave(count, 1)


def repeat_positions(source: Array, factors: Sequence[int]) -> Array:
    for axis, factor in enumerate(factors):
        source = source if factor == 1 else source.repeat_interleave(factor, 2 + axis)
    return source


def interpolate(source: Array, factors: Sequence[int]) -> Array:
    mode = ("linear", "bilinear", "trilinear")[len(factors) - 1]
    scale = tuple(float(f) for f in factors)
    return call(F.interpolate, source, scale_factor=scale, mode=mode, align_corners=False)


def split_channels(source: Array, sizes: Sequence[int]) -> Array:
    return source.unflatten(1, tuple(sizes))


def merge_channels(source: Array, count: int) -> Array:
    return source.flatten(1, count)


def single_positions(source: Array, axes: int) -> Array:
    for _ in range(axes):
        source = source.unsqueeze(2)
    return source


def as_batch(source: Array, axes: int, shape: Sequence[int]) -> Array:
    # a copy in any case: whether a view would do depends on sizes, and asking fixes them while exporting
    return source.movedim(1, -1).clone(memory_format=torch.contiguous_format).view(-1, *shape)


def from_batch(source: Array, like: Array, axes: int) -> Array:
    sizes = [like.shape[0], *(like.shape[2 + a] for a in range(axes))]
    return source.reshape(*sizes, -1).movedim(-1, 1)


def _channels(source: Array, channels: Integers, count: int) -> Array:
    first, length = int(channels[0]), len(channels)
    if (channels == np.arange(first, first + length)).all():
        return source if length == count else source.narrow(1, first, length)
    return _select(source, 1, channels)


def _select(source: Array, axis: int, ids: Integers) -> Array:
    return source.index_select(axis, _index_tensor(source, ids))


def _take(source: Array, start: Sequence[int], steps: Sequence[int]) -> Array:
    if not any(start) and all(s == 1 for s in steps):
        return source
    return source[(slice(None), slice(None), *(slice(a, None, s) for a, s in zip(start, steps, strict=True)))]


# reductions, normalisation and products


def reduce(source: Array, reduction: str, axes: Sequence[int], keep_axes: bool = False) -> Array:
    if reduction == "norm":
        return (source * source).sum(tuple(axes), keepdim=keep_axes).sqrt()
    method = {"mean": "mean", "sum": "sum", "max": "amax", "min": "amin"}[reduction]
    return getattr(source, method)(tuple(axes), keepdim=keep_axes)


def standardise_channels(
    source: Array, weight: Array | None, bias: Array | None, epsilon: float | None, root_mean_square: bool
) -> Array:
    return call(_standardise, source, weight, bias, epsilon, root_mean_square)


def _standardise(
    source: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    epsilon: float | None,
    root_mean_square: bool,
) -> torch.Tensor:
    """Written out while exporting: torch's own asks whether the moved map is contiguous, which fixes sizes of one."""
    channels = (source.shape[1],)
    if not torch.compiler.is_exporting():
        moved = source.movedim(1, -1)
        if root_mean_square:
            return F.rms_norm(moved, channels, weight, epsilon).movedim(-1, 1)
        return F.layer_norm(moved, channels, weight, bias, epsilon or 0.0).movedim(-1, 1)
    epsilon = torch.finfo(source.dtype).eps if epsilon is None else epsilon
    centred = source if root_mean_square else source - source.mean(1, keepdim=True)
    out = centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + epsilon)
    ones = (1,) * (source.ndim - 2)
    out = out if weight is None else out * weight.reshape(-1, *ones)
    return out if bias is None else out + bias.reshape(-1, *ones)


def grouped_product(source: Array, weight: Array) -> Array:
    return torch.einsum("ngsk...,sko->ngso...", source, weight)


def select(source: Array, axis: int, index: Array) -> Array:
    return source.index_select(axis, index)


# constants


def per_channel(constant: Array, ids: Integers, axes: int) -> Array:
    flat = constant.reshape(-1)
    if not (len(ids) == 1 or (ids == np.arange(len(ids))).all()):
        flat = _select(flat, 0, ids)
    elif len(ids) == 1:
        flat = flat[int(ids[0]) : int(ids[0]) + 1]
    return flat.reshape(-1, *(1,) * axes)


def reshape(constant: Array, shape: Sequence[int]) -> Array:
    return constant.reshape(tuple(shape))


def permute(constant: Array, order: Sequence[int]) -> Array:
    return constant.permute(tuple(order))


def tap(weight: Array, axis: int, position: int) -> Array:
    return weight.select(axis, position)


def matrix_vector(matrix: Array, vector: Array) -> Array:
    return matrix @ vector


# arithmetic


def add(first: Array, second: Array | float) -> Array:
    return first + second


def subtract(first: Array, second: Array | float) -> Array:
    return first - second


def multiply(first: Array, second: Array | float) -> Array:
    return first * second


def maximum(first: Array, least: float) -> Array:
    return first.clamp_min(least)


def negative(source: Array) -> Array:
    return -source


def absolute(source: Array) -> Array:
    return source.abs()


def square_root(source: Array) -> Array:
    return source.sqrt()


def reciprocal_root(source: Array) -> Array:
    return torch.rsqrt(source)
