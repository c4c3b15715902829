"""The walk: an exported graph, one window in size, re-read with lifted values into a graph of any size.

The walk holds what the rules need (values, the graph being made, refusals, reasons for inexactness) and the acts that
many rules share; what each operator means is in `rules_*.py`. A refused operator poisons what depends on it,
so that one
walk finds every reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from onebyone.lifting.grid import Grid, Integers
from onebyone.lifting.index import Gather, Groups, as_gather, as_groups, as_stencil, identity, is_bijection
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.constants import Const as Const
from onebyone.pytorch.lift.constants import Late, known_number, known_numbers
from onebyone.pytorch.lift.constants import handle_of as handle_of
from onebyone.pytorch.lift.exported_graph import Traced, is_inplace, is_random, module_path, unread
from onebyone.records import Change, Refusal
from onebyone.results.layer_pairs import WindowPair

#: How many elements of one window may be unfolded into the channels of a map.
MOST_CHANNELS = 65536
#: Why only a linear layer may follow a batch norm on a flattened map.
BY_POSITION = "constants that depend on the position in a flattened map are only taken in by a linear layer"


#: Why dropout that is always on, noise and the like are refused.
RANDOM = (
    "random at every call, so no window has one answer (a dropout is: pass training=self.training to its function, "
    "and call eval() on the network)"
)


class Cannot(Exception):
    """Raised by a rule: this operator cannot be lifted, and why."""


@dataclass(frozen=True)
class Lifted:
    """A value that depends on the image: the map's handle, its grid, and the index (None: the identity).

    `pooled` names the reductions over places that the value came through since it was a map of many places.
    `affine`, two constants of the value's shape, is a scale and a shift by position that the next linear
    layer takes in.
    """

    handle: Any  # an fx.Proxy, which stands for a tensor in torch's functions
    grid: Grid
    index: Integers | None = None
    pooled: frozenset[str] = frozenset()
    affine: tuple[Any, Any] | None = None

    def indices(self) -> Integers:
        """The index, written out."""
        return identity(self.grid.shape) if self.index is None else self.index

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape in one window, without the batch."""
        return self.grid.shape if self.index is None else self.index.shape


@dataclass(frozen=True)
class Poison:
    """A value that a refusal upstream makes unknown."""


@dataclass
class Walk:
    """The state of one walk over a traced graph."""

    traced: Traced
    window: tuple[int, ...]
    channels: int | None
    head: str = "window"
    context: str | None = None
    image_wide: frozenset[str] = frozenset()
    values: dict[fx.Node, Any] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    pairs: list[WindowPair] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    context_nodes: set[str] = field(default_factory=set)
    left_out: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = fx.Graph()
        self.recorder = emitter.Recorder(self.graph)

    @property
    def axes(self) -> int:
        """Spatial axes."""
        return len(self.window)

    def run(self, rules: Callable[[Any], Callable[[Walk, fx.Node], Any] | None]) -> None:
        """Walk the whole graph; `rules` gives the rule for an operator, or None."""
        self.rules = rules
        dead = unread(self.traced.graph)
        for node in self.traced.graph.nodes:
            if node in dead:
                continue
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif (
                node.op == "get_attr"
            ):  # a graph within the graph (autocast, for one): its caller is refused by name
                self.values[node] = node.target
            elif node.op == "call_function":
                self.values[node] = self._call(node)
                if is_inplace(node.target) and isinstance(node.args[0], fx.Node):
                    self.values[node.args[0]] = self.values[node]

    def _placeholder(self, node: fx.Node) -> Lifted | Const:
        name = self.traced.names.get(node.name)
        if name is None and node.name == self.traced.image:
            image = self.proxy(self.graph.placeholder("image"))
            checked = self.call(emitter.require_window, image, self.window, self.channels is None)
            grid = Grid.image(self.channels or 1, self.window)
            return Lifted(checked, grid, identity(self.window) if self.channels is None else None)
        assert name is not None, "trace.read lets one input through"
        tensor = self.traced.tensors[name]
        known = tensor.detach() if name in self.traced.fixed else None
        return Const(Late(self, name), tuple(tensor.shape), name, known)

    def rule_of(self, node: fx.Node) -> Callable[[Walk, fx.Node], Any] | None:
        """The rule for a node's operator, or None."""
        return self.rules(node.target)

    def _call(self, node: fx.Node) -> Any:
        if is_random(node):
            self.refuse(node, RANDOM)
            return Poison()
        number = known_number(node, self.values)
        if number is not None:
            return number
        inputs = [self.values[n] for n in node.all_input_nodes]
        flat = [v for value in inputs for v in (value if isinstance(value, tuple) else (value,))]
        if any(isinstance(v, Poison) for v in flat):
            return Poison()
        if not any(isinstance(v, Lifted) for v in flat):
            return self._constant(node)
        try:
            rule = self.rule_of(node)
            if rule is None:
                raise Cannot("this operator has no rule yet")
            return rule(self, node)
        except Cannot as reason:
            self.refuse(node, str(reason))
            return Poison()

    def _constant(self, node: fx.Node) -> Any:
        """An operator on constants alone: copied into the new graph as it is."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _node(self.values[n]))
        target = functional(node.target)
        made = self.graph.call_function(target, args, kwargs)
        meta = node.meta.get("val")
        if isinstance(meta, (list, tuple)):
            parts = [self.graph.call_function(operator.getitem, (made, i)) for i in range(len(meta))]
            return tuple(Const(self.proxy(p), tuple(m.shape)) for p, m in zip(parts, meta, strict=True))
        known = known_numbers(node, functional(node.target), self.values)
        return Const(self.proxy(made), tuple(getattr(meta, "shape", ())), None, known)

    # what rules use

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy for a node of the new graph."""
        return fx.Proxy(node, self.recorder)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Emit one call; arguments may be proxies."""
        nodes = fx.node.map_aggregate((args, kwargs), lambda a: _node(a))
        return self.proxy(self.graph.call_function(target, *nodes))

    def value(self, argument: Any) -> Any:
        """An operator's argument: the value of a node, or the plain value itself (lists of nodes too)."""
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, (list, tuple)):
            return [self.value(a) for a in argument]
        return argument

    def lifted(self, argument: Any) -> Lifted:
        """The argument as a lifted value without a pending affine."""
        value = self.value(argument)
        if not isinstance(value, Lifted):
            raise Cannot("a constant where a value that depends on the image was expected")
        if value.affine is not None:
            raise Cannot(BY_POSITION)
        return value

    def as_map(self, value: Lifted) -> Lifted:
        """The value as a map whose index is the identity, its shape `(channels, *places)`."""
        if value.index is None:
            return value
        plan = as_gather(value.index, value.grid)
        if isinstance(plan, str):
            raise Cannot(plan)
        if plan.broadcast:
            raise Cannot("a value per window is repeated over places")
        return self.gathered(value, plan)

    def gathered(self, value: Lifted, plan: Gather) -> Lifted:
        """The map after a gather."""
        if plan.is_identity(value.grid):
            return replace(value, index=None)
        handle = emitter.gather(value.handle, plan, value.grid.channels)
        return Lifted(handle, plan.grid(value.grid), None, value.pooled)

    def at_one_place(self, value: Lifted) -> Lifted:
        """The value as the channels of a map with one place per window: its elements in their own order."""
        stencil = as_stencil(value.indices().reshape(1, -1), value.grid)
        if isinstance(stencil, str):
            raise Cannot(stencil)
        if stencil.channels.size > MOST_CHANNELS:
            raise Cannot(f"{stencil.channels.size} elements of different places would each need a channel")
        return self.gathered(replace(value, index=identity(value.grid.shape)), stencil.gather())

    def with_channels(self, value: Lifted, axes: tuple[int, ...]) -> tuple[Lifted, Integers]:
        """The value on a map whose channels are its elements along `axes`, in order; and its index into that map."""
        index = np.moveaxis(value.indices(), axes, range(-len(axes), 0))
        rows = index.reshape(*index.shape[: -len(axes)], -1)
        stencil = as_stencil(rows, value.grid)
        if isinstance(stencil, str):
            raise Cannot(stencil)
        laid = self.gathered(replace(value, index=identity(value.grid.shape)), stencil.gather())
        new = stencil.out_index(rows.shape[-1]).reshape(index.shape)
        return laid, np.ascontiguousarray(np.moveaxis(new, range(-len(axes), 0), axes))

    def with_groups(self, value: Lifted, axes: tuple[int, ...]) -> tuple[Lifted, Groups]:
        """The value on a map of `groups.count` × F channels: for each place, its F elements along `axes`, in order, a
        group for each combination of channels that the other axes choose."""
        index = np.moveaxis(value.indices(), axes, range(-len(axes), 0))
        groups = as_groups(index.reshape(*index.shape[: -len(axes)], -1), value.grid)
        if isinstance(groups, str):
            raise Cannot(groups)
        if len(groups.gather.channels) > MOST_CHANNELS:
            raise Cannot(f"{len(groups.gather.channels)} elements of a window would each need a channel")
        return self.gathered(replace(value, index=identity(value.grid.shape)), groups.gather), groups

    def compact(self, value: Lifted) -> Lifted:
        """The value on a map that holds each of its elements exactly once, in whichever layout that is."""
        if value.index is None or is_bijection(value.index, value.grid):
            return value
        if value.index.ndim == self.axes + 1:
            plan = as_gather(value.index, value.grid)
            if not isinstance(plan, str) and not plan.broadcast:
                return self.gathered(value, plan)
        for axis in range(value.index.ndim - 1, -1, -1):
            if value.index.shape[axis] > 1:
                try:
                    laid, index = self.with_channels(value, (axis,))
                except Cannot:
                    continue
                if is_bijection(index, laid.grid):
                    return replace(laid, index=index)
        return replace(self.at_one_place(value), index=identity(value.shape))

    def met(self, values: list[Lifted]) -> tuple[list[Lifted], Grid]:
        """Maps that meet place by place, cropped to their common extent where it can differ; their joint grid."""
        values = self._at_one_stride(values)
        grid = values[0].grid
        for other in values[1:]:
            joined = grid.joined(other.grid)
            if joined is None:
                raise Cannot(
                    f"maps meet that have different strides: {grid.jump} and {other.grid.jump} pixels"
                )
            grid = joined
        if not grid.extents_known or any(v.grid.sizes != grid.sizes for v in values):
            handles = emitter.common([v.handle for v in values], self.axes)
            values = [replace(v, handle=h) for v, h in zip(values, handles, strict=True)]
        return values, grid

    def _at_one_stride(self, values: list[Lifted]) -> list[Lifted]:
        """Values of one place each, at the least common stride: windows that lie at its multiples have them all."""
        jumps = {v.grid.jump for v in values}
        if len(jumps) == 1 or any(max(v.grid.nominal) > 1 for v in values):
            return values
        least = [math.lcm(*axis) for axis in zip(*jumps, strict=True)]
        return [self._strided(v, [m // j for m, j in zip(least, v.grid.jump, strict=True)]) for v in values]

    def _strided(self, value: Lifted, steps: list[int]) -> Lifted:
        starts = [(0, 0)] * self.axes
        grid = value.grid.gathered(value.grid.channels, starts, steps, value.grid.nominal)
        return replace(value, handle=emitter.stride(value.handle, steps), grid=grid)

    def refuse(self, node: fx.Node, reason: str) -> None:
        """Record a refusal."""
        refusal = Refusal(module_path(node), op_name(node.target), reason)
        if refusal not in self.refused:
            self.refused.append(refusal)

    def not_exact(self, node: fx.Node, reason: str) -> None:
        """Record why the result differs from cropping every window."""
        text = f"{module_path(node) or node.name} ({op_name(node.target)}): {reason}"
        if text not in self.inexact:
            self.inexact.append(text)


def _node(value: Any) -> Any:
    if isinstance(value, Const):
        return handle_of(value).node
    if isinstance(value, Lifted):
        return value.handle.node
    if isinstance(value, fx.Proxy):
        return value.node
    if isinstance(value, tuple):
        return tuple(_node(v) for v in value)
    return value


def op_name(target: Any) -> str:
    """An operator's name as people write it: `aten.linear`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).replace("::", ".")
    return str(getattr(target, "__name__", target))


def functional(target: Any) -> Any:
    """The operator that makes a new tensor where this one writes in place (relu_ → relu)."""
    if not is_inplace(target):
        return target
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None)
    overload = getattr(packet, target._overloadname, None)
    if overload is None:
        raise Cannot("an in-place operator without a functional twin")
    return overload
