"""Steps on rows of numbers: linear layers, norms, attention, gathers and transposes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

from torch import Tensor

from onebyone.native import step_records as records
from onebyone.native.maps import Map
from onebyone.native.steps.base import Activation, Addresses, Kind, Step, Strides


@dataclass(eq=False, kw_only=True)
class LinearStep(Step):
    """activation(input · weightᵀ + bias + addend) for `rows` rows; the weight is (outputs, inputs) until it is packed.

    - `index` (rows · pieces): each row is put together from `pieces` runs of numbers of the input, which begin at these
      offsets; -1 stands for zeros. It makes a linear layer of any convolution.
    - `factors`: row i is first multiplied by row i // `rows_per_factor` of this map, channel by channel.
    - `levels`: how often Strassen's algorithm halves the matrices; None until that is decided.
    - `vectors`: the width of a panel of the packed weight, in vectors.
    - `channel_scales`, `signs`: what keeps an error bound for each row (`onebyone.laws.scaling`); None with
      `fast_products`.
    """

    kind = Kind.LINEAR
    constant = "weight"
    input: Map
    rows: int
    weight: Tensor
    bias: Tensor | None = None
    addend: Map | None = None
    activation: Activation = Activation.NONE
    index: Tensor | None = None
    pieces: int = 1
    factors: Map | None = None
    rows_per_factor: int = 1
    levels: int | None = None
    vectors: int = 0
    channel_scales: Tensor | None = None
    signs: Tensor | None = None
    inputs: int = field(init=False)
    outputs: int = field(init=False)

    def __post_init__(self) -> None:
        self.outputs, self.inputs = self.weight.shape

    @property
    def row_length(self) -> int:
        return self.inputs

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.LinearRecord(
            *(at(self.input), at(self.weight), at(self.bias), at(self.addend), at(self.output)),
            *(addresses.scratch, at(self.index), at(self.factors), at(self.channel_scales), at(self.signs)),
            *(self.rows, self.inputs, self.outputs, self.pieces, 0, self.rows_per_factor),
            *(self.levels or 0, self.vectors, self.activation),
        )


@dataclass(eq=False, kw_only=True)
class LayerNormStep(Step):
    """Normalises each of `rows` rows of `channels` numbers; row i begins at `index[i]`, in floats, if it is given."""

    kind = Kind.LAYER_NORM
    constant = "weight"
    input: Map
    rows: int
    channels: int
    epsilon: float
    weight: Tensor | None = None
    bias: Tensor | None = None
    index: Tensor | None = None

    @property
    def row_length(self) -> int:
        return self.channels

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.LayerNormRecord(
            *(at(self.input), at(self.weight), at(self.bias), at(self.output), at(self.index)),
            *(self.rows, self.channels, self.epsilon),
        )


@dataclass(eq=False, kw_only=True)
class AttentionStep(Step):
    """softmax(scale · queries · keysᵀ + bias) · values; the output is (samples, query_rows, heads, value_depth).

    The bias is contiguous in its last two axes, (query_rows, key_rows); its strides are 0 where samples or heads share
    it.
    """

    kind = Kind.ATTENTION
    constant = "bias"
    queries: Map
    keys: Map
    values: Map
    bias: Tensor | None = None
    samples: int
    heads: int
    query_rows: int
    key_rows: int
    depth: int
    value_depth: int
    query_strides: Strides
    key_strides: Strides
    value_strides: Strides
    bias_strides: tuple[int, int] = (0, 0)
    scale: float

    @property
    def row_length(self) -> int:
        return self.depth

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.AttentionRecord(
            *(at(self.queries), at(self.keys), at(self.values), at(self.bias), at(self.output)),
            *(addresses.scratch, self.samples, self.heads, self.query_rows, self.key_rows),
            *(self.depth, self.value_depth),
            *(s.record() for s in (self.query_strides, self.key_strides, self.value_strides)),
            *(*self.bias_strides, self.scale),
        )


@dataclass(eq=False, kw_only=True)
class GatherStep(Step):
    """Copies runs of `length` numbers that begin at `index`, in floats, of a map (`source`) or of `numbers`.

    They are written one after another from `output_begin` on; with a `block_stride`, each block of `pieces_per_block`
    runs begins that many floats after the one before it. Several gathers write the parts of a concatenation.
    """

    kind = Kind.GATHER
    constant = "numbers"
    source: Map | None = None
    numbers: Tensor | None = None
    index: Tensor
    length: int
    output_begin: int = 0
    pieces_per_block: int = 1
    block_stride: int = 0

    @property
    def row_length(self) -> int:
        return 0 if self.source is None else self.length

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.GatherRecord(
            *(at(self.numbers) if self.source is None else at(self.source), at(self.output), at(self.index)),
            *(len(self.index), self.length, self.output_begin, self.pieces_per_block, self.block_stride),
        )


@dataclass(eq=False, kw_only=True)
class TransposeStep(Step):
    """Transposes `matrices` matrices of `rows` × `columns`."""

    kind = Kind.TRANSPOSE
    input: Map
    matrices: int
    rows: int
    columns: int

    @property
    def row_length(self) -> int:
        return 1

    def fields(self, addresses: Addresses) -> ctypes.Structure:
        at = addresses.of
        return records.TransposeRecord(
            at(self.input), at(self.output), self.matrices, self.rows, self.columns
        )
