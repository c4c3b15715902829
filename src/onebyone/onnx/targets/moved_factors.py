"""Multiply before a tensor is rearranged and divided, where the target takes the product there without a Reshape.

Attention multiplies the queries by a constant: one third of the channels of a product, after they were separated and
transposed to (N, heads, tokens, channels). Where the target takes a batch of one only, this takes a Reshape before the
product and one after it. The same numbers come from one factor per channel in front of the rearrangement, (N, tokens,
channels), which is one for the other channels; x · 1 = x for every x.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onebyone.onnx.constant_values import Array, NotRewritable, array_of, is_constant, shape_of
from onebyone.onnx.conversion import RewrittenLayer
from onebyone.onnx.convert import Only, wanted
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import ModelRewriter, discard, nodes_of, replace_value
from onebyone.onnx.targets.axis_groups import without_ones
from onebyone.onnx.targets.fewer_axes import known_sizes
from onebyone.onnx.targets.remedies import require_allowed
from onebyone.onnx.targets.runs import is_view
from onebyone.onnx.targets.single_nodes import MOST_AXES, offending_nodes
from onebyone.onnx.weight_rewriting import Step
from onebyone.records import Change
from onebyone.targets import TargetProfile
from onebyone.targets.limits import SizeLimit

MOVED_FACTOR = "factor of a part of a tensor = one factor per channel of the whole, 1 for the others"
#: The most elements of a tensor whose factors are followed one by one, one byte each.
_MOST_ELEMENTS = 2**26


def move_factors(rewriter: ModelRewriter, profile: TargetProfile, most: int | None, only: Only) -> None:
    """Move the factors of products of a constant whose batch the target limits, where that saves Reshapes.

    `most` is the number of axes that every tensor may have, if that is limited.
    """
    mover = _Mover(rewriter, most or MOST_AXES, profile.name)
    for path, node, rule in list(offending_nodes(rewriter.model, profile)):
        if isinstance(rule, SizeLimit) and wanted(rewriter.origin(path), only):
            try:
                mover.move(path, node, rule)
            except NotRewritable:
                continue


@dataclass(eq=False)
class _Way:
    """How a tensor leads to the product.

    Attributes:
        between: the values after the tensor up to the product, the last one first: their numbers change.
        parts: the parts of the divided tensor, and `others` those that do not lead to the product: their numbers stay.
        scaled: which elements of the tensor are multiplied, with axes of size one where all along an axis agree.
    """

    between: list[ir.Value] = field(default_factory=list)
    others: list[ir.Value] = field(default_factory=list)
    scaled: Array = field(default_factory=lambda: np.ones((), bool))
    parts: list[ir.Value] = field(default_factory=list)

    def extended(self, value: ir.Value) -> ir.Value | None:
        """The value from which `value`, the first one so far, is taken; None where that is not a rearrangement."""
        node = value.producer()
        source = None if node is None or node.domain != "" or not node.inputs else node.inputs[0]
        if node is None or source is None or is_constant(source) or value.is_graph_output():
            return None
        sizes, before = known_sizes(value), known_sizes(source)
        if max(np.prod(sizes), np.prod(before)) > _MOST_ELEMENTS:
            return None
        is_divided = {use.node for use in value.uses()} == {part.producer() for part in self.parts}
        if not is_divided and len(value.uses()) != 1:
            return None
        if node.op_type == "Transpose":
            order = list(node.attributes.get_ints("perm") or reversed(range(len(sizes))))
            self.scaled = np.transpose(self.scaled, [int(axis) for axis in np.argsort(order)])
        elif is_view(node):
            self.scaled = _smallest(np.broadcast_to(self.scaled, sizes).reshape(before))
        elif node.op_type in ("Gather", "Split") and not self.parts:
            parts = _parts(source)
            if parts is None:
                return None
            self.others = [part for part in parts if part is not value]
            self.scaled = _in_whole(node, value, source, self.scaled)
            self.parts = parts
        else:
            return None
        self.between.append(value)
        return source


class _Mover:
    def __init__(self, rewriter: ModelRewriter, most: int, target: str) -> None:
        self._rewriter, self._most, self._target = rewriter, most, target
        self._position = {node: index for index, (_, node, _) in enumerate(nodes_of(rewriter.model))}
        #: The names of values that other records refer to, and that must keep their numbers.
        self._shared = {name for layer in rewriter.layers for name in (layer.data, layer.output)}
        self._shared |= {place.tensor for places in rewriter.stored.values() for place in places}
        #: The tensor of the original behind each product that was written, the numbers that each tensor was multiplied
        #: by, and the values whose numbers changed.
        self._tensors: dict[ir.Value, ir.Value] = {}
        self._numbers: dict[ir.Value, list[ir.Value]] = {}
        self._changed: set[ir.Value] = set()

    def move(self, path: str, node: ir.Node, rule: SizeLimit) -> None:
        """Move the factor of one product to the nearest tensor before it that takes it without a Reshape, if any.

        Raises:
            NotRewritable: a size is not known, or the target does not take what is inserted.
        """
        place = _place_of_data(node)
        value = None if place is None else node.inputs[place]
        if place is None or value is None or len(without_ones(known_sizes(value))) < self._most:
            return
        way = _Way(scaled=np.ones((1,) * len(known_sizes(value)), bool))
        while str(value.name) not in self._shared:
            source = way.extended(value)
            if source is None:
                return
            sizes = known_sizes(source)
            is_one_axis = sum(size > 1 for size in way.scaled.shape) <= 1
            has_room = len(sizes) < self._most or (
                len(sizes) == self._most and sizes[0] <= (rule.maximum or 1)
            )
            if has_room and is_one_axis:
                number = node.inputs[1 - place]
                tensor = self._tensors.get(source, source)
                if number is None or number in self._numbers.get(tensor, ()):
                    return  # integer probes could not tell one factor from the other
                self._write(path, node, number, way, source, rule)
                return
            value = source

    def _write(
        self, path: str, node: ir.Node, number: ir.Value, way: _Way, source: ir.Value, rule: SizeLimit
    ) -> None:
        """Multiply `source`, and remove the product."""
        first = way.between[-1].producer()
        is_divided_first = len(way.parts) > 1 and len(way.between) == 1
        found = [part.producer() for part in way.parts] if is_divided_first else [first]
        readers = [reader for reader in dict.fromkeys(found) if reader is not None]
        anchor = min(readers, key=lambda reader: self._position.get(reader, 0))
        writer = GraphWriter(anchor, f"{path}/{self._target}", self._rewriter.model.opset_imports.get("", 1))
        factors = self._rewriter.weights.rewrite(writer, number, [_among_ones(way.scaled)])
        product = self._product(writer, node.op_type, source, factors, rule)
        for reader in readers:
            reader.replace_input_with(0, product)
        tensor = self._tensors[product] = self._tensors.get(source, source)
        self._numbers.setdefault(tensor, []).append(number)
        result = way.between[0]
        names = {str(value.name) for value in way.between}
        for value in way.between[1:]:
            value.name = f"{value.name}/scaled"
        self._changed |= set(way.between)
        replace_value(node.outputs[0], result)
        discard([node])
        kept = [value for value in way.others if value not in self._changed]
        self._record(path, node, writer, tensor, [result, *kept], names)

    def _product(
        self, writer: GraphWriter, operator: str, tensor: ir.Value, factors: ir.Value, rule: SizeLimit
    ) -> ir.Value:
        """The product, between an Unsqueeze and a Squeeze where the batch of the tensor is larger than allowed."""
        sizes = known_sizes(tensor)
        if sizes[0] <= (rule.maximum or 1):
            return writer.op(operator, [tensor, factors], shape=sizes)
        value = writer.unsqueeze(tensor, [0], (1, *sizes))
        value = writer.squeeze(writer.op(operator, [value, factors], shape=(1, *sizes)), [0], sizes)
        try:
            require_allowed(rule, writer.nodes)
        except NotRewritable:
            discard(list(reversed(writer.nodes)))
            writer.drop_unused_constants()
            raise
        return value

    def _record(
        self,
        path: str,
        node: ir.Node,
        writer: GraphWriter,
        tensor: ir.Value,
        results: list[ir.Value],
        changed: set[str],
    ) -> None:
        """Record the layers from the tensor to each result, in the place of those whose output is `changed`."""
        rewriter, sizes = self._rewriter, known_sizes(tensor)
        origin = rewriter.origin(path)
        names = [str(value.name) for value in results if value.uses() or value.is_graph_output()]
        for index, layer in enumerate(rewriter.layers):
            if layer.law == MOVED_FACTOR and layer.output in changed:
                rewriter.layers[index] = replace(layer, path=origin, kind=node.op_type, output=names[0])
        known = {layer.output for layer in rewriter.layers if layer.law == MOVED_FACTOR}
        layers = [
            RewrittenLayer(origin, node.op_type, MOVED_FACTOR, str(tensor.name), name, 1, sizes)
            for name in names
            if name not in known
        ]
        rewriter.record_run({path: writer.nodes}, layers)
        text = "one factor per channel of the whole tensor" if len(results) > 1 else "before it is rearranged"
        rewriter.changes.append(Change(origin, node.op_type, MOVED_FACTOR, node.op_type, text))


def _among_ones(scaled: Array) -> Step:
    """The step that makes one factor per channel of one number: 1 where the channel is not multiplied."""
    shape = scaled.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], scaled.reshape(-1).astype(np.int8), [0]])))
    return "among ones", (shape, tuple((int(start), int(stop)) for start, stop in edges.reshape(-1, 2)))


def _place_of_data(node: ir.Node) -> int | None:
    """Which operand of a product, or quotient, with one constant number is not that number."""
    if node.domain != "" or node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    for place in (0, 1) if node.op_type == "Mul" else (0,):
        data, number = node.inputs[place], node.inputs[1 - place]
        if data is None or number is None or is_constant(data) or number.const_value is None:
            continue
        if is_constant(number) and all(size == 1 for size in shape_of(number) or ()):
            return place
    return None


def _parts(source: ir.Value) -> list[ir.Value] | None:
    """The parts into which all readers divide a tensor along one axis, each once; None if one does something else."""
    parts: list[ir.Value] = []
    chosen: list[int] = []
    axes: set[int] = set()
    uses = list(source.uses())
    for use in uses:
        node = use.node
        if use.idx != 0 or node.domain != "" or source.is_graph_output():
            return None
        axis = node.attributes.get_int("axis", 0) % len(known_sizes(source))
        axes.add(axis)
        if node.op_type == "Gather":
            index = node.inputs[1]
            if index is None or index.const_value is None or len(shape_of(index) or ()) > 1:
                return None
            chosen += [int(i) % known_sizes(source)[axis] for i in array_of(index).reshape(-1)]
        elif node.op_type != "Split" or len(uses) > 1:
            return None
        parts += node.outputs
    return parts if len(axes) == 1 and len(set(chosen)) == len(chosen) else None


def _in_whole(node: ir.Node, part: ir.Value, source: ir.Value, scaled: Array) -> Array:
    """Which elements of a tensor are multiplied where those of a part are."""
    sizes = known_sizes(source)
    axis = node.attributes.get_int("axis", 0) % len(sizes)
    if node.op_type == "Gather":
        index = array_of(node.inputs[1])  # type: ignore[arg-type]
        chosen = [int(i) % sizes[axis] for i in index.reshape(-1)]
        if index.ndim == 0:
            scaled = np.expand_dims(scaled, axis)
    else:
        ends = np.cumsum([known_sizes(output)[axis] for output in node.outputs])
        place = [output is part for output in node.outputs].index(True)
        chosen = list(range(int(ends[place]) - known_sizes(part)[axis], int(ends[place])))
    shape = [sizes[axis] if a == axis else size for a, size in enumerate(scaled.shape)]
    whole = np.zeros(shape, bool)
    whole[(slice(None),) * axis + (chosen,)] = scaled
    return whole


def _smallest(array: Array) -> Array:
    """The array with axes of size one where all elements along an axis agree."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return array
