"""A layer as the experiments see it: a function of a map, with the weights behind it, in float64."""

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
"""(x, weight, bias) -> y: how a weight is put to a batch of maps (N, C, h, w)."""

OWN = "the network's own"
U = unit_roundoff("float64")


@dataclass(frozen=True)
class Operation:
    """`op(x)` takes maps (N, C, h, w) in float64 and gives maps (N, O, h', w') or vectors (N, O).

    `weight` and `bias` may hold only the first of the layer's `outputs` (the layer is then sampled, and
    `sampling` says so); `origin` tells whether the layer is the network's own, the twin of one, or made.
    """

    name: str
    form: Form
    weight: Tensor
    bias: Tensor | None
    map_shape: tuple[int, int, int]
    path: str = ""
    origin: str = OWN
    outputs: int = 0
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        return self.form(x, self.weight, self.bias)

    @property
    def terms(self) -> int:
        """Products behind one output."""
        return int(self.weight[0].numel())

    @property
    def places(self) -> int:
        """Places of the map: h·w."""
        return prod(self.map_shape[1:])

    @property
    def sampling(self) -> str:
        """How much of the layer the experiments use."""
        used, whole = len(self.weight), self.outputs or len(self.weight)
        return f"all {whole} outputs" if used == whole else f"{used} of {whole} outputs"

    def magnitude(self, x: Tensor) -> Tensor:
        """|W|·|x| + |b|, in the shape of the output: what rounding errors are relative to."""
        return self.form(x.abs(), self.weight.abs(), None if self.bias is None else self.bias.abs())

    def bound(self, x: Tensor, more: int = 0) -> Tensor:
        """How far two right evaluations on x may differ (laws.bounds), each with `more` further roundings."""
        return dot_bound(self.terms + more, self.magnitude(x), U)

    def with_weight(self, weight: Tensor) -> Operation:
        """The same layer with another weight."""
        return replace(self, weight=weight)

    def first(self, outputs: int) -> Operation:
        """The same layer with its first outputs alone."""
        bias = None if self.bias is None else self.bias[:outputs]
        whole = self.outputs or len(self.weight)
        return replace(self, weight=self.weight[:outputs], bias=bias, outputs=whole)

    def on(self, size: Sequence[int]) -> Operation:
        """The same layer on a map of another size."""
        return replace(self, map_shape=(self.map_shape[0], size[0], size[1]))

    def maps(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random maps (count, C, h, w), standard normal, float64."""
        return torch.randn(count, *self.map_shape, generator=generator, dtype=torch.float64)

    def describe(self) -> dict[str, object]:
        """What the layer is and where it comes from, for the figures."""
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
    """Flatten, then a fully connected layer: weight (O, C·h·w), x (N, C, h, w) to (N, O)."""
    return F.linear(x.flatten(1), weight, bias)


def pooled_form(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Mean over the map, then a fully connected layer: weight (O, C), x (N, C, h, w) to (N, O)."""
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
    """The place in the middle of a map."""
    return tuple(n // 2 for n in size)


def jacobian_rows(op: Operation, outputs: Sequence[int], seed: int = 0) -> Tensor:
    """∂y[o] / ∂x at a random x, for each of `outputs` at the output's middle place: (len(outputs), C, h, w).

    By backpropagation through the layer as it is, so nothing about it is assumed.

    >>> weight = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    >>> op = Operation("1×1", pointwise_form, weight, None, (2, 3, 3))
    >>> int(jacobian_rows(op, [0])[0].count_nonzero())  # two channels at one of nine places
    2
    """
    x = op.maps(1, torch.Generator().manual_seed(seed)).requires_grad_()
    with torch.enable_grad():
        y = op(x)
        at: tuple[Any, ...] = (0, slice(None), *middle(y.shape[2:]))
        picked = y[at]
        rows = [torch.autograd.grad(picked[o], x, retain_graph=True)[0][0] for o in outputs]
    return torch.stack(rows)


def sample(count: int, most: int) -> list[int]:
    """At most `most` of range(count), evenly spread.

    >>> sample(3, 8), sample(100, 4)
    ([0, 1, 2], [0, 33, 66, 99])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def ratio(error: Tensor, bound: Tensor) -> float:
    """The largest error ÷ its bound, elementwise; 0 where there is no error at all."""
    if not error.numel():
        return 0.0
    worst = torch.where(error == 0, torch.zeros_like(error), error / bound)
    return float(worst.max())


def spread(y: Tensor) -> float:
    """The standard deviation of outputs; of a single one, its size; never 0, for dividing by.

    >>> spread(torch.tensor([1.0, 3.0])), spread(torch.tensor([-4.0])), spread(torch.zeros(2))
    (1.0, 4.0, 1.0)
    """
    return float(y.std(correction=0)) or float(y.abs().max()) or 1.0
