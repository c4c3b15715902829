"""Finer maps by dilation (the à trous algorithm): strides are left out, and every later kernel and pool is dilated.

A layer of stride t that computes every position instead of every t-th one gives a map that contains the old one at the
spacing t. A later kernel finds the entries that it had before if its taps are t times as far apart. So with the stride
left out, and the dilation of all that follows multiplied by t, one pass gives the positions of t shifted passes, and
what the layers before it compute is computed once.

Strides are left out as late as possible: a map of stride s keeps the strides of the first layers as long as their
product divides s.

Source: Holschneider et al., "A real-time algorithm for signal analysis with the help of the wavelet transform", 1989;
for dense prediction Giusti et al., "Fast image scanning with deep max-pooling convolutional neural networks", ICIP
2013, and Yu and Koltun, "Multi-scale context aggregation by dilated convolutions", ICLR 2016.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onebyone.errors import BadInput, Refused
from onebyone.laws.geometry import Geometry
from onebyone.pytorch.lift.window_linear import linear_on_windows
from onebyone.records import Refusal
from onebyone.results.any_size import Convolutionalized

_Dense = TypeVar("_Dense", bound=Convolutionalized[Any, Any])

_ATEN = torch.ops.aten
_CONVOLUTIONS = {
    _ATEN.conv1d.default: 1, _ATEN.conv2d.default: 2, _ATEN.conv3d.default: 3,
    torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3,
}  # fmt: skip
_MAX_POOLS = {F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3}
_AVERAGE_POOLS = {_ATEN.avg_pool1d.default: 1, _ATEN.avg_pool2d.default: 2, _ATEN.avg_pool3d.default: 3}

#: Operators that act on each position by itself.
_POINTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh",
    "hardswish", "hardsigmoid", "softplus", "add", "sub", "mul", "div", "neg", "exp", "batch_norm", "dropout",
    "clone", "cat", "clamp", "alias", "detach",
}  # fmt: skip


@dataclass(frozen=True)
class _Spacing:
    """Per axis, of a map: the pixels between its positions before the change (`jump`) and after it (`actual`)."""

    jump: tuple[int, ...]
    actual: tuple[int, ...]

    @property
    def dilation(self) -> tuple[int, ...]:
        """The distance of two positions that were neighbours before."""
        return tuple(j // a for j, a in zip(self.jump, self.actual, strict=True))


def dilated(d: _Dense, stride: Sequence[int]) -> _Dense:
    """The network with a map of a finer `stride`, in pixels per axis; its parameters are shared.

    Raises
    ------
    BadInput
        where the network's stride is not a multiple of `stride`.
    Refused
        for a network that pads, because a dilated layer pads at other places than the passes that it replaces, and for
        an operator that has no dilated form; the reason names it.

    Example
    -------
    >>> import onebyone
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(),
    ...                     nn.Linear(12, 2))
    >>> d = onebyone.convolutionalize(net, window=14)
    >>> d.geometry.stride, dilated(d, (1, 1)).geometry.stride, dilated(d, (1, 1)).model(torch.zeros(1, 1, 16, 14)).shape
    ((4, 4), (1, 1), torch.Size([1, 2, 3, 1]))
    """
    geometry = d.geometry
    if len(stride) != len(geometry.stride) or any(
        s < 1 or own % s for s, own in zip(stride, geometry.stride, strict=False)
    ):
        raise BadInput(f"stride={tuple(stride)}: expected divisors of the network's stride {geometry.stride}")
    reasons = []
    if not geometry.exact:
        reasons.append(
            Refusal(
                "", "padding", "a dilated layer would pad at other places: " + geometry.inexact_because[0]
            )
        )
    if not isinstance(d.model, fx.GraphModule):
        reasons.append(
            Refusal("", "graph", "the network has no fx graph; expected the result of convolutionalize")
        )
    if reasons:
        raise _refused(reasons)
    model = _rewritten(d.model, geometry, tuple(stride))
    return replace(d, model=model, geometry=replace(geometry, stride=tuple(stride)))


def _rewritten(model: fx.GraphModule, geometry: Geometry, stride: tuple[int, ...]) -> fx.GraphModule:
    result = fx.GraphModule(model, copy.deepcopy(model.graph))
    spacings: dict[fx.Node, _Spacing] = {}
    refusals = []
    axes = len(stride)
    image = next(node for node in result.graph.nodes if node.op == "placeholder")
    for node in list(result.graph.nodes):
        if node is image:
            spacings[node] = _Spacing((1,) * axes, (1,) * axes)
            continue
        inputs = [spacings[n] for n in node.all_input_nodes if n in spacings]
        if node.op != "call_function" or not inputs:
            continue
        try:
            if any(other != inputs[0] for other in inputs):
                raise ValueError("its inputs have maps of different strides")
            spacing = _changed(node, inputs[0], stride)
        except ValueError as error:
            refusals.append(Refusal(node.name, str(node.target), f"{error}; expected shifted passes"))
            break
        if spacing is not None:
            spacings[node] = spacing
    if refusals:
        raise _refused(refusals)
    _crop_outputs(result.graph, image, geometry, stride)
    result.graph.eliminate_dead_code()
    result.recompile()
    return result


def _changed(node: fx.Node, before: _Spacing, stride: tuple[int, ...]) -> _Spacing | None:
    """Rewrite one operator. Returns the spacing of its map; None where its result is not a map.

    Raises ValueError, with the reason, where it has no dilated form.
    """
    target: Any = node.target
    name = getattr(target, "__name__", str(target)).split(".")[0]
    if target is getattr:
        return None  # the size of the image, which only the last crop reads; it is made anew
    if name == "require_window":
        return before
    if target is operator.getitem and _is_crop(node):
        return before  # to the positions that have a window; made anew at the end
    if target in _CONVOLUTIONS:
        return _convolution(node, before, stride)
    if target in _MAX_POOLS:
        return _max_pool(node, before, stride)
    if target in _AVERAGE_POOLS:
        return _average_pool(node, before, stride)
    if target is linear_on_windows:
        return _linear(node, before, stride)
    if name in _POINTWISE:
        return before
    raise ValueError("it has no dilated form")


def _strides(
    own: Sequence[int], before: _Spacing, stride: tuple[int, ...]
) -> tuple[tuple[int, ...], _Spacing]:
    """The strides that a layer keeps, and the spacing after it."""
    kept = tuple(gcd(t, s // a) for t, s, a in zip(own, stride, before.actual, strict=True))
    jump = tuple(j * t for j, t in zip(before.jump, own, strict=True))
    return kept, _Spacing(jump, tuple(a * k for a, k in zip(before.actual, kept, strict=True)))


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return (int(value),) * axes if isinstance(value, int) else tuple(int(v) for v in value) * (
        axes if len(value) == 1 else 1
    )  # fmt: skip


def _convolution(node: Any, before: _Spacing, stride: tuple[int, ...]) -> _Spacing:
    axes = len(stride)
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 1, 1)
    arguments = [*node.args, *defaults[len(node.args) :]]
    for position, key in enumerate(("input", "weight", "bias", "stride", "padding", "dilation", "groups")):
        arguments[position] = node.kwargs.get(key, arguments[position])
    if any(_per_axis(arguments[4], axes)):
        raise ValueError("it pads")
    kept, after = _strides(_per_axis(arguments[3], axes), before, stride)
    dilation = [a * b for a, b in zip(_per_axis(arguments[5], axes), before.dilation, strict=True)]
    node.args = (*arguments[:3], list(kept), [0] * axes, dilation, arguments[6])
    node.kwargs = {}
    return after


def _max_pool(node: Any, before: _Spacing, stride: tuple[int, ...]) -> _Spacing:
    axes = len(stride)
    kwargs = dict(node.kwargs)
    own = _per_axis(kwargs.get("stride") or node.args[1], axes)
    if any(_per_axis(kwargs.get("padding", 0), axes)) or kwargs.get("ceil_mode"):
        raise ValueError("it pads")
    kept, after = _strides(own, before, stride)
    dilation = _per_axis(kwargs.get("dilation", 1), axes)
    kwargs["dilation"] = tuple(a * b for a, b in zip(dilation, before.dilation, strict=True))
    node.kwargs = {**kwargs, "stride": kept}
    return after


def _average_pool(node: Any, before: _Spacing, stride: tuple[int, ...]) -> _Spacing:
    axes = len(stride)
    x, kernel, *rest = node.args
    own = _per_axis(rest[0] if rest and rest[0] else kernel, axes)
    padding, ceil_mode, divisor = (
        rest[1] if len(rest) > 1 else 0,
        len(rest) > 2 and rest[2],
        rest[4] if len(rest) > 4 else None,
    )
    if any(_per_axis(padding, axes)) or ceil_mode or divisor is not None:
        raise ValueError("it pads, or has a divisor of its own")
    kept, after = _strides(own, before, stride)
    node.target = dilated_average
    node.args = (x, _per_axis(kernel, axes), kept, before.dilation)
    node.kwargs = {}
    return after


def _linear(node: Any, before: _Spacing, stride: tuple[int, ...]) -> _Spacing:
    x, weight, bias, *orders, shape, own = node.args
    if any(order is not None for order in orders):
        raise ValueError("its features are in an order of their own")
    kept, after = _strides(_per_axis(own, len(stride)), before, stride)
    node.target = dilated_linear
    node.args = (x, weight, bias, shape, kept, before.dilation)
    node.kwargs = {}
    return after


def _is_crop(node: Any) -> bool:
    """Whether the node keeps the first positions per axis, as the end of an any-size network does."""
    index = node.args[1]
    if not isinstance(index, tuple) or not all(isinstance(i, slice) for i in index):
        return False
    starts_at_0 = all(i.start in (None, 0) and i.step in (None, 1) for i in index)
    return starts_at_0 and all(user.op == "output" for user in node.users)


def _crop_outputs(graph: fx.Graph, image: fx.Node, geometry: Geometry, stride: tuple[int, ...]) -> None:
    """Crop every output to the positions that have a window."""
    (output,) = (node for node in graph.nodes if node.op == "output")

    def cropped(node: Any) -> fx.Node:
        full = node.args[0] if node.target is operator.getitem and _is_crop(node) else node
        with graph.inserting_before(output):
            return graph.call_function(positions_with_window, (full, image, geometry.window, stride))

    output.args = (fx.map_arg(output.args[0], cropped),)


def positions_with_window(
    scores: Tensor, image: Tensor, window: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """The first positions per axis of a map: those whose window lies inside the image (N, C, *pixels)."""
    for axis, (w, s) in enumerate(zip(window, stride, strict=True)):
        size = image.shape[image.ndim - len(window) + axis]
        scores = scores.narrow(2 + axis, 0, (size - w) // s + 1)
    return scores


def dilated_average(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """An average pool whose taps are `dilation` apart: sums along one axis after another.

    >>> dilated_average(torch.arange(5.0).reshape(1, 1, 5), (2,), (1,), (3,))
    tensor([[[1.5000, 2.5000]]])
    """
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        length = x.shape[axis] - (k - 1) * d
        taps = [x.narrow(axis, i * d, length) for i in range(k)]
        total = torch.stack(taps).sum(0) if k <= 2 else sum(taps[1:], taps[0])
        index = [slice(None)] * axis + [slice(None, None, s)]
        x = total[tuple(index)] / k
    return x


def dilated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """A linear layer on the C×h×w values around every position of a map, `dilation` apart, as a convolution."""
    convolution: Any = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    result: Tensor = convolution(x, weight.reshape(-1, *shape), bias, stride, 0, dilation)
    return result


def _refused(reasons: Sequence[Refusal]) -> Refused:
    return Refused(reasons, "the network has no dilated form")
