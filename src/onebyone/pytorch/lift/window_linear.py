"""A linear layer on every window of a map: as a convolution, or at few positions as a product of rows.

Equation, for the windows x_p of `C × kernel` elements at a distance of `step`, and a weight W (O, F) whose feature f is
element order[f] of a window:

    y[n, :, p] = W · x_p[order] + b = conv(x; K, b, step)[n, :, p],     K[:, e] = Σ_{f: order[f] = e} W[:, f]

At one position this is the layer that the network had. Which form is computed is decided where it runs, by
`laws.cost.rows_are_cheaper`. Exported and traced programs hold the convolution: they are for any number of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onebyone.laws.cost import rows_are_cheaper

_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


def call(target: Callable[..., Any], source: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of a tensor; for a proxy, one node of the graph that calls it.

    A pickled graph is traced again when it is loaded, so functions that look at sizes must be nodes then too.
    """
    if isinstance(source, fx.Proxy):
        return source.tracer.create_proxy("call_function", target, (source, *args), kwargs)
    return target(source, *args, **kwargs)


def linear_on_windows(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    back: Tensor | None,
    shape: Sequence[int],
    step: Sequence[int],
) -> Tensor:
    """A linear layer with weight (O, F) on each window of `source` (N, C, *positions), in the cheaper form.

    `shape` is the window's, (C, *kernel), and `step` the distance between windows. `order` (F) says which element of a
    window each feature is, None for their own order; `back` is its inverse, or None where features repeat elements or
    leave some out. Gives (N, O, *positions).

    Example
    -------
    >>> x, weight = torch.arange(12.0).reshape(1, 1, 3, 4), torch.ones(5, 4)
    >>> linear_on_windows(x, weight, None, None, None, (1, 2, 2), (1, 1))[0, 0]
    tensor([[10., 14., 18.],
            [26., 30., 34.]])
    """
    if isinstance(source, fx.Proxy):
        return call(linear_on_windows, source, weight, bias, order, back, shape, step)
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return as_convolution(source, weight, bias, order, back, shape, step)
    positions = [(n - k) // s + 1 for n, k, s in zip(source.shape[2:], shape[1:], step, strict=True)]
    if rows_are_cheaper(len(source) * prod(positions), weight.shape[0]):
        return as_rows(source, weight, bias, order, back, shape, step)
    return as_convolution(source, weight, bias, order, back, shape, step)


def as_rows(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    _back: Tensor | None,
    shape: Sequence[int],
    step: Sequence[int],
) -> Tensor:
    """The windows as rows, times the weight as it is; the weight is never copied."""
    axes = len(step)
    windows = source
    for axis, (size, stride) in enumerate(zip(shape[1:], step, strict=True)):
        windows = windows.unfold(2 + axis, size, stride)
    positions = windows.shape[2 : 2 + axes]
    rows = windows.movedim(1, 1 + axes).reshape(len(source), prod(positions), prod(shape))
    if order is not None:
        rows = rows.index_select(2, order)
    # in the order that a convolution gives, so that what follows runs as it does after one
    answers = F.linear(rows, weight, bias).transpose(1, 2).contiguous()
    return answers.reshape(len(source), weight.shape[0], *positions)


def as_convolution(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    back: Tensor | None,
    shape: Sequence[int],
    step: Sequence[int],
) -> Tensor:
    """The convolution without padding: its kernel is a view of the weight where the features are in its order."""
    if back is not None:
        weight = weight.index_select(1, back)
    elif order is not None:
        full = weight.new_zeros((weight.shape[0], prod(shape)))
        weight = full.index_add(1, order, weight)
    return _CONV[len(step) - 1](source, weight.reshape(-1, *shape), bias, tuple(step))


_EXPORTED = {
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
}
_RESHAPES = {torch.ops.aten.reshape.default, torch.ops.aten.view.default}


def choose_forms_again(network: fx.GraphModule) -> None:
    """Let the k×k layers of an exported any-size network be computed in the cheaper form again, in place.

    They are the convolutions without padding whose kernel is a matrix in another shape.
    """
    for node in network.graph.nodes:
        if node.target not in _EXPORTED or len(node.args) > 4 or node.kwargs:
            continue
        source, kernel, bias, step = (*node.args, None, None)[:4]
        shape = tuple(kernel.meta["val"].shape[1:])
        if kernel.target not in _RESHAPES or kernel.args[0].meta["val"].ndim != 2 or set(shape[1:]) == {1}:
            continue
        node.target = linear_on_windows
        node.args = (source, kernel.args[0], bias, None, None, shape, tuple(step or (1,) * len(shape[1:])))
    network.graph.eliminate_dead_code()
    network.recompile()
