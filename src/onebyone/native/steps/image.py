"""Steps on feature maps: convolutions, pools, means, and operations element by element."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from torch import Tensor

from onebyone.native import step_records as records
from onebyone.native.maps import Map
from onebyone.native.steps.base import Activation, Addresses, BinaryOperation, Kind, SlidingWindow, Step


def _image(map_: Map) -> tuple[int, int, int, int]:
    """Samples, height, width and channels."""
    n, c, h, w = map_.shape
    return n, h, w, c


@dataclass(eq=False, kw_only=True)
class ImageStep(Step):
    """A step that reads the positions of one map."""

    input: Map

    @property
    def row_length(self) -> int:
        return self.input.shape[1]


@dataclass(eq=False, kw_only=True)
class InputStep(Step):
    """Copies the network's input, of `shape` (N, C, H, W), to a map with zeros as padding on each side.

    The address of the input is set at each call.
    """

    kind = Kind.INPUT
    shape: tuple[int, int, int, int]
    padding: tuple[int, int] = (0, 0)

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        n, c, h, w = self.shape
        return records.InputRecord(None, addresses.of(self.output), n, h, w, c, *self.padding)


@dataclass(eq=False, kw_only=True)
class ConvolutionStep(ImageStep):
    """activation(convolution(input) + bias + addend), in one group; the weight is (O, C, kernel height, width).

    With `whole_rows` the input is padded already, and each row of the kernel reads one run of numbers. With
    `few_outputs` the kernel sums along the numbers that an output reads, instead of over many outputs at a time.
    """

    kind = Kind.CONVOLUTION
    constant = "weight"
    weight: Tensor
    bias: Tensor | None = None
    window: SlidingWindow
    whole_rows: bool = False
    few_outputs: bool = False
    addend: Map | None = None
    activation: Activation = Activation.NONE

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at, (_, outputs, out_height, out_width) = addresses.of, self.output.shape
        return records.ConvolutionRecord(
            *(at(self.input), at(self.weight), at(self.bias), at(self.addend), at(self.output)),
            *(*_image(self.input), out_height, out_width, outputs),
            *(self.window.record(), self.whole_rows, self.few_outputs, self.activation),
        )


@dataclass(eq=False, kw_only=True)
class WinogradStep(ImageStep):
    """A 3×3 convolution at stride 1 by Winograd's algorithm + bias + addend.

    ReLU and a 2×2 max pool follow where they are asked for. The addend has the shape of the convolution's output.
    """

    kind = Kind.WINOGRAD
    constant = "weight"
    weight: Tensor
    bias: Tensor | None = None
    padding: tuple[int, int]
    addend: Map | None = None
    relu: bool = False
    max_pool: bool = False

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.WinogradRecord(
            *(
                at(self.input),
                at(self.weight),
                at(self.bias),
                at(self.addend),
                at(self.output),
                addresses.scratch,
            ),
            *(*_image(self.input), self.output.shape[1], *self.padding, self.relu, self.max_pool),
        )


@dataclass(eq=False, kw_only=True)
class DepthwiseStep(ImageStep):
    """activation(depthwise convolution(input) + bias); the weight is (C, 1, kernel height, width)."""

    kind = Kind.DEPTHWISE
    constant = "weight"
    weight: Tensor
    bias: Tensor | None = None
    window: SlidingWindow
    activation: Activation = Activation.NONE

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.DepthwiseRecord(
            *(at(self.input), at(self.weight), at(self.bias), at(self.output)),
            *(*_image(self.input), *self.output.shape[2:], self.window.record(), self.activation),
        )


@dataclass(eq=False, kw_only=True)
class MaxPoolStep(ImageStep):
    """The maximum over each window."""

    kind = Kind.MAX_POOL
    window: SlidingWindow

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.MaxPoolRecord(
            *(at(self.input), at(self.output)),
            *(*_image(self.input), *self.output.shape[2:], self.window.record()),
        )


@dataclass(eq=False, kw_only=True)
class MeanStep(ImageStep):
    """The mean over all positions: (N, C, H, W) to (N, C, 1, 1)."""

    kind = Kind.MEAN

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.MeanRecord(at(self.input), at(self.output), addresses.scratch, *_image(self.input))


@dataclass(eq=False, kw_only=True)
class ElementwiseStep(ImageStep):
    """activation(input), activation(input + second) or activation(input · second), row by row.

    The second operand is a map (`other`) or a constant (`numbers`). Row p of the input is combined with: the row that
    begins at `index[p]` (in floats); row p // `positions_per_row`, where that is not 0; row p % `period`, where that is
    not 0; or row p.
    """

    kind = Kind.ELEMENTWISE
    constant = "numbers"
    operation: BinaryOperation = BinaryOperation.FIRST_OPERAND
    other: Map | None = None
    numbers: Tensor | None = None
    index: Tensor | None = None
    positions_per_row: int = 0
    period: int = 0
    activation: Activation = Activation.NONE

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at, (n, c, h, w) = addresses.of, self.input.shape
        second = at(self.numbers) if self.other is None else at(self.other)
        return records.ElementwiseRecord(
            *(at(self.input), second, at(self.output), at(self.index)),
            *(n * h * w, c, self.operation, self.positions_per_row, self.period, self.activation),
        )
