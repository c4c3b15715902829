"""Faults that a conversion could make, injected into a layer's weights to show that a check would see them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Params = dict[str, Tensor]


def injected(params: Params, map_shape: tuple[int, ...] | None = None) -> dict[str, Callable[[], Params]]:
    """For each fault that the shapes allow, a function that makes the faulty parameters.

    `params` are a layer's weight and bias; `map_shape` is the shape (C, h, w) of the feature map that was flattened
    into the layer's features (None if there was no flatten).

    >>> faults = injected({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    >>> [(name, make()["weight"].tolist(), make()["bias"].tolist()) for name, make in faults.items()]
    [('bias dropped', [[1.0, 2.0]], [0.0]), ('weight order shifted by one', [[2.0, 1.0]], [3.0])]
    """
    weight, bias = params["weight"], params.get("bias")
    faults: dict[str, Callable[[], Params]] = {}
    if bias is not None:
        faults["bias dropped"] = lambda: params | {"bias": torch.zeros_like(bias)}
    # the input features if there are several, else any other axis
    axes = (1, 0, *range(2, weight.dim()))
    axis = next((a for a in axes if weight.dim() > a and weight.shape[a] > 1), None)
    if axis is not None:
        faults["weight order shifted by one"] = lambda: params | {"weight": weight.roll(1, axis)}
    if weight.dim() == 2 and weight.shape[0] == weight.shape[1] > 1:
        faults["weight transposed"] = lambda: params | {"weight": weight.t().contiguous()}
    if math.prod(weight.shape[2:]) > 1 and weight.shape[1] > 1:
        faults["kernel order swapped (channels last)"] = lambda: (
            params | {"weight": weight.movedim(1, -1).reshape(weight.shape)}
        )
    if weight.dim() > 3 and min(weight.shape[-2:]) > 1:
        faults["kernel order swapped (height and width)"] = lambda: (
            params | {"weight": weight.transpose(-1, -2).reshape(weight.shape)}
        )
    if map_shape is not None and weight.dim() == 2 and weight.shape[1] == math.prod(map_shape):
        unflattened = weight.reshape(weight.shape[0], *map_shape)
        if map_shape[0] > 1 and math.prod(map_shape[1:]) > 1:
            faults["flatten order swapped (channels last)"] = lambda: (
                params | {"weight": unflattened.movedim(1, -1).reshape(weight.shape)}
            )
        if len(map_shape) > 2 and min(map_shape[-2:]) > 1:
            faults["flatten order swapped (height and width)"] = lambda: (
                params | {"weight": unflattened.transpose(-1, -2).reshape(weight.shape)}
            )
    return faults
