"""Write runs of tensors with many axes with at most R: a tensor in row-major order is any merging of its axes.

Attention and window partitions reshape to five or six axes, transpose, and reshape back. In such a run each tensor is
stored with some of its neighbouring axes merged, a Reshape costs nothing, and a Transpose is one of the merged axes, or
several that each exchange two neighbouring blocks. A run is rewritten as a whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, array_of, is_constant, shape_of, sizes_of
from onebyone.onnx.convert import Only
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import ModelRewriter, discard
from onebyone.onnx.targets.axis_groups import Sizes, merge_around, merged_groups
from onebyone.onnx.targets.permutation_blocks import best_exchange, blocks_of
from onebyone.onnx.targets.runs import (
    RunOutput,
    TensorRun,
    find_runs,
    is_view,
    nodes_of_main_graph,
    rewrite_runs,
    with_views,
)
from onebyone.onnx.weight_rewriting import WeightRewriter

FEWER_AXES = "tensor of many axes = the same in row-major order with axes merged"
#: Operators of one tensor, number by number.
TOKEN_WISE = frozenset(
    ["Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Sqrt", "Neg", "Abs", "Gelu", "HardSwish", "HardSigmoid", "LeakyRelu",
     "Cast", "Clip", "Identity", "Reciprocal", "Log", "Floor", "Ceil", "Round", "Not", "Elu", "Softplus", "Mish"]
)  # fmt: skip
BROADCASTING = frozenset(
    ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "Less", "Greater", "And", "Or"]
)
#: From this opset on, Softmax normalises over one axis.
SOFTMAX_OF_ONE_AXIS = 13


def fold_axes(rewriter: ModelRewriter, most: int, only: Only) -> dict[str, str]:
    """Rewrite every run of tensors with more than `most` axes. Returns the reason for each node that stays."""
    _fix_shapes(rewriter.model, most)
    is_large = partial(_is_large, most=most)
    nodes = nodes_of_main_graph(rewriter.model)
    return rewrite_runs(
        rewriter,
        with_views(find_runs(nodes, is_large), nodes),
        is_large,
        lambda: AxisFolder(most, rewriter.weights),
        FEWER_AXES,
        f"at most {most} axes",
        only,
    )


def _fix_shapes(model: ir.Model, most: int) -> None:
    """Give constants to what reads the shape of a tensor of more than `most` axes, or of a view of one.

    All sizes must be known. Such a tensor need not be computed for its shape alone.
    """
    opset = model.opset_imports.get("", 1)
    views = [(node.inputs[0], node.outputs[0]) for node in model.graph if is_view(node)]
    near: set[ir.Value] = set()
    for pair in (*views, *reversed(views)):
        values = {value for value in pair if value is not None}
        if near & values or any(_is_large(value, most) for value in values):
            near |= values
    for node in [node for node in model.graph if node.op_type == "Shape" and node.domain == ""]:
        data, result = node.inputs[0], node.outputs[0]
        sizes = sizes_of(data) if data is not None and (data in near or _is_large(data, most)) else None
        if sizes is None or None in sizes or result.is_graph_output():
            continue
        first, last = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
        writer = GraphWriter(node, f"{node.name or result.name}/sizes", opset)
        result.replace_all_uses_with(writer.integers([size or 0 for size in sizes][first:last]))
        discard([node])


def _is_large(value: ir.Value, most: int) -> bool:
    return value.shape is not None and len(value.shape) > most and not is_constant(value)


class AxisFolder:
    """Writes one run with at most `most` axes, after those of size one in `lead`.

    Raises:
        NotRewritable: a node has no form of fewer axes, or a size is not known.
    """

    def __init__(self, most: int, weights: WeightRewriter, lead: Sizes = ()) -> None:
        self._most, self._weights, self._lead = most - len(lead), weights, lead
        self._stored: dict[int, ir.Value] = {}
        self._returned: set[int] = set()
        #: Values with other axes, by the value and its new sizes: several nodes may read one.
        self._reshaped: dict[tuple[int, Sizes], ir.Value] = {}
        #: Of a transposed tensor whose readers select elements of one axis: where that axis is stored, merged with
        #: those after it, and the number of elements of these.
        self._selected: dict[int, tuple[int, int]] = {}
        self.writers: dict[str, GraphWriter] = {}

    def is_exact(self, run: TensorRun) -> bool:
        """Whether no node computes a sum, so that both forms agree bit for bit."""
        return all(node.op_type not in ("Softmax", "MatMul") for _, node in run.nodes)

    def write(self, run: TensorRun, opset: int) -> list[RunOutput]:
        """Insert the new nodes, and return the tensors that others read."""
        if self._most < 4:
            raise NotRewritable(f"transposes are written with four axes, and the target takes {self._most}")
        inside = run.ids
        outputs = []
        for path, node in run.nodes:
            if any(
                v is not None and _is_large(v, self._most) and id(v) not in self._stored for v in node.inputs
            ):
                raise NotRewritable("an input of the graph has more axes")
            writer = self.writers[path] = GraphWriter(node, f"{path}/axes", opset)
            results = self.results(node, writer)
            for old, new in zip(node.outputs, results, strict=False):
                self._stored[id(old)] = new
                if old.is_graph_output() or any(id(use.node) not in inside for use in old.uses()):
                    sizes = known_sizes(old)
                    if len(sizes) > self._most:
                        raise NotRewritable(f"{old.name} is an output of the graph and has {len(sizes)} axes")
                    outputs.append(RunOutput(path, old, self.result(writer, new, sizes)))
        return outputs

    def result(self, writer: GraphWriter, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """The stored value with these sizes, as the output of a new node, so that it can take the old one's name."""
        is_new = any(value.producer() is node for other in self.writers.values() for node in other.nodes)
        if is_new and known_sizes(value) == tuple(sizes) and id(value) not in self._returned:
            self._returned.add(id(value))
            return value
        if self._lead and known_sizes(value) == (*self._lead, *sizes):
            return writer.squeeze(value, range(len(self._lead)), sizes)
        return writer.op("Reshape", [value, writer.integers(sizes)], shape=list(sizes))

    def results(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        """Insert the new form of one node, and return its results in the axes in which they are stored."""
        if node.domain != "":
            raise NotRewritable(f"{node.domain}.{node.op_type} has no form of fewer axes")
        if is_view(node):
            return [self._read(node.inputs[0])]
        if node.op_type in TOKEN_WISE:
            data = self._folded(writer, node.inputs[0])
            return [writer.op(node.op_type, [data, *node.inputs[1:]], _plain(node), shape=sizes_of(data),
                              dtype=node.outputs[0].dtype)]  # fmt: skip
        if node.op_type in BROADCASTING:
            return [self._broadcast(node, writer)]
        special: dict[str, Callable[[ir.Node, GraphWriter], list[ir.Value]]] = {
            "Transpose": self._transpose,
            "Softmax": self._softmax,
            "Gather": self._gather,
            "Split": self._split,
            "Slice": self._along_one_axis,
            "Concat": self._concat,
            "MatMul": self._matmul,
        }
        if node.op_type not in special:
            raise NotRewritable(f"{node.op_type} of more than {self._most} axes has no form of fewer")
        return special[node.op_type](node, writer)

    def _read(self, value: ir.Value | None) -> ir.Value:
        if value is None:
            raise NotRewritable("an operand is left out")
        return self._stored.get(id(value), value)

    def _as(self, writer: GraphWriter, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """The stored value with these sizes, after those of size one."""
        stored = known_sizes(value)
        if self._lead and stored == tuple(sizes):
            return writer.unsqueeze(value, range(len(self._lead)), [*self._lead, *sizes])
        sizes = [*self._lead, *sizes]
        if stored == tuple(sizes):
            return value
        key = id(value), tuple(sizes)
        if key not in self._reshaped:
            self._reshaped[key] = writer.op("Reshape", [value, writer.integers(sizes)], shape=list(sizes))
        return self._reshaped[key]

    def _folded(self, writer: GraphWriter, value: ir.Value | None) -> ir.Value:
        """The stored value with at most `most` axes: the first ones merged."""
        stored = self._read(value)
        sizes = known_sizes(stored)
        if len(sizes) <= self._most:
            return self._as(writer, stored, sizes) if self._lead else stored
        count = len(sizes) - self._most + 1
        return self._as(writer, stored, (prod(sizes[:count]), *sizes[count:]))

    def _transpose(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        data = node.inputs[0]
        assert data is not None
        sizes = known_sizes(data)
        order = list(node.attributes.get_ints("perm") or reversed(range(len(sizes))))
        order = [axis for axis in order if sizes[axis] != 1]  # where axes of size one are makes no difference
        value, current = self._read(data), sorted(order)
        if current == order:
            return [value]
        order = self._with_selected_axis_merged(node, sizes, order)
        while True:
            blocks = [[axis] for axis in current] if len(order) <= self._most else blocks_of(current, order)
            if len(blocks) <= self._most:
                merged = [prod(sizes[axis] for axis in block) for block in blocks] or [1]
                rank = {block[0]: index for index, block in enumerate(blocks)}
                permutation = [rank[axis] for axis in order if axis in rank]
                value = self._as(writer, value, merged)
                if permutation != sorted(permutation):
                    shape = [merged[index] for index in permutation]
                    value = writer.op("Transpose", [value], {"perm": permutation}, shape=shape)
                return [value]
            parts = best_exchange(blocks, order)
            merged = [prod(sizes[axis] for axis in part) for part in parts]
            value = self._as(writer, value, merged)
            shape = [merged[i] for i in (0, 2, 1, 3)]
            value = writer.op("Transpose", [value], {"perm": [0, 2, 1, 3]}, shape=shape)
            current = [*parts[0], *parts[2], *parts[1], *parts[3]]

    def _with_selected_axis_merged(self, node: ir.Node, sizes: Sizes, order: list[int]) -> list[int]:
        """The order of a transpose with the axis of which its readers select elements merged into the next one.

        Attention reads q, k and v as the elements of an axis of size three, which is transposed to the front. Each is
        also a part of the merged axis (3 · heads), and this takes one transpose of four axes.
        """
        axis = selected_axis(node.outputs[0])
        current = sorted(order)
        if axis is None or len(blocks_of(current, order)) <= self._most:
            return order
        selected = list(node.attributes.get_ints("perm") or reversed(range(len(sizes))))[axis]
        following = [a for a in current if a > selected]
        if sizes[selected] == 1 or not following:
            return order
        merged = [a for a in order if a != selected]
        merged.insert(merged.index(following[0]), selected)
        blocks = blocks_of(current, merged)
        block = next((block for block in blocks if block[0] == selected), None)
        if len(blocks) > self._most or block is None:
            return order
        place = sum(other[0] in merged[: merged.index(selected)] for other in blocks)
        self._selected[id(node.outputs[0])] = place, prod(sizes[a] for a in block[1:])
        return merged

    def _along(self, writer: GraphWriter, value: ir.Value | None, axis: int) -> tuple[ir.Value, Sizes, int]:
        """The value with one axis whole and the others merged where needed, its sizes, and where that axis is."""
        assert value is not None
        sizes = known_sizes(value)
        place = axis % len(sizes)
        if not self._lead or len(sizes) > self._most:
            sizes, place = merge_around(sizes, axis, self._most)
        data = self._as(writer, self._read(value), sizes)
        return data, (*self._lead, *sizes), len(self._lead) + place

    def _softmax(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        if writer.opset < SOFTMAX_OF_ONE_AXIS:
            raise NotRewritable("Softmax normalises over several axes in this opset")
        axis = node.attributes.get_int("axis", -1)
        data, sizes, place = self._along(writer, node.inputs[0], axis)
        return [writer.op("Softmax", [data], {"axis": place}, shape=sizes)]

    def _gather(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        index = node.inputs[1]
        if index is None or not is_constant(index) or shape_of(index) not in ((), (1,)):
            raise NotRewritable("Gather of more than one element has no form of fewer axes")
        axis = node.attributes.get_int("axis", 0)
        position = int(array_of(index).reshape(-1)[0]) % known_sizes(node.inputs[0])[axis]
        data, place, count = self._elements(writer, node.inputs[0], axis)
        return [writer.slice_axis(data, place, position * count, (position + 1) * count)]

    def _elements(self, writer: GraphWriter, value: ir.Value | None, axis: int) -> tuple[ir.Value, int, int]:
        """The value, where it stores an axis, and how many elements there are one of this axis.

        Where the axis would be one too many, it is merged with the next one: an element of it is then a run of
        neighbours there, and what is selected keeps all other axes.
        """
        if id(value) in self._selected:
            return self._read(value), *self._selected[id(value)]
        sizes = known_sizes(value)
        axis %= len(sizes)
        before, after = ([n for n in part if n != 1] for part in (sizes[:axis], sizes[axis + 1 :]))
        if after and len(before) + len(after) == self._most:
            assert value is not None
            merged = (*before, sizes[axis] * after[0], *after[1:])
            return self._as(writer, self._read(value), merged), len(self._lead) + len(before), after[0]
        data, _, place = self._along(writer, value, axis)
        return data, place, 1

    def _split(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        axis = node.attributes.get_int("axis", 0)
        data, place, count = self._elements(writer, node.inputs[0], axis)
        results, start = [], 0
        for output in node.outputs:
            size = known_sizes(output)[axis] * count
            results.append(writer.slice_axis(data, place, start, start + size))
            start += size
        return results

    def _along_one_axis(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        before, after = known_sizes(node.inputs[0]), known_sizes(node.outputs[0])
        axes = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        operands = [v for v in node.inputs[1:] if v is not None]
        if len(axes) != 1 or not all(is_constant(v) for v in operands) or len(operands) < 3:
            raise NotRewritable("Slice of several axes has no form of fewer axes")
        starts, ends, along, *steps = (array_of(v).reshape(-1) for v in operands)
        place = [int(axis) % len(before) for axis in along].index(axes[0])
        numbers = [starts[place], ends[place], *(s[place] for s in steps)]
        first, last, step = slice(*(int(n) for n in numbers)).indices(before[axes[0]])
        if step < 1:
            raise NotRewritable("Slice in reverse has no form of fewer axes")
        data, _, place = self._along(writer, node.inputs[0], axes[0])
        return [writer.slice_axis(data, place, first, last, step)]

    def _concat(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        axis = node.attributes.get_int("axis", 0)
        if any(value is None or is_constant(value) for value in node.inputs):
            raise NotRewritable("Concat with a constant has no form of fewer axes")
        parts = [self._along(writer, value, axis) for value in node.inputs]
        shape, place = list(parts[0][1]), parts[0][2]
        shape[place] = sum(sizes[place] for _, sizes, _ in parts)
        return [writer.op("Concat", [value for value, _, _ in parts], {"axis": place}, shape=shape)]

    def _matmul(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        first, second = node.inputs
        left, right, result = known_sizes(first), known_sizes(second), known_sizes(node.outputs[0])
        if is_constant(second) and len(right) == 2:
            data = self._as(writer, self._read(first), (prod(left[:-1]), left[-1]))
            return [writer.op("MatMul", [data, second], shape=(prod(left[:-1]), right[-1]))]
        if is_constant(first) or is_constant(second) or left[:-2] != right[:-2]:
            raise NotRewritable("MatMul whose batch axes differ has no form of fewer axes")
        a = self._as(writer, self._read(first), (prod(left[:-2]), *left[-2:]))
        b = self._as(writer, self._read(second), (prod(right[:-2]), *right[-2:]))
        return [writer.op("MatMul", [a, b], shape=(prod(left[:-2]), *result[-2:]))]

    def _broadcast(self, node: ir.Node, writer: GraphWriter) -> ir.Value:
        """Operands that broadcast: neighbouring axes along which the same operands have size one are merged."""
        result = known_sizes(node.outputs[0])
        operands = [value for value in node.inputs if value is not None]
        full = [(1,) * (len(result) - len(known_sizes(value))) + known_sizes(value) for value in operands]
        groups = [[axis] for axis in range(len(result))]
        if len(result) > self._most:
            stored = next((self._read(v) for v, sizes in zip(operands, full, strict=True)
                           if sizes == result and not is_constant(v)), None)  # fmt: skip
            sizes = () if stored is None else known_sizes(stored)
            boundaries = frozenset(prod(sizes[:i]) for i in range(len(sizes)))
            groups = merged_groups(result, full, boundaries, self._most)
        if len(groups) > self._most:
            raise NotRewritable(f"{node.op_type} broadcasts along axes that alternate")
        inputs = []
        for value, sizes in zip(operands, full, strict=True):
            merged = tuple(prod(sizes[axis] for axis in group) for group in groups)
            if is_constant(value):
                inputs.append(self._weights.rewrite(writer, value, [("reshape", merged)]))
            else:
                inputs.append(self._as(writer, self._read(value), merged))
        shape = [*self._lead, *(prod(result[axis] for axis in group) for group in groups)]
        return writer.op(node.op_type, inputs, _plain(node), shape=shape, dtype=node.outputs[0].dtype)


def selected_axis(value: ir.Value) -> int | None:
    """The axis of which every reader of a value selects single elements: Gather of one, Split into ones."""
    axes: set[int] = set()
    if value.is_graph_output() or value.shape is None:
        return None
    for use in value.uses():
        node = use.node
        axis = node.attributes.get_int("axis", 0) % len(value.shape)
        if use.idx != 0:
            return None
        if node.op_type == "Gather":
            index = node.inputs[1]
            is_one = index is not None and is_constant(index) and shape_of(index) in ((), (1,))
        else:
            is_one = node.op_type == "Split" and all(
                known_sizes(output)[axis] == 1 for output in node.outputs
            )
        if node.domain != "" or not is_one:
            return None
        axes.add(axis)
    return axes.pop() if len(axes) == 1 else None


def known_sizes(value: ir.Value | None) -> Sizes:
    sizes = None if value is None else (shape_of(value) if is_constant(value) else sizes_of(value))
    if sizes is None or None in sizes:
        name = None if value is None else value.name
        raise NotRewritable(f"the sizes of {name} are not known")
    return tuple(size for size in sizes if size is not None)


def _plain(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
