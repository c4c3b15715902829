"""Tensors over a target's limit on one axis, stored as several tensors through runs of token-wise operators.

A convolution or product that computes such a tensor computes its parts, with parts of its weight; operators that treat
every channel by itself run on each part; and a convolution or product that reads it is the sum over the parts:
W · x = Σ_j W[:, j] · x[j]. The whole tensor is never assembled. A run is rewritten as a whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, is_constant, shape_of, sizes_of
from onebyone.onnx.convert import Only
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import ModelRewriter
from onebyone.onnx.targets.fewer_axes import BROADCASTING, TOKEN_WISE
from onebyone.onnx.targets.runs import (
    RunOutput,
    TensorRun,
    find_runs,
    nodes_of_main_graph,
    rewrite_runs,
)
from onebyone.onnx.targets.splitting import MOST_PARTS, runs_of
from onebyone.onnx.targets.windows import read_any_convolution, write_conv
from onebyone.onnx.weight_rewriting import Step, WeightRewriter
from onebyone.targets import TargetProfile
from onebyone.targets.limits import SizeLimit, limited_axes

PARTS = "tensor over the limit = its parts, layer by layer"
#: Operators that treat every channel by itself; those with more than one result are refused.
_BY_CHANNEL = frozenset(
    ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]
)


@dataclass(frozen=True)
class SizeLimits:
    """The limits on axes that hold for every operator of a target."""

    rules: tuple[SizeLimit, ...]

    @classmethod
    def of(cls, profile: TargetProfile) -> SizeLimits:
        """Those of a profile."""
        rules = (r for r in profile.constraints if isinstance(r, SizeLimit) and r.maximum is not None)
        kinds = ("channels", "height", "width", "every", "last-three")
        return cls(
            tuple(r for r in rules if r.axis in kinds and not (r.operators or r.exempt or r.element_types))
        )

    def exceeded(self, value: ir.Value) -> dict[int, int]:
        """The axes of a tensor that are too long, with the length that is allowed."""
        sizes = None if is_constant(value) else sizes_of(value)
        found: dict[int, int] = {}
        for rule in self.rules if sizes else ():
            assert rule.maximum is not None
            for axis in limited_axes(len(sizes or ()), rule.axis, _is_map(value)):
                size = (sizes or ())[axis]
                if size is not None and size > rule.maximum:
                    found[axis] = min(rule.maximum, found.get(axis, rule.maximum))
        return found


def store_in_parts(rewriter: ModelRewriter, profile: TargetProfile, only: Only) -> dict[str, str]:
    """Rewrite every run of tensors that are over a limit. Returns the reason for each node that stays, by its path."""
    limits = SizeLimits.of(profile)
    if not limits.rules:
        return {}

    def is_oversized(value: ir.Value) -> bool:
        return bool(limits.exceeded(value))

    return rewrite_runs(
        rewriter,
        find_runs(nodes_of_main_graph(rewriter.model), is_oversized),
        is_oversized,
        lambda: PartWriter(limits, rewriter.weights),
        PARTS,
        "tensors in parts",
        only,
    )


class PartWriter:
    """Writes one run with every oversized tensor in parts.

    Raises:
        NotRewritable: an operator reads all of the axis at once, or the tensor is an input or output of the graph.
    """

    def __init__(self, limits: SizeLimits, weights: WeightRewriter) -> None:
        self._limits, self._weights = limits, weights
        self._parts: dict[int, list[ir.Value]] = {}
        self._edges: list[tuple[int, int]] = []
        self.writers: dict[str, GraphWriter] = {}

    def is_exact(self, run: TensorRun) -> bool:
        """Sums over parts add the same products in another order."""
        return False

    def write(self, run: TensorRun, opset: int) -> list[RunOutput]:
        """Insert the new nodes, and return the tensors that others read."""
        for _, node in run.nodes:
            for value in (*node.inputs, *node.outputs):
                if value is not None and self._axis(value) is not None:
                    self._require_inner(value)
        self._edges = self._parts_of(run)
        outputs = []
        for path, node in run.nodes:
            writer = self.writers[path] = GraphWriter(node, f"{path}/parts", opset)
            write = _WRITERS.get(node.op_type) if node.domain == "" and len(node.outputs) == 1 else None
            if write is None:
                raise NotRewritable(f"{node.op_type} has no form in parts")
            results = write(self, node, writer)
            if self._axis(node.outputs[0]) is None:
                assert len(results) == 1
                outputs.append(RunOutput(path, node.outputs[0], results[0]))
            else:
                self._parts[id(node.outputs[0])] = results
        return outputs

    def _require_inner(self, value: ir.Value) -> None:
        if value.is_graph_input() or value.is_graph_output():
            raise NotRewritable(
                f"{value.name} is an {'input' if value.is_graph_input() else 'output'} of the graph"
            )

    def _axis(self, value: ir.Value) -> int | None:
        """The axis that is too long; None if there is none."""
        axes = list(self._limits.exceeded(value))
        if len(axes) > 1:
            raise NotRewritable(f"{len(axes)} axes of {value.name} are over a limit")
        return axes[0] if axes else None

    def _parts_of(self, run: TensorRun) -> list[tuple[int, int]]:
        """Where the parts begin and end, the same for every tensor of the run."""
        lengths, allowed = set[int](), []
        for _, node in run.nodes:
            for value in (*node.inputs, *node.outputs):
                for axis, most in ({} if value is None else self._limits.exceeded(value)).items():
                    lengths.add(int((sizes_of(value) or [])[axis] or 0))  # type: ignore[arg-type]
                    allowed.append(most)
        if len(lengths) > 1:
            raise NotRewritable(
                f"tensors of {' and '.join(map(str, sorted(lengths)))} elements on the axis meet"
            )
        edges = runs_of(0, lengths.pop(), min(allowed))
        if len(edges) > MOST_PARTS:
            raise NotRewritable(f"it would take {len(edges)} parts; at most {MOST_PARTS} are written")
        return edges

    def _operands(self, node: ir.Node, writer: GraphWriter) -> list[list[ir.Value | None]]:
        """The operands of every part of an operator that broadcasts."""
        axis, result = self._axis(node.outputs[0]), sizes_of(node.outputs[0])
        if axis is None or result is None:
            raise NotRewritable(f"{node.op_type} does not keep the axis")
        found: list[list[ir.Value | None]] = [[] for _ in self._edges]
        for value in node.inputs:
            along = None if value is None else self._axis(value)
            if value is not None and along is not None:
                if along - len(sizes_of(value) or ()) != axis - len(result):
                    raise NotRewritable(f"{node.op_type} broadcasts the axis to another")
                parts: Sequence[ir.Value | None] = self._parts[id(value)]
            else:
                parts = self._sliced(writer, value, axis - len(result))
            for each, part in zip(found, parts, strict=True):
                each.append(part)
        return found

    def _sliced(self, writer: GraphWriter, value: ir.Value | None, axis: int) -> Sequence[ir.Value | None]:
        """A constant along an axis counted from the end; the value itself for every part where it broadcasts."""
        shape = None if value is None else (shape_of(value) if is_constant(value) else sizes_of(value))
        if value is None or (shape is not None and (-axis > len(shape) or shape[axis] == 1)):
            return [value] * len(self._edges)
        if shape is None or not is_constant(value):
            raise NotRewritable(f"{value.name} is as long, and is neither a constant nor in parts")
        return self._weight(writer, value, len(shape) + axis)

    def _weight(self, writer: GraphWriter, value: ir.Value, axis: int) -> list[ir.Value]:
        """A constant in parts."""
        return [self._weights.rewrite(writer, value, [("slice", (axis, *edge))]) for edge in self._edges]

    def by_number(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        """Operators number by number, with or without broadcasting."""
        attributes, dtype = attributes_of(node), node.outputs[0].dtype
        return [
            writer.op(node.op_type, operands, attributes, shape=self._shape(node, edge), dtype=dtype)
            for operands, edge in zip(self._operands(node, writer), self._edges, strict=True)
        ]

    def by_channel(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        """Operators that treat every channel of a map by itself, and normalise with constants."""
        data = node.inputs[0]
        if data is None or self._axis(data) != 1 or self._axis(node.outputs[0]) != 1:
            raise NotRewritable(f"{node.op_type} slides along the axis")
        constants = [self._sliced(writer, value, -1) for value in node.inputs[1:]]
        operands = zip(self._parts[id(data)], *constants, strict=True)
        attributes = attributes_of(node)
        return [
            writer.op(node.op_type, each, attributes, shape=self._shape(node, edge))
            for each, edge in zip(operands, self._edges, strict=True)
        ]

    def transpose(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        """Every part with the same permutation."""
        data = node.inputs[0]
        assert data is not None
        before, after = self._axis(data), self._axis(node.outputs[0])
        order = list(node.attributes.get_ints("perm") or reversed(range(len(sizes_of(data) or ()))))
        if before is None or after is None or order[after] != before:
            raise NotRewritable("Transpose moves the axis to one without this limit")
        return [
            writer.op("Transpose", [part], {"perm": order}, shape=self._shape(node, edge))
            for part, edge in zip(self._parts[id(data)], self._edges, strict=True)
        ]

    def convolution(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        """Parts of the outputs, a sum over parts of the inputs, or one channel at a time."""
        read = read_any_convolution(node)
        if isinstance(read, str):
            raise NotRewritable(read)
        reads, writes = self._axis(read.data), self._axis(node.outputs[0])
        settings = replace(read.settings, pads=read.pads)
        if {reads, writes} - {None, 1}:
            raise NotRewritable("Conv slides along the axis")
        if settings.group != 1:
            if reads != writes or read.weight_shape[1] != 1 or read.weight_shape[0] != settings.group:
                raise NotRewritable("Conv has groups of several channels")
            weights, biases = self._weight(writer, read.weight, 0), self._sliced(writer, read.bias, -1)
            parts = zip(self._parts[id(read.data)], weights, biases, self._edges, strict=True)
            return [
                write_conv(writer, part, w, b, replace(settings, group=stop - start))
                for part, w, b, (start, stop) in parts
            ]
        biases = self._sliced(writer, read.bias, -1) if writes is not None else [read.bias]

        def term(part: ir.Value, weight: ir.Value, output: int, is_first: bool) -> ir.Value:
            return write_conv(writer, part, weight, biases[output] if is_first else None, settings)

        return self._blocks(writer, read.data, read.weight, (0, 1), writes is not None, term)

    def product(self, node: ir.Node, writer: GraphWriter) -> list[ir.Value]:
        """A MatMul or Gemm with a constant matrix: parts of its outputs, or a sum over parts of its inputs."""
        first, second, *rest = node.inputs
        is_first = is_constant(first)
        data, weight = (second, first) if is_first else (first, second)
        attributes, result = attributes_of(node), node.outputs[0]
        if data is None or weight is None or not is_constant(weight):
            raise NotRewritable(f"{node.op_type} of two activations has no form in parts")
        if attributes.get("transA") or (node.op_type == "Gemm" and is_first):
            raise NotRewritable("Gemm of a transposed operand has no form in parts")
        ranks = [len(sizes_of(data) or ()), len(shape_of(weight) or ()), len(sizes_of(result) or ())]
        if min(ranks) < 2:
            raise NotRewritable(f"{node.op_type} of a vector has no form in parts")
        place = 2 if is_first else 1  # of the features, counted from the end
        rows, columns = ranks[1] - 2, ranks[1] - 1
        is_transposed = is_first or bool(attributes.get("transB"))
        contracted, features = (columns, rows) if is_transposed else (rows, columns)
        reads, writes = self._axis(data), self._axis(result)

        is_by_row = reads is not None and reads == writes and reads < ranks[0] - place
        if is_by_row and not is_first and ranks[1] == 2 and node.op_type == "MatMul":
            return [
                writer.op("MatMul", [part, weight], shape=self._shape(node, edge))
                for part, edge in zip(self._parts[id(data)], self._edges, strict=True)
            ]
        if reads not in (None, ranks[0] - place) or writes not in (None, ranks[2] - place):
            raise NotRewritable(f"{node.op_type} needs all of the axis at once")
        biases = [self._sliced(writer, value, -1) if writes is not None else [value] for value in rest]

        def term(part: ir.Value, matrix: ir.Value, output: int, is_first_term: bool) -> ir.Value:
            operands = [matrix, part] if is_first else [part, matrix]
            added = [bias[output] for bias in biases] if is_first_term else []
            shape = sizes_of(result) if writes is None else self._shape(node, self._edges[output])
            return writer.op(node.op_type, [*operands, *added], attributes, shape=shape)

        return self._blocks(writer, data, weight, (features, contracted), writes is not None, term)

    def _blocks(
        self,
        writer: GraphWriter,
        data: ir.Value,
        weight: ir.Value,
        axes: tuple[int, int],
        is_split: bool,
        term: Callable[[ir.Value, ir.Value, int, bool], ir.Value],
    ) -> list[ir.Value]:
        """The results of a product in blocks of its weight: for each part of the outputs, a sum over those of the data.

        `axes` are those of the outputs and of the inputs in the weight; `is_split` tells whether the outputs are split.
        """
        parts = self._parts.get(id(data))
        rows: Sequence[tuple[int, int] | None] = self._edges if is_split else [None]
        columns: Sequence[tuple[int, int] | None] = [None] if parts is None else self._edges
        if len(rows) * len(columns) > MOST_PARTS:
            raise NotRewritable(
                f"it would take {len(rows) * len(columns)} products; at most {MOST_PARTS} are written"
            )
        results = []
        for output, row in enumerate(rows):
            terms = []
            for i, (part, column) in enumerate(zip(parts or [data], columns, strict=True)):
                block = zip(axes, (row, column), strict=True)
                steps: list[Step] = [("slice", (axis, *edge)) for axis, edge in block if edge is not None]
                terms.append(term(part, self._weights.rewrite(writer, weight, steps), output, i == 0))
            results.append(_sum(writer, terms))
        return results

    def _shape(self, node: ir.Node, edge: tuple[int, int]) -> list[int | str | None] | None:
        """The sizes of one part of a node's result."""
        axis, sizes = self._axis(node.outputs[0]), sizes_of(node.outputs[0])
        assert axis is not None
        return None if sizes is None else [*sizes[:axis], edge[1] - edge[0], *sizes[axis + 1 :]]


def _sum(writer: GraphWriter, terms: Sequence[ir.Value]) -> ir.Value:
    value = terms[0]
    for term in terms[1:]:
        value = writer.op("Add", [value, term], shape=sizes_of(value))
    return value


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The attributes of a node as plain values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _is_map(value: ir.Value) -> bool:
    """Whether a tensor of three axes is a map: it is computed or read by a convolution or pool."""
    nodes = [value.producer(), *(use.node for use in value.uses())]
    sliding = (*_BY_CHANNEL, "Conv", "ConvTranspose")
    return any(node is not None and node.op_type in sliding for node in nodes)


_Write = Callable[[PartWriter, ir.Node, GraphWriter], list[ir.Value]]
_WRITERS: dict[str, _Write] = {
    **dict.fromkeys(TOKEN_WISE | BROADCASTING | {"PRelu", "LeakyRelu"}, PartWriter.by_number),
    **dict.fromkeys(_BY_CHANNEL | {"BatchNormalization"}, PartWriter.by_channel),
    "Transpose": PartWriter.transpose,
    "Conv": PartWriter.convolution,
    **dict.fromkeys(("MatMul", "Gemm"), PartWriter.product),
}
