"""Cost: parameters, multiply-accumulates (MACs) and bytes of each form, counted, not timed.

Equation, for a convolution from C to O channels in G groups with kernel k, at P output places of N images:

    parameters = O·(C/G)·Πk + O·[bias]
    macs       = N·P·O·(C/G)·Πk
    bytes      = itemsize·(input places touched + parameters) read, itemsize·N·P·O written

A linear layer on tokens is the case k = 1, G = 1, P = tokens. On an h×w map, flatten + FC and the h×w
convolution are one (P = 1, k = h×w); against a 1×1 convolution on that map they have h·w times the weights
at equal MACs. Running every window of an image apart costs windows × one window; one dense pass shares what
windows have in common.

Counted so: each element is moved once (perfect caches), so bytes are the least that can be moved; MACs that
meet padding are counted, as is usual. Not counted: additions of biases, activations, normalisations and
pools; copies between layouts and im2col buffers; what a cache has to fetch twice; the savings of Winograd
and FFT convolutions. One MAC is two floating-point operations.

Which form is fastest can be guessed from the counts before anything is run: on a processor that computes r MACs a
second on a form's library path, moves b bytes a second and needs c seconds to begin,

    seconds = c + macs/r + bytes/b + (bytes of the weights)/(rate of repacking) + (bytes copied)/(rate of copying)

an additive roofline: nothing is taken to overlap. Its rates are fitted to measurements (`fit`), or those of DEFAULT.

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
    """What one form of one layer, or of several, costs. Sums of costs are costs.

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
        """Arithmetic intensity: MACs for each byte moved (0 where nothing moves)."""
        return self.macs / self.bytes_moved if self.bytes_moved else 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    def repeated(self, times: int) -> Cost:
        """The same layers run `times` times: the parameters are there once, but read each time."""
        return Cost(self.parameters, self.macs * times, self.bytes_read * times, self.bytes_written * times)


@dataclass(frozen=True)
class Layer:
    """A convolution, or with out_channels None a pool, as far as cost goes; one `Sliding` per axis.

    A linear layer on C×h×w features is `Layer(C, O, (Sliding(h), Sliding(w)))`: its dense form.
    """

    in_channels: int
    out_channels: int | None
    ops: tuple[Sliding, ...]
    groups: int = 1
    bias: bool = True

    def out_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Places per axis after the layer."""
        return tuple(op.out_size(n) for op, n in zip(self.ops, size, strict=True))

    def cost(self, size: Sequence[int], batch: int = 1, itemsize: int = 4) -> Cost:
        """The cost on maps of `size` places per axis. A pool has no MACs, and its bytes count."""
        out = self.out_size(size)
        touched = (
            batch * self.in_channels * prod(_touched(op, n) for op, n in zip(self.ops, size, strict=True))
        )
        if self.out_channels is None:
            written = batch * self.in_channels * prod(out)
            return Cost(bytes_read=itemsize * touched, bytes_written=itemsize * written)
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
            bytes_read=itemsize * (touched + parameters),
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
    """A 1×1 convolution on maps of `size`; a stride reads only the places it keeps.

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
    """Flatten, then linear, on maps of `size`: Π size times the weights of a 1×1 convolution, at equal MACs.

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
        where a layer finds less than one place.
    """
    total = Cost()
    for number, layer in enumerate(layers):
        total += layer.cost(size, batch, itemsize)
        size = layer.out_size(size)
        if min(size) < 1:
            raise BadInput(f"layer {number} finds no place on a map too small for it: the image is too small")
    return total


def every_window(
    layers: Sequence[Layer],
    window: Sequence[int],
    positions: Sequence[int],
    batch: int = 1,
    itemsize: int = 4,
) -> Cost:
    """A chain of layers run apart on Π positions windows, `batch` at a time; weights are read once a batch.

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
    """What computing a layer in one form amounts to.

    `form` names it; `path` the library path it takes ("linear": the BLAS; "batched": its batched product; "conv"
    and "conv-channels-last": the convolution library on either layout); `bytes` operands read and written once;
    `weights` bytes of the weights, which a path may repack at each call; `copied` bytes moved to change layouts,
    reading and writing; `places` rows of the product (batch × places).
    """

    form: str
    path: str
    macs: int
    bytes: int
    weights: int = 0
    copied: int = 0
    places: int = 1


@dataclass(frozen=True)
class Processor:
    """What a processor does, path by path: seconds per MAC, per byte of weights repacked, per call; and per byte."""

    mac: Mapping[str, float]
    repacked: Mapping[str, float]
    call: Mapping[str, float]
    byte: float
    copied: float
    measured: int = field(default=0, compare=False)

    def seconds(self, work: Work) -> float:
        """The time predicted for one call.

        Raises
        ------
        BadInput
            where nothing is known of the path.
        """
        if work.path not in self.mac:
            raise BadInput(f"path={work.path!r}: the processor's paths are {', '.join(self.mac)}")
        return (
            self.call[work.path]
            + self.mac[work.path] * work.macs
            + self.repacked[work.path] * work.weights
            + self.byte * work.bytes
            + self.copied * work.copied
        )


#: Unfolding pays up to so many positions, and up to a position for so many outputs.
UNFOLDED_POSITIONS, OUTPUTS_PER_POSITION = 64, 16


def rows_are_cheaper(positions: int, outputs: int) -> bool:
    """Whether a k×k convolution without padding costs less as a product of unfolded windows with the weight.

    `positions` are those of the whole batch. A convolution library reorders the O·F weights at each call, unfolding
    copies P·F values of the map, and the products are one; so few positions are cheaper unfolded:

        P ≤ max(1, min(O / 16, 64))

    A weight costs more to reorder than a value to copy, but the library's product is the faster one. The two
    constants stand below where both forms took equally long on two cores of an AMD EPYC (PyTorch 2.13, oneDNN): 9 to
    16 positions at 256 outputs, 16 to 36 at 512, and 100 at 4,096, where more positions pay for the reordering. At
    one position nothing is copied, and the product is the linear layer that the network had.

    >>> [rows_are_cheaper(p, 4096) for p in (1, 64, 65)], rows_are_cheaper(1, 2), rows_are_cheaper(17, 256)
    ([True, True, False], True, False)
    """
    return positions <= max(1, min(outputs // OUTPUTS_PER_POSITION, UNFOLDED_POSITIONS))


PATHS = ("linear", "batched", "conv", "conv-channels-last")


def rank(works: Sequence[Work], processor: Processor | None = None) -> tuple[str, ...]:
    """The forms' names, the fastest predicted first; equals stay in the order given.

    >>> weights = 4 * 10**8  # bytes, read for one vector
    >>> rank([Work(path, path, 10**8, weights, weights) for path in ("conv", "linear")])
    ('linear', 'conv')
    """
    known = DEFAULT if processor is None else processor
    return tuple(work.form for work in sorted(works, key=known.seconds))


def fit(measured: Sequence[tuple[Work, float]]) -> Processor:
    """The processor whose predictions are nearest to measured seconds: least squares of the relative errors, no
    rate below zero (Lawson and Hanson, "Solving Least Squares Problems", 1974, ch. 23; by coordinate descent).

    Raises
    ------
    BadInput
        where a path was not measured, or a time is not positive.
    """
    paths = sorted({work.path for work, _ in measured})
    if set(paths) != set(PATHS) or any(not seconds > 0 for _, seconds in measured):
        raise BadInput(
            f"measured: expected positive seconds on every path of {', '.join(PATHS)}; has {paths}"
        )
    rows = np.array([_features(work, paths) for work, _ in measured], dtype=float)
    rows /= np.array([[seconds] for _, seconds in measured])
    scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    rates = _nonnegative(rows / scale, np.ones(len(rows))) / scale
    n = len(paths)
    mac, repacked, call = (
        dict(zip(paths, map(float, rates[i * n : (i + 1) * n]), strict=True)) for i in range(3)
    )
    return Processor(mac, repacked, call, float(rates[3 * n]), float(rates[3 * n + 1]), len(measured))


def _features(work: Work, paths: Sequence[str]) -> list[float]:
    """The counts that the rates multiply: MACs, weights and calls on each path, then bytes and copies."""
    by_path = [
        [count if path == work.path else 0 for path in paths] for count in (work.macs, work.weights, 1)
    ]
    return [*by_path[0], *by_path[1], *by_path[2], work.bytes, work.copied]


def _nonnegative(a: np.ndarray, b: np.ndarray, sweeps: int = 5000) -> np.ndarray:
    """The x ≥ 0 of least |a·x − b|."""
    gram, target = a.T @ a, a.T @ b
    x = np.zeros(a.shape[1])
    for _ in range(sweeps):
        before = x.copy()
        for i in np.flatnonzero(np.diag(gram)):
            x[i] = max(0.0, x[i] + (target[i] - gram[i] @ x) / gram[i, i])
        if np.abs(x - before).max() <= 1e-12 * max(1.0, x.max()):
            break
    return x


def _touched(op: Sliding, size: int) -> int:
    """How many of `size` places some tap reads."""
    taps = range(0, op.extent, op.dilation)
    firsts = range(-op.pad_before, op.out_size(size) * op.stride - op.pad_before, op.stride)
    return len({first + tap for first in firsts for tap in taps} & set(range(size)))


# Fitted to the table "The same product, in other forms" measured while the project was planned: float32, two cores of
# an AMD EPYC with AVX-512, where the BLAS does not use it and the convolution library does.
DEFAULT = Processor(
    mac={"linear": 9.8e-12, "batched": 9.1e-12, "conv": 4.2e-12, "conv-channels-last": 3.7e-12},
    repacked={"linear": 2.3e-11, "batched": 2.3e-11, "conv": 3e-11, "conv-channels-last": 9.8e-11},
    call={"linear": 1e-6, "batched": 1.3e-5, "conv": 3e-6, "conv-channels-last": 3e-6},
    byte=9.9e-12,
    copied=5.7e-11,
    measured=28,
)
