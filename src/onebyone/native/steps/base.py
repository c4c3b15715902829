"""What all kinds of steps share: the kinds, activations and settings, and the base class."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol

from torch import Tensor

from onebyone.native import step_records as records
from onebyone.native.maps import Map


class Kind(IntEnum):
    """The kinds of steps, as in steps.h."""

    INPUT, CONVOLUTION, WINOGRAD, DEPTHWISE, MAX_POOL, MEAN, ELEMENTWISE = range(7)
    LINEAR, LAYER_NORM, ATTENTION, GATHER, TRANSPOSE = range(7, 12)


class Activation(IntEnum):
    """The activations, as in steps.h."""

    NONE, RELU, RELU6, HARDSWISH, HARDSIGMOID, SILU, SIGMOID, GELU, GELU_TANH = range(9)


class BinaryOperation(IntEnum):
    """What an elementwise step computes from its operands, as in steps.h."""

    FIRST_OPERAND, SUM, PRODUCT = range(3)


@dataclass(frozen=True)
class SlidingWindow:
    """How a window slides over a feature map: (height, width) of each setting."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(
        cls, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> SlidingWindow:
        """From sequences of two numbers each.

        >>> SlidingWindow.of([3, 3], [1, 1], [0, 0], [1, 1]) == SlidingWindow((3, 3))
        True
        """
        kernel_h, kernel_w = kernel
        (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w) = stride, padding, dilation
        return cls((kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))

    def record(self) -> records.SlidingWindowRecord:
        """As C++ reads it."""
        return records.SlidingWindowRecord(*self.kernel, *self.stride, *self.padding, *self.dilation)


@dataclass(frozen=True)
class Strides:
    """Offsets in floats: row t of head h of sample n begins at begin + n·sample + h·head + t·row."""

    begin: int
    sample: int
    head: int
    row: int

    def record(self) -> records.StridesRecord:
        """As C++ reads it."""
        return records.StridesRecord(self.begin, self.sample, self.head, self.row)


class Addresses(Protocol):
    """Where a program keeps the operands of its steps."""

    scratch: int

    def of(self, operand: Map | Tensor | None) -> int | None:
        """The address of an operand; None if there is none."""


class Present:
    """Addresses that only say whether an operand exists: enough to ask C++ for the size of the scratch memory."""

    scratch = 0

    def of(self, operand: Map | Tensor | None) -> int | None:
        """1 for an operand, None without one."""
        return None if operand is None else 1


@dataclass(eq=False, kw_only=True)
class Step:
    """What all steps have: the map that they write.

    `constant` names the tensor that the program copies into its own memory (the weight, in most kinds).
    """

    kind: ClassVar[Kind]
    constant: ClassVar[str | None] = None
    output: Map

    @property
    def inputs_read(self) -> list[Map]:
        """The maps that the step reads."""
        return [v for name, v in vars(self).items() if isinstance(v, Map) and name != "output"]

    @property
    def constants_read(self) -> list[Tensor]:
        """The tensors that the step reads besides `constant`."""
        return [v for name, v in vars(self).items() if isinstance(v, Tensor) and name != self.constant]

    @property
    def row_length(self) -> int:
        """How many floats a kernel reads at once: zeros of this length stand for a row in the padding."""
        return 0

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        """The fields of the record that C++ reads."""
        raise NotImplementedError

    def record(self, addresses: Addresses) -> records.StepRecord:
        """The record that C++ reads."""
        return records.StepRecord.of(self.kind, self.fields(addresses))
