"""ONNX operators as rules of the layout planner.

The tables of `operators` say of which kind each operator is; the functions of `onebyone.layout.operators` check the
conditions of a kind and make the rule. Every other operator keeps the original layout of its operands and results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onebyone.layout import operators as kinds
from onebyone.layout.input_products import matrix_product
from onebyone.layout.products import ProductRule
from onebyone.layout.reshape_rules import ReshapeRule
from onebyone.layout.rules import FixedRule, LayoutRule, RelabelRule
from onebyone.layout.shape_rule import ShapeRule
from onebyone.layout.sizes import Size
from onebyone.layout.values import GraphValue
from onebyone.onnx.constant_values import is_constant, shape_of
from onebyone.onnx.layout.captured_values import captured
from onebyone.onnx.layout.operators import (
    KEEPING_AXES,
    MICROSOFT,
    NORMALISATIONS,
    POINTWISE,
    REDUCTIONS,
    RESHAPES,
    SOFTMAX_ALONG_ONE_AXIS,
    SOFTMAXES,
    SUM_NORMALISATIONS,
    axis_setting,
)
from onebyone.onnx.layout.symbolic_sizes import SymbolicSizes, broadcast, reshaped

#: Operators whose result has the sizes of their first input.
SAME_SIZES = frozenset(
    [*SOFTMAXES, *NORMALISATIONS, *SUM_NORMALISATIONS, "CumSum", "LpNormalization", "BatchNormalization"]
)


@dataclass(frozen=True)
class TokenProduct:
    """A product with a constant weight as the planner writes it, and the nodes that it replaces, the result's last."""

    rule: ProductRule
    nodes: tuple[ir.Node, ...]


@dataclass
class DecodedModel:
    """The main graph of a model as the planner sees it.

    Attributes:
        values: the planner's value for each value of the graph, and for each node with several results (a list).
        rules: the rules in program order, the graph's outputs last.
        constants: the values that may be stored in any order.
        reads: the values that a written operator reads beside the operands of its rule.
        sizes: the sizes of all values.
        vectors: biases in another shape that are needed as vectors, by the constant that they are made from.
        constant_nodes: the nodes that compute constants.
    """

    opset: int
    values: dict[ir.Value | ir.Node, GraphValue] = field(default_factory=dict)
    rules: dict[GraphValue, LayoutRule] = field(default_factory=dict)
    constants: set[GraphValue] = field(default_factory=set)
    reads: dict[GraphValue, tuple[GraphValue, ...]] = field(default_factory=dict)
    sizes: SymbolicSizes = field(default_factory=SymbolicSizes)
    vectors: dict[ir.Value, GraphValue] = field(default_factory=dict)
    constant_nodes: set[ir.Node] = field(default_factory=set)

    def value(self, value: ir.Value) -> GraphValue:
        """The planner's value; a constant may be stored in any order."""
        if value not in self.values:
            made = GraphValue(str(value.name), self.sizes.shape(value), value)
            self.values[value] = made
            if is_constant(value) and shape_of(value) is not None:
                self.constants.add(made)
        return self.values[value]


class OnnxDecoder:
    """Decodes a graph node by node, in its order."""

    def __init__(self, opset: int) -> None:
        self.decoded = DecodedModel(opset)

    def node(self, node: ir.Node) -> None:
        """Add the rule of one node; a node with several results is a list and its elements."""
        results = [output for output in node.outputs if output.name != ""]
        if len(results) == 1 and results[0] is node.outputs[0]:
            self._refine(node)
            result = self.decoded.value(results[0])
            self._add(result, self._rule(node, result) or FixedRule(result, self._operands(node)), node)
            return
        pieces = GraphValue(f"{node.name or node.op_type} (outputs)", None, node)
        self.decoded.values[node] = pieces
        rule = self._split(node, pieces) or FixedRule(pieces, self._operands(node))
        self._add(pieces, rule, node)
        for output in results:
            element = self.decoded.value(output)
            fixed = isinstance(rule, FixedRule)
            made = FixedRule(element, (pieces,)) if fixed else kinds.element(element, pieces, rule.axes)
            self.decoded.rules[element] = made

    def product(self, product: TokenProduct) -> None:
        """Add the rule of a product with a constant weight."""
        self.decoded.rules[product.rule.result] = product.rule

    def outputs(self, outputs: Sequence[ir.Value]) -> None:
        """Add the graph's outputs, which keep their original order."""
        values = tuple(dict.fromkeys(self.decoded.value(output) for output in outputs))
        result = GraphValue("(outputs)", None)
        self.decoded.rules[result] = FixedRule(result, values)

    # -- operands

    def _add(self, result: GraphValue, rule: LayoutRule, node: ir.Node) -> None:
        self.decoded.rules[result] = rule
        if isinstance(rule, ReshapeRule | RelabelRule) and all(
            isinstance(n, int) for n in result.shape or ()
        ):
            return  # all that it needs is the value that it rearranges
        others = (v for v in self._operands(node) if v not in rule.operands)
        self.decoded.reads[result] = tuple(others)

    def _operands(self, node: ir.Node) -> tuple[GraphValue, ...]:
        """The values that a node reads, each once: its inputs, and those that its subgraphs read."""
        read = [v for v in node.inputs if v is not None and v.name != ""]
        return tuple(dict.fromkeys(self.decoded.value(v) for v in (*read, *captured(node))))

    # -- shapes that follow from the operands

    def _refine(self, node: ir.Node) -> None:
        """Express unknown sizes of a result by those of its operands, for the operators that keep most sizes."""
        sizes, output = self.decoded.sizes, node.outputs[0]
        shapes = [sizes.shape(v) for v in node.inputs if v is not None]
        known = [shape for shape in shapes if shape is not None]
        if not known or len(known) < len(shapes) or node.domain not in ("", MICROSOFT):
            return
        if (node.domain, node.op_type) in POINTWISE:
            sizes.refine(output, broadcast(known))
        elif node.op_type in SAME_SIZES:
            sizes.refine(output, known[0])
        elif node.op_type == "Transpose":
            sizes.refine(output, [known[0][axis] for axis in permutation_of(node, len(known[0]))])
        elif node.op_type == "Reshape" and (target := sizes.contents(node.inputs[1])) is not None:
            zeros = bool(node.attributes.get_int("allowzero", 0))
            sizes.refine(output, reshaped(known[0], target, zeros))
        elif node.op_type == "Expand" and (target := sizes.contents(node.inputs[1])) is not None:
            sizes.refine(output, broadcast([known[0], target]))
        elif node.op_type == "MatMul" and min(map(len, known)) > 1:
            batch = broadcast([known[0][:-2] or (1,), known[1][:-2] or (1,)])
            batch = batch if max(map(len, known)) > 2 else []
            sizes.refine(output, [*batch, known[0][-2], known[1][-1]])
        elif node.op_type in KEEPING_AXES:
            self._refine_kept(node, known[0])
        elif (setting := axis_setting(node.op_type, self.decoded.opset)) is not None:
            self._refine_along(node, known[0], setting.default)

    def _refine_kept(self, node: ir.Node, x: tuple[Size, ...]) -> None:
        """Sizes other than 1 in their order, where a squeeze or unsqueeze has as many before and after."""
        output = node.outputs[0]
        shape = self.decoded.sizes.shape(output)
        kept = iter([size for size in x if size != 1])
        if shape is not None and sum(size != 1 for size in shape) == sum(size != 1 for size in x):
            self.decoded.sizes.refine(output, [1 if size == 1 else next(kept) for size in shape])

    def _refine_along(self, node: ir.Node, x: tuple[Size, ...], default: int | None) -> None:
        """The sizes of the axes along which an operator does not work."""
        along = self._along(node, len(x))
        shape = self.decoded.sizes.shape(node.outputs[0])
        if along is None or shape is None or len(shape) not in (len(x), len(x) - len(along)):
            return
        dropped = len(shape) < len(x)
        kept = [None if i in along else size for i, size in enumerate(x) if not (dropped and i in along)]
        self.decoded.sizes.refine(node.outputs[0], kept)

    # -- rules

    def _rule(self, node: ir.Node, result: GraphValue) -> LayoutRule | None:
        operands = self._operands(node)
        if not operands or any(0 in (value.shape or ()) for value in (result, *operands)):
            return None
        if node.domain == "" and node.op_type == "Shape":
            return None if operands[0].shape is None else ShapeRule(result, (), operands[0])
        x = self._first(node)
        if result.shape is None or x is None or any(value.shape is None for value in operands):
            return None
        if (node.domain, node.op_type) in POINTWISE:
            return self._pointwise(node, result, operands)
        if node.domain == MICROSOFT and node.op_type in SUM_NORMALISATIONS:
            return self._sum_normalisation(node, result, x)
        return self._with_axes(node, result, x) if node.domain == "" else None

    def _first(self, node: ir.Node) -> GraphValue | None:
        first = node.inputs[0] if node.inputs else None
        return None if first is None else self.decoded.value(first)

    def _pointwise(
        self, node: ir.Node, result: GraphValue, operands: tuple[GraphValue, ...]
    ) -> LayoutRule | None:
        if node.op_type == "Identity":
            return kinds.keep_axes(result, operands[0])
        if node.op_type == "PRelu" and any(x.rank < result.rank for x in operands[:1]):
            return None
        return kinds.pointwise(result, operands)

    def _with_axes(self, node: ir.Node, result: GraphValue, x: GraphValue) -> LayoutRule | None:
        """The rule of an operator of ONNX whose first input is the tensor it works on."""
        name = node.op_type
        if name == "Transpose":
            return kinds.permute(result, x, permutation_of(node, x.rank))
        if name in RESHAPES:
            return kinds.reshape(result, self._before_reshapes(node, result, x))
        if name in KEEPING_AXES:
            return kinds.keep_axes(result, x)
        if name == "Pad":
            pads = node.attributes.get_ints("pads") or self.decoded.sizes.contents((*node.inputs, None)[1])
            return kinds.keep_axes(result, x) if pads is not None and not any(pads) else None
        if name == "MatMul":
            second = node.inputs[1]
            assert second is not None
            return matrix_product(result, x, self.decoded.value(second))
        if name == "Concat":
            operands = tuple(dict.fromkeys(self.decoded.value(v) for v in node.inputs if v is not None))
            return kinds.concatenate(result, operands, node.attributes["axis"].as_int() % result.rank)
        if name == "Expand":
            return self._expand(result, x)
        if name in NORMALISATIONS:
            return self._normalisation(node, result, x)
        if name == "BatchNormalization":
            return kinds.channels_second(result, self._operands(node))
        if name in SOFTMAXES and self.decoded.opset < SOFTMAX_ALONG_ONE_AXIS:
            return self._softmax_over_later_axes(node, result, x)
        return self._along_axes(node, result, x)

    def _before_reshapes(self, node: ir.Node, result: GraphValue, x: GraphValue) -> GraphValue:
        """The value that a Reshape reads, or the one before all Reshapes in front of it, which are then not needed."""
        if not all(isinstance(size, int) for size in (result.shape or (None,))):
            return x
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        while before is not None and before.domain == "" and before.op_type in RESHAPES | KEEPING_AXES:
            source = before.inputs[0]
            if source is None or before.graph is not node.graph or is_constant(source):
                break
            value = self.decoded.value(source)
            if value.shape is None or 0 in value.shape:
                break
            x, before = value, source.producer()
        return x

    def _expand(self, result: GraphValue, x: GraphValue) -> LayoutRule | None:
        """An expand in which every axis that is not 1 keeps its size, for every value of the symbols."""
        shift = result.rank - x.rank
        if shift < 0 or any(x.size(axis) != result.size(axis + shift) for axis in x.axes):
            return None
        return kinds.expand(result, x)

    def _normalisation(self, node: ir.Node, result: GraphValue, x: GraphValue) -> LayoutRule | None:
        count = x.rank - node.attributes.get_int("axis", -1) % x.rank
        parameters = [None if v is None else self.decoded.value(v) for v in node.inputs[1:3]]
        scale, offset = (*parameters, None, None)[:2]
        if any(p is not None and p.rank != count for p in (scale, offset)):
            return None
        return kinds.normalise(result, x, count, scale, offset)

    def _sum_normalisation(self, node: ir.Node, result: GraphValue, x: GraphValue) -> LayoutRule | None:
        scale, offset, bias = (
            None if place is None else self._input(node, place) for place in SUM_NORMALISATIONS[node.op_type]
        )
        addends = tuple(value for value in (self._input(node, 1), bias) if value is not None)
        return kinds.normalise_sum(result, x, addends, scale, offset)

    def _input(self, node: ir.Node, place: int) -> GraphValue | None:
        """An input of a node; None where it is left out."""
        value = node.inputs[place] if place < len(node.inputs) else None
        return None if value is None or value.name == "" else self.decoded.value(value)

    def _softmax_over_later_axes(self, node: ir.Node, result: GraphValue, x: GraphValue) -> LayoutRule | None:
        """Softmax of opset 12 and older normalises over an axis and all after it together; those of size 1 are none."""
        first = node.attributes.get_int("axis", 1) % x.rank
        over = [axis for axis in x.axes if axis >= first]
        if node.op_type == "Hardmax" or not over or over != list(range(over[0], x.rank)):
            return None
        return kinds.normalise(result, x, x.rank - over[0])

    def _along_axes(self, node: ir.Node, result: GraphValue, x: GraphValue) -> LayoutRule | None:
        along = self._along(node, x.rank)
        if along is None or len(set(along)) < len(along):
            return None
        operands = tuple(
            dict.fromkeys((x, *(v for v in self._operands(node) if v not in self.decoded.constants)))
        )
        drops = result.rank < x.rank
        if node.op_type == "Gather" and not self._gathers_along(node, x):
            return None
        if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear":
            return self._quantisation(node, result, x, along, operands)
        return kinds.along_axes(result, operands, along, drops=drops)

    def _gathers_along(self, node: ir.Node, x: GraphValue) -> bool:
        """Whether a Gather selects along one axis of a value: with one index, or a list of them."""
        indices = node.inputs[1]
        shape = None if indices is None else self.decoded.sizes.shape(indices)
        return x not in self.decoded.constants and shape is not None and len(shape) < 2

    def _quantisation(
        self,
        node: ir.Node,
        result: GraphValue,
        x: GraphValue,
        along: Sequence[int],
        operands: tuple[GraphValue, ...],
    ) -> LayoutRule | None:
        scale = None if node.inputs[1] is None else self.decoded.sizes.shape(node.inputs[1])
        if scale is None or node.attributes.get_int("block_size", 0) != 0:
            return None
        if scale == ():
            return kinds.pointwise(result, self._operands(node))
        return kinds.along_axes(result, operands, along, drops=False) if len(scale) == 1 else None

    def _along(self, node: ir.Node, rank: int) -> list[int] | None:
        """The axes along which an operator works; None where they are not known before it runs."""
        setting = axis_setting(node.op_type, self.decoded.opset)
        if setting is None:
            return None
        numbers: Sequence[Size] | None = None
        if setting.attribute is not None:
            attribute = node.attributes.get(setting.attribute)
            if attribute is not None:
                numbers = attribute.as_ints() if setting.is_list else [attribute.as_int()]
        elif setting.input is not None and len(node.inputs) > setting.input:
            operand = node.inputs[setting.input]
            if operand is not None:
                numbers = self.decoded.sizes.contents(operand)
                if numbers is None:
                    return None
        if numbers is None or (not numbers and node.op_type in REDUCTIONS):
            numbers = self._default_axes(node, setting.default, rank)
        if numbers is None or not all(isinstance(axis, int) for axis in numbers):
            return None
        return [axis % rank for axis in numbers]

    def _default_axes(self, node: ir.Node, default: int | None, rank: int) -> Sequence[int] | None:
        if default is not None:
            return [default]
        if node.op_type in REDUCTIONS:
            return range(rank) if node.attributes.get_int("noop_with_empty_axes", 0) == 0 else None
        if node.op_type == "Slice":
            starts = (
                self.decoded.sizes.contents(node.inputs[1])
                if len(node.inputs) > 1
                else node.attributes.get_ints("starts")
            )
            return None if starts is None else range(len(starts))
        return None

    def _split(self, node: ir.Node, pieces: GraphValue) -> LayoutRule | None:
        """The rule of a Split as a list of tensors."""
        x = self._first(node)
        if node.domain != "" or node.op_type != "Split" or x is None or x.shape is None or 0 in x.shape:
            return None
        along = self._along(node, x.rank)
        shapes = [self.decoded.sizes.shape(output) for output in node.outputs]
        if along is None or any(shape is None for shape in shapes):
            return None
        for output in node.outputs:
            self.decoded.sizes.refine(output, [None if i in along else s for i, s in enumerate(x.shape)])
        if any(0 in (self.decoded.sizes.shape(output) or (0,)) for output in node.outputs):
            return None
        return kinds.along_axes(pieces, (x,), along, drops=False, shape=x.shape)


def permutation_of(node: ir.Node, rank: int) -> list[int]:
    """The permutation of a Transpose; without one, the axes are reversed."""
    return [int(axis) for axis in node.attributes.get_ints("perm") or range(rank - 1, -1, -1)]


def needed(decoded: DecodedModel) -> dict[GraphValue, LayoutRule]:
    """The rules of all values on which the outputs depend, in program order."""
    pending = [list(decoded.rules)[-1]]
    found: set[GraphValue] = set()
    while pending:
        value = pending.pop()
        rule = decoded.rules.get(value)
        if value in found or rule is None:
            continue
        found.add(value)
        pending.extend((*rule.operands, *decoded.reads.get(value, ())))
    return {value: rule for value, rule in decoded.rules.items() if value in found}
