"""From one exported program to another: products found, orders planned, the graph built, parameters put in
their new shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from onebyone.pytorch.graph.build import Builder
from onebyone.pytorch.graph.counting import PERMUTES, layout_operators, operator_name
from onebyone.pytorch.graph.match import (
    CONVOLUTIONS,
    changing_weight,
    constant_placeholders,
    constants,
    independent,
    layer_path,
    match_convolution,
    match_linear,
    module_path,
    not_read,
    products_inside,
    refusal,
    trained,
    weight_of,
)
from onebyone.pytorch.graph.orders import UNIT, Frame, natural_frame
from onebyone.pytorch.graph.plan import LayoutPlan, choose_orders
from onebyone.pytorch.graph.products import Product, ProductRule
from onebyone.pytorch.graph.program import with_graph
from onebyone.pytorch.graph.rules import ElementwiseRule, Normalise, Relabel, Rule, axes_of, shape
from onebyone.pytorch.graph.ruleset import rule_for
from onebyone.pytorch.graph.weights import (
    StoredShape,
    StoredWeights,
    choose_stored,
    stored_tensors,
    tensor_named,
    tied_names,
)
from onebyone.records import Refusal

# How dear a form that is not the plainest is beside one permute: a convolution with its tokens in the batch
# axis (an image of one place), a weight that multiplies from the left. The first plan with no more layout
# operators than the original is taken.
MERGE_PENALTIES = (1.01, 0.5, 0.04, 0.0005)


@dataclass(frozen=True)
class MatchedProduct:
    """A product and the path it goes by; `convert` is False where it already has the form asked for, or was
    not selected.
    """

    path: str
    product: Product
    form: str  # what it is written as
    convert: bool
    weight_name: str | None = None  # the parameter that the weight is, up to its axes' order
    bias_name: str | None = None


@dataclass(frozen=True)
class Rewritten:
    """The new program, how its parameters are stored, and its number of layout operators."""

    program: ExportedProgram
    weights: StoredWeights
    layout: int
    stored: dict[str, Frame]  # the same by placeholder


def find_products(
    program: ExportedProgram, to: str, selected: Callable[[str], bool]
) -> tuple[list[MatchedProduct], list[Refusal]]:
    """Every product with a constant weight, and every one of them that cannot be converted, with the reason."""
    known, named = constants(program), constant_placeholders(program)
    weights, apart = trained(program), independent(program)
    found: list[MatchedProduct] = []
    refused: list[Refusal] = []
    for node in program.graph.nodes:
        linear, convolution = match_linear(node, known, weights), match_convolution(node, known)
        eligible = linear if to == "conv" else convolution
        if (operator_name(node) in CONVOLUTIONS) == (to == "linear"):
            eligible = eligible or changing_weight(node, known, apart)
        if isinstance(eligible, str) or not_read(node, known):
            path = layer_path(node, weight_of(node, known), program)
            reason = eligible if isinstance(eligible, str) else not_read(node, known)
            if selected(path) and (isinstance(eligible, str) or to == "conv"):
                refused.append(refusal(node, path, str(reason)))
        if selected(module_path(node)) and products_inside(program, node, to):
            refused.append(
                refusal(node, module_path(node) or node.name, "a block with a graph of its own is not read")
            )
        product = linear if isinstance(linear, Product) else convolution
        if not isinstance(product, Product):
            continue
        path = layer_path(node, product.weight, program)
        form = "conv" if product is convolution else "linear"
        convert = form != to and selected(path)
        if convert or (product.groups == 1 and all(s == 1 for s in product.stride)):
            found.append(
                MatchedProduct(
                    path,
                    product,
                    to if convert else form,
                    convert,
                    _named(product.weight, named),
                    _named(product.bias, named),
                )
            )
    return found, refused


def _named(node: Node | None, named: dict[str, str]) -> str | None:
    while node is not None and operator_name(node) in PERMUTES and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return named.get(node.name) if node is not None else None


def rewrite(program: ExportedProgram, found: list[MatchedProduct], allowed: int) -> Rewritten:
    """Write every found product in its form, with as few layout operators as can be found.

    Plans are tried from the one with the plainest images to the one with the fewest permutes; the first with
    no more layout operators than the original is taken, or else the one with the fewest.
    """
    best: Rewritten | None = None
    stored: dict[str, Frame] = {}
    for penalty in MERGE_PENALTIES:
        rules, free = _rules(program, found, penalty)
        plan = choose_orders(rules, free)
        if plan.permutes > allowed and penalty != MERGE_PENALTIES[-1]:
            continue
        for channels_last in ({}, image_starts(found, rules, plan, free)):
            if channels_last and best is not None and best.layout <= plan.permutes:
                break
            result = _written(program, found, rules, free, plan, channels_last, stored)
            stored = result.stored
            if best is None or result.layout < best.layout:
                best = result
            if best.layout <= allowed:
                return best
    assert best is not None
    return best


def _rules(
    program: ExportedProgram, found: list[MatchedProduct], penalty: float
) -> tuple[dict[Node, Rule], set[Node]]:
    """A rule for every node that holds tensors, and the nodes that can be stored in any order for nothing."""
    graph, named = program.graph, constant_placeholders(program)
    products = {f.product.node: f for f in found}
    rules: dict[Node, Rule] = {}
    for node in graph.nodes:
        if node in products:
            rules[node] = _product_rule(products[node], penalty)
        elif node.op == "output" or (node.op == "call_function" and _holds_tensors(node)):
            rules[node] = rule_for(node, rules)
    needed = _needed(graph, rules)
    rules = {node: rule for node, rule in rules.items() if node in needed}
    free = {n for n in graph.nodes if n.op == "placeholder" and n.name in named}
    for node, rule in rules.items():
        if isinstance(rule, Relabel) and rule.operands[0] in free:
            free.add(node)
    return rules, free


def _needed(graph: Graph, rules: dict[Node, Rule]) -> set[Node]:
    """What the new program computes: all that its outputs and checks depend on. What only a product's old
    spelling used is not.
    """
    pending = [n for n in graph.nodes if n.op == "output" or n.is_impure()]
    needed: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        rule = rules.get(node)
        pending.extend(node.all_input_nodes if rule is None else rule.operands)
        pending.extend(n for n in node.all_input_nodes if n not in rules)
    return needed


def _written(
    program: ExportedProgram,
    found: list[MatchedProduct],
    rules: dict[Node, Rule],
    free: set[Node],
    plan: LayoutPlan,
    channels_last: dict[Node, int],
    guess: dict[str, Frame],
) -> Rewritten:
    """The program as planned, with the parameters stored as `guess` has them; again, if they are asked for
    otherwise.
    """
    graph, named = program.graph, constant_placeholders(program)
    weights = _weight_frames(found, rules, free)
    builder = Builder(graph, rules, plan, free, guess := guess or weights, channels_last)
    new_graph = builder.build()
    stored = choose_stored(builder.demands, named, set(weights), program)
    if stored != guess:
        new_graph = Builder(graph, rules, plan, free, stored, channels_last).build()
    ties = tied_names(program)
    shapes = {
        name: StoredShape(tuple(tensor_named(program, name).shape), frame)
        for placeholder, frame in stored.items()
        for name in ties[named[placeholder]]
    }
    state, kept = stored_tensors(program, shapes)
    result = with_graph(program, GraphModule(program.graph_module, new_graph), state, kept)
    return Rewritten(result, StoredWeights(shapes), layout_operators(result).total(), stored)


def image_starts(
    found: list[MatchedProduct], rules: dict[Node, Rule], plan: LayoutPlan, free: set[Node]
) -> dict[Node, int]:
    """Where the images that converted products read begin: value → its channel axis, behind runs of
    element-wise operators.

    Put into channels-last memory there, they stay so through the run, as (B, T, C) tokens were.
    """
    starts: dict[Node, int] = {}
    for f in found:
        if f.convert and f.form == "conv":
            _walk_back(f.product.x, f.product.x_channel, rules, free, starts, set())
    return starts


def _walk_back(
    node: Node,
    channel: int,
    rules: dict[Node, Rule],
    free: set[Node],
    starts: dict[Node, int],
    seen: set[Node],
) -> None:
    pending = [(node, channel)]
    while pending:
        value, axis = pending.pop()
        if value in seen or value in free or value not in rules:
            continue
        seen.add(value)
        rule = rules[value]
        if isinstance(rule, ElementwiseRule | Normalise):
            for operand in rule.operands:
                shift = len(shape(value)) - len(shape(operand))
                if axis - shift in axes_of(operand) and len(axes_of(operand)) == len(rule.axes):
                    pending.append((operand, axis - shift))
        elif isinstance(rule, Relabel):
            back = {b: a for a, b in rule.names.items()}
            if axis in back:
                pending.append((rule.operands[0], back[axis]))
        elif not isinstance(rule, ProductRule):
            starts[value] = axis


def _holds_tensors(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor | list | tuple)


def _product_rule(found: MatchedProduct, penalty: float) -> ProductRule:
    p = found.product
    operands = (p.x, p.weight, *((p.bias,) if p.bias is not None else ()))
    return ProductRule(p.node, axes_of(p.node), operands, p, found.form, found.convert, penalty)


def _weight_frames(found: list[MatchedProduct], rules: dict[Node, Rule], free: set[Node]) -> dict[str, Frame]:
    """The placeholders that are, up to their axes' order, weights of converted products, with the frame those
    will ask for.
    """
    frames: dict[str, Frame] = {}
    for f in found:
        weight, rule = f.product.weight, rules.get(f.product.node)
        if not f.convert or weight not in free or not isinstance(rule, ProductRule):
            continue
        frame = rule.weight_frame(2 if f.form == "conv" else 0)
        while weight.op != "placeholder":
            relabel = rules[weight]
            assert isinstance(relabel, Relabel)
            back = {b: a for a, b in relabel.names.items()}
            frame = tuple(back[a] if a != UNIT else UNIT for a in frame)
            weight = relabel.operands[0]
        if frame != natural_frame(len(shape(weight)), axes_of(weight)):
            frames[weight.name] = frame
    return frames
