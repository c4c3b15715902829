"""What each operator says about the order its operands and its result are stored in, and how it is written in
a given order.

A rule relates orders both ways: `inputs_for(out)` lists what its operands may be stored in if its result is
to be stored in `out`, `outputs_for(i, order)` what follows from storing operand `i` in `order`. The planner
chooses one order for each value; `emit` then writes the operator there. An operator without a rule of its own
is `Fixed`: all of its operands and results keep the order of the original graph, which is always right.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from onebyone.pytorch.graph.orders import (
    UNIT,
    Frame,
    Order,
    natural_frame,
    restrict,
    restrict_frame,
    significant,
    strip_leading_units,
)

Inputs = tuple[Order, ...]


class Emitter(Protocol):
    """What `emit` may ask of the program under construction (see `build.Builder`)."""

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        """A new node, with its value's shape worked out."""

    def get(self, value: Node, frame: Frame) -> Node:
        """The new node that holds an original value in exactly this frame."""

    def frame(self, value: Node, order: Order) -> Frame:
        """A frame of this order that costs nothing more than the order itself."""

    def size(self, value: Node, axis: int) -> Any:
        """The size of a logical axis: an integer, or a node that gives one."""

    def arg(self, value: Any) -> Any:
        """An argument with every original node in it replaced: tensors in their original frame, numbers as
        they are.
        """

    def original(self, node: Node) -> Node:
        """The node as it was, on operands in their original frames."""


def tensor(node: Node) -> torch.Tensor | None:
    """The recorded value of a node where it is one tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def shape(node: Node) -> tuple[Any, ...]:
    """The recorded shape; static sizes are plain integers."""
    value = tensor(node)
    assert value is not None, node
    return tuple(value.shape)


def axes_of(node: Node) -> Order:
    """The significant axes of a node's tensor."""
    return significant(shape(node)) if tensor(node) is not None else ()


def has_unknown_size(node: Node) -> bool:
    """Whether a size of the node's tensor depends on the values of others, as after `x[mask]`: no example fixes it."""
    value = tensor(node)
    return value is not None and any(free_unbacked_symbols(size) for size in value.shape)


def tensor_operands(node: Node) -> tuple[Node, ...]:
    """The node's inputs that are tensors or lists of tensors, each once."""
    return tuple(
        n
        for n in node.all_input_nodes
        if tensor(n) is not None or isinstance(n.meta.get("val"), list | tuple)
    )


def replace(node: Node, new: dict[Node, Any], em: Emitter) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The node's arguments with `new` put in, and everything else as the emitter has it."""

    def swap(value: Any) -> Any:
        if isinstance(value, Node):
            return new[value] if value in new else em.arg(value)
        if isinstance(value, list | tuple):
            return type(value)(swap(v) for v in value)
        return value

    return tuple(swap(a) for a in node.args), {k: swap(v) for k, v in node.kwargs.items()}


@dataclass
class Rule:
    """Base, and the rule of everything unknown (`Fixed`): original order in, original order out."""

    node: Node
    axes: Order
    operands: tuple[Node, ...]

    def inputs_for(self, out: Order) -> list[Inputs]:
        """The operand orders, each a possibility, under which the result can be stored in `out`."""
        return [tuple(axes_of(n) for n in self.operands)] if out == self.axes else []

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        """Result orders that suit operand `i` stored in `order`."""
        del i, order
        return [self.axes]

    def wanted(self) -> list[Order]:
        """Result orders the operator would like of itself."""
        return [self.axes]

    def penalty(self, out: Order, inputs: Inputs) -> float:
        """A cost well below one layout operator, to prefer one form over another."""
        del out, inputs
        return 0.0

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        """Write the operator; returns the new node and the frame of its result."""
        del out, inputs
        value = tensor(self.node)
        return em.original(self.node), natural_frame(value.dim(), self.axes) if value is not None else ()


class Fixed(Rule):
    """Original order in, original order out."""


class Free(Rule):
    """A rule for operators that put no order of their own."""

    def wanted(self) -> list[Order]:
        return []


class ElementwiseRule(Free):
    """Element by element, with broadcasting: operands and result share one order."""

    def _shift(self, operand: Node) -> int:
        return len(shape(self.node)) - len(shape(operand))

    def inputs_for(self, out: Order) -> list[Inputs]:
        return [tuple(restrict(out, axes_of(n), self._shift(n)) for n in self.operands)]

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        shift = self._shift(self.operands[i])
        lifted = tuple(a + shift for a in order)
        missing = tuple(a for a in self.axes if a not in lifted)
        return [lifted if not missing else missing + lifted]

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        frame, source = out, None
        for operand, order in zip(self.operands, inputs, strict=True):
            if len(order) == len(out):
                source, shift = operand, self._shift(operand)
                frame = tuple(a if a == UNIT else a + shift for a in em.frame(operand, order))
                break
        new = {}
        for operand in self.operands:
            own = restrict_frame(frame, axes_of(operand), self._shift(operand))
            plain = operand is not source and (source is not None or not shape(operand))
            new[operand] = em.get(operand, strip_leading_units(own) if plain else own)
        args, kwargs = replace(self.node, new, em)
        return em.call(self.node.target, args, kwargs), frame


@dataclass
class Relabel(Free):
    """Permutes, squeezes and copies: the stored tensor is the same, its axes are called otherwise. `names`
    maps in to out.
    """

    names: dict[int, int]

    def inputs_for(self, out: Order) -> list[Inputs]:
        back = {b: a for a, b in self.names.items()}
        return [(tuple(back[a] for a in out),)]

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        return [tuple(self.names[a] for a in order)]

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        frame = em.frame(self.operands[0], inputs[0])
        new = tuple(self.names[a] if a != UNIT else UNIT for a in frame)
        return em.get(self.operands[0], frame), new


def with_axes(order: Order, more: Order) -> list[Inputs]:
    """`order` with more axes, side by side, put in at every place."""
    if not more:
        return [(order,)]
    return [(order[:i] + more + order[i:],) for i in range(len(order), -1, -1)]


@dataclass
class AlongAxes(Free):
    """An operator that works along some axes and leaves the others: softmax, mean, slice, select, flip, roll,
    split …

    `names` maps the significant axes of the input to the output's; those it lacks are gone (selected, or
    reduced to one). `dims` are the input axes it works along, `where` the argument that says so, `listed`
    whether that argument is a list. Operands after the first (the index of `index_select`) keep their order.
    """

    names: dict[int, int]
    dims: tuple[int, ...]
    where: int
    listed: bool
    drops: bool = False  # the result has no axis there at all

    def inputs_for(self, out: Order) -> list[Inputs]:
        back = {b: a for a, b in self.names.items()}
        kept = tuple(back[a] for a in out)
        rest = tuple(axes_of(n) for n in self.operands[1:])
        of_x = with_axes(kept, tuple(a for a in axes_of(self.operands[0]) if a not in self.names))
        return [(*x, *rest) for x in of_x]

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        return [tuple(self.names[a] for a in order if a in self.names)] if i == 0 else []

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        x = self.operands[0]
        frame = em.frame(x, inputs[0])
        args, kwargs = replace(self.node, {x: em.get(x, frame)}, em)
        at = [frame.index(d) for d in self.dims]
        filled = list(args) + [None] * (self.where + 1 - len(args))
        filled[self.where] = at if self.listed else at[0]
        kwargs.pop("dim", None)
        left = [a for i, a in enumerate(frame) if not (self.drops and i in at)]
        return em.call(self.node.target, tuple(filled), kwargs), tuple(self.names.get(a, UNIT) for a in left)


@dataclass
class Element(Free):
    """One element of a split or unbind, whose pieces are stored as the whole was."""

    whole: Order

    def inputs_for(self, out: Order) -> list[Inputs]:
        return with_axes(out, tuple(a for a in self.whole if a not in self.axes))

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        return [restrict(order, self.axes)]

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        parent = self.operands[0]
        frame = em.frame(parent, inputs[0])
        args, kwargs = replace(self.node, {parent: em.get(parent, frame)}, em)
        return em.call(self.node.target, args, kwargs), restrict_frame(frame, self.axes)


@dataclass
class Concatenate(Free):
    """`cat` along one axis: operands may be of size 1 there."""

    dim: int

    def inputs_for(self, out: Order) -> list[Inputs]:
        return [tuple(restrict(out, axes_of(n)) for n in self.operands)]

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        missing = tuple(a for a in self.axes if a not in order)
        lead = tuple(a for a in order if a < min(missing, default=0))
        return [lead + missing + tuple(a for a in order if a not in lead)]

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        frame: Frame = out
        for operand, order in zip(self.operands, inputs, strict=True):
            if len(order) == len(out):
                frame = em.frame(operand, order)
                break
        new = {n: em.get(n, restrict_frame(frame, axes_of(n))) for n in self.operands}
        args, _ = replace(self.node, new, em)
        return em.call(self.node.target, (args[0], frame.index(self.dim))), frame


@dataclass
class Expand(Free):
    """`expand`: axes of size 1, and new leading ones, become long."""

    sizes: Sequence[Any]

    def _shift(self) -> int:
        return len(shape(self.node)) - len(shape(self.operands[0]))

    def inputs_for(self, out: Order) -> list[Inputs]:
        return [(restrict(out, axes_of(self.operands[0]), self._shift()),)]

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        lifted = tuple(a + self._shift() for a in order)
        return [tuple(a for a in self.axes if a not in lifted) + lifted]

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        x, shift = self.operands[0], self._shift()
        own = restrict_frame(out, axes_of(x), shift)
        source = strip_leading_units(own)
        kept = {a + shift for a in axes_of(x)}
        sizes = [-1 if a in kept else em.arg(self.sizes[a]) for a in out]
        return em.call(torch.ops.aten.expand.default, (em.get(x, source), sizes)), out


@dataclass
class ChannelSecond(Free):
    """Batch, group and instance norm, PReLU: batch first, channels second, the rest in any order."""

    def _fits(self, order: Order) -> bool:
        first = restrict(order, (0, 1))
        return first == tuple(sorted(first)) and order[: len(first)] == first

    def inputs_for(self, out: Order) -> list[Inputs]:
        rest = tuple(axes_of(n) for n in self.operands[1:])
        return [(out, *rest)] if self._fits(out) else []

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        return [order] if i == 0 and self._fits(order) else [self.axes]

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        x = self.operands[0]
        head = tuple(a if a in out else UNIT for a in (0, 1))
        have = em.frame(x, inputs[0])
        frame = have if have[:2] == head else head + tuple(a for a in out if a > 1)
        args, kwargs = replace(self.node, {x: em.get(x, frame)}, em)
        return em.call(self.node.target, args, kwargs), frame


@dataclass
class Normalise(Free):
    """Layer and root-mean-square normalisation over the last axes: fused where they are stored last, else
    spelled out.
    """

    over: tuple[int, ...]
    root_mean_square: bool = False

    def inputs_for(self, out: Order) -> list[Inputs]:
        last = out[-len(self.over) :] == self.over
        rest = tuple(axes_of(n) for n in self.operands[1:])
        return [(out, *rest)] if last or len(self.over) == 1 else []

    def outputs_for(self, i: int, order: Order) -> list[Order]:
        return [order] if i == 0 and self.inputs_for(order) else [self.axes]

    def penalty(self, out: Order, inputs: Inputs) -> float:
        return 0.0 if out[-len(self.over) :] == self.over else 0.0001

    def emit(self, em: Emitter, out: Order, inputs: Inputs) -> tuple[Any, Frame]:
        x = self.operands[0]
        if out[-len(self.over) :] == self.over:
            have = em.frame(x, out)
            frame = have if have[-len(self.over) :] == self.over else out
            args, kwargs = replace(self.node, {x: em.get(x, frame)}, em)
            return em.call(self.node.target, args, kwargs), frame
        frame = em.frame(x, out)
        return self._spelled_out(em, em.get(x, frame), frame), frame

    def _spelled_out(self, em: Emitter, x: Node, frame: Frame) -> Node:
        """(x − mean) / √(variance + ε) · w + b along the channel axis, in float32 at least, as the fused
        kernel does.
        """
        aten, at = torch.ops.aten, frame.index(self.over[0])
        given = tensor(self.node)
        assert given is not None
        narrow = given.dtype in (torch.float16, torch.bfloat16)
        if narrow:
            x = em.call(aten.to.dtype, (x, torch.float32))
        names = ["input", "normalized_shape", "weight", "bias", "eps"]
        if self.root_mean_square:
            names.remove("bias")
        given_args = dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)
        eps = given_args.get("eps", 1e-5)
        if eps is None or (self.root_mean_square and "eps" not in given_args):
            eps = torch.finfo(given.dtype).eps
        if self.root_mean_square:
            spread = em.call(aten.mean.dim, (em.call(aten.mul.Tensor, (x, x)), [at], True))
        else:
            moments = em.call(aten.var_mean.correction, (x, [at]), {"correction": 0, "keepdim": True})
            spread = em.call(operator.getitem, (moments, 0))
            x = em.call(aten.sub.Tensor, (x, em.call(operator.getitem, (moments, 1))))
        x = em.call(
            aten.mul.Tensor, (x, em.call(aten.rsqrt.default, (em.call(aten.add.Scalar, (spread, eps)),)))
        )
        for name, target in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
            parameter = given_args.get(name)
            if isinstance(parameter, Node):
                own = strip_leading_units(restrict_frame(frame, (0,), self.over[0]))
                x = em.call(target, (x, em.get(parameter, own)))
        return em.call(aten.to.dtype, (x, given.dtype)) if narrow else x
