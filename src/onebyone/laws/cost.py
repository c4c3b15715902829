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

Source: Sze et al., "Efficient Processing of Deep Neural Networks", 2017, §III (MACs, weights); Williams,
Waterman and Patterson, "Roofline", 2009 (operational intensity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

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


def _touched(op: Sliding, size: int) -> int:
    """How many of `size` places some tap reads."""
    taps = range(0, op.extent, op.dilation)
    firsts = range(-op.pad_before, op.out_size(size) * op.stride - op.pad_before, op.stride)
    return len({first + tap for first in firsts for tap in taps} & set(range(size)))
