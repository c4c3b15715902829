"""Chooses the two layers that a comparison is about: a fully connected layer and a pointwise convolution.

If the network has only one of the two, the other is obtained by conversion. If its fully connected layer reads a
single position, a layer over a whole map is created for the claims about positions. `Operation.origin` records
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from onebyone.comparison.layer_calls import KERNEL, LINEAR, POINTWISE, LayerCall
from onebyone.comparison.operation import (
    FROM_NETWORK,
    Operation,
    connected_form,
    convolution_form,
    pointwise_form,
    pooled_form,
)
from onebyone.errors import BadInput
from onebyone.laws.flatten import flatten_index, to_kernel

MAX_WEIGHTS = 2**21
"""Weights, at most, of a layer in the experiments, which run in float64; larger layers keep their first outputs."""
MAX_OUTPUTS = 512
SIDE = 16
"""Positions per side, at most, of the maps that experiments run on."""
FALLBACK_SIZE = (7, 7)
"""The map size if no layer of the network has a map of several positions."""
CREATED_OUTPUTS = 64
FROM_LINEAR = "converted from a linear layer"
FROM_POINTWISE = "converted from a 1×1 convolution"


@dataclass(frozen=True)
class ComparedLayers:
    """The layers under comparison, each as a function of a map.

    `connected` and `pointwise` are the two chosen layers. `spatial` holds, by role, the layers for the claims about
    positions: "pointwise" and "connected" on maps of several positions, "kernel", a k×k convolution for contrast,
    and "pooled", the network's global pool with its fully connected layer, if it has one. `linear` is the recorded
    call of the chosen fully connected layer, None if there is none; `activation` the module that follows it.
    `calls` are all recorded calls.
    """

    connected: Operation
    pointwise: Operation
    spatial: dict[str, Operation]
    linear: LayerCall | None
    activation: nn.Module
    calls: tuple[LayerCall, ...]

    def describe(self) -> dict[str, object]:
        """The chosen layers as plain data."""
        return {
            "fully connected": self.connected.describe(),
            "pointwise": self.pointwise.describe(),
            "for claims about positions": {role: op.describe() for role, op in self.spatial.items()},
        }


def choose_layers(calls: Sequence[LayerCall], seed: int = 0) -> ComparedLayers:
    """Choose the pair of layers from the recorded calls of a network.

    Fully connected: the largest layer after a flattened map of several positions, else the last one on a vector,
    else a converted pointwise convolution. Pointwise: the ungrouped 1×1 convolution with the most MACs, else,
    converted, the linear layer on tokens with the most MACs, else the largest linear layer on a vector.

    Raises
    ------
    BadInput
        if there is neither kind of layer, or if a weight is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    linears = [c for c in calls if c.kind == LINEAR]
    convolutions = [c for c in calls if c.kind == POINTWISE and c.groups == 1]
    if not linears and not convolutions:
        raise BadInput(
            "model: the run called no fully connected layer and no ungrouped 1×1 convolution: nothing to compare"
        )
    head = _head(linears)
    point = _costliest(convolutions) or _costliest([c for c in linears if c.tokens])
    point = point or _costliest(_on_vectors(linears)) or head
    assert point is not None
    connected = _connected(head) if head else _connected_from_pointwise(point)
    pointwise = _pointwise(point)
    spatial = _spatial(head, connected, pointwise, list(calls), generator)
    for op in (connected, pointwise):
        if not bool(torch.isfinite(op.weight).all()):
            raise BadInput(f"model: the weight of {op.path} holds NaN or infinity")
    activation = next((c.activation for c in (head, *calls) if c and c.activation is not None), None)
    return ComparedLayers(connected, pointwise, spatial, head, activation or nn.ReLU(), tuple(calls))


def _costliest(calls: list[LayerCall]) -> LayerCall | None:
    return max(calls, key=lambda c: (c.macs, c.parameters), default=None)


def _on_vectors(linears: list[LayerCall]) -> list[LayerCall]:
    """Linear layers on vectors, except those on a flattened map of several positions."""
    return [c for c in linears if not c.tokens and (c.block is None or prod(c.block[1:]) == 1)]


def _head(linears: list[LayerCall]) -> LayerCall | None:
    """The fully connected layer to compare; see `choose_layers`."""
    flattened = [c for c in linears if c.block is not None and prod(c.block[1:]) > 1]
    if flattened:
        return max(flattened, key=lambda c: c.parameters)
    vectors = [c for c in linears if not c.tokens]
    return vectors[-1] if vectors else (linears[-1] if linears else None)


def _used_outputs(per_output: int, outputs: int) -> int:
    """How many outputs of a layer are used: all, or as many as `MAX_WEIGHTS` allows."""
    return max(1, min(outputs, MAX_OUTPUTS, MAX_WEIGHTS // max(1, per_output)))


def _sampled(layer: LayerCall) -> tuple[Tensor, Tensor | None, str]:
    """Weight and bias of the outputs that are used, as float64 copies on the CPU, and where they come from.

    A weight that is all zero, as some heads are before training, is replaced by random values, because a layer of
    zeros shows nothing.
    """
    weight, bias = layer.weight(), layer.bias()
    rows = _used_outputs(weight[0].numel(), len(weight))
    kept = None if bias is None else bias[:rows].double().cpu()
    used = weight[:rows].double().cpu()
    if bool((used == 0).all()):
        generator = torch.Generator().manual_seed(0)
        used = torch.randn(used.shape, generator=generator, dtype=torch.float64) / used[0].numel() ** 0.5
        return used, kept, f"{FROM_NETWORK} (its weights, all zero, were replaced by random ones)"
    return used, kept, FROM_NETWORK


def _connected(layer: LayerCall) -> Operation:
    """The fully connected layer on the map that was flattened, or on a vector as a map of one position."""
    weight, bias, origin = _sampled(layer)
    features = weight.shape[1]
    block = layer.block if layer.block and not layer.tokens else (features, 1, 1)
    if layer.order != (0, 1, 2):  # reorder the columns to a channels-first flatten
        index = flatten_index(block, layer.order)
        weight = torch.from_numpy(to_kernel(weight.numpy(), index, block).reshape(len(weight), -1).copy())
    return Operation(
        "fully connected", connected_form, weight, bias, block, layer.path, origin, layer.outputs
    )


def _connected_from_pointwise(layer: LayerCall) -> Operation:
    weight, bias, origin = _sampled(layer)
    return Operation(
        "fully connected",
        connected_form,
        weight.flatten(1),
        bias,
        (layer.inputs, 1, 1),
        layer.path,
        origin.replace(FROM_NETWORK, FROM_POINTWISE),
        layer.outputs,
    )


def _pointwise(layer: LayerCall) -> Operation:
    """The pointwise convolution on its input map; a stride is applied to the map beforehand by subsampling."""
    weight, bias, origin = _sampled(layer)
    shape = layer.map_shape
    if layer.kind == LINEAR:
        origin = origin.replace(FROM_NETWORK, FROM_LINEAR)
    elif any(s > 1 for s in layer.stride):
        steps = (*layer.stride, 1)[:2]
        shape = (shape[0], -(-shape[1] // steps[0]), -(-shape[2] // steps[1]))
        origin = f"{origin}, on the positions that its stride {steps} keeps"
    kernel = weight.flatten(1)[:, :, None, None]
    if kernel.shape[1] != shape[0]:  # a layer on a flattened map: its vector is a map of one position
        shape = (kernel.shape[1], 1, 1)
    return Operation("pointwise", pointwise_form, kernel, bias, shape, layer.path, origin, layer.outputs)


def _spatial(
    head: LayerCall | None,
    connected: Operation,
    pointwise: Operation,
    calls: list[LayerCall],
    generator: torch.Generator,
) -> dict[str, Operation]:
    """The layers for `ComparedLayers.spatial`, on maps of several positions, at most SIDE per side."""
    sizes = (pointwise.map_shape[1:], _size_of(head))
    size = next((s for s in sizes if prod(s) > 1), FALLBACK_SIZE)
    roles = {"pointwise": pointwise.on(_limited_size(size))}
    if connected.positions > 1:
        roles["connected"] = connected
    else:
        block = (head.pooled if head and head.pooled else None) or roles["pointwise"].map_shape
        roles["connected"] = _created(_within_limits(block), generator)
    if head is not None and head.pooled is not None:
        roles["pooled"] = replace(
            connected, name="global pool + FC", form=pooled_form, map_shape=_limited(head.pooled)
        )
    kernel = next((c for c in calls if c.kind == KERNEL and _is_plain_kernel(c)), None)
    roles["kernel"] = _kernel(kernel, generator)
    return roles


def _size_of(head: LayerCall | None) -> tuple[int, int]:
    block = (head.block or head.pooled) if head else None
    return (1, 1) if block is None else (block[1], block[2])


def _limited_size(size: Sequence[int]) -> tuple[int, int]:
    return min(size[0], SIDE), min(size[1], SIDE)


def _limited(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return (shape[0], *_limited_size(shape[1:]))


def _within_limits(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The map, reduced so that a fully connected layer with eight outputs on it stays within MAX_WEIGHTS."""
    channels, height, width = _limited(shape)
    if height * width == 1:
        height, width = FALLBACK_SIZE
    return min(channels, max(1, MAX_WEIGHTS // (8 * height * width))), height, width


def _created(shape: tuple[int, int, int], generator: torch.Generator) -> Operation:
    features = prod(shape)
    rows = _used_outputs(features, CREATED_OUTPUTS)
    weight = torch.randn(rows, features, generator=generator, dtype=torch.float64) / features**0.5
    bias = torch.randn(rows, generator=generator, dtype=torch.float64)
    origin = "created for the comparison, over the map before the network's layer (random weights)"
    return Operation("fully connected", connected_form, weight, bias, shape, "", origin, rows)


def _is_plain_kernel(layer: LayerCall) -> bool:
    """Whether it is an ungrouped, zero-padded k×k convolution on a map larger than its kernel."""
    module = layer.module
    return (
        isinstance(module, nn.Conv2d)
        and layer.groups == 1
        and prod(module.kernel_size) > 1
        and module.padding_mode == "zeros"
        and min(layer.map_shape[1:]) > max(module.kernel_size)
    )


def _kernel(layer: LayerCall | None, generator: torch.Generator) -> Operation:
    """The network's first such convolution, for contrast; a random 3×3 convolution if it has none."""
    if layer is None:
        weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
        form = convolution_form(padding=(1, 1))
        return Operation(
            "3×3 convolution", form, weight, None, (3, *FALLBACK_SIZE), "", "created for contrast", 4
        )
    module = layer.module
    assert isinstance(module, nn.Conv2d)
    weight, bias, origin = _sampled(layer)
    side = max(*module.kernel_size, SIDE)
    shape = (layer.inputs, min(layer.map_shape[1], side), min(layer.map_shape[2], side))
    form = convolution_form(module.stride, module.padding, module.dilation)
    name = "×".join(map(str, module.kernel_size)) + " convolution"
    return Operation(name, form, weight, bias, shape, layer.path, origin, layer.outputs)
