"""What every part of the planner shares: the steps so far, the values by node, and copies into another order."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from onebyone.native.kernels.program import Activation, Kind, Map, Meeting, Step, kernel
from onebyone.native.layout import Scores, Value, in_order, rows_map, runs, size, turned
from onebyone.native.unserved import UnservedError

SHORT = 8  # floats: rows shorter than this are better turned than gathered


class Planning:
    """The steps of a network, as they are found."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.steps = network, list[Step]()
        self.values: dict[Any, Any] = {}  # Value, Scores, a constant Tensor, or a tuple of them
        self.image: Any = None
        self.folded: set[fx.Node] = set()
        self.order: dict[Any, int] = {}
        self.now = 0

    @property
    def samples(self) -> int:
        """How many the network is given at once."""
        return int(self.image.meta["val"].shape[0])

    def add(self, step: Step) -> Map:
        """One more step; gives the map that it writes."""
        channels = step.y.shape[1]
        if step.kind in (Kind.DEPTHWISE, Kind.MAX_POOL, Kind.MEAN) and channels < kernel().onebyone_lanes():
            raise UnservedError(f"a map of {channels} channels is narrower than a vector")
        self.steps.append(step)
        return step.y

    def constant(self, given: Any) -> Tensor | None:
        """The tensor that a node stands for, where it does not depend on the input; numbers are tensors too."""
        if isinstance(given, int | float):
            return torch.tensor(float(given), dtype=torch.float64)
        found = self.values.get(given) if isinstance(given, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    def any_value(self, node: Any) -> Any:
        """What is known of a node that depends on the input."""
        if node is self.image and node not in self.values:
            self.values[node] = self._input(node)
        if node not in self.values:
            raise UnservedError(f"{getattr(node, 'name', node)} is not computed from the image alone")
        return self.values[node]

    def value(self, node: Any, scaled: bool = False) -> Value:
        """Where a node's numbers are; a constant's are copied there."""
        found = self.any_value(node)
        if isinstance(found, Tensor):
            return self._stored(found)
        if isinstance(found, Scores):
            raise UnservedError("a product of matrices that is no part of attention")
        if not isinstance(found, Value):
            raise UnservedError(f"{node.name} is not one tensor")
        if found.scale != 1.0 and not scaled:
            self.values[node] = found = self._multiplied(found)
        return found

    def _multiplied(self, value: Value) -> Value:
        x = value.memory
        row = torch.full((1, x.shape[1]), value.scale, dtype=torch.float64)
        y, sizes = Map(x.shape), {"levels": 1}
        step = Step(Kind.ELEMENTWISE, x, y, row, pool=Meeting.MULTIPLIED, sizes=sizes)
        return Value(self.add(step), value.moved)

    def _input(self, node: Any) -> Value:
        shape = tuple(node.meta["val"].shape)
        n, c, h, w = image = shape if len(shape) == 4 else (shape[0], 1, *shape[1:])
        y = self.add(Step(Kind.INPUT, None, Map(image), given=(n, c, h, w)))
        if len(shape) == 4:
            return Value(y)
        return Value(Map((n, w, 1, h), base=y), torch.arange(n * h * w).view(shape))

    def _stored(self, constant: Tensor) -> Value:
        at = torch.arange(constant.numel()).view(constant.shape)
        shape = tuple(constant.shape) or (1,)
        return Value(self.copied(at.reshape(-1), shape, weight=constant), at)

    def map_of(self, node: Any) -> Map:
        """A value with the axes of an image as a map."""
        value = self.value(node)
        return self.image_of(value)

    def image_of(self, value: Value) -> Map:
        """The map of a value (N, C, H, W), or (N, C)."""
        if value.moved is None:
            return value.memory
        at = value.moved
        if at.dim() == 2:
            at = at[:, :, None, None]
        if at.dim() != 4:
            raise UnservedError(f"a value with {at.dim()} axes where an image is needed")
        return self.dense(Value(value.memory, at.permute(0, 2, 3, 1)))

    def dense(self, value: Value) -> Map:
        """A map that holds the value row after row, its last axis the channels: copied where it does not lie so."""
        flat, lies = value.at.reshape(-1), rows_map(value.shape)
        if len(flat) == size(value.memory) and in_order(flat):
            lies.base = value.memory
            return value.memory if lies.shape == value.memory.shape else lies
        return self.copied(flat, value.shape, value.memory)

    def copied(
        self, flat: Tensor, shape: tuple[int, ...], source: Map | None = None, weight: Tensor | None = None
    ) -> Map:
        """What is at these offsets of a map or of a constant, one after another, by a step."""
        y, run = rows_map(shape), runs(flat)
        swapped = turned(flat) if run < SHORT and source is not None else None
        if swapped is not None:
            sizes = dict(zip(("samples", "height", "width"), swapped, strict=True))
            return self.add(Step(Kind.TURNED, source, y, sizes=sizes | {"channels": 1}))
        return self.gather(flat, y, source, weight, preferred(run, shape[-1]))

    def gather(
        self, flat: Tensor, y: Map, source: Map | None, weight: Tensor | None, length: int, **sizes: int
    ) -> Map:
        """Runs of `length` numbers put one after another."""
        index = flat.view(-1, length)[:, 0].contiguous()
        found = {"samples": len(index), "channels": length, "high": 1, "wide": 0, "pad_h": 0, **sizes}
        if weight is not None:
            weight = weight.float() if not weight.is_floating_point() else weight
        return self.add(Step(Kind.ROWS, source, y, weight=weight, index=index, sizes=found))

    def read_later(self, memory: Map) -> bool:
        """Whether a node behind this one reads what is in that memory now."""
        names = (n for n, v in self.values.items() if any(m is memory for m in maps_of(v)))
        return any(self.order[u] > self.now for n in names for u in n.users)

    def producer(self, value: Value) -> Step | None:
        """The one step that writes a value's memory, where nothing but this node has read it or will."""
        memory = value.memory.memory
        if any(m.memory is memory for s in self.steps for m in s.reads) or self.read_later(memory):
            return None
        found = [s for s in self.steps if s.y.memory is memory]
        return found[0] if len(found) == 1 else None

    def open_product(self, value: Value, *kinds: Kind) -> Step | None:
        """`producer`, where it is of these kinds, and neither an addition nor an activation is part of it."""
        step = self.producer(value)
        if step is None or step.kind not in kinds or step.add or step.activation != Activation.NONE:
            return None
        return step

    def written(self, memory: Map) -> int:
        """The last step that writes that memory."""
        return max((i for i, s in enumerate(self.steps) if s.y.memory is memory.memory), default=-1)


def maps_of(found: Any) -> tuple[Map, ...]:
    """Whose memory anything in `Planning.values` is in."""
    if isinstance(found, tuple):
        return tuple(m for part in found for m in maps_of(part))
    return found.maps if isinstance(found, Value | Scores) else ()


def preferred(run: int, row: int) -> int:
    """How long the pieces are in which runs are copied: whole rows where they fit."""
    common = math.gcd(run, row)
    return common if common >= SHORT else run


def with_norms_of_rows(steps: list[Step], answer: Map) -> list[Step]:
    """Rows that are picked from a norm's result, and from nowhere else, are picked before: each is normed by itself."""
    left = list(steps)
    for step in steps:
        norm = _only_source(left, step)
        if norm is None or step.index is None or norm.y.memory is answer.memory:
            continue
        row, piece = norm.sizes["channels"], step.sizes["channels"]
        if piece % row or bool((step.index % row != 0).any()):
            continue
        rows = (step.index[:, None] // row + torch.arange(piece // row)).flatten()
        norm.index = rows * row if norm.index is None else norm.index[rows]
        norm.y, norm.sizes["samples"] = step.y, len(rows)
        left.remove(step)
    return left


def _only_source(steps: list[Step], step: Step) -> Step | None:
    """The norm that alone a gather reads, and that the gather alone reads."""
    if step.kind != Kind.ROWS or step.x is None or step.sizes["pad_h"] or step.sizes["wide"]:
        return None
    memory = step.x.memory
    writers = [s for s in steps if s.y.memory is memory]
    readers = [s for s in steps if any(m.memory is memory for m in s.reads)]
    alone = len(writers) == len(readers) == 1 and sum(s.y.memory is step.y.memory for s in steps) == 1
    return writers[0] if alone and writers[0].kind == Kind.LAYER_NORM else None
