"""Linear layers become convolutions without padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onebyone.lifting.index import as_stencil
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Linear, LinearLayer
from onebyone.lifting.values import Cannot, Const, Lifted
from onebyone.records import by

ATTENTION = "two values that depend on the image are multiplied as matrices (attention, for example)"


def linear(lifter: Lifter, call: Call, operator: Linear) -> Lifted:
    """A linear layer over one axis of a lifted value."""
    value, weight, bias = operator.source, operator.weight, operator.bias
    if not isinstance(weight, Const):
        raise Cannot(ATTENTION)
    if not isinstance(value, Lifted):
        raise Cannot("a constant is multiplied with a weight that depends on the image")
    if len(weight.shape) != 2 or not (bias is None or (isinstance(bias, Const) and len(bias.shape) == 1)):
        raise Cannot("a weight that is not a matrix, or a bias that is not a vector")
    stencil = as_stencil(np.moveaxis(value.indices(), operator.axis, -1), value.grid)
    if isinstance(stencil, str):
        raise Cannot(stencil)
    emit, matrix = lifter.emit, weight.handle
    if operator.transposed:
        matrix = emit.permute(matrix, (1, 0))
    vector = None if bias is None else bias.handle
    if value.affine is not None:  # W (s·x + t) + b = (W·s) x + (W t + b)
        scale, shift = value.affine
        shift = emit.matrix_vector(matrix, shift)
        vector = shift if vector is None else emit.add(vector, shift)
        matrix = emit.multiply(matrix, scale)
    out = weight.shape[1 if operator.transposed else 0]
    handle = emit.linear(value.handle, matrix, vector, stencil, value.grid.channels)
    grid = replace(stencil.gather().grid(value.grid), channels=out)
    layer = LinearLayer(call, value, stencil, weight, bias, operator.transposed, operator.axis)
    lifter.linear_layers.append(layer)
    _record_change(lifter, layer, out)
    result = Lifted(handle, grid, None, value.pooled)
    return result.with_index(np.ascontiguousarray(np.moveaxis(stencil.out_index(out), -1, operator.axis)))


def _record_change(lifter: Lifter, layer: LinearLayer, out: int) -> None:
    source, stencil = layer.source, layer.stencil
    order, _ = stencil.feature_order(source.grid.channels)
    copies = order is not None or source.affine is not None
    shape = (out, source.grid.channels, *stencil.kernel)
    lifter.change(
        layer.call,
        layer.law,
        f"{'linear' if layer.axis == -1 else '1×1 convolution'} {tuple(layer.weight.shape)}",
        f"{by(stencil.kernel)} convolution {shape}",
        int(np.prod(shape)) * layer.call.dtype.itemsize if copies else 0,
    )
