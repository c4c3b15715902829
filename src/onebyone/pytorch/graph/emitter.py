"""Writes aten operators into an FX graph, and works out the value of each new node as it goes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from onebyone.layout.emitter import LayoutEmitter
from onebyone.layout.orders import Layout, order_of
from onebyone.layout.values import GraphValue
from onebyone.pytorch.graph.aten_operators import AXIS_ARGUMENTS, sizes_argument
from onebyone.pytorch.graph.counting import moves_data
from onebyone.pytorch.graph.memory_format import channels_first_axes, channels_last, channels_last_axes
from onebyone.pytorch.graph.nodes import argument, holds_tensors, operator_name

aten = torch.ops.aten
POOLS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
SHAPE_ONLY = frozenset({aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dims})
END = 2**63 - 1  # the end of a slice that goes to the last element


class FxEmitter(LayoutEmitter[Node]):
    """An emitter for exported programs; `T` is a node of the new graph, and so is a size that is not known.

    `meta` is the metadata (such as the module stack) of the nodes written next. `plain` holds the new nodes of values
    that are not tensors: sizes, and graphs of blocks.
    """

    def __init__(self, graph: Graph, inputs: Iterable[Any]) -> None:
        self.graph = graph
        self.meta: dict[str, Any] = {}
        self.plain: dict[Node, Any] = {}
        self.fake_mode = detect_fake_mode(list(inputs)) or FakeTensorMode()

    # -- nodes

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        """A new node, with its value worked out on fake tensors."""
        return self._evaluated(self.graph.call_function(target, args, kwargs or {}))

    def copy(self, node: Node, substitute: Callable[[Node], Any]) -> Node:
        """A node of the old graph, with every node in its arguments replaced."""
        return self._like(node, map_arg(node.args, substitute), map_arg(node.kwargs, substitute))

    def _like(self, node: Node, args: Any, kwargs: Any) -> Node:
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
        has_subgraph = any("val" not in n.meta for n in new.all_input_nodes)
        has_tensors = any(holds_tensors(n) for n in new.all_input_nodes)
        if node.meta.get("unbacked_bindings"):  # sizes that depend on the values keep their symbols
            new.meta |= {"val": node.meta["val"], "unbacked_bindings": node.meta["unbacked_bindings"]}
        elif has_subgraph or not has_tensors:
            new.meta["val"] = node.meta.get("val")
        else:
            return self._evaluated(new)
        new.meta.update(self.meta)
        return new

    def _evaluated(self, new: Node) -> Node:
        new.meta.update(self.meta)
        args, kwargs = map_arg((new.args, new.kwargs), lambda n: n.meta["val"])
        with torch.no_grad(), self.fake_mode:
            new.meta["val"] = new.target(*args, **kwargs)  # type: ignore[operator]
        return new

    # -- the program's own operators

    def repeat(
        self, result: GraphValue, operands: Mapping[GraphValue, Node], axes: Sequence[int] | None = None
    ) -> Node:
        node: Node = result.origin
        replaced = {value.origin: new for value, new in operands.items()}
        args, kwargs = map_arg(
            (node.args, dict(node.kwargs)), lambda n: replaced[n] if n in replaced else self.plain[n]
        )
        if axes is not None:
            where = AXIS_ARGUMENTS[operator_name(node)]
            filled = [*args, *[None] * (where.position + 1 - len(args))]
            filled[where.position] = list(axes) if where.is_list else axes[0]
            args = tuple(filled)
            kwargs = {name: value for name, value in kwargs.items() if name != where.name}
        return self._like(node, args, kwargs)

    def argument_size(self, result: GraphValue, axis: int) -> int | Node | None:
        sizes = sizes_argument(result.origin)
        if sizes is None:
            return None
        size: Any = self.plain[sizes[axis]] if isinstance(sizes[axis], Node) else sizes[axis]
        return None if isinstance(size, int) and size < 0 else size

    def normalise(
        self, result: GraphValue, x: Node, position: int, scale: Node | None, offset: Node | None
    ) -> Node:
        """(x − mean) / √(variance + ε) · scale + offset, in float32 at least, as the fused kernel computes it."""
        node: Node = result.origin
        dtype = node.meta["val"].dtype
        narrow = dtype in (torch.float16, torch.bfloat16)
        if narrow:
            x = self.call(aten.to.dtype, (x, torch.float32))
        if operator_name(node) == "rms_norm":
            eps = argument(node, 3, "eps")
            spread = self.call(aten.mean.dim, (self.call(aten.mul.Tensor, (x, x)), [position], True))
        else:
            eps = argument(node, 4, "eps", 1e-5)
            moments = self.call(aten.var_mean.correction, (x, [position]), {"correction": 0, "keepdim": True})
            spread = self.call(operator.getitem, (moments, 0))
            x = self.call(aten.sub.Tensor, (x, self.call(operator.getitem, (moments, 1))))
        spread = self.call(aten.add.Scalar, (spread, torch.finfo(dtype).eps if eps is None else eps))
        x = self.call(aten.mul.Tensor, (x, self.call(aten.rsqrt.default, (spread,))))
        if scale is not None:
            x = self.call(aten.mul.Tensor, (x, scale))
        if offset is not None:
            x = self.call(aten.add.Tensor, (x, offset))
        return self.call(aten.to.dtype, (x, dtype)) if narrow else x

    # -- moving data and changing shapes

    def permute(self, x: Node, permutation: Sequence[int]) -> Node:
        """A permute; one that takes an image to channels-last order is written before a squeeze instead of after it.

        In the backward pass the unit dimensions are then inserted in the order in which the gradient is stored. After
        the permute, their strides would leave open which memory format the gradient has (see `reorder`).
        """
        if x.target is aten.squeeze.dims:
            source, units = x.args
            assert isinstance(source, Node)
            assert isinstance(units, list | tuple)
            axes = channels_last_axes(source.meta["val"].dim())
            kept = [axis for axis in range(len(axes)) if axis not in units]
            if [axis for axis in axes if axis not in units] == [kept[p] for p in permutation]:
                moved = self.call(aten.permute.default, (source, list(axes)))
                return self.call(aten.squeeze.dims, (moved, sorted(axes.index(a) for a in units)))
        return self.call(aten.permute.default, (x, list(permutation)))

    def squeeze(self, x: Node, positions: Sequence[int]) -> Node:
        return self.call(aten.squeeze.dims, (x, list(positions)))

    def unsqueeze(self, x: Node, position: int) -> Node:
        return self.call(aten.unsqueeze.default, (x, position))

    def reorder(self, x: Node, have: Layout, want: Layout) -> Node:
        """As in the base class, but the unit dimensions of an image are inserted while it is stored channels-last.

        After the permute, their strides would leave open which memory format the image has: PyTorch's batch norm
        would read it in one format and its gradient in the other.
        """
        last = channels_last(want)
        if order_of(last) == order_of(have):
            return self.permute(self.change_units(x, have, last), channels_first_axes(len(want)))
        return super().reorder(x, have, want)

    def reshape(self, x: Node, sizes: Sequence[int | Node]) -> Node:
        """A reshape; a single unknown size is left to be inferred, which keeps the program plain.

        Where `x` is itself another shape of some tensor, that tensor is reshaped instead, unless that would copy.
        """
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1:
            sizes = [-1 if i == unknown[0] else size for i, size in enumerate(sizes)]
        source = x
        while source.target in SHAPE_ONLY and isinstance(source.args[0], Node):
            source = source.args[0]
        new = self.call(aten.reshape.default, (source, list(sizes)))
        if source is not x and moves_data(new):
            return self.call(aten.reshape.default, (x, list(sizes)))
        return new

    def expand(self, x: Node, sizes: Sequence[int | Node]) -> Node:
        return self.call(aten.expand.default, (x, list(sizes)))

    # -- sizes

    def size(self, x: Node, position: int) -> int | Node:
        return self.call(aten.sym_size.int, (x, position))

    def multiply_sizes(self, sizes: Sequence[int | Node]) -> int | Node:
        result: int | Node = prod(size for size in sizes if isinstance(size, int))
        for size in sizes:
            if isinstance(size, Node):
                result = size if result == 1 else self.call(operator.mul, (size, result))
        return result

    def strided_size(self, size: int | Node, step: int) -> int | Node:
        if isinstance(size, int):
            return (size - 1) // step + 1
        steps = self.call(operator.floordiv, (self.call(operator.sub, (size, 1)), step))
        return self.call(operator.add, (steps, 1))

    # -- products with a constant weight

    def convolution(self, x: Node, weight: Node, bias: Node | None) -> Node:
        spatial = weight.meta["val"].dim() - 2
        target = aten.conv2d.default if spatial == 2 else aten.conv3d.default
        return self.call(target, (x, weight, bias))

    def linear(self, x: Node, weight: Node, bias: Node | None) -> Node:
        return self.call(aten.linear.default, (x, weight, bias))

    def matmul(self, first: Node, second: Node) -> Node:
        return self.call(aten.matmul.default, (first, second))

    def add(self, x: Node, other: Node, factor: float = 1.0) -> Node:
        return self.call(aten.add.Tensor, (x, other), {} if factor == 1 else {"alpha": factor})

    def scale(self, x: Node, factor: float) -> Node:
        return self.call(aten.mul.Tensor, (x, factor))

    def split_rows(self, weight: Node, groups: int) -> Node:
        rows, columns = weight.meta["val"].shape
        return self.call(aten.reshape.default, (weight, [groups, rows // groups, columns]))

    def subsample(self, x: Node, steps: Mapping[int, int], image_axes: int) -> Node:
        """A 1×1 average pool with a stride where `x` is an image of real numbers, else slices."""
        value = x.meta["val"]
        if image_axes and not value.is_complex():
            spatial = range(value.dim() - image_axes, value.dim())
            stride = [steps.get(position, 1) for position in spatial]
            return self.call(POOLS[image_axes], (x, [1] * image_axes, stride))
        for position, step in steps.items():
            x = self.call(aten.slice.Tensor, (x, position, 0, END, step))
        return x

    # -- convolutions on patches

    def patches(self, x: Node, cuts: Sequence[tuple[int, int]]) -> Node:
        """Each cut appends a dimension, also that of the channels, so no dimension has to be permuted."""
        for position, extent in cuts:
            x = self.call(aten.unfold.default, (x, position, extent, extent))
        return x if len(cuts) == 1 else self.call(aten.flatten.using_ints, (x, -len(cuts)))

    def as_matrix(self, weight: Node) -> Node:
        return self.call(aten.flatten.using_ints, (weight, 1))
