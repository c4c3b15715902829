"""Pair each lifted linear layer with the network's own operators at that layer, for the verifier's probes.

The original side runs the network's own operators from the feature map to the layer, including flatten; it does not use
the index that lifting derived. Element-wise operators in between are left out on both sides: they commute with any
selection of elements, and without them integers stay integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import fx

from onebyone.lifting.index import BATCH, Stencil
from onebyone.lifting.operators import LinearLayer
from onebyone.lifting.values import Lifted
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.graph_lifter import GraphLifter
from onebyone.pytorch.lift.window_linear import as_convolution, as_rows
from onebyone.results.layer_pairs import WindowPair

Params = dict[str, torch.Tensor]


def make_pair(lifter: GraphLifter, node: fx.Node, layer: LinearLayer) -> WindowPair:
    """The pair of a linear layer that was lifted at `node`."""
    value, stencil, transposed = layer.source, layer.stencil, layer.transposed
    shapes = {"weight": layer.weight.shape}
    convert = partial(_converted, stencil, value.grid.shape, transposed)
    if layer.bias is not None:
        shapes["bias"] = layer.bias.shape
    if value.affine is not None:
        shapes["scale"] = shapes["shift"] = value.shape
    source = next((n for n in node.all_input_nodes if lifter.values[n] is value), None)
    rearrangement = (
        _Rearrangement((), torch.from_numpy(value.indices()))
        if source is None
        else _rearrangement_before(lifter, source, value)
    )
    return WindowPair(
        path=layer.call.path,
        kind=layer.call.name,
        law=layer.law,
        map_shape=value.grid.shape,
        step=stencil.step,
        parameter_shapes=shapes,
        original=partial(_original, rearrangement, transposed, layer.axis),
        converted=partial(convert, as_convolution),
        unfolded=None if stencil.is_pointwise else partial(convert, as_rows),
    )


def _original(
    rearrange: _Rearrangement, transposed: bool, axis: int, crop: torch.Tensor, params: Params
) -> torch.Tensor:
    """The network's own operators on crops `(N, C, h, w)`: shape operators, then the layer, its features last."""
    missing = -len(crop) % BATCH  # the operators were traced on batches of BATCH samples
    padded = torch.cat([crop, crop.new_zeros(missing, *crop.shape[1:])])
    rows = torch.cat([rearrange(part) for part in torch.split(padded, BATCH)])[: len(crop)]
    if "scale" in params:
        rows = rows * params["scale"] + params["shift"]
    weight = params["weight"].t() if transposed else params["weight"]
    return F.linear(rows.movedim(axis, -1), weight, params.get("bias"))


def _converted(
    stencil: Stencil,
    map_shape: tuple[int, ...],
    transposed: bool,
    form: Callable[..., torch.Tensor],
    source: torch.Tensor,
    params: Params,
) -> torch.Tensor:
    """The emitted layer in one of its forms on a map of any size, gathered to `(N, H', W', *out)`: one per window.

    A layer that does not read the end of a window's part of the map, `map_shape`, computes further positions, for which
    no window is left; the network crops its outputs.
    """
    weight = params["weight"].t() if transposed else params["weight"]
    bias = params.get("bias")
    if "scale" in params:
        shift = weight @ params["shift"]
        bias = shift if bias is None else bias + shift
        weight = weight * params["scale"]
    out = emitter.linear(source, weight, bias, stencil, map_shape[0], form)
    axes = len(stencil.nominal)
    for axis, size in enumerate(stencil.nominal):
        out = out.unfold(2 + axis, size, 1)
    out = out.movedim(1, 1 + axes).flatten(1 + axes)  # (N, positions…, O·nominal…)
    index = torch.from_numpy(stencil.out_index(weight.shape[0]))
    gathered: torch.Tensor = out[..., index]
    for axis, (size, step) in enumerate(zip(map_shape[1:], stencil.step, strict=True)):
        end = stencil.start[axis] + (stencil.nominal[axis] - 1) * step + stencil.kernel[axis]
        if end < size:
            gathered = gathered.narrow(1 + axis, 0, (source.shape[2 + axis] - size) // step + 1)
    return gathered


@dataclass(frozen=True)
class _Rearrangement:
    """The shape operators between a feature map and a linear layer's input, in order.

    `index` selects the elements before the first of them. It is None if they are the only operators; it is needed if
    they are not a plain chain, for example because maps were concatenated.
    """

    operators: tuple[Callable[[torch.Tensor], torch.Tensor], ...]
    index: torch.Tensor | None

    def __call__(self, crop: torch.Tensor) -> torch.Tensor:
        if self.index is not None:
            crop = crop.flatten(1)[:, self.index]
        for operator in self.operators:
            crop = operator(crop)
        return crop


def _rearrangement_before(lifter: GraphLifter, source: fx.Node, value: Lifted) -> _Rearrangement:
    """Follow the shape operators backwards from the layer's input to the feature map."""
    operators: list[Callable[[torch.Tensor], torch.Tensor]] = []
    node = source
    while True:
        current = lifter.values[node]
        if current.index is None and current.grid.shape == value.grid.shape:
            return _Rearrangement(tuple(reversed(operators)), None)
        previous = node.args[0] if node.args else None
        before = lifter.values.get(previous) if isinstance(previous, fx.Node) else None
        if getattr(before, "grid", None) is None or before.grid.shape != value.grid.shape:  # type: ignore[union-attr]
            return _Rearrangement(tuple(reversed(operators)), torch.from_numpy(current.indices()))
        if node in lifter.rearrangements:
            operators.append(partial(_apply, node))
        elif current.shape != before.shape:  # type: ignore[union-attr]
            return _Rearrangement(tuple(reversed(operators)), torch.from_numpy(current.indices()))
        node = previous  # type: ignore[assignment]


def _apply(node: fx.Node, tensor: torch.Tensor) -> torch.Tensor:
    """The shape operator at `node` on another tensor of the same shape.

    The tensor is made contiguous first, because the network's own copies (`contiguous`, `clone`) are not repeated here
    and a `view` may need the memory layout that they give. The result of a shape operator does not depend on the
    layout.
    """

    def argument(a: fx.node.Argument) -> fx.node.Argument:
        # another tensor (of view_as, expand_as) matters only by its shape
        return torch.empty(a.meta["val"].shape) if isinstance(a, fx.Node) else a

    rest = fx.node.map_aggregate(node.args[1:], argument)
    kwargs = fx.node.map_aggregate(dict(node.kwargs), argument)
    return node.target(tensor.contiguous(), *rest, **kwargs)  # type: ignore[operator, no-any-return]
