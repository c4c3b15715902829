"""Writes ONNX nodes for the planner; what it does to a constant is done at conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.layout.emitter import LayoutEmitter
from onebyone.layout.orders import Layout
from onebyone.layout.stored_tensors import StoredTensors
from onebyone.layout.values import GraphValue
from onebyone.onnx.layout.captured_values import captured
from onebyone.onnx.layout.decoder import DecodedModel, TokenProduct
from onebyone.onnx.layout.normalisations import elementary, normalised_axes
from onebyone.onnx.layout.operators import (
    BIASED_ACTIVATIONS,
    MICROSOFT,
    NORMALISATIONS,
    SOFTMAX_ALONG_ONE_AXIS,
    SOFTMAXES,
    axis_setting,
)
from onebyone.onnx.layout.shape_nodes import ShapeNodeWriter
from onebyone.onnx.layout.symbolic_sizes import broadcast
from onebyone.onnx.model_rewriting import subgraphs_of
from onebyone.onnx.weight_rewriting import WeightRewriter

#: The end of a Slice that goes to the last element.
END = 2**63 - 1


class LayoutNodeEmitter(ShapeNodeWriter, LayoutEmitter[ir.Value]):
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
        if any(True for _ in subgraphs_of(node, "")):
            return self._moved(node, replaced)
        inputs = [None if v is None else replaced[v] for v in node.inputs]
        attributes = dict(node.attributes)
        if axes is not None:
            self._set_axes(node, inputs, attributes, axes)
        elif node.op_type in NORMALISATIONS or (
            node.op_type in SOFTMAXES and self.decoded.opset < SOFTMAX_ALONG_ONE_AXIS
        ):
            self._set_normalised_axes(node, operands, attributes)
        if node.domain == MICROSOFT and node.op_type in BIASED_ACTIVATIONS:
            return self._biased_activation(node, inputs, attributes)
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
        left, right = self._sizes(first), self._sizes(second)
        batch = broadcast([left[:-2], right[:-2]]) if len(left) > 2 or len(right) > 2 else []
        return self._written("MatMul", [first, second], {}, [*batch, left[-2], right[-1]])

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

    def _operand(self, value: ir.Value, operands: Mapping[GraphValue, ir.Value]) -> ir.Value:
        if value.name == "":
            return value
        known = self.decoded.value(value)
        return self.use(operands[known] if known in operands else self.natural(known))

    def _node(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr],
        op_type: str | None = None,
    ) -> ir.Value:
        """A copy of a node with other inputs and attributes, and another operator if one is given; its first output."""
        outputs = [
            ir.Value(name=output.name and f"{self.writer.name}/{output.name}", type=output.type)
            for output in node.outputs
        ]
        copy = ir.Node(
            node.domain,
            op_type or node.op_type,
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

    def _biased_activation(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], attributes: Mapping[str, ir.Attr]
    ) -> ir.Value:
        """The activation of a sum, as it was where its bias is still a vector along the last dimension.

        Otherwise the bias, which broadcasts against the other operand, is added by itself.
        """
        x, bias = (*inputs, None)[:2]
        if x is None or bias is None or bias.name == "" or len(self._sizes(bias)) == 1:
            return self._node(node, inputs, attributes)
        total = self._written("Add", [x, bias], {}, self._sizes(x))
        return self._node(node, [total], attributes, BIASED_ACTIVATIONS[node.op_type])

    def _moved(self, node: ir.Node, replaced: Mapping[ir.Value, ir.Value]) -> ir.Value:
        """The node itself, which owns its subgraphs, with what it and they read from outside replaced."""
        for _, graph in subgraphs_of(node, ""):
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
