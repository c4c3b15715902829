"""The state of lowering a graph to steps: the steps so far, what each node became, and copies into another order."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from onebyone.native.kernels.program import kernel
from onebyone.native.layout import (
    Scores,
    Value,
    as_transposed,
    counts_up,
    element_count,
    map_of_rows,
    run_length,
)
from onebyone.native.maps import Map
from onebyone.native.steps import (
    Activation,
    BinaryOperation,
    ConvolutionStep,
    DepthwiseStep,
    ElementwiseStep,
    GatherStep,
    InputStep,
    LayerNormStep,
    LinearStep,
    MaxPoolStep,
    MeanStep,
    Step,
    TransposeStep,
)
from onebyone.native.unsupported import UnsupportedError

SHORT_RUN = 8
"""Floats: matrices whose runs are shorter than this are transposed rather than gathered."""
ProductStep = ConvolutionStep | DepthwiseStep | LinearStep
ActivatedStep = ConvolutionStep | DepthwiseStep | LinearStep | ElementwiseStep


class Lowering:
    """The steps of a network while its graph is read, and what its nodes became.

    `values` holds, for each node that is still needed: a `Value`, `Scores`, a constant tensor, or a tuple of them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.steps = network, list[Step]()
        self.values: dict[Any, Any] = {}
        self.image: Any = None
        """The node of the network's input."""
        self.folded: set[fx.Node] = set()
        """Nodes that became part of an earlier step, such as batch norms."""
        self.order: dict[Any, int] = {}
        """The position of each node in the graph."""
        self.current = 0
        """The position of the node that is being read."""

    @property
    def samples(self) -> int:
        """The batch size of the network's input."""
        return int(self.image.meta["val"].shape[0])

    def add(self, step: Step) -> Map:
        """Append a step; returns the map that it writes."""
        channels = step.output.shape[1]
        if isinstance(step, DepthwiseStep | MaxPoolStep | MeanStep) and channels < kernel().onebyone_lanes():
            raise UnsupportedError(f"a map of {channels} channels is narrower than a vector")
        self.steps.append(step)
        return step.output

    def constant(self, argument: Any) -> Tensor | None:
        """The tensor of an argument that does not depend on the input (a number becomes a tensor); None otherwise."""
        if isinstance(argument, int | float):
            return torch.tensor(float(argument), dtype=torch.float64)
        value = self.values.get(argument) if isinstance(argument, fx.Node) else None
        return value if isinstance(value, Tensor) else None

    def any_value(self, node: Any) -> Any:
        """What a node became. The network's input becomes a step when it is first read."""
        if node is self.image and node not in self.values:
            self.values[node] = self._read_input(node)
        if node not in self.values:
            raise UnsupportedError(f"{getattr(node, 'name', node)} is not computed from the image alone")
        return self.values[node]

    def value(self, node: Any, scaled: bool = False) -> Value:
        """A node's value in memory; a constant is copied there.

        With `scaled`, the value may still have a `scale` that the caller applies.
        """
        value = self.any_value(node)
        if isinstance(value, Tensor):
            return self._store(value)
        if isinstance(value, Scores):
            raise UnsupportedError("a matrix product that is not part of attention")
        if not isinstance(value, Value):
            raise UnsupportedError(f"{node.name} is not one tensor")
        if value.scale != 1.0 and not scaled:
            self.values[node] = value = self._apply_scale(value)
        return value

    def _apply_scale(self, value: Value) -> Value:
        x = value.memory
        row = torch.full((1, x.shape[1]), value.scale, dtype=torch.float64)
        step = ElementwiseStep(
            input=x, output=Map(x.shape), operation=BinaryOperation.PRODUCT, numbers=row, period=1
        )
        return Value(self.add(step), value.offsets)

    def _read_input(self, node: Any) -> Value:
        shape = tuple(node.meta["val"].shape)
        n, c, h, w = image = shape if len(shape) == 4 else (shape[0], 1, *shape[1:])
        output = self.add(InputStep(output=Map(image), shape=(n, c, h, w)))
        if len(shape) == 4:
            return Value(output)
        return Value(Map((n, w, 1, h), base=output), torch.arange(n * h * w).view(shape))

    def _store(self, constant: Tensor) -> Value:
        offsets = torch.arange(constant.numel()).view(constant.shape)
        shape = tuple(constant.shape) or (1,)
        return Value(self.copied(offsets.reshape(-1), shape, numbers=constant), offsets)

    def map_of(self, node: Any) -> Map:
        """The map of a node's value (N, C, H, W) or (N, C)."""
        return self.image_of(self.value(node))

    def image_of(self, value: Value) -> Map:
        """The map of a value (N, C, H, W) or (N, C); its elements are copied where their order differs."""
        if value.offsets is None:
            return value.memory
        offsets = value.offsets
        if offsets.dim() == 2:
            offsets = offsets[:, :, None, None]
        if offsets.dim() != 4:
            raise UnsupportedError(f"a value with {offsets.dim()} axes where an image is needed")
        return self.contiguous(Value(value.memory, offsets.permute(0, 2, 3, 1)))

    def contiguous(self, value: Value) -> Map:
        """A map that holds the value contiguously, its last axis as channels; copied where it is not contiguous."""
        flat, rows = value.element_offsets.reshape(-1), map_of_rows(value.shape)
        if len(flat) == element_count(value.memory) and counts_up(flat):
            rows.base = value.memory
            return value.memory if rows.shape == value.memory.shape else rows
        return self.copied(flat, value.shape, value.memory)

    def copied(
        self,
        flat: Tensor,
        shape: tuple[int, ...],
        source: Map | None = None,
        numbers: Tensor | None = None,
    ) -> Map:
        """A step that writes the elements at these offsets of a map, or of a constant, one after another."""
        output, run = map_of_rows(shape), run_length(flat)
        if source is not None and run < SHORT_RUN and (matrices := as_transposed(flat)) is not None:
            count, rows, columns = matrices
            return self.add(
                TransposeStep(input=source, output=output, matrices=count, rows=rows, columns=columns)
            )
        return self.gather(flat, output, source, numbers, piece_length(run, shape[-1]))

    def gather(
        self, flat: Tensor, output: Map, source: Map | None, numbers: Tensor | None, length: int, **where: int
    ) -> Map:
        """A gather of runs of `length` elements; `where` are its settings for parts of a concatenation."""
        index = flat.view(-1, length)[:, 0].contiguous()
        if numbers is not None:
            numbers = numbers if numbers.is_floating_point() else numbers.float()
        step = GatherStep(source=source, numbers=numbers, output=output, index=index, length=length, **where)
        return self.add(step)

    def read_later(self, memory: Map) -> bool:
        """Whether a later node reads what this memory holds now."""
        names = (n for n, v in self.values.items() if any(m is memory for m in maps_of(v)))
        return any(self.order[u] > self.current for n in names for u in n.users)

    def producer(self, value: Value) -> Step | None:
        """The only step that writes a value's memory, if no step and no node but the current one reads it."""
        memory = value.memory.memory
        read = any(m.memory is memory for s in self.steps for m in s.inputs_read)
        if read or self.read_later(memory):
            return None
        writers = [s for s in self.steps if s.output.memory is memory]
        return writers[0] if len(writers) == 1 else None

    def open_product(self, value: Value) -> ProductStep | None:
        """The `producer`, if it is a product to which an addend or a factor can be added: no activation follows yet."""
        step = self.producer(value)
        if not isinstance(step, ConvolutionStep | DepthwiseStep | LinearStep):
            return None
        if step.activation != Activation.NONE or (
            not isinstance(step, DepthwiseStep) and step.addend is not None
        ):
            return None
        return step

    def last_writer(self, memory: Map) -> int:
        """The number of the last step that writes that memory."""
        return max((i for i, s in enumerate(self.steps) if s.output.memory is memory.memory), default=-1)


def maps_of(value: Any) -> tuple[Map, ...]:
    """The maps whose memory anything in `Lowering.values` is in."""
    if isinstance(value, tuple):
        return tuple(m for part in value for m in maps_of(part))
    return value.maps if isinstance(value, Value | Scores) else ()


def piece_length(run: int, row: int) -> int:
    """The length of the pieces in which runs are copied: whole rows where they are long enough."""
    common = math.gcd(run, row)
    return common if common >= SHORT_RUN else run


def gather_before_norms(steps: list[Step], answer: Map) -> list[Step]:
    """Move a gather before the layer norm that it alone reads: rows are normalised independently."""
    left = list(steps)
    for step in steps:
        if not isinstance(step, GatherStep):
            continue
        norm = _norm_read_by(left, step)
        if norm is None or norm.output.memory is answer.memory:
            continue
        row, piece = norm.channels, step.length
        if piece % row or bool((step.index % row != 0).any()):
            continue
        rows = (step.index[:, None] // row + torch.arange(piece // row)).flatten()
        norm.index = rows * row if norm.index is None else norm.index[rows]
        norm.output, norm.rows = step.output, len(rows)
        left.remove(step)
    return left


def _norm_read_by(steps: list[Step], gather: GatherStep) -> LayerNormStep | None:
    """The layer norm whose result only this gather reads, if the gather reads nothing else."""
    if gather.source is None or gather.output_begin or gather.block_stride:
        return None
    memory = gather.source.memory
    writers = [s for s in steps if s.output.memory is memory]
    readers = [s for s in steps if any(m.memory is memory for m in s.inputs_read)]
    only_part = sum(s.output.memory is gather.output.memory for s in steps) == 1
    if not only_part or len(writers) != 1 or len(readers) != 1:
        return None
    return writers[0] if isinstance(writers[0], LayerNormStep) else None
