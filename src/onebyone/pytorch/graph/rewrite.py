"""From one exported program to another: orders planned, the graph written, parameters stored in their new shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from onebyone.layout.normalisations import NormalisationRule
from onebyone.layout.operators import renamed_constants
from onebyone.layout.orders import Layout
from onebyone.layout.patches import PatchRule
from onebyone.layout.planner import LayoutPlan, choose_orders
from onebyone.layout.products import MERGE_PENALTIES, ProductRule
from onebyone.layout.rules import LayoutRule, PointwiseRule, RelabelRule
from onebyone.layout.storage import choose_storage, weight_layouts
from onebyone.layout.values import GraphValue
from onebyone.pytorch.graph.builder import DecodedGraph, GraphBuilder, Storage
from onebyone.pytorch.graph.constants import constant_placeholders
from onebyone.pytorch.graph.counting import layout_operators
from onebyone.pytorch.graph.decoder import Decoder
from onebyone.pytorch.graph.nodes import holds_tensors
from onebyone.pytorch.graph.products import MatchedProduct
from onebyone.pytorch.graph.program import with_graph
from onebyone.pytorch.graph.weights import (
    StoredShape,
    StoredWeights,
    stored_tensors,
    tensor_named,
    tied_names,
)


@dataclass(frozen=True)
class Rewritten:
    """The new program, how its parameters are stored, and its number of layout operators."""

    program: ExportedProgram
    weights: StoredWeights
    layout_count: int
    storage: dict[GraphValue, Layout]  # the layouts of the constants that are not stored as in the original
    on_patches: frozenset[PatchRule] = frozenset()  # the convolutions on patches that became linear layers


def rewrite(
    program: ExportedProgram,
    values: Mapping[Node, GraphValue],
    products: list[MatchedProduct],
    allowed: int,
    on_patches: Sequence[PatchRule] = (),
) -> Rewritten:
    """Write every product in its form, and convolutions on patches in the cheaper one, with few layout operators.

    `values` are those of the program's graph, in which the products and convolutions were matched.
    Plans are tried from the one with the plainest convolutions to the one with the fewest permutes. The first with at
    most `allowed` layout operators is taken, otherwise the one with the fewest.
    """
    best: Rewritten | None = None
    storage: dict[GraphValue, Layout] = {}
    for penalty in MERGE_PENALTIES:
        decoded = _decoded(program, values, products, on_patches, penalty)
        plan = choose_orders(decoded.rules, decoded.constants)
        if plan.permutes > allowed and penalty != MERGE_PENALTIES[-1]:
            continue
        for channels_last in ({}, image_sources(products, decoded)):
            if channels_last and best is not None and best.layout_count <= plan.permutes:
                break
            result = _written(program, decoded, plan, channels_last, storage)
            storage = result.storage
            if best is None or result.layout_count < best.layout_count:
                best = result
            if best.layout_count <= allowed:
                return best
    assert best is not None
    if best.on_patches:  # a copy that the plan did not foresee: a view that is not stored as its order says
        as_they_are = rewrite(program, values, products, allowed)
        return min(best, as_they_are, key=lambda result: result.layout_count)
    return best


def _decoded(
    program: ExportedProgram,
    values: Mapping[Node, GraphValue],
    products: list[MatchedProduct],
    on_patches: Sequence[PatchRule],
    penalty: float,
) -> DecodedGraph:
    """The rules of all nodes that are needed, and the values that can be stored in any order."""
    graph, placeholders = program.graph, constant_placeholders(program)
    matched: dict[Node, LayoutRule] = {rule.result.origin: rule for rule in on_patches}
    matched |= {match.product.result.origin: _product_rule(match, penalty) for match in products}
    decoder = Decoder(values)
    for node in graph.nodes:
        if node in matched:
            decoder.rules[values[node]] = matched[node]
        elif node.op == "output" or (node.op == "call_function" and holds_tensors(node)):
            decoder.rule(node)
    needed = _needed(graph.nodes, values, decoder.rules)
    rules = {value: rule for value, rule in decoder.rules.items() if value.origin in needed}
    constants = {v for n, v in values.items() if n.op == "placeholder" and n.name in placeholders}
    return DecodedGraph(graph, values, rules, constants | renamed_constants(rules, constants).keys())


def _needed(
    nodes: Iterable[Node], values: Mapping[Node, GraphValue], rules: Mapping[GraphValue, LayoutRule]
) -> set[Node]:
    """The nodes that the outputs and checks of the new program depend on.

    Nodes that only the original spelling of a product used, such as a transpose of its weight, are not among them.
    """
    pending = [node for node in nodes if node.op == "output" or node.is_impure()]
    needed: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        rule = rules.get(values[node]) if node in values else None
        if rule is not None:
            pending.extend(operand.origin for operand in rule.operands)
        sources = node.all_input_nodes
        pending.extend(n for n in sources if rule is None or n not in values or values[n] not in rules)
    return needed


def _written(
    program: ExportedProgram,
    decoded: DecodedGraph,
    plan: LayoutPlan,
    channels_last: dict[GraphValue, int],
    guess: dict[GraphValue, Layout],
) -> Rewritten:
    """The program as planned, with parameters stored in the layouts of `guess`, or in those that its operators need."""
    names, ties = constant_placeholders(program), tied_names(program)
    products = [rule for rule in decoded.rules.values() if isinstance(rule, ProductRule)]
    renamed = renamed_constants(decoded.rules, decoded.constants)
    weights = weight_layouts(products, decoded.constants, renamed)
    guess = guess or weights
    builder = GraphBuilder(decoded, plan, Storage(guess, channels_last))
    graph = builder.build()
    constants = [v for v in decoded.values.values() if v in decoded.constants and v not in renamed]
    demands = builder.tensors.demands
    storage = choose_storage(constants, demands, weights, lambda value: ties[names[value.name]][0])
    if storage != guess:
        graph = GraphBuilder(decoded, plan, Storage(storage, channels_last)).build()
    shapes = {
        name: StoredShape(tuple(tensor_named(program, name).shape), layout)
        for value, layout in storage.items()
        for name in ties[names[value.name]]
    }
    state, others = stored_tensors(program, shapes)
    result = with_graph(program, GraphModule(program.graph_module, graph), state, others)
    on_patches = (rule for rule in decoded.rules.values() if isinstance(rule, PatchRule))
    linear = frozenset(rule for rule in on_patches if rule.is_linear(*plan.orders[rule.result]))
    return Rewritten(result, StoredWeights(shapes), layout_operators(result).total(), storage, linear)


def image_sources(products: list[MatchedProduct], decoded: DecodedGraph) -> dict[GraphValue, int]:
    """The values from which the images of converted products come, and the channel axis of each.

    They are found behind runs of elementwise operators. Put into channels-last memory there, the images keep it
    through the run, as the tokens (B, T, C) of the original did.
    """
    sources: dict[GraphValue, int] = {}
    for match in products:
        if match.convert and match.form == "conv":
            _trace_image(match.product.x, match.product.x_channel, decoded, sources)
    return sources


def _trace_image(
    image: GraphValue, channel: int, decoded: DecodedGraph, sources: dict[GraphValue, int]
) -> None:
    pending, visited = [(image, channel)], set[GraphValue]()
    while pending:
        value, axis = pending.pop()
        if value in visited or value in decoded.constants or value not in decoded.rules:
            continue
        visited.add(value)
        rule = decoded.rules[value]
        if isinstance(rule, PointwiseRule | NormalisationRule):
            for operand in rule.operands:
                operand_axis = axis - (value.rank - operand.rank)
                if operand_axis in operand.axes and len(operand.axes) == len(rule.axes):
                    pending.append((operand, operand_axis))
        elif isinstance(rule, RelabelRule):
            back = rule.back()
            if axis in back:
                pending.append((rule.operands[0], back[axis]))
        elif not isinstance(rule, ProductRule):
            sources[value] = axis


def _product_rule(match: MatchedProduct, penalty: float) -> ProductRule:
    product = match.product
    return ProductRule(product.result, product.operands, product, match.form, match.convert, penalty)
