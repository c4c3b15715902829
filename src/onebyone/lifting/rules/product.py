"""Products with a constant weight: linear layers become convolutions without padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import Stencil, as_stencil
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.exported_graph import module_path
from onebyone.pytorch.lift.lifted_pairs import make_pair
from onebyone.pytorch.lift.lifter import Cannot, Const, Lifted, Walk, handle_of, op_name
from onebyone.pytorch.lift.rules import refusing, register
from onebyone.records import Change

aten = torch.ops.aten

ATTENTION = "two values that depend on the image are multiplied as matrices (attention, for one)"


@register(aten.linear.default)
def linear(walk: Walk, node: fx.Node) -> Lifted:
    """`y = x Wᵀ + b` over the last axis."""
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return product(
        walk, node, walk.value(node.args[0]), walk.value(node.args[1]), walk.value(bias), transposed=False
    )


@register(aten.addmm.default)
def addmm(walk: Walk, node: fx.Node) -> Lifted:
    """`y = b + x W`."""
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        raise Cannot("alpha or beta is not 1")
    return product(
        walk,
        node,
        walk.value(node.args[1]),
        walk.value(node.args[2]),
        walk.value(node.args[0]),
        transposed=True,
    )


refusing(ATTENTION, aten.scaled_dot_product_attention, aten.baddbmm, aten._native_multi_head_attention)


def product(walk: Walk, node: fx.Node, value: Any, weight: Any, bias: Any, *, transposed: bool) -> Lifted:
    """A linear layer over the last axis of a lifted value."""
    if not isinstance(weight, Const):
        raise Cannot(ATTENTION)
    if not isinstance(value, Lifted):
        raise Cannot("a constant is multiplied with a weight that depends on the image")
    if len(weight.shape) != 2 or not (bias is None or (isinstance(bias, Const) and len(bias.shape) == 1)):
        raise Cannot("a weight that is not a matrix, or a bias that is not a vector")
    stencil = as_stencil(value.indices(), value.grid)
    if isinstance(stencil, str):
        raise Cannot(stencil)
    matrix = handle_of(weight)
    matrix = matrix.t() if transposed else matrix
    vector = None if bias is None else handle_of(bias)
    if value.affine is not None:
        scale, shift = value.affine
        vector = matrix @ shift if vector is None else vector + matrix @ shift
        matrix = matrix * scale
    out = weight.shape[1 if transposed else 0]
    handle = emitter.linear(value.handle, matrix, vector, stencil, value.grid.channels)
    ops = [Sliding(k, s) for k, s in zip(stencil.kernel, stencil.step, strict=True)]
    spans = [(s, s) for s in stencil.start]
    rest = [n - s for n, s in zip(value.grid.nominal, stencil.start, strict=True)]
    grid = value.grid.gathered(value.grid.channels, spans, (1,) * walk.axes, rest).through(ops, out)
    grid = replace(grid, nominal=stencil.nominal)
    index = stencil.out_index(out)
    _record(walk, node, value, stencil, weight, bias, transposed)
    plain = index.shape == grid.shape and np.array_equal(index.ravel(), np.arange(index.size))
    return Lifted(handle, grid, None if plain else index, value.pooled)


def _record(
    walk: Walk, node: fx.Node, value: Lifted, stencil: Stencil, weight: Const, bias: Any, transposed: bool
) -> None:
    kernel = "×".join(str(k) for k in stencil.kernel)
    out = weight.shape[1 if transposed else 0]
    copied = emitter.copies(stencil, value.grid.channels) or value.affine is not None
    pointwise = all(k == 1 for k in stencil.kernel)
    shape = (out, value.grid.channels, *stencil.kernel)
    walk.changes.append(
        Change(
            path=module_path(node),
            kind=op_name(node.target),
            law="linear = pointwise convolution"
            if pointwise
            else "flatten∘linear = convolution without padding",
            before=f"linear {tuple(weight.shape)}",
            after=f"{kernel} convolution {shape}",
            copied_bytes=int(np.prod(shape)) * node.meta["val"].element_size() if copied else 0,
        )
    )
    walk.pairs.append(make_pair(walk, node, value, stencil, weight, bias, transposed))
