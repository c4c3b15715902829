"""Cost: parameters, multiply-accumulates (MACs) and bytes of each form, computed from shapes.

Equation, for a convolution from C to O channels in G groups with kernel k, at P output positions of N images:

    parameters = O·(C/G)·Πk + O·[bias]
    macs       = N·P·O·(C/G)·Πk
    bytes      = itemsize·(input positions read + parameters) read, itemsize·N·P·O written

A linear layer on tokens is the case k = 1, G = 1, P = tokens. On an h×w map, flatten + linear and the h×w convolution
have the same cost (P = 1, k = h×w); a 1×1 convolution on that map has h·w times fewer weights and the same number of
MACs. Cropping every window costs the number of windows times the cost of one; a dense pass computes overlapping parts
only once.

Conventions: each element is moved once (perfect caches), so bytes are a lower bound; MACs on padding are counted, as is
usual. Not counted: bias additions, activations, normalisations and pooling arithmetic; layout copies and im2col
buffers; repeated reads after cache misses; the savings of Winograd and FFT convolutions. One MAC is two floating-point
operations.

The counts predict which form is fastest before anything is run. On a processor that performs r MACs per second with the
library routine of a form, moves b bytes per second and needs c seconds per call,

    seconds = c + macs/r + bytes/b + (bytes of the weights)/(rate of repacking) + (bytes copied)/(rate of copying)

This is an additive roofline: it assumes that nothing overlaps. The rates are those of
DEFAULT, or fitted to measurements by `fit`.

Source: Sze et al., "Efficient Processing of Deep Neural Networks", 2017, §III (MACs, weights); Williams,
Waterman and Patterson, "Roofline", 2009 (operational intensity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from onebyone.errors import BadInput
from onebyone.laws.geometry import Sliding

NAME = "cost"
EQUATION = "macs = N·P·O·(C/G)·Πk;  parameters = O·(C/G)·Πk + O·[bias]"


@dataclass(frozen=True)
class Cost:
    """Cost of one form of one or several layers; costs can be added.

    >>> Cost(parameters=10, macs=400, bytes_read=60, bytes_written=40).macs_per_byte
    4.0
    """

    parameters: int = 0
    macs: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def macs_per_byte(self) -> float:
        """Arithmetic intensity: MACs per byte moved (0 if no bytes are moved)."""
        return self.macs / self.bytes_moved if self.bytes_moved else 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    def repeated(self, times: int) -> Cost:
        """Cost of running the layers `times` times: parameters are stored once but read each time."""
        return Cost(self.parameters, self.macs * times, self.bytes_read * times, self.bytes_written * times)


@dataclass(frozen=True)
class Layer:
    """Shape of a convolution, or of a pool if `out_channels` is None, with one `Sliding` per axis.

    A linear layer on C×h×w features is `Layer(C, O, (Sliding(h), Sliding(w)))`, its dense form.
    """

    in_channels: int
    out_channels: int | None
    ops: tuple[Sliding, ...]
    groups: int = 1
    bias: bool = True

    def out_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Number of output positions per axis."""
        return tuple(op.out_size(n) for op, n in zip(self.ops, size, strict=True))

    def cost(self, size: Sequence[int], batch: int = 1, itemsize: int = 4) -> Cost:
        """Cost on feature maps of `size` positions per axis. A pool has no MACs; its bytes are counted."""
        out = self.out_size(size)
        read = (
            batch
            * self.in_channels
            * prod(_positions_read(op, n) for op, n in zip(self.ops, size, strict=True))
        )
        if self.out_channels is None:
            written = batch * self.in_channels * prod(out)
            return Cost(bytes_read=itemsize * read, bytes_written=itemsize * written)
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise BadInput(
                f"{self.in_channels} and {self.out_channels} channels do not divide into {self.groups} groups"
            )
        taps = self.in_channels // self.groups * prod(op.kernel for op in self.ops)
        parameters = self.out_channels * (taps + self.bias)
        written = batch * self.out_channels * prod(out)
        return Cost(
            parameters=parameters,
            macs=written * taps,
            bytes_read=itemsize * (read + parameters),
            bytes_written=itemsize * written,
        )


def linear(rows: int, in_features: int, out_features: int, *, bias: bool = True, itemsize: int = 4) -> Cost:
    """A linear layer on `rows` vectors (batch × tokens).

    >>> linear(1, 512 * 7 * 7, 4096).parameters
    102764544
    """
    return convolution(rows, in_features, out_features, (), (), bias=bias, itemsize=itemsize)


def pointwise(
    batch: int,
    in_channels: int,
    out_channels: int,
    size: Sequence[int],
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
    itemsize: int = 4,
) -> Cost:
    """A 1×1 convolution on maps of `size`; with a stride it reads only the positions it keeps.

    >>> pointwise(1, 64, 256, (56, 56)) == linear(56 * 56, 64, 256)
    True
    """
    ops = [Sliding(1, stride=stride) for _ in size]
    return convolution(
        batch, in_channels, out_channels, ops, size, groups=groups, bias=bias, itemsize=itemsize
    )


def convolution(
    batch: int,
    in_channels: int,
    out_channels: int,
    ops: Sequence[Sliding],
    size: Sequence[int],
    *,
    groups: int = 1,
    bias: bool = True,
    itemsize: int = 4,
) -> Cost:
    """A convolution with one `Sliding` per axis on maps of `size`.

    >>> convolution(1, 3, 64, [Sliding(3, pad_before=1, pad_after=1)] * 2, (224, 224)).macs
    86704128
    """
    return Layer(in_channels, out_channels, tuple(ops), groups, bias).cost(size, batch, itemsize)


def flatten_linear(
    batch: int, channels: int, size: Sequence[int], out_features: int, *, bias: bool = True, itemsize: int = 4
) -> Cost:
    """Flatten, then linear, on maps of `size`: Π size times the weights of a 1×1 convolution, and equally many MACs.

    >>> flat, point = flatten_linear(1, 8, (5, 6), 10, bias=False), pointwise(1, 8, 10, (5, 6), bias=False)
    >>> flat.parameters // point.parameters, flat.macs == point.macs
    (30, True)
    """
    return linear(batch, channels * prod(size), out_features, bias=bias, itemsize=itemsize)


def network(layers: Sequence[Layer], size: Sequence[int], batch: int = 1, itemsize: int = 4) -> Cost:
    """A chain of layers on images of `size` pixels per axis.

    Raises
    ------
    BadInput
        if a layer has no output position.
    """
    total = Cost()
    for number, layer in enumerate(layers):
        total += layer.cost(size, batch, itemsize)
        size = layer.out_size(size)
        if min(size) < 1:
            raise BadInput(f"the image is too small: layer {number} has no output position")
    return total


def every_window(
    layers: Sequence[Layer],
    window: Sequence[int],
    positions: Sequence[int],
    batch: int = 1,
    itemsize: int = 4,
) -> Cost:
    """A chain of layers run on Π positions cropped windows, `batch` at a time; weights are read once per batch.

    >>> layers = [Layer(1, 8, (Sliding(5),) * 2), Layer(8, 10, (Sliding(24),) * 2)]
    >>> windows, dense = every_window(layers, (28, 28), (101, 101)), network(layers, (128, 128))
    >>> round(windows.macs / dense.macs, 2)
    3.48
    """
    full, rest = divmod(prod(positions), batch)
    total = network(layers, window, batch, itemsize).repeated(full)
    if rest:
        total += replace(network(layers, window, rest, itemsize), parameters=0)
    return total


@dataclass(frozen=True)
class Work:
    """The amount of work of one layer in one form.

    `form` is the name of the form. `path` is the library routine: "linear" (BLAS), "batched" (batched BLAS product),
    "conv" or "conv-channels-last" (the convolution library with either layout). `bytes` counts operands read and
    written once; `weights` the bytes of the weights, which a routine may repack at each call; `copied` the bytes read
    and written by layout changes; `rows` is the number of rows of the product (batch × positions).
    """

    form: str
    path: str
    macs: int
    bytes: int
    weights: int = 0
    copied: int = 0
    rows: int = 1


@dataclass(frozen=True)
class Processor:
    """The rates of a processor. The first three are per library routine (see `Work.path`)."""

    seconds_per_mac: Mapping[str, float]
    seconds_per_weight_byte: Mapping[str, float]
    seconds_per_call: Mapping[str, float]
    seconds_per_byte: float
    seconds_per_copied_byte: float
    measurements: int = field(default=0, compare=False)

    def seconds(self, work: Work) -> float:
        """The predicted time of one call.

        Raises
        ------
        BadInput
            if the rates of the path are unknown.
        """
        if work.path not in self.seconds_per_mac:
            raise BadInput(f"path={work.path!r}: expected one of {', '.join(self.seconds_per_mac)}")
        return (
            self.seconds_per_call[work.path]
            + self.seconds_per_mac[work.path] * work.macs
            + self.seconds_per_weight_byte[work.path] * work.weights
            + self.seconds_per_byte * work.bytes
            + self.seconds_per_copied_byte * work.copied
        )


#: Unfolding is faster up to this many positions, and up to one position per this many outputs.
UNFOLDED_POSITIONS, OUTPUTS_PER_POSITION = 64, 16


def rows_are_cheaper(positions: int, outputs: int) -> bool:
    """Whether a k×k convolution without padding is faster as a matrix product of unfolded windows with the weight.

    `positions` counts the output positions of the whole batch. A convolution library reorders the O·F weights at each
    call; unfolding copies P·F values of the feature map; both compute the same product. So unfolding is faster at few
    positions:

        P ≤ max(1, min(O / 16, 64))

    Reordering a weight takes longer than copying a value, but the library's product is faster. The two constants are
    chosen below the break-even points measured on two cores of an AMD EPYC (PyTorch 2.13, oneDNN): 9 to 16 positions
    at 256 outputs, 16 to 36 at 512, and 100 at 4,096. At one position nothing is copied, and the product is the linear
    layer of the original network.

    >>> [rows_are_cheaper(p, 4096) for p in (1, 64, 65)], rows_are_cheaper(1, 2), rows_are_cheaper(17, 256)
    ([True, True, False], True, False)
    """
    return positions <= max(1, min(outputs // OUTPUTS_PER_POSITION, UNFOLDED_POSITIONS))


PATHS = ("linear", "batched", "conv", "conv-channels-last")


def rank(works: Sequence[Work], processor: Processor | None = None) -> tuple[str, ...]:
    """Names of the forms, the fastest prediction first; ties keep their order.

    >>> weights = 4 * 10**8  # bytes, read for one vector
    >>> rank([Work(path, path, 10**8, weights, weights) for path in ("conv", "linear")])
    ('linear', 'conv')
    """
    processor = DEFAULT if processor is None else processor
    return tuple(work.form for work in sorted(works, key=processor.seconds))


def fit(measured: Sequence[tuple[Work, float]]) -> Processor:
    """Fit the rates to measured seconds: nonnegative least squares of the relative errors.

    Source: Lawson and Hanson, "Solving Least Squares Problems", 1974, ch. 23 (algorithm NNLS).

    Raises
    ------
    BadInput
        if a path was not measured, or a time is not positive.
    """
    paths = sorted({work.path for work, _ in measured})
    if set(paths) != set(PATHS) or any(not seconds > 0 for _, seconds in measured):
        raise BadInput(
            f"measured: expected positive seconds on every path of {', '.join(PATHS)}; has {paths}"
        )
    rows = np.array([_features(work, paths) for work, _ in measured], dtype=float)
    rows /= np.array([[seconds] for _, seconds in measured])
    used = rows.any(axis=0)  # the rate of work that was not measured is 0
    scale, rates = np.linalg.norm(rows[:, used], axis=0), np.zeros(rows.shape[1])
    rates[used] = _nonnegative(rows[:, used] / scale, np.ones(len(rows))) / scale
    n = len(paths)
    macs, weights, calls = (
        dict(zip(paths, map(float, rates[i * n : (i + 1) * n]), strict=True)) for i in range(3)
    )
    return Processor(macs, weights, calls, float(rates[3 * n]), float(rates[3 * n + 1]), len(measured))


def _features(work: Work, paths: Sequence[str]) -> list[float]:
    """The factors of the rates: MACs, weight bytes and calls per path, then bytes and copied bytes."""
    by_path = [
        [count if path == work.path else 0 for path in paths] for count in (work.macs, work.weights, 1)
    ]
    return [*by_path[0], *by_path[1], *by_path[2], work.bytes, work.copied]


def _nonnegative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The x ≥ 0 that minimises |a·x − b|, for columns of norm 1.

    The entries that are not held at 0 minimise it without a limit. The entry that reduces it the most joins them, and
    those that would become negative are held at 0 again, one by one, until nothing is gained.
    """
    x, free = np.zeros(a.shape[1]), np.zeros(a.shape[1], bool)
    while True:
        free[np.argmax(a.T @ (b - a @ x))] = True
        y = x
        while True:
            best = np.zeros(len(x))
            best[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            negative = np.flatnonzero(best < 0)
            steps = y[negative] / (y[negative] - best[negative])  # to where each is 0 on the way to the best
            y = y + steps.min(initial=1) * (best - y)
            if not len(negative):
                break
            free[negative[steps.argmin()]] = False
        if np.linalg.norm(a @ y - b) >= np.linalg.norm(a @ x - b):
            return x
        x = y


def _positions_read(op: Sliding, size: int) -> int:
    """Number of the `size` positions that at least one kernel tap reads."""
    taps = range(0, op.extent, op.dilation)
    firsts = range(-op.pad_before, op.out_size(size) * op.stride - op.pad_before, op.stride)
    return len({first + tap for first in firsts for tap in taps} & set(range(size)))


# Fitted to measurements in float32 on two cores of an AMD EPYC with AVX-512 (see tests/laws/test_cost.py), where the
# convolution library uses AVX-512 and the BLAS does not.
DEFAULT = Processor(
    seconds_per_mac={"linear": 9.8e-12, "batched": 9.1e-12, "conv": 4.2e-12, "conv-channels-last": 3.7e-12},
    seconds_per_weight_byte={
        "linear": 2.3e-11,
        "batched": 2.3e-11,
        "conv": 3e-11,
        "conv-channels-last": 9.8e-11,
    },
    seconds_per_call={"linear": 1e-6, "batched": 1.3e-5, "conv": 3e-6, "conv-channels-last": 3e-6},
    seconds_per_byte=9.9e-12,
    seconds_per_copied_byte=5.7e-11,
    measurements=28,
)
