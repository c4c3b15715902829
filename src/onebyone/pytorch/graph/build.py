"""Writing the planned graph: nodes in their chosen orders, frames changed on demand, shapes worked out as it
goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from onebyone.pytorch.graph.counting import operator_name
from onebyone.pytorch.graph.orders import (
    UNIT,
    Frame,
    Order,
    channels_last,
    channels_last_axes,
    frame_steps,
    image_axes,
    natural_frame,
    order_of,
)
from onebyone.pytorch.graph.plan import LayoutPlan
from onebyone.pytorch.graph.products import CHANNEL, image_frame
from onebyone.pytorch.graph.rules import Relabel, Rule, axes_of, shape, tensor

aten = torch.ops.aten
MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
KEPT_META = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "custom", "from_node")


class Builder:
    """Builds the new graph node by node; an `Emitter` (see `rules`).

    `stored` gives the frame a constant placeholder is stored in where that is not its own; `demands` counts,
    for each constant placeholder, the frames it was asked for, from which the next build's `stored` is
    chosen.
    """

    def __init__(
        self,
        graph: Graph,
        rules: dict[Node, Rule],
        plan: LayoutPlan,
        free: set[Node],
        stored: Mapping[str, Frame],
        channels_last: Mapping[Node, int] | None = None,
    ) -> None:
        self.old, self.rules, self.plan, self.free = graph, rules, plan, free
        self.graph = Graph()
        self.demands: dict[str, Counter[Frame]] = {}
        given = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
        self.fake_mode = detect_fake_mode(given) or FakeTensorMode()
        self._stored = stored
        self._channels_last = channels_last or {}
        self._versions: dict[Node, dict[Frame, Node]] = {}
        self._plain: dict[Node, Any] = {}  # values that are no tensors: sizes, submodules
        self._root = _root_meta(graph)  # for what belongs to no module, such as a permute of the output
        self._meta: dict[str, Any] = {}

    def build(self) -> Graph:
        """The new graph, without dead nodes."""
        for node in self.old.nodes:
            self._meta = self._root | {k: node.meta[k] for k in KEPT_META if node.meta.get(k)}
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                self.graph.output(self._output(node), type_expr=node.type).meta.update(self._meta)
            elif node.op == "get_attr":
                self._plain[node] = self._copy(node)
            elif node in self.rules:
                self._emit(node)
            elif not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
                self._number(node)
        _drop_dead_nodes(self.graph)
        self.graph.lint()
        return self.graph

    # -- nodes of the old graph
    # --------------------------------------------------------------------------------------------------

    def _placeholder(self, node: Node) -> None:
        new = self._copy(node)
        frame = self._stored.get(node.name)
        if tensor(node) is None:
            self._plain[node] = new
            return
        if frame is None:
            frame = natural_frame(len(shape(node)), axes_of(node))
        else:
            with torch.no_grad(), self.fake_mode:
                new.meta["val"] = restore(new.meta["val"], len(shape(node)), axes_of(node), frame)
        self._versions[node] = {frame: new}

    def _copy(self, node: Node) -> Node:
        new = self.graph.create_node(node.op, node.target, (), {}, node.name, node.type)
        new.name = (
            node.name
        )  # a placeholder keeps even a name that Python has taken: the signature knows it by that
        new.meta.update(node.meta)
        return new

    def _emit(self, node: Node) -> None:
        if node in self.free:
            return
        out, inputs = self.plan.orders[node]
        new, frame = self.rules[node].emit(self, out, inputs)
        if node in self._channels_last:
            new, frame = self._laid_out(new, frame, self._channels_last[node])
        self._versions[node] = {frame: new}

    def _laid_out(self, new: Node, frame: Frame, channel: int) -> tuple[Node, Frame]:
        """An image put into channels-last memory, where it is not: one copy at the start of a run of image
        operators.
        """
        order = order_of(frame)
        if channel not in order or order.index(channel) > 1 or order[-1] == channel:
            return new, frame
        if new.meta["val"].stride(frame.index(channel)) == 1:
            return new, frame
        image = restrict_image(order, channel)
        if len(image) not in MEMORY_FORMATS:
            return new, frame
        new = self._reframed(new, frame, image)
        return self.call(
            aten.contiguous.default, (new,), {"memory_format": MEMORY_FORMATS[len(image)]}
        ), image

    def _number(self, node: Node) -> None:
        """A size, or arithmetic on sizes."""
        if operator_name(node) == "sym_size" and isinstance(node.args[0], Node):
            self._plain[node] = self.size(node.args[0], int(node.args[1]))  # type: ignore[arg-type]
            return
        self._plain[node] = self.original(node)

    def _output(self, node: Node) -> Any:
        return map_arg(node.args[0], self._as_given)

    # -- what rules ask
    # ------------------------------------------------------------------------------------------------------------

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        node = self.graph.call_function(target, args, kwargs or {})
        node.meta.update(self._meta)
        given_args, given_kwargs = map_arg((args, kwargs or {}), lambda n: n.meta["val"])
        with torch.no_grad(), self.fake_mode:
            value = target(*given_args, **given_kwargs)
        node.meta["val"] = value
        return node

    def original(self, node: Node) -> Node:
        args = map_arg(node.args, self._as_given)
        kwargs = map_arg(node.kwargs, self._as_given)
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        new.meta.update(self._meta)
        if node.meta.get(
            "unbacked_bindings"
        ):  # sizes or numbers that only the values tell: they keep their names
            new.meta |= {"val": node.meta["val"], "unbacked_bindings": node.meta["unbacked_bindings"]}
            return new
        own_graph = any(
            "val" not in n.meta for n in new.all_input_nodes
        )  # an operator on a graph within this one
        pairs = zip(node.all_input_nodes, new.all_input_nodes, strict=False)
        if own_graph or all(_same_layout(a, b) for a, b in pairs):
            new.meta["val"] = node.meta.get("val")
            return new
        given_args, given_kwargs = map_arg((args, kwargs), lambda n: n.meta["val"])
        with torch.no_grad(), self.fake_mode:
            new.meta["val"] = node.target(*given_args, **given_kwargs)  # type: ignore[operator]
        return new

    def _as_given(self, node: Node) -> Any:
        if node in self._plain:
            return self._plain[node]
        if tensor(node) is None:
            return next(iter(self._versions[node].values()))
        return self.get(node, natural_frame(len(shape(node)), axes_of(node)))

    def arg(self, value: Any) -> Any:
        return map_arg(value, self._as_given)

    def size(self, value: Node, axis: int) -> Any:
        known = shape(value)[axis]
        if isinstance(known, int):
            return known
        frame, new = next(iter(self._versions[value].items()))
        return self.call(aten.sym_size.int, (new, frame.index(axis)))

    def frame(self, value: Node, order: Order) -> Frame:
        for frame in self._versions.get(value, ()):
            if order_of(frame) == order:
                return frame
        return order

    def get(self, value: Node, frame: Frame) -> Node:
        if value in self.free and value.op != "placeholder":
            rule = self.rules[value]
            assert isinstance(rule, Relabel)
            back = {b: a for a, b in rule.names.items()}
            return self.get(rule.operands[0], tuple(back[a] if a != UNIT else UNIT for a in frame))
        if value in self.free:
            self.demands.setdefault(value.name, Counter())[frame] += 1
        versions = self._versions[value]
        if frame not in versions:
            have = next((f for f in versions if order_of(f) == order_of(frame)), None)
            versions[frame] = (
                self._permuted(value, frame) if have is None else self._reframed(versions[have], have, frame)
            )
        return versions[frame]

    def _reframed(self, new: Node, have: Frame, want: Frame) -> Node:
        squeeze, unsqueeze = frame_steps(have, want)
        if squeeze:
            new = self.call(aten.squeeze.dims, (new, list(squeeze)))
        for place in unsqueeze:
            new = self.call(aten.unsqueeze.default, (new, place))
        return new

    def _permuted(self, value: Node, frame: Frame) -> Node:
        """A layout operator, on the value as it was produced; units it cannot carry along are taken off and
        put on around it.
        """
        have, new = next(iter(self._versions[value].items()))
        bare, order = order_of(have), order_of(frame)
        if order_of(channels_last(frame)) == bare:
            # The units of an image are put on while it still lies place by place: after the permute, their strides
            # would leave open which memory format it has, and PyTorch's batch norm reads such an image in one format
            # and its gradient in the other.
            new = self._reframed(new, have, channels_last(frame))
            return self._place_by_place(new, list(image_axes(len(frame))))
        if sorted(have) == sorted(frame):  # units travel along
            places = {a: [i for i, other in enumerate(have) if other == a] for a in set(have)}
            return self._place_by_place(new, [places[a].pop(0) for a in frame])
        new = self._reframed(new, have, bare)
        new = self._place_by_place(new, [bare.index(a) for a in order])
        return self._reframed(new, order, frame)

    def _place_by_place(self, new: Node, permutation: list[int]) -> Node:
        """A permute; where it takes an image to channels-last order and follows a squeeze, with the squeeze after it.

        In the backward pass the units come back in the order in which the gradient lies, for the reason given above.
        """
        if new.target is aten.squeeze.dims:
            source, units = new.args
            assert isinstance(source, Node)
            assert isinstance(units, list | tuple)
            axes = channels_last_axes(source.meta["val"].dim())
            kept = [a for a in range(len(axes)) if a not in units]
            if [a for a in axes if a not in units] == [kept[p] for p in permutation]:
                moved = self.call(aten.permute.default, (source, list(axes)))
                return self.call(aten.squeeze.dims, (moved, sorted(axes.index(a) for a in units)))
        return self.call(aten.permute.default, (new, permutation))


def _root_meta(graph: Graph) -> dict[str, Any]:
    """The module stack of the network itself."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            return {"nn_module_stack": dict([next(iter(stack.items()))])}
    return {}


def restrict_image(order: Order, channel: int) -> Frame:
    """The image frame of an order whose channels are first or second."""
    full = tuple(CHANNEL if a == channel else a for a in order)
    return tuple(channel if a == CHANNEL else a for a in image_frame(full))


def restore(value: torch.Tensor, rank: int, axes: Order, frame: Frame) -> torch.Tensor:
    """A tensor in its own shape, stored in `frame`: a view where the order is the same, else a copy."""
    order = order_of(frame)
    units = [i for i in range(rank) if i not in axes]
    moved = value.squeeze(units) if units else value
    moved = moved.permute([axes.index(a) for a in order])
    for place, axis in enumerate(frame):
        if axis == UNIT:
            moved = moved.unsqueeze(place)
    return moved if order == axes else moved.contiguous()


def original_shape(value: torch.Tensor, rank: int, axes: Order, frame: Frame) -> torch.Tensor:
    """The inverse of `restore`."""
    units = [i for i, a in enumerate(frame) if a == UNIT]
    order = order_of(frame)
    moved = value.squeeze(units) if units else value
    moved = moved.permute([order.index(a) for a in axes])
    for place in range(rank):
        if place not in axes:
            moved = moved.unsqueeze(place)
    return moved if order == axes else moved.contiguous()


def _same_layout(old: Node, new: Node) -> bool:
    a, b = old.meta.get("val"), new.meta.get("val")
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return False  # strides may differ, and storages tell copies: work the value out again
    return not isinstance(a, torch.Tensor | list | tuple)


def _drop_dead_nodes(graph: Graph) -> None:
    """Remove calls nothing uses, unless they check or change something."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and not node.is_impure():
            graph.erase_node(node)
