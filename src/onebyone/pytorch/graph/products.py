"""All products of an exported program with the layer that each belongs to, and all that cannot be converted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.export import ExportedProgram
from torch.fx import Node

from onebyone.layout.values import GraphValue
from onebyone.layout.weight_products import WeightProduct
from onebyone.pytorch.graph.constants import constant_placeholders
from onebyone.pytorch.graph.counting import PERMUTES
from onebyone.pytorch.graph.nodes import module_path, operator_name
from onebyone.pytorch.graph.product_matching import CONVOLUTIONS, ProductMatcher, products_inside
from onebyone.pytorch.graph.weights import tied_names
from onebyone.records import Refusal


@dataclass(frozen=True)
class MatchedProduct:
    """A product, and the layer that it belongs to."""

    path: str  # of the layer
    operator: str  # such as aten.linear.default
    product: WeightProduct
    form: str  # "conv" or "linear": how it is written in the new program
    convert: bool  # False if it has this form already, or was not selected
    weight_name: str | None = None  # the parameter that is the weight, up to the order of its axes
    bias_name: str | None = None


class LayerNames:
    """The layer that each product of a program belongs to."""

    _WEIGHT = re.compile(r"\.(weight(_g|_v|_orig|_mask)?|parametrizations\.weight\.(original\d*|\d+\.\w+))$")

    def __init__(self, program: ExportedProgram) -> None:
        self._placeholders = constant_placeholders(program)
        self._ties = tied_names(program)

    def layer(self, node: Node, weight: Node | None) -> str:
        """The path of a product: of the layer that its weight belongs to, else of its module, else the node's name.

        A weight may have several names (tied), or be made from several tensors (such as a direction and a norm). The
        module in which the product is computed decides between them; otherwise the first tensor named as a weight.
        """
        path = module_path(node)
        sources = [
            self._placeholders[n.name] for n in _placeholders_of(weight) if n.name in self._placeholders
        ]
        if path in {self._owner(name) for source in sources for name in self._ties.get(source, [source])}:
            return path
        owners = [self._owner(source) for source in sources]
        if len(sources) > 1:
            owners = [owner for owner, source in zip(owners, sources, strict=True) if owner != source]
        return owners[0] if owners else path or node.name

    def parameter(self, value: GraphValue | None) -> str | None:
        """The name of the parameter, buffer or constant that a value is, up to the order of its axes."""
        if value is None:
            return None
        node: Node = value.origin
        while operator_name(node) in PERMUTES and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        return self._placeholders.get(node.name)

    def _owner(self, name: str) -> str:
        """The layer whose weight, or part of it, a tensor is; the name itself if it is not named as a weight."""
        return self._WEIGHT.sub("", name)


def _placeholders_of(weight: Node | None) -> list[Node]:
    """The placeholders from which a value is computed, in the order of the arguments."""
    visited: dict[Node, None] = {}
    pending = [] if weight is None else [weight]
    while pending:
        node = pending.pop()
        if node not in visited:
            visited[node] = None
            pending.extend(reversed(node.all_input_nodes))
    return [n for n in visited if n.op == "placeholder"]


def find_products(
    program: ExportedProgram,
    values: Mapping[Node, GraphValue],
    to: str,
    selected: Callable[[str], bool],
) -> tuple[list[MatchedProduct], list[Refusal]]:
    """Every product with a constant weight, and every one that cannot be converted, with the reason.

    `values` are those of the program's graph, `to` is "conv" or "linear", and `selected` says by path which layers are
    to be converted.
    """
    matcher, names = ProductMatcher.of(program, values), LayerNames(program)
    products: list[MatchedProduct] = []
    refused: list[Refusal] = []
    for node in program.graph.nodes:
        refused.extend(_refusals(program, node, to, selected, matcher, names))
        for product, form in ((matcher.linear(node), "linear"), (matcher.convolution(node), "conv")):
            if isinstance(product, WeightProduct):
                path = names.layer(node, product.weight.origin)
                convert = form != to and selected(path)
                if convert or (product.groups == 1 and all(step == 1 for step in product.stride)):
                    products.append(
                        MatchedProduct(
                            path,
                            str(node.target),
                            product,
                            to if convert else form,
                            convert,
                            names.parameter(product.weight),
                            names.parameter(product.bias),
                        )
                    )
    return products, refused


def _refusals(
    program: ExportedProgram,
    node: Node,
    to: str,
    selected: Callable[[str], bool],
    matcher: ProductMatcher,
    names: LayerNames,
) -> list[Refusal]:
    """Why a node that multiplies by a weight is not converted; empty for all other nodes."""
    refused: list[Refusal] = []
    match = matcher.linear(node) if to == "conv" else matcher.convolution(node)
    reason = match if isinstance(match, str) else None
    if match is None and (operator_name(node) in CONVOLUTIONS) == (to == "linear"):
        reason = matcher.changing_weight(node)
    if reason is None and to == "conv":
        reason = matcher.unsupported(node)
    if reason is not None:
        path = names.layer(node, matcher.weight_of(node))
        if selected(path):
            refused.append(Refusal(path, str(node.target), reason))
    path = module_path(node)
    if selected(path) and products_inside(program, node, to):
        refused.append(Refusal(path or node.name, str(node.target), "a block with its own graph is not read"))
    return refused
