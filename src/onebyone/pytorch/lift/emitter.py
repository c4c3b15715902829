"""Carry out the plans of `lifting` with torch operators.

Every function takes tensors or `torch.fx.Proxy`s alike: what is emitted into the any-size network and what the
verifier runs on integers is one code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from onebyone.errors import BadInput
from onebyone.lifting.grid import Integers
from onebyone.lifting.index import Gather, Stencil
from onebyone.pytorch.lift.window_linear import as_convolution, linear_on_windows

#: A tensor, or a proxy for one.
Array = Any

AVG_POOL: tuple[Callable[..., Any], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class Recorder(fx.proxy.GraphAppendingTracer):
    """Appends what is done to proxies to a graph; index constants become buffers, kept in `buffers` by name."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(graph)
        self.buffers: dict[str, torch.Tensor] = {}

    def constant(self, ids: Integers) -> fx.Proxy:
        """A proxy for an index tensor."""
        name = f"_index_{len(self.buffers)}"
        self.buffers[name] = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64))
        return fx.Proxy(self.graph.get_attr(name), self)


def constant(source: Array, ids: Integers) -> Array:
    """An index tensor on the device of `source`."""
    if isinstance(source, fx.Proxy):
        assert isinstance(source.tracer, Recorder)
        return source.tracer.constant(ids)
    return torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)).to(source.device)


def require_window(image: torch.Tensor, window: tuple[int, ...], bare: bool = False) -> torch.Tensor:
    """The image itself, if it is at least the window; part of every any-size network. A `bare` one, without a channel
    axis, gets one of one channel where it has none.

    Raises
    ------
    BadInput
        where the image is smaller than the window, or has another number of axes.
    """
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


def gather(source: Array, plan: Gather, have: int) -> Array:
    """The gathered map of a map of `have` channels: crops, strides and channel choices; runs of channels are views."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, start in enumerate(plan.starts.T):
        groups.setdefault(tuple(int(s) for s in start), []).append(k)
    if len(groups) == 1:
        ((start, _),) = groups.items()
        return _take(_channels(source, plan.channels, have), start, plan.steps)
    parts, order = [], []
    for start, members in groups.items():
        parts.append(_take(_channels(source, plan.channels[members], have), start, plan.steps))
        order += members
    joined = torch.cat(common(parts, len(plan.steps)), 1)
    back = np.argsort(np.asarray(order))
    return joined if (back == np.arange(len(back))).all() else _select(joined, 1, back)


def common(maps: Sequence[Array], axes: int) -> list[Array]:
    """The maps cropped to their common extent."""
    sizes = [minimum([m.shape[2 + a] for m in maps]) for a in range(axes)]
    return [m[(slice(None), slice(None), *(slice(0, s) for s in sizes))] for m in maps]


def minimum(sizes: Sequence[Any]) -> Any:
    """The least of some sizes, which may be symbolic."""
    least = sizes[0]
    for size in sizes[1:]:
        least = torch.sym_min(least, size)  # type: ignore[no-untyped-call]
    return least


def limit(source: Array, counts: Sequence[Any]) -> Array:
    """The map's first `counts` places per axis."""
    return source[(slice(None), slice(None), *(slice(0, n) for n in counts))]


def stride(source: Array, steps: Sequence[int]) -> Array:
    """Every `steps`-th place."""
    return _take(source, (0,) * len(steps), steps)


def copies(stencil: Stencil, channels: int) -> bool:
    """Whether the convolution must copy the weight, because the features are not in the order of its kernel."""
    order, _ = _order(stencil, channels)
    return order is not None


def _order(stencil: Stencil, channels: int) -> tuple[Integers | None, Integers | None]:
    """Which element of a `C × kernel` window each feature is, and the inverse; None where features are in their own
    order, and no inverse where they repeat elements or leave some out."""
    shape = (channels, *stencil.kernel)
    order = np.ravel_multi_index((stencil.channels, *stencil.offsets), shape)
    size = int(np.prod(shape))
    if len(order) == size and (order == np.arange(size)).all():
        return None, None
    unique = len(order) == size and len(np.unique(order)) == size
    return order, np.argsort(order) if unique else None


def linear(
    source: Array,
    weight: Array,
    bias: Array,
    stencil: Stencil,
    channels: int,
    form: Callable[..., Any] = linear_on_windows,
) -> Array:
    """A linear layer on the rows of a stencil: a convolution without padding, or one of its forms in `on_windows`.

    A 1×1 kernel is a convolution at any number of positions: libraries do not reorder its weight.
    """
    axes = len(stencil.step)
    start = source if not any(stencil.start) else _take(source, stencil.start, (1,) * axes)
    order, back = (None if ids is None else constant(source, ids) for ids in _order(stencil, channels))
    if all(k == 1 for k in stencil.kernel) and form is linear_on_windows:
        form = as_convolution
    arguments = (start, weight, bias, order, back, (channels, *stencil.kernel), stencil.step)
    if isinstance(source, fx.Proxy) and form is linear_on_windows:
        return source.tracer.create_proxy("call_function", form, arguments, {})
    return form(*arguments)


def per_channel(constant: Array, ids: Integers, axes: int) -> Array:
    """A constant's elements `ids` as one value a channel, shape `(len(ids), 1, …)`."""
    flat = constant.reshape(-1)
    if not (len(ids) == 1 or (ids == np.arange(len(ids))).all()):
        flat = _select(flat, 0, ids)
    elif len(ids) == 1:
        flat = flat[int(ids[0]) : int(ids[0]) + 1]
    return flat.reshape(-1, *(1,) * axes)


def window_mean(source: Array, size: Sequence[int]) -> Array:
    """The mean over `size` places at stride 1."""
    return AVG_POOL[len(size) - 1](source, tuple(size), 1)


def window_max(source: Array, size: Sequence[int]) -> Array:
    """The maximum over `size` places at stride 1."""
    one = [1] * len(size)
    return max_pool(source, size, one, [0] * len(size), one)


def max_pool(
    source: Array, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Array:
    """The maximum over `size` places; of signals as of images one pixel wide, since exporting fixes the length of what
    `max_pool1d` reads."""
    if len(size) == 3:
        return F.max_pool3d(source, tuple(size), tuple(stride), tuple(padding), tuple(dilation))
    if len(size) == 2:
        return F.max_pool2d(source, tuple(size), tuple(stride), tuple(padding), tuple(dilation))
    wide = ((*size, 1), (*stride, 1), (*padding, 0), (*dilation, 1))
    return F.max_pool2d(source.unsqueeze(-1), *wide).squeeze(-1)


def image_mean(source: Array, axes: int) -> Array:
    """The mean over the whole map, one place."""
    return source.mean(tuple(range(2, 2 + axes)), keepdim=True)


def image_max(source: Array, axes: int) -> Array:
    """The maximum over the whole map, one place."""
    return source.amax(tuple(range(2, 2 + axes)), keepdim=True)


def norm(source: Array, axis: int) -> Array:
    """The root of the sum of squares along an axis."""
    return (source * source).sum(axis).sqrt()


def channel_standard(
    source: torch.Tensor, kind: str, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float | None
) -> torch.Tensor:
    """Layer (or RMS) normalisation over the channels of each place.

    Spelled out while exporting: torch's own asks whether the moved map is contiguous, which fixes sizes of one place.
    """
    channels = (source.shape[1],)
    if not torch.compiler.is_exporting():
        moved = source.movedim(1, -1)
        if kind == "rms":
            return F.rms_norm(moved, channels, weight, eps).movedim(-1, 1)
        return F.layer_norm(moved, channels, weight, bias, eps or 0.0).movedim(-1, 1)
    eps = torch.finfo(source.dtype).eps if eps is None else eps
    centred = source if kind == "rms" else source - source.mean(1, keepdim=True)
    out = centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)
    spots = (1,) * (source.ndim - 2)
    out = out if weight is None else out * weight.reshape(-1, *spots)
    return out if bias is None else out + bias.reshape(-1, *spots)


def image_norm(source: Array, axes: int, places: int) -> Array:
    """The root of the sum of squares over the whole map, as if it had `places` places."""
    return ((source * source).mean(tuple(range(2, 2 + axes)), keepdim=True) * float(places)).sqrt()


def over_groups(source: Array, groups: int) -> Array:
    """The mean over each of `groups` groups of channels, `(N, groups, …)`."""
    return source.unflatten(1, (groups, -1)).mean(2)


def of_groups(source: Array, each: int) -> Array:
    """A value a group as a value a channel, `each` channels a group: the inverse of `over_groups` in shape."""
    return source.repeat_interleave(each, 1)


def repeat_places(source: Array, factors: Sequence[int]) -> Array:
    """Each place repeated `factors` times per axis."""
    for axis, factor in enumerate(factors):
        source = source if factor == 1 else source.repeat_interleave(factor, 2 + axis)
    return source


def spread(source: Array, size: Sequence[int]) -> Array:
    """Give each place the value of the window of `size` places that is centred on it, the nearest window at the edges.

    A map of windows `(…, H - h + 1, …)` becomes one of places `(…, H, …)`.
    """
    pads: list[int] = []
    for n in reversed(size):
        pads += [(n - 1) // 2, n - 1 - (n - 1) // 2]
    return F.pad(source, pads, mode="replicate")


def as_batch(source: Array, axes: int, shape: Sequence[int]) -> Array:
    """A map whose channels are a whole value of `shape` as a batch of such values, one for each place."""
    # a copy in any case: whether a view would do depends on sizes, and asking fixes them while exporting
    return source.movedim(1, -1).clone(memory_format=torch.contiguous_format).view(-1, *shape)


def from_batch(values: Array, like: Array, axes: int) -> Array:
    """The inverse of `as_batch`: a batch of values as the channels of a map, of the extent of `like`."""
    sizes = [like.shape[0], *(like.shape[2 + a] for a in range(axes))]
    return values.reshape(*sizes, -1).movedim(-1, 1)


def _channels(source: Array, channels: Integers, have: int) -> Array:
    first, count = int(channels[0]), len(channels)
    if (channels == np.arange(first, first + count)).all():
        return source if count == have else source.narrow(1, first, count)
    return _select(source, 1, channels)


def _select(source: Array, axis: int, ids: Integers) -> Array:
    return source.index_select(axis, constant(source, ids))


def _take(source: Array, start: Sequence[int], steps: Sequence[int]) -> Array:
    if not any(start) and all(s == 1 for s in steps):
        return source
    return source[(slice(None), slice(None), *(slice(a, None, s) for a, s in zip(start, steps, strict=True)))]
