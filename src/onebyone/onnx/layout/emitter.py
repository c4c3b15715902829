"""Writes ONNX nodes for the planner; what it does to a constant is done at conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.layout.emitter import LayoutEmitter
from onebyone.layout.orders import Layout, unit_changes
from onebyone.layout.sizes import product
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from onebyone.onnx.layout.decoder import DecodedModel, TokenProduct, captured, subgraphs
from onebyone.onnx.layout.normalisations import elementary, normalised_axes
from onebyone.onnx.layout.operators import (
    NORMALISATIONS,
    SOFTMAX_ALONG_ONE_AXIS,
    SOFTMAXES,
    axis_setting,
)
from onebyone.onnx.layout.tensors import WrittenTensors, known_sizes
from onebyone.onnx.weight_rewriting import WeightRewriter

#: The end of a Slice that goes to the last element.
END = 2**63 - 1


class LayoutNodeEmitter(WrittenTensors, LayoutEmitter[ir.Value]):
    """An emitter for ONNX graphs; `T` is a value of the new graph, or a constant with changes still to be made.

    A size that is not known is an int64 tensor of one element; a list of tensors is the first of them.

    Args:
        decoded: the original graph.
        products: the products with a constant weight, by their result.
        weights: makes the constants of the new graph.
        end: the node in front of which everything is written.
        prefix: what the names of new nodes and values begin with, after the value that they are written for.
    """

    def __init__(
        self,
        decoded: DecodedModel,
        products: Mapping[GraphValue, TokenProduct],
        weights: WeightRewriter,
        end: ir.Node,
        prefix: str,
    ) -> None:
        super().__init__(decoded, weights, end, prefix)
        self.products = products
        self.moved: set[ir.Node] = set()

    def reads_from(self, tensors: StoredTensors[ir.Value]) -> None:
        """Set where operators find what they read beside the operands of their rules."""
        self.natural, self.size_of = tensors.natural, tensors.size

    # -- the program's own operators

    def repeat(
        self,
        result: GraphValue,
        operands: Mapping[GraphValue, ir.Value],
        axes: Sequence[int] | None = None,
    ) -> ir.Value:
        origin = result.origin
        node = origin if isinstance(origin, ir.Node) else origin.producer()
        pieces = self.decoded.values.get(node)
        if pieces is not None and pieces in operands and pieces is not result:
            return operands[pieces].producer().outputs[node.outputs.index(origin)]  # type: ignore[union-attr]
        if result in self.products:
            return self._chain(self.products[result].nodes, operands)
        replaced = {v: self._operand(v, operands) for v in (*node.inputs, *captured(node)) if v is not None}
        if any(True for _ in subgraphs(node)):
            return self._moved(node, replaced)
        inputs = [None if v is None else replaced[v] for v in node.inputs]
        attributes = dict(node.attributes)
        if axes is not None:
            self._set_axes(node, inputs, attributes, axes)
        elif node.op_type in NORMALISATIONS or (
            node.op_type in SOFTMAXES and self.decoded.opset < SOFTMAX_ALONG_ONE_AXIS
        ):
            self._set_normalised_axes(node, operands, attributes)
        return self._node(node, inputs, attributes)

    def argument_size(self, result: GraphValue, axis: int) -> int | ir.Value | None:
        node = result.origin.producer()
        if node.op_type == "Flatten":
            return None
        size = result.size(axis)
        source = self.decoded.value(node.inputs[0])
        sizes = source.shape or ()
        if size in sizes:
            return self.size_of(source, sizes.index(size))
        target = self.decoded.sizes.contents(node.inputs[1])
        if target is not None and isinstance(target[axis], int) and target[axis] <= 0:
            return None
        operands = [
            self.use(self.natural(self.decoded.value(node.inputs[1]))),
            self.writer.integers([axis], "axis"),
        ]
        found = self.writer.op("Gather", operands, {"axis": 0}, shape=[1])
        self._symbols[found] = size
        return found

    def normalise(
        self,
        result: GraphValue,
        x: ir.Value,
        position: int,
        scale: ir.Value | None,
        offset: ir.Value | None,
    ) -> ir.Value:
        node = result.origin.producer()
        parameters = (None if p is None else self.use(p) for p in (scale, offset))
        return elementary(self.writer, node, self.use(x), position, *parameters)

    def shape_of(self, result: GraphValue, source: GraphValue, x: ir.Value, layout: Layout) -> ir.Value:
        node = result.origin.producer()
        sizes = source.shape or ()
        wanted = range(len(sizes))[
            slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", END))
        ]
        if all(isinstance(sizes[axis], int) for axis in wanted):
            return self.writer.integers([int(sizes[axis]) for axis in wanted])
        if layout == source.natural_layout:
            return self._node(node, [self.use(x)], dict(node.attributes))
        stored = self.writer.op("Shape", [self.use(x)], dtype=ir.DataType.INT64, shape=[len(layout)])
        stored = self.writer.op(
            "Concat", [stored, self.writer.integers([1])], {"axis": 0}, shape=[len(layout) + 1]
        )
        places = [layout.index(axis) if axis in layout else len(layout) for axis in wanted]
        operands = [stored, self.writer.integers(places, "places")]
        return self.writer.op("Gather", operands, {"axis": 0}, shape=[len(places)])

    # -- moving data and changing shapes

    def permute(self, x: ir.Value, permutation: Sequence[int]) -> ir.Value:
        if x in self._virtual:
            return self._further(x, ("transpose", tuple(permutation)))
        sizes = [self._sizes(x)[axis] for axis in permutation]
        return self._written("Transpose", [x], {"perm": list(permutation)}, sizes)

    def squeeze(self, x: ir.Value, positions: Sequence[int]) -> ir.Value:
        sizes = [size for position, size in enumerate(self._sizes(x)) if position not in positions]
        if x in self._virtual:
            return self._further(x, ("reshape", tuple(sizes)))
        return self._sized(self.writer.squeeze(x, list(positions), known_sizes(sizes)), sizes)

    def unsqueeze(self, x: ir.Value, position: int) -> ir.Value:
        return self._unsqueezed(x, [position])

    def change_units(self, x: ir.Value, have: Layout, want: Layout) -> ir.Value:
        """All squeezes in one node, and all unsqueezes in another."""
        squeeze, unsqueeze = unit_changes(have, want)
        x = self.squeeze(x, squeeze) if squeeze else x
        return self._unsqueezed(x, unsqueeze) if unsqueeze else x

    def _unsqueezed(self, x: ir.Value, positions: Sequence[int]) -> ir.Value:
        sizes = list(self._sizes(x))
        for position in positions:
            sizes.insert(position, 1)
        if x in self._virtual:
            return self._further(x, ("reshape", tuple(sizes)))
        return self._sized(self.writer.unsqueeze(x, list(positions), known_sizes(sizes)), sizes)

    def reshape(self, x: ir.Value, sizes: Sequence[int | ir.Value]) -> ir.Value:
        have = self._sizes(x)
        symbols = [self._symbols.get(size) if isinstance(size, ir.Value) else size for size in sizes]
        after = [None if size == -1 else size for size in symbols]
        if have == tuple(after):
            return x
        if x in self._virtual and all(isinstance(size, int) and size > 0 for size in sizes):
            return self._further(x, ("reshape", tuple(int(s) for s in sizes if isinstance(s, int))))
        target = [
            0
            if isinstance(size, ir.Value)
            and i < len(have)
            and symbols[i] is not None
            and have[i] == symbols[i]
            else size
            for i, size in enumerate(sizes)
        ]
        left = [i for i, size in enumerate(target) if isinstance(size, ir.Value)]
        if len(left) == 1 and -1 not in target:
            target[left[0]] = -1
        shape = self._shape_tensor(target)
        return self._written("Reshape", [x, shape], {}, after)

    def expand(self, x: ir.Value, sizes: Sequence[int | ir.Value]) -> ir.Value:
        have = self._sizes(x)
        shift = len(sizes) - len(have)
        after = [
            have[i - shift] if size == -1 else self._symbols.get(size) if isinstance(size, ir.Value) else size
            for i, size in enumerate(sizes)
        ]
        target = [1 if isinstance(size, int) and size == -1 else size for size in sizes]
        return self._written("Expand", [x, self._shape_tensor(target)], {}, after)

    # -- sizes

    def size(self, x: ir.Value, position: int) -> int | ir.Value:
        size = self._sizes(x)[position]
        if isinstance(size, int):
            return size
        shape = self.writer.op("Shape", [self.use(x)], dtype=ir.DataType.INT64)
        found = self.writer.op(
            "Gather", [shape, self.writer.integers([position], "axis")], {"axis": 0}, shape=[1]
        )
        self._symbols[found] = size
        return found

    def multiply_sizes(self, sizes: Sequence[int | ir.Value]) -> int | ir.Value:
        known = prod(size for size in sizes if isinstance(size, int))
        factors = [size for size in sizes if isinstance(size, ir.Value)]
        if not factors:
            return known
        result = factors[0]
        others: list[int | ir.Value] = [*factors[1:], *([known] if known != 1 else [])]
        for factor in others:
            result = self._calculated("Mul", result, factor)
        symbols = [self._symbols.get(size) if isinstance(size, ir.Value) else size for size in sizes]
        if all(symbol is not None for symbol in symbols):
            self._symbols[result] = product(symbols)
        return result

    def strided_size(self, size: int | ir.Value, step: int) -> int | ir.Value:
        if isinstance(size, int):
            return (size - 1) // step + 1
        steps = self._calculated("Div", self._calculated("Sub", size, 1), step)
        return self._calculated("Add", steps, 1)

    # -- products with a constant weight

    def convolution(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        outputs, *kernel = (self._sizes(weight)[0], *self._sizes(weight)[2:])
        ones = [1] * len(kernel)
        attributes = {
            "kernel_shape": ones,
            "group": 1,
            "strides": ones,
            "dilations": ones,
            "pads": [0] * (2 * len(kernel)),
        }
        operands = [x, weight] if bias is None else [x, weight, bias]
        sizes = self._sizes(x)
        return self._written("Conv", operands, attributes, [sizes[0], outputs, *sizes[2:]])

    def linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        sizes = [*self._sizes(x)[:-1], self._sizes(weight)[0]]
        if len(sizes) == 2:
            operands = [x, weight] if bias is None else [x, weight, bias]
            return self._written("Gemm", operands, {"transB": 1}, sizes)
        written = self._written("MatMul", [x, self.permute(weight, (1, 0))], {}, sizes)
        return written if bias is None else self.add(written, bias)

    def matmul(self, first: ir.Value, second: ir.Value) -> ir.Value:
        return self._written("MatMul", [first, second], {}, None)

    def add(self, x: ir.Value, other: ir.Value, factor: float = 1.0) -> ir.Value:
        if factor != 1:
            other = self.scale(other, factor)
        return self._written("Add", [x, other], {}, self._shapes.get(x))

    def scale(self, x: ir.Value, factor: float) -> ir.Value:
        used = self.use(x)
        dtype = used.dtype.numpy() if used.dtype else np.dtype(np.float32)
        return self._written(
            "Mul", [used, self.writer.constant(np.asarray(factor, dtype))], {}, self._sizes(x)
        )

    def split_rows(self, weight: ir.Value, groups: int) -> ir.Value:
        rows, columns = self._sizes(weight)
        return self._further(weight, ("reshape", (groups, rows // groups, columns)))

    def subsample(self, x: ir.Value, steps: Mapping[int, int], image_axes: int) -> ir.Value:
        del image_axes
        count = len(steps)
        values = ([0] * count, [END] * count, list(steps), list(steps.values()))
        sizes: list[Any] = list(self._sizes(x))
        for position, step in steps.items():
            size = sizes[position]
            sizes[position] = (size - 1) // step + 1 if isinstance(size, int) else None
        return self._written("Slice", [x, *(self.writer.integers(v, "slice") for v in values)], {}, sizes)

    # -- nodes

    def _calculated(self, op_type: str, left: ir.Value, right: int | ir.Value) -> ir.Value:
        other = right if isinstance(right, ir.Value) else self.writer.integers([right])
        return self.writer.op(op_type, [left, other], shape=[1])

    def _shape_tensor(self, sizes: Sequence[int | ir.Value]) -> ir.Value:
        """A shape as a tensor: a constant where all sizes are known."""
        if all(isinstance(size, int) for size in sizes):
            return self.writer.integers([size for size in sizes if isinstance(size, int)])
        parts = [size if isinstance(size, ir.Value) else self.writer.integers([size]) for size in sizes]
        return self.writer.op("Concat", parts, {"axis": 0}, dtype=ir.DataType.INT64, shape=[len(parts)])

    def _operand(self, value: ir.Value, operands: Mapping[GraphValue, ir.Value]) -> ir.Value:
        if value.name == "":
            return value
        known = self.decoded.value(value)
        return self.use(operands[known] if known in operands else self.natural(known))

    def _node(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], attributes: Mapping[str, ir.Attr]
    ) -> ir.Value:
        """A copy of a node with other inputs and attributes; its first output."""
        outputs = [
            ir.Value(name=output.name and f"{self.writer.name}/{output.name}", type=output.type)
            for output in node.outputs
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes.values(),
            overload=node.overload,
            outputs=outputs,
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        self.writer.container.insert_before(self._end, [copy])
        self.writer.nodes.append(copy)
        return outputs[0]

    def _moved(self, node: ir.Node, replaced: Mapping[ir.Value, ir.Value]) -> ir.Value:
        """The node itself, which owns its subgraphs, with what it and they read from outside replaced."""
        for graph in subgraphs(node):
            for nested in graph.all_nodes():
                for index, value in enumerate(nested.inputs):
                    if value is not None and value in replaced:
                        nested.replace_input_with(index, replaced[value])
            for index, value in enumerate(graph.outputs):
                if value in replaced:
                    graph.outputs[index] = replaced[value]
        for index, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(index, replaced[value])
        assert node.graph is not None
        node.graph.remove(node)
        self.writer.container.insert_before(self._end, [node])
        self.moved.add(node)
        return node.outputs[0]

    def _chain(self, nodes: Sequence[ir.Node], operands: Mapping[GraphValue, ir.Value]) -> ir.Value:
        """A product and the addition of its bias, as they were."""
        written: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            inputs = [
                None if v is None else written[v] if v in written else self._operand(v, operands)
                for v in node.inputs
            ]
            written[node.outputs[0]] = self._node(node, inputs, dict(node.attributes))
        return written[nodes[-1].outputs[0]]

    def _set_axes(
        self,
        node: ir.Node,
        inputs: list[ir.Value | None],
        attributes: dict[str, ir.Attr],
        axes: Sequence[int],
    ) -> None:
        setting = axis_setting(node.op_type, self.decoded.opset)
        assert setting is not None
        if setting.attribute is not None:
            name = setting.attribute
            attributes[name] = ir.AttrInt64s(name, axes) if setting.is_list else ir.AttrInt64(name, axes[0])
            return
        assert setting.input is not None
        inputs.extend([None] * (setting.input + 1 - len(inputs)))
        kind = node.inputs[1].dtype if node.op_type == "Slice" and node.inputs[1] is not None else None
        dtype = np.int64 if kind is None else kind.numpy()
        inputs[setting.input] = self.writer.constant(
            np.asarray(axes if setting.is_list else axes[0], dtype), "axes"
        )

    def _set_normalised_axes(
        self, node: ir.Node, operands: Mapping[GraphValue, ir.Value], attributes: dict[str, ir.Attr]
    ) -> None:
        """The axis of a normalisation over the last axes, in a tensor that may have another number of dimensions."""
        assert node.inputs[0] is not None
        x = self.decoded.value(node.inputs[0])
        if x not in operands or x.shape is None:
            return
        over = normalised_axes(node, x)
        if over:
            rank = len(self._sizes(operands[x]))
            attributes["axis"] = ir.AttrInt64("axis", rank - len(over))
