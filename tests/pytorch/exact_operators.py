"""Networks without padding around one operator each: those that act on each element, along the channels of a place,
or over the places of a window. Dense must equal crops, as in `exact_networks`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tests.pytorch.anysize import Apply

Function = Callable[[torch.Tensor], torch.Tensor]


def around(function: Function, features: int) -> Callable[[], nn.Module]:
    """A network that applies the function to a map of 4 channels and 4×4 places, windows of 6 pixels."""
    return lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Apply(function), nn.Flatten(), nn.Linear(features, 3))


def split(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both halves of the channels."""
    return y[:, :2], y[:, 2:]


def standardised(y: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(y, 1, keepdim=True)
    return (y - mean) / variance.sqrt()


def scaled(y: torch.Tensor) -> torch.Tensor:
    deviation, mean = torch.std_mean(y, 1, correction=2, keepdim=True)
    return (y - mean) / deviation


#: By name: what is applied, and how many features it gives in one window.
ALONG: dict[str, tuple[Function, int]] = {
    "variance over channels": (
        lambda y: (y - y.mean(1, True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt(),
        64,
    ),
    "standard deviation over channels": (lambda y: y / y.std(1, keepdim=True), 64),
    "variance and mean over channels": (standardised, 64),
    "deviation and mean over channels, by another correction": (scaled, 64),
    "variance over places": (lambda y: y.var((2, 3)), 4),
    "standard deviation over flattened places": (lambda y: y.flatten(2).std(2), 4),
    "variance over channels and places": (lambda y: y.var((1, 2, 3))[:, None], 1),
    "variance of the flattened map": (lambda y: y.flatten(1).var(1, keepdim=True), 1),
    "deviation over the phases of a stride": (
        lambda y: y.unflatten(2, (2, 2)).unflatten(4, (2, 2)).std((3, 5)),
        16,
    ),
    "maximum over the phases of a stride": (
        lambda y: y.unflatten(2, (2, 2)).unflatten(4, (2, 2)).amax((3, 5)),
        16,
    ),
    "log-sum-exp over channels": (lambda y: y.logsumexp(1), 16),
    "log-sum-exp over places": (lambda y: y.logsumexp((2, 3)), 4),
    "softmax over groups of channels": (lambda y: y.unflatten(1, (2, 2)).softmax(1).flatten(1, 2), 64),
    "softmax over places": (lambda y: y.flatten(2).softmax(2), 64),
    "logarithm of softmax over channels": (lambda y: y.log_softmax(1), 64),
    "running sum": (lambda y: y.cumsum(1), 64),
    "running product": (lambda y: y.cumprod(1), 64),
    "running maximum": (lambda y: y.cummax(1)[0], 64),
    "sorted channels": (lambda y: y.sort(1).values, 64),
    "sorted channels, stable and descending": (lambda y: y.sort(dim=1, descending=True, stable=True)[0], 64),
    "order of the channels": (lambda y: y.argsort(1).to(y.dtype) * y, 64),
    "two largest channels": (lambda y: y.topk(2, 1)[0], 32),
    "places of the two largest channels": (lambda y: y.topk(2, 1)[1].to(y.dtype), 32),
    "second smallest channel": (lambda y: y.kthvalue(2, 1, keepdim=True)[0], 16),
    "median channel": (lambda y: y.median(1)[0], 16),
    "largest channel by max": (lambda y: y.max(1)[0], 16),
    "largest channel and which": (lambda y: y.max(1)[0] + y.max(1)[1], 16),
    "largest place by max": (lambda y: y.flatten(2).max(2)[0], 4),
    "which place is smallest": (lambda y: y.flatten(2).min(2)[1].to(y.dtype), 4),
    "which channel is largest": (lambda y: y.argmax(1).to(y.dtype), 16),
    "maximum over channels and places": (lambda y: y.amax((1, 2, 3))[:, None], 1),
    "mean of the flattened map": (lambda y: y.flatten(1).mean(1, keepdim=True), 1),
    "mean over channels, height and width": (lambda y: y.mean((1, 2, 3), keepdim=True), 1),
    "norm of order 1": (lambda y: y / y.norm(p=1, dim=1, keepdim=True), 64),
    "norm of infinite order of all": (
        lambda y: torch.linalg.vector_norm(y, float("inf"), (1, 2, 3))[:, None],
        1,
    ),
    "unit vectors of channels": (lambda y: F.normalize(y, dim=1), 64),
    "product of channels": (lambda y: y.prod(1), 16),
    "any channel": (lambda y: (y > 0).any(1).to(y.dtype), 16),
    "differences of channels": (lambda y: y.diff(dim=1), 48),
    "maxout": (lambda y: y.unflatten(1, (2, 2)).max(2)[0], 32),
    "maxout by a pool": (lambda y: F.max_pool3d(y, (2, 1, 1)), 32),
    "powers averaged": (lambda y: F.lp_pool2d(y, 2, 2), 16),
}

ELEMENTS: dict[str, tuple[Function, int]] = {
    "comparison with a number": (lambda y: (y > 0.1) * y, 64),
    "where": (lambda y: torch.where(y > 0, y, y.square() * 0.1), 64),
    "where, by the mean channel": (lambda y: torch.where(y > y.mean(1, True), y, 0.0), 64),
    "where, by one channel": (lambda y: torch.where(y[:, :1] > 0, y, torch.tensor(2.0)), 64),
    "filled by a mask": (lambda y: y.masked_fill(y < 0, 0.3), 64),
    "maximum of two": (lambda y: torch.max(*split(y)), 32),
    "minimum of two": (lambda y: torch.min(*split(y)), 32),
    "angle of two": (lambda y: torch.atan2(*split(y)), 32),
    "clamped by tensors": (lambda y: torch.clamp(y, y[:, :1] - 0.1, y[:, :1] + 0.1), 64),
    "between two by a number": (lambda y: torch.lerp(*split(y), 0.3), 32),
    "between two by a third": (lambda y: torch.lerp(*split(y), y[:, 1:3]), 32),
    "logic": (lambda y: ((y > 0) & (y < 1) | ~(y > -1)).to(y.dtype), 64),
    "equality": (lambda y: (y.round() == 0).to(y.dtype), 64),
    "remainders": (lambda y: (y % 0.5) + torch.fmod(y, 0.3), 64),
    "rounding and hyperbolic functions": (
        lambda y: y.trunc() + y.ceil() + y.frac() + y.sinh() + y.cosh(),
        64,
    ),
    "powers": (lambda y: y.exp2() + y.erfc() + 2**y + torch.float_power(y.abs(), 1.5).to(y.dtype), 64),
    "tests of finiteness": (
        lambda y: y.isnan().to(y.dtype) + y.isfinite().to(y.dtype) * y.sigmoid().logit(),
        64,
    ),
    "ones added": (lambda y: y + torch.ones(y.shape, dtype=y.dtype), 64),
    "rectified by the mean random slope": (F.rrelu, 64),
}

CONSTANTS: dict[str, tuple[Function, int]] = {
    "zero channels from zeros_like": (lambda y: torch.cat([y, torch.zeros_like(y[:, :2])], 1).relu(), 96),
    "zero channels from new_zeros": (
        lambda y: torch.cat([y.new_zeros(y.shape[0], 2, *y.shape[2:]), y], 1).relu(),
        96,
    ),
    "channels of a number": (
        lambda y: torch.cat([torch.full((y.shape[0], 1, *y.shape[2:]), 0.5, dtype=y.dtype), y], 1),
        80,
    ),
    "features of a number": (lambda y: F.pad(y.flatten(1), (1, 2), value=0.5), 67),
    "last axis padded": (lambda y: F.pad(y.permute(0, 2, 3, 1), (0, 2)), 96),
    "local response norm": (nn.LocalResponseNorm(3), 64),
    "local response norm of an even size": (nn.LocalResponseNorm(2, alpha=0.7, k=0.3), 64),
    "maximum over neighbouring channels": (lambda y: F.max_pool3d(y[:, None], (2, 1, 1), 1)[:, 0], 48),
    "channels by a list": (lambda y: y[:, [2, 0, 1]], 48),
    "channels by index_select": (lambda y: y.index_select(1, torch.tensor([3, 1])), 32),
    "channels by take_along_dim": (
        lambda y: torch.take_along_dim(y, torch.tensor([3, 1]).view(1, 2, 1, 1), 1),
        32,
    ),
    "product on the left": (lambda y: torch.tensordot(y, torch.eye(4, 2, dtype=y.dtype), ([1], [0])), 32),
}


class WithWeight(nn.Module):
    """A product of a map with a parameter, written in some way, between a convolution and a linear layer."""

    def __init__(
        self,
        function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        shape: tuple[int, ...],
        features: int,
    ) -> None:
        super().__init__()
        self.conv, self.weight, self.function = nn.Conv2d(3, 4, 3), nn.Parameter(torch.empty(shape)), function
        self.head = nn.Linear(features, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self.conv(x), self.weight).flatten(1))


def equation(
    text: str, before: Function = lambda y: y
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """An einsum of what `before` makes of the map, and the weight."""
    return lambda y, w: torch.einsum(text, before(y), w)


def halves(y: torch.Tensor) -> torch.Tensor:
    return y.unflatten(1, (2, 2))


def heads(y: torch.Tensor) -> torch.Tensor:
    """Tokens of two heads, `(N, heads, places, channels)`."""
    return y.flatten(2).unflatten(1, (2, 2)).transpose(2, 3)


PRODUCTS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tuple[int, ...], int]] = {
    "einsum over the flattened map": (equation("bf,fo->bo", lambda y: y.flatten(1)), (64, 5), 5),
    "einsum over channels": (equation("bchw,co->bohw"), (4, 5), 80),
    "einsum with an ellipsis": (equation("b...c,oc->b...o", lambda y: y.permute(0, 2, 3, 1)), (5, 4), 80),
    "einsum that scales channels": (equation("bchw,c->bchw"), (4,), 64),
    "einsum of groups": (equation("bgchw,gco->bgohw", halves), (2, 2, 3), 96),
    "einsum of groups, added": (equation("bgchw,gco->bohw", halves), (2, 2, 3), 48),
    "einsum to one number a place": (equation("bchw,c->bhw"), (4,), 16),
    "einsum that adds up the places": (equation("bchw,co->bo"), (4, 3), 3),
    "einsum over the whole map": (equation("bchw,chwo->bo"), (4, 4, 4, 3), 3),
    "einsum of an outer product": (equation("bf,o->bfo", lambda y: y.mean((2, 3))), (2,), 8),
    "einsum of heads": (equation("bhnd,hde->bhne", heads), (2, 2, 2), 64),
    "einsum of heads that share a weight": (equation("bhnd,de->bhne", heads), (2, 2), 64),
    "einsum without an arrow": (equation("bchw,cz"), (4, 5), 80),
    "einsum of two maps": (lambda y, w: torch.einsum("bchw,bchw->bhw", y, y * w), (1,), 16),
    "matrix on the left": (lambda y, w: w @ y.flatten(2), (5, 4), 80),
    "matrix on the left, for all samples": (lambda y, w: w @ y.flatten(2), (1, 5, 4), 80),
    "matrix of each group": (lambda y, w: heads(y) @ w, (2, 2, 3), 96),
    "vector on the right": (lambda y, w: y.permute(0, 2, 3, 1) @ w, (4,), 16),
    "inner product": (lambda y, w: torch.inner(y.permute(0, 2, 3, 1), w), (5, 4), 80),
    "tensordot": (lambda y, w: torch.tensordot(y, w, ([1], [0])), (4, 2), 32),
    "maximum with a constant a channel": (lambda y, w: torch.maximum(y, w[:, None, None]), (4,), 64),
    "where, by a constant a channel": (lambda y, w: torch.where(w[:, None, None] > 0, y, w[0]), (4,), 64),
}


class Chosen(nn.Module):
    """CondenseNet's: channels chosen by an index that the checkpoint holds."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.conv, self.head, self.written = nn.Conv2d(3, 4, 3), nn.Linear(48, 3), written
        self.register_buffer("index", torch.tensor([3, 0, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.head((y[:, self.index] if self.written else y.index_select(1, self.index)).flatten(1))


class Pyramid(nn.Module):
    """PyramidNet's shortcut: a residual with zero channels added, then another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)
        self.third, self.head = nn.Conv2d(6, 3, 3), nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = self.second(y) + F.pad(y, (0, 0, 0, 0, 0, 2))
        return self.head(self.third(y).flatten(1))


OPERATORS: dict[str, tuple[Callable[[], nn.Module], int, int | None]] = {
    "channels chosen by a buffer": (lambda: Chosen(False), 6, None),
    "channels indexed by a buffer": (lambda: Chosen(True), 6, None),
    "zero channels in a shortcut": (Pyramid, 6, None),
}
OPERATORS |= {
    name: (around(function, features), 6, None)
    for name, (function, features) in (ALONG | ELEMENTS | CONSTANTS).items()
}
OPERATORS |= {
    name: (partial(WithWeight, function, shape, features), 6, None)
    for name, (function, shape, features) in PRODUCTS.items()
}
