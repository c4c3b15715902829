"""A layer as the experiments evaluate it: a function of a feature map with explicit weights, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.laws.bounds import dot_bound, unit_roundoff

Form = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Computes y from (x, weight, bias), for a batch x of maps (N, C, h, w)."""

FROM_NETWORK = "a layer of the network"
"""Where an operation comes from, unless it was converted or created for the comparison."""
UNIT_ROUNDOFF = unit_roundoff("float64")


@dataclass(frozen=True)
class Operation:
    """A layer: `op(x)` takes maps (N, C, h, w) in float64 and returns maps (N, O, h', w') or vectors (N, O).

    `map_shape` is (C, h, w). `weight` and `bias` may hold only the first of the layer's `outputs`; `sampling` then
    says so. `origin` states whether it is a layer of the network, was converted from one, or was created for the
    comparison.
    """

    name: str
    form: Form
    weight: Tensor
    bias: Tensor | None
    map_shape: tuple[int, int, int]
    path: str = ""
    origin: str = FROM_NETWORK
    outputs: int = 0
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        return self.form(x, self.weight, self.bias)

    @property
    def terms(self) -> int:
        """Products that are summed for one output."""
        return int(self.weight[0].numel())

    @property
    def positions(self) -> int:
        """Positions of the map: h·w."""
        return prod(self.map_shape[1:])

    @property
    def sampling(self) -> str:
        """How many of the layer's outputs the experiments use."""
        used, total = len(self.weight), self.outputs or len(self.weight)
        return f"all {total} outputs" if used == total else f"{used} of {total} outputs"

    def magnitude(self, x: Tensor) -> Tensor:
        """|W|·|x| + |b| in the shape of the output: the scale of rounding errors."""
        return self.form(x.abs(), self.weight.abs(), None if self.bias is None else self.bias.abs())

    def bound(self, x: Tensor, extra_roundings: int = 0) -> Tensor:
        """The largest difference between two correct evaluations on x, in the shape of the output (laws.bounds)."""
        return dot_bound(self.terms + extra_roundings, self.magnitude(x), UNIT_ROUNDOFF)

    def with_weight(self, weight: Tensor) -> Operation:
        """The same layer with a different weight."""
        return replace(self, weight=weight)

    def first(self, outputs: int) -> Operation:
        """The same layer restricted to its first outputs."""
        bias = None if self.bias is None else self.bias[:outputs]
        total = self.outputs or len(self.weight)
        return replace(self, weight=self.weight[:outputs], bias=bias, outputs=total)

    def on(self, size: Sequence[int]) -> Operation:
        """The same layer on a map of another size (h, w)."""
        return replace(self, map_shape=(self.map_shape[0], size[0], size[1]))

    def maps(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random maps (count, C, h, w), standard normal, float64."""
        return torch.randn(count, *self.map_shape, generator=generator, dtype=torch.float64)

    def describe(self) -> dict[str, object]:
        """The layer's name, shapes and origin, for the figures."""
        return {
            "name": self.name,
            "layer": self.path,
            "origin": self.origin,
            "map": list(self.map_shape),
            "outputs": self.outputs or len(self.weight),
            "sampled": self.sampling,
        }


def pointwise_form(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1×1 convolution: weight (O, C, 1, 1), x (N, C, h, w) to (N, O, h, w)."""
    return F.conv2d(x, weight, bias)


def connected_form(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Flatten and a fully connected layer: weight (O, C·h·w), x (N, C, h, w) to (N, O)."""
    return F.linear(x.flatten(1), weight, bias)


def pooled_form(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Mean over the map and a fully connected layer: weight (O, C), x (N, C, h, w) to (N, O)."""
    return F.linear(x.mean(dim=(2, 3)), weight, bias)


def convolution_form(
    stride: Sequence[int] = (1, 1),
    padding: str | Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Form:
    """A convolution with these settings: weight (O, C/groups, kh, kw)."""

    def form(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pad = padding if isinstance(padding, str) else tuple(padding)
        return F.conv2d(x, weight, bias, tuple(stride), pad, tuple(dilation), groups)

    return form


def middle(size: Sequence[int]) -> tuple[int, ...]:
    """The position in the middle of a map."""
    return tuple(n // 2 for n in size)


def jacobian_rows(op: Operation, outputs: Sequence[int], seed: int = 0) -> Tensor:
    """∂y[o] / ∂x at a random x, for each of `outputs` at the output's middle position: (len(outputs), C, h, w).

    Computed by backpropagation, which assumes nothing about the layer.

    >>> weight = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    >>> op = Operation("1×1", pointwise_form, weight, None, (2, 3, 3))
    >>> int(jacobian_rows(op, [0])[0].count_nonzero())  # two channels at one of nine positions
    2
    """
    x = op.maps(1, torch.Generator().manual_seed(seed)).requires_grad_()
    with torch.enable_grad():
        y = op(x)
        at: tuple[Any, ...] = (0, slice(None), *middle(y.shape[2:]))
        picked = y[at]
        rows = [torch.autograd.grad(picked[o], x, retain_graph=True)[0][0] for o in outputs]
    return torch.stack(rows)


def sample(count: int, limit: int) -> list[int]:
    """At most `limit` values of range(count), evenly spaced.

    >>> sample(3, 8), sample(100, 4)
    ([0, 1, 2], [0, 33, 66, 99])
    """
    if count <= limit:
        return list(range(count))
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]


def ratio(error: Tensor, bound: Tensor) -> float:
    """The largest elementwise quotient error ÷ bound; 0 if all errors are 0."""
    if not error.numel():
        return 0.0
    ratios = torch.where(error == 0, torch.zeros_like(error), error / bound)
    return float(ratios.max())


def spread(y: Tensor) -> float:
    """The standard deviation of outputs, or the magnitude of a single one; never 0, so that one can divide by it.

    >>> spread(torch.tensor([1.0, 3.0])), spread(torch.tensor([-4.0])), spread(torch.zeros(2))
    (1.0, 4.0, 1.0)
    """
    return float(y.std(correction=0)) or float(y.abs().max()) or 1.0
