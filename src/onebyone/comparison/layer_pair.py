"""The two layers of the network that the comparison is about: a fully connected one and a pointwise one.

Where the network lacks one of them, the converted twin of the other stands in; where its fully connected
layer reads a single place, one over a whole map is made for the statements about places. Each says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from onebyone.comparison.layer_calls import KERNEL, LINEAR, POINTWISE, Seen
from onebyone.comparison.layer_function import (
    OWN,
    Operation,
    connected_form,
    convolution_form,
    pointwise_form,
    pooled_form,
)
from onebyone.errors import BadInput
from onebyone.laws.flatten import flatten_index, to_kernel

MOST_WEIGHTS = 2**21
"""Weights of a layer that the experiments use in float64 at most; of a larger layer, its first outputs."""
MOST_OUTPUTS = 512
SIDE = 16
"""Places per side of the maps that experiments run on, at most."""
FALLBACK = (7, 7)
MADE_OUTPUTS = 64
TWIN_OF_LINEAR = "the converted twin of a linear layer"
TWIN_OF_POINTWISE = "the converted twin of a 1×1 convolution"


@dataclass(frozen=True)
class ComparedLayers:
    """The layers under comparison, each as a function of a map.

    `connected` and `pointwise` are the chosen two. `spatial` is by role what the statements about places
    use: a pointwise and a connected layer on maps of several places, a k×k convolution for contrast, and the
    network's own global pool + FC where it has one. `linear` is the chosen fully connected layer as the
    network has it; `activation` what follows it.
    """

    connected: Operation
    pointwise: Operation
    spatial: dict[str, Operation]
    linear: Seen | None
    activation: nn.Module
    seen: tuple[Seen, ...]

    def describe(self) -> dict[str, object]:
        """Which layers these are."""
        return {
            "fully connected": self.connected.describe(),
            "pointwise": self.pointwise.describe(),
            "for statements about places": {role: op.describe() for role, op in self.spatial.items()},
        }


def choose(seen: Sequence[Seen], seed: int = 0) -> ComparedLayers:
    """The pair of a network of which these layers were seen.

    Fully connected: the largest layer that follows a flattened map of several places, else the last that
    takes a vector, else the twin of a pointwise layer. Pointwise: the ungrouped 1×1 convolution with the
    most MACs, else the twin of the linear layer on tokens with the most, else that of the largest on a
    vector.

    Raises
    ------
    BadInput
        where there is neither, or where a weight is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    linears = [s for s in seen if s.kind == LINEAR]
    own = [s for s in seen if s.kind == POINTWISE and s.groups == 1]
    if not linears and not own:
        raise BadInput(
            "model: the run called no fully connected layer and no ungrouped 1×1 convolution: nothing to compare"
        )
    head = _head(linears)
    point = _most(own) or _most([s for s in linears if s.tokens]) or _most(_vectors(linears)) or head
    assert point is not None
    connected = _connected(head) if head else _twin_of_pointwise(point)
    pointwise = _pointwise(point)
    spatial = _spatial(head, connected, pointwise, list(seen), generator)
    for op in (connected, pointwise):
        if not bool(torch.isfinite(op.weight).all()):
            raise BadInput(f"model: the weight of {op.path} holds NaN or infinity")
    follows = next((s.activation for s in (head, *seen) if s and s.activation is not None), None)
    return ComparedLayers(connected, pointwise, spatial, head, follows or nn.ReLU(), tuple(seen))


def _most(layers: list[Seen]) -> Seen | None:
    return max(layers, key=lambda s: (s.macs, s.parameters), default=None)


def _vectors(linears: list[Seen]) -> list[Seen]:
    """Linear layers on vectors that are no flattened map of several places."""
    return [s for s in linears if not s.tokens and (s.block is None or prod(s.block[1:]) == 1)]


def _head(linears: list[Seen]) -> Seen | None:
    flattened = [s for s in linears if s.block is not None and prod(s.block[1:]) > 1]
    if flattened:
        return max(flattened, key=lambda s: s.parameters)
    vectors = [s for s in linears if not s.tokens]
    return vectors[-1] if vectors else (linears[-1] if linears else None)


def _rows(per_output: int, outputs: int) -> int:
    """Outputs of a layer that are used: all, or as many as `MOST_WEIGHTS` allows."""
    return max(1, min(outputs, MOST_OUTPUTS, MOST_WEIGHTS // max(1, per_output)))


def _sampled(layer: Seen) -> tuple[Tensor, Tensor | None, str]:
    """The first outputs' weight and bias, float64 copies on the processor, and where they come from.

    A layer that was initialised to zero, as some heads are before training, would compute nothing: random
    weights stand in.
    """
    weight, bias = layer.weight(), layer.bias()
    rows = _rows(weight[0].numel(), len(weight))
    kept = None if bias is None else bias[:rows].double().cpu()
    used = weight[:rows].double().cpu()
    if bool((used == 0).all()):
        generator = torch.Generator().manual_seed(0)
        used = torch.randn(used.shape, generator=generator, dtype=torch.float64) / used[0].numel() ** 0.5
        return used, kept, f"{OWN}, its weights (all zero) replaced by random ones"
    return used, kept, OWN


def _connected(layer: Seen) -> Operation:
    """The fully connected layer on its map: the one that was flattened, or a vector as one of one place."""
    weight, bias, origin = _sampled(layer)
    features = weight.shape[1]
    block = layer.block if layer.block and not layer.tokens else (features, 1, 1)
    if layer.order != (0, 1, 2):  # the columns in the order that flattening channels first gives
        index = flatten_index(block, layer.order)
        weight = torch.from_numpy(to_kernel(weight.numpy(), index, block).reshape(len(weight), -1).copy())
    return Operation(
        "fully connected", connected_form, weight, bias, block, layer.path, origin, layer.outputs
    )


def _twin_of_pointwise(layer: Seen) -> Operation:
    weight, bias, origin = _sampled(layer)
    return Operation(
        "fully connected",
        connected_form,
        weight.flatten(1),
        bias,
        (layer.inputs, 1, 1),
        layer.path,
        origin.replace(OWN, TWIN_OF_POINTWISE),
        layer.outputs,
    )


def _pointwise(layer: Seen) -> Operation:
    """The pointwise convolution on the map it reads; a stride keeps every s-th place of it, before."""
    weight, bias, origin = _sampled(layer)
    shape = layer.map_shape
    if layer.kind == LINEAR:
        origin = origin.replace(OWN, TWIN_OF_LINEAR)
    elif any(s > 1 for s in layer.stride):
        steps = (*layer.stride, 1)[:2]
        shape = (shape[0], -(-shape[1] // steps[0]), -(-shape[2] // steps[1]))
        origin = f"{origin}, on the places that its stride {steps} keeps"
    kernel = weight.flatten(1)[:, :, None, None]
    if kernel.shape[1] != shape[0]:  # a flattened map's layer: its vector is an image of one place
        shape = (kernel.shape[1], 1, 1)
    return Operation("pointwise", pointwise_form, kernel, bias, shape, layer.path, origin, layer.outputs)


def _spatial(
    head: Seen | None,
    connected: Operation,
    pointwise: Operation,
    seen: list[Seen],
    generator: torch.Generator,
) -> dict[str, Operation]:
    """The layers by role on maps of several places, at most SIDE to a side."""
    size = next(
        (s for s in (pointwise.map_shape[1:], _size_of(head), FALLBACK) if prod(s) > 1),
        FALLBACK,
    )
    roles = {"pointwise": pointwise.on(_cut(size))}
    if connected.places > 1:
        roles["connected"] = connected
    else:
        block = (head.pooled if head and head.pooled else None) or roles["pointwise"].map_shape
        roles["connected"] = _made(_fitting(block), generator)
    if head is not None and head.pooled is not None:
        roles["pooled"] = replace(
            connected, name="global pool + FC", form=pooled_form, map_shape=_limited(head.pooled)
        )
    kernel = next((s for s in seen if s.kind == KERNEL and _is_kernel(s)), None)
    roles["kernel"] = _kernel(kernel, generator)
    return roles


def _size_of(head: Seen | None) -> tuple[int, int]:
    block = (head.block or head.pooled) if head else None
    return (1, 1) if block is None else (block[1], block[2])


def _cut(size: Sequence[int]) -> tuple[int, int]:
    return min(size[0], SIDE), min(size[1], SIDE)


def _limited(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return (shape[0], *_cut(shape[1:]))


def _fitting(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """A map on which a fully connected layer of a few outputs stays within MOST_WEIGHTS."""
    channels, height, width = _limited(shape)
    if height * width == 1:
        height, width = FALLBACK
    return min(channels, max(1, MOST_WEIGHTS // (8 * height * width))), height, width


def _made(shape: tuple[int, int, int], generator: torch.Generator) -> Operation:
    features = prod(shape)
    rows = _rows(features, MADE_OUTPUTS)
    weight = torch.randn(rows, features, generator=generator, dtype=torch.float64) / features**0.5
    bias = torch.randn(rows, generator=generator, dtype=torch.float64)
    origin = "made for the comparison, over the map before the network's own layer (random weights)"
    return Operation("fully connected", connected_form, weight, bias, shape, "", origin, rows)


def _is_kernel(layer: Seen) -> bool:
    module = layer.module
    return (
        isinstance(module, nn.Conv2d)
        and layer.groups == 1
        and prod(module.kernel_size) > 1
        and module.padding_mode == "zeros"
        and min(layer.map_shape[1:]) > max(module.kernel_size)
    )


def _kernel(layer: Seen | None, generator: torch.Generator) -> Operation:
    """The network's first ungrouped k×k convolution, for contrast; a made one where it has none."""
    if layer is None:
        weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
        form = convolution_form(padding=(1, 1))
        return Operation("3×3 convolution", form, weight, None, (3, *FALLBACK), "", "made for contrast", 4)
    module = layer.module
    assert isinstance(module, nn.Conv2d)
    weight, bias, origin = _sampled(layer)
    side = max(*module.kernel_size, SIDE)
    shape = (layer.inputs, min(layer.map_shape[1], side), min(layer.map_shape[2], side))
    form = convolution_form(module.stride, module.padding, module.dilation)
    name = "×".join(map(str, module.kernel_size)) + " convolution"
    return Operation(name, form, weight, bias, shape, layer.path, origin, layer.outputs)
