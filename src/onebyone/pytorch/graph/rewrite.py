"""From one exported program to another: products found, orders planned, the graph built, parameters put in their new shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from onebyone.pytorch.graph.build import Builder
from onebyone.pytorch.graph.counting import PERMUTES, layout_operators, operator_name
from onebyone.pytorch.graph.match import (
    constant_placeholders,
    constants,
    layer_path,
    match_convolution,
    match_linear,
    not_read,
    refusal,
)
from onebyone.pytorch.graph.plan import choose_orders
from onebyone.pytorch.graph.products import Product, ProductRule
from onebyone.pytorch.graph.program import with_graph
from onebyone.pytorch.graph.rules import Relabel, Rule, axes_of
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

# How dear a convolution with its tokens in the batch axis (an image of one place) is beside one permute. The first plan that
# does not have more layout operators than the original is taken.
MERGE_PENALTIES = (1.01, 0.5, 0.04)


@dataclass(frozen=True)
class Found:
    """A product and the path it goes by; `convert` is False where it already has the form asked for, or was not selected."""

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


def find_products(
    program: ExportedProgram, to: str, selected: Callable[[str], bool]
) -> tuple[list[Found], list[Refusal]]:
    """Every product with a constant weight, and every one of them that cannot be converted, with the reason."""
    known, named = constants(program), constant_placeholders(program)
    found: list[Found] = []
    refused: list[Refusal] = []
    for node in program.graph.nodes:
        linear, convolution = match_linear(node, known), match_convolution(node, known)
        eligible = linear if to == "conv" else convolution
        if isinstance(eligible, str) or not_read(node, known):
            weight = next((n for n in node.all_input_nodes if n in known), None)
            path = layer_path(node, weight, named)
            reason = eligible if isinstance(eligible, str) else not_read(node, known)
            if selected(path) and (isinstance(eligible, str) or to == "conv"):
                refused.append(refusal(node, path, str(reason)))
        product = linear if isinstance(linear, Product) else convolution
        if not isinstance(product, Product):
            continue
        path = layer_path(node, product.weight, named)
        form = "conv" if product is convolution else "linear"
        convert = form != to and selected(path)
        if convert or (product.groups == 1 and all(s == 1 for s in product.stride)):
            found.append(
                Found(
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


def rewrite(program: ExportedProgram, found: list[Found]) -> Rewritten:
    """Write every found product in its form, with as few layout operators as can be found."""
    before = layout_operators(program).total()
    best: Rewritten | None = None
    for penalty in MERGE_PENALTIES:
        result = _rewrite_once(program, found, penalty)
        if best is None or result.layout < best.layout:
            best = result
        if best.layout <= before:
            break
    assert best is not None
    return best


def _rewrite_once(program: ExportedProgram, found: list[Found], penalty: float) -> Rewritten:
    graph, named = program.graph, constant_placeholders(program)
    products = {f.product.node: f for f in found}
    rules: dict[Node, Rule] = {}
    for node in graph.nodes:
        if node in products:
            rules[node] = _product_rule(products[node], penalty)
        elif node.op == "output" or (node.op == "call_function" and _holds_tensors(node)):
            rules[node] = rule_for(node, rules)
    free = {n for n in graph.nodes if n.op == "placeholder" and n.name in named}
    for node, rule in rules.items():
        if isinstance(rule, Relabel) and rule.operands[0] in free:
            free.add(node)
    plan = choose_orders(rules, free)
    first = Builder(graph, rules, plan, free, {})
    first.build()
    weights = _weight_placeholders(found, rules, free)
    stored = choose_stored(first.demands, named, weights, program)
    second = Builder(graph, rules, plan, free, stored) if stored else first
    new_graph = second.build() if stored else first.graph
    ties = tied_names(program)
    shapes = {
        name: StoredShape(tuple(tensor_named(program, name).shape), frame)
        for placeholder, frame in stored.items()
        for name in ties[named[placeholder]]
    }
    state, kept = stored_tensors(program, shapes)
    result = with_graph(program, GraphModule(program.graph_module, new_graph), state, kept)
    return Rewritten(result, StoredWeights(shapes), layout_operators(result).total())


def _holds_tensors(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor | list | tuple)


def _product_rule(found: Found, penalty: float) -> ProductRule:
    p = found.product
    operands = (p.x, p.weight, *((p.bias,) if p.bias is not None else ()))
    return ProductRule(p.node, axes_of(p.node), operands, p, found.form, found.convert, penalty)


def _weight_placeholders(found: list[Found], rules: dict[Node, Rule], free: set[Node]) -> set[str]:
    """The placeholders whose values are, up to their axes' order, the weights of converted products."""
    names = set()
    for f in found:
        weight = f.product.weight
        while f.convert and weight in free and weight.op != "placeholder":
            weight = rules[weight].operands[0]
        if f.convert and weight in free:
            names.add(weight.name)
    return names
