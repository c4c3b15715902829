"""Convert the products of an ONNX model together with the layout of its whole graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import onnx_ir as ir

from onebyone.errors import BadInput
from onebyone.layout.planner import LayoutPlan, choose_orders
from onebyone.layout.products import MERGE_PENALTIES, ProductRule
from onebyone.layout.reshape_rules import ReshapeRule
from onebyone.layout.rules import FixedRule, LayoutRule
from onebyone.layout.token_axis import TokenAxis
from onebyone.layout.values import GraphValue
from onebyone.onnx.computed_constants import evaluate_constants
from onebyone.onnx.constant_values import NotRewritable, is_constant, mark_constants, shape_of
from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.convert import (
    OLDEST_OPSET,
    WRITERS,
    Only,
    nodes_to_convert,
    prepared,
    require_supported,
    wanted,
)
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.layout.builder import OnnxGraphBuilder
from onebyone.onnx.layout.counting import is_layout_operator, layout_operators
from onebyone.onnx.layout.decoder import DecodedModel, OnnxDecoder, TokenProduct, needed
from onebyone.onnx.layout.products import READERS, ProductDecoder
from onebyone.onnx.model_rewriting import (
    ModelRewriter,
    Rewriting,
    Write,
    nodes_of,
    restore_value_infos,
    sort_where_needed,
)
from onebyone.onnx.runtime_kernels import runtime_warnings
from onebyone.onnx.static_sizes import StaticSizes, fill_shapes
from onebyone.onnx.stored_values import StoredValues
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.onnx_file import bytes_of_weights
from onebyone.records import Change, Refusal, by

#: The cost of a convolution whose tokens are in the batch axis: two Reshapes, and a little more than other plans.
MERGED_CONVOLUTION = 2.02
#: The cost of a convolution whose rows (N, C) are its batch, (N, C, 1, 1). So they become positions (1, C, 1, N), which
#: runtimes compute far faster, unless that takes one more layout operator for fewer than a hundred products.
ROWS_IN_THE_BATCH = 0.01
#: The costs of keeping a product as it was, tried in turn until a plan has no more layout operators than the original.
KEEP_COSTS = (1.5, 0.9, 0.6, 0.4, 0.2, 0.05, 0.001)
MORE_LAYOUT_OPERATORS = (
    "its conversion would take more layout operators than the model has; targets that require this form "
    "(conv-only, linear-only) convert it all the same, as does a conversion without level='graph'"
)
LAW = {"conv": "linear = pointwise convolution", "linear": "pointwise convolution = linear"}


def convert_with_layout(
    model: ir.Model,
    to: str = "conv",
    only: Only = None,
    freeze_initialisers: bool = False,
    *,
    tokens: str = "last",
    forced: bool = False,
) -> OnnxConversion:
    """Return a converted copy of a model in which runs of operators on tokens share one layout.

    Products that map the channels of every position alike are written by the layout planner, together with all other
    operators; the remaining ones are converted each by itself first.

    The result has at most as many layout operators as the model: products whose conversion would take more are kept,
    and refused with that reason.

    Args:
        model: any model of onnx-ir; it is not changed.
        to: "conv" (products with a constant to convolutions) or "linear" (1×1 convolutions to matrix products).
        only: which products to convert; see `convert_model`.
        freeze_initialisers: remove initializers from the graph's inputs first, so that they are constants.
        tokens: where a convolution's positions are stored: "last" (N, C, 1, S), "height" (N, C, S, 1) or "batch"
            (N·S, C, 1, 1).
        forced: convert every product that can be converted, whatever number of layout operators that takes.

    Raises:
        BadInput: an argument has another value, or the model's opset is older than 7.
    """
    require_supported(model, to)
    if tokens not in list(TokenAxis):
        raise BadInput(f"tokens={tokens!r}: expected 'last', 'height' or 'batch'")
    copy = prepared(model, freeze_initialisers)
    bytes_before, before = bytes_of_weights(copy), layout_operators(copy)
    rewriter = ModelRewriter(copy)
    refused, waiting = _convert_others(rewriter, to, only, forced)
    plan = partial(
        plan_layout, rewriter, to, lambda path: wanted(path, only), TokenAxis(tokens), before.total(), forced
    )
    planned = plan()
    if _convert_waiting(rewriter, to, waiting, before.total() - planned.total):
        planned = plan()
    refused += [Refusal(other.path, other.node.op_type, MORE_LAYOUT_OPERATORS) for other in waiting]
    kept, stored = planned.write(rewriter)
    warnings = runtime_warnings(copy)
    restore_value_infos(copy, model)
    return OnnxConversion(
        copy,
        tuple(rewriter.changes),
        (*refused, *kept),
        to=to,
        level="graph",
        layers=tuple(rewriter.layers),
        entries=dict(rewriter.weights.entries),
        weight_bytes=(bytes_before, bytes_of_weights(copy)),
        frozen=freeze_initialisers,
        layout_before=before,
        layout_after=layout_operators(copy),
        stored=stored,
        warnings=warnings,
    )


@dataclass(frozen=True)
class _Waiting:
    """A product whose conversion by itself would add layout operators, and how many."""

    path: str
    node: ir.Node
    opset: int
    more: int


def _convert_others(
    rewriter: ModelRewriter, to: str, only: Only, forced: bool
) -> tuple[list[Refusal], list[_Waiting]]:
    """Convert the products that the planner does not write; returns those refused, and those that would add operators.

    With `forced`, the latter are converted too.
    """
    refused: list[Refusal] = []
    waiting: list[_Waiting] = []
    for path, node, opset in nodes_by_themselves(rewriter.model, to, lambda path: wanted(path, only)):
        frugal = _WithoutMore(WRITERS[to])
        reason = rewriter.attempt(path, node, opset, to, WRITERS[to] if forced else frugal)
        if reason is not None and frugal.added > 0:
            waiting.append(_Waiting(path, node, opset, frugal.added))
        elif reason is not None:
            refused.append(Refusal(path, node.op_type, reason))
    return refused, waiting


def nodes_by_themselves(
    model: ir.Model, to: str, selected: Callable[[str], bool]
) -> Iterator[tuple[str, ir.Node, int]]:
    """The nodes to convert that the planner does not write, as `nodes_to_convert` gives them."""
    read = READERS[to]
    return nodes_to_convert(
        model, lambda path, node: selected(path) and not (node.graph is model.graph and read(node))
    )


def _convert_waiting(rewriter: ModelRewriter, to: str, waiting: list[_Waiting], spare: int) -> bool:
    """Convert products that wait as far as the plan leaves layout operators, and take them from the list.

    Returns whether any was converted, so that the graph has to be planned again.
    """
    converted = False
    for product in list(waiting):
        if product.more <= spare and product.node.graph is not None:
            spare -= product.more
            rewriter.attempt(product.path, product.node, product.opset, to, WRITERS[to])
            waiting.remove(product)
            converted = True
    return converted


class _WithoutMore:
    """The rewriting `write`, refused where it adds layout operators; `added` is how many the last one adds."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self.added = 0

    def __call__(self, node: ir.Node, writer: GraphWriter, weights: WeightRewriter) -> Rewriting | str | None:
        result = self._write(node, writer, weights)
        if isinstance(result, Rewriting):
            before, after = (sum(map(is_layout_operator, n)) for n in (result.replaced, writer.nodes))
            self.added = after - before
            if self.added > 0:
                raise NotRewritable(MORE_LAYOUT_OPERATORS)
        return result


def lay_out(
    rewriter: ModelRewriter,
    to: str = "conv",
    selected: Callable[[str], bool] = lambda path: True,
    tokens: TokenAxis = TokenAxis.LAST,
    allowed: int = 0,
) -> StoredValues:
    """Write the main graph of a model again, with few layout operators, and convert its token-wise products.

    The model is changed, and the layers that are converted are added to the rewriter's records. The arguments are those
    of `plan_layout`. Returns how the new graph stores each value of the old one, by its name.
    """
    return plan_layout(rewriter, to, selected, tokens, allowed, forced=True).write(rewriter)[1]


def plan_layout(
    rewriter: ModelRewriter,
    to: str,
    selected: Callable[[str], bool],
    tokens: TokenAxis,
    allowed: int,
    forced: bool,
) -> PlannedGraph:
    """Plan the main graph of a model with few layout operators. Nothing is written but the numbers of constants.

    Args:
        rewriter: of a model whose constants are initializers (`convert.prepared`). Nodes may have been rewritten.
        to: "conv", or "linear".
        selected: by the path of a product in the original: whether it is to be converted. Others keep their form.
        tokens: where the positions of a convolution are stored. Rows (N, C) are positions too where that takes no
            further layout operators (`ROWS_IN_THE_BATCH`); otherwise they stay in the batch axis.
        allowed: a number of layout operators of the whole model. Plans are tried, from the one with the plainest
            products to the one with the fewest layout operators, until a plan needs at most this many.
        forced: convert the products even if that takes more than `allowed`. Otherwise some keep their form.
    """
    model = rewriter.model
    sort_where_needed(model)
    graph = model.graph
    mark_constants(model)
    is_new = evaluate_constants(graph, model.opset_imports.get("", OLDEST_OPSET))
    if is_new or rewriter.changes:
        fill_shapes(model).fold()
    else:  # the shapes are those of `prepared`
        sizes = StaticSizes(model)
        sizes.fill_in()
        sizes.fold()
    paths = {node: path for path, node, _ in nodes_of(model)}
    found = _Graph(
        graph,
        model.opset_imports.get("", OLDEST_OPSET),
        to,
        tokens,
        lambda n: selected(rewriter.origin(paths[n])),
        layout_operators(model).total() - sum(map(is_layout_operator, graph)),
        paths,
    )
    penalties = (MERGED_CONVOLUTION,) if to == "conv" else MERGE_PENALTIES
    settings: list[tuple[float, float | None]] = [(penalty, None) for penalty in penalties]
    if not forced:
        settings += [(MERGED_CONVOLUTION, cost) for cost in KEEP_COSTS]
    best: PlannedGraph | None = None
    for penalty, keep_cost in settings:
        planned = found.plan(penalty, keep_cost)
        if best is None or planned.total < best.total:
            best = planned
        if best.total <= allowed:
            break
    assert best is not None
    return replace(best, is_refused=best.total > allowed and not forced)


def _refusal(rewriter: ModelRewriter, product: TokenProduct, paths: Mapping[ir.Node, str]) -> Refusal:
    return Refusal(rewriter.origin(paths[product.nodes[0]]), product.nodes[0].op_type, MORE_LAYOUT_OPERATORS)


@dataclass(frozen=True, eq=False)
class PlannedGraph:
    """A graph with a plan for it.

    `is_refused` says that the plan takes too many layout operators, so that nothing is to be written.
    """

    graph: _Graph
    decoded: DecodedModel
    products: Mapping[GraphValue, TokenProduct]
    rules: Mapping[GraphValue, LayoutRule]
    plan: LayoutPlan
    is_refused: bool = False

    @property
    def total(self) -> int:
        """The number of layout operators of the whole model, those of subgraphs and functions included."""
        return self.layout_operators + self.graph.elsewhere

    def write(self, rewriter: ModelRewriter) -> tuple[list[Refusal], StoredValues]:
        """Write the graph. Returns the products that keep their form, and how it stores each value of the old graph."""
        paths = self.graph.paths
        if self.is_refused:
            to_convert = (product for product in self.products.values() if product.rule.convert)
            return [_refusal(rewriter, product, paths) for product in to_convert], {}
        kept = self.kept()
        converted = {result: product for result, product in self.products.items() if result not in kept}
        _record(rewriter, converted, self.graph.to, paths)
        written = OnnxGraphBuilder(
            self.graph.graph, self.decoded, self.rules, self.products, rewriter.weights, self.plan
        ).build()
        sort_where_needed(rewriter.model)
        refused = [_refusal(rewriter, self.products[result], paths) for result in kept]
        return refused, written

    def kept(self) -> list[GraphValue]:
        """The results of the products that were to be converted, and keep their form in this plan."""
        rules = {result: product.rule for result, product in self.products.items() if result in self.rules}
        return [r for r, rule in rules.items() if rule.convert and rule.is_kept(*self.plan.orders[r])]

    @cached_property
    def layout_operators(self) -> int:
        """The number of layout operators that are written: permutes, Reshapes of the original, and of products."""
        count = self.plan.permutes
        for value, rule in self.rules.items():
            if isinstance(rule, ProductRule):
                count += rule.reshapes(*self.plan.orders[value])
            elif isinstance(rule, ReshapeRule):
                count += 1
            elif isinstance(rule, FixedRule) and isinstance(value.origin, ir.Value):
                node = value.origin.producer()
                count += node is not None and is_layout_operator(node)
        return count


@dataclass(frozen=True, eq=False)
class _Graph:
    """Decodes one graph with different penalties.

    Attributes:
        elsewhere: the number of layout operators in subgraphs and functions.
        paths: the path of each node.
    """

    graph: ir.Graph
    opset: int
    to: str
    tokens: TokenAxis
    selected: Callable[[ir.Node], bool]
    elsewhere: int
    paths: Mapping[ir.Node, str]

    def plan(self, penalty: float, keep_cost: float | None = None) -> PlannedGraph:
        """The graph with the plan of lowest cost."""
        decoded, products = self._decode(penalty, keep_cost)
        rules = needed(decoded)
        return PlannedGraph(self, decoded, products, rules, choose_orders(rules, decoded.constants))

    def _decode(
        self, penalty: float, keep_cost: float | None
    ) -> tuple[DecodedModel, dict[GraphValue, TokenProduct]]:
        """The rules of all nodes, and the products among them."""
        decoder = OnnxDecoder(self.opset)
        products = ProductDecoder(decoder.decoded, self.to, self.selected, self.tokens)
        taken: dict[ir.Node, TokenProduct | None] = {}
        found: dict[GraphValue, TokenProduct] = {}
        for node in self.graph:
            if all(is_constant(output) for output in node.outputs):
                decoder.decoded.constant_nodes.add(node)
            elif node in taken:
                product = taken[node]
                if product is not None:
                    decoder.product(product)
                    found[product.rule.result] = product
            else:
                product = products.read(node, penalty, ROWS_IN_THE_BATCH, keep_cost)
                if product is None:
                    decoder.node(node)
                elif len(product.nodes) == 1:
                    decoder.product(product)
                    found[product.rule.result] = product
                else:
                    taken |= dict.fromkeys(product.nodes[:-1], None) | {product.nodes[-1]: product}
        decoder.outputs(self.graph.outputs)
        return decoder.decoded, found


def _record(
    rewriter: ModelRewriter,
    products: Mapping[GraphValue, TokenProduct],
    to: str,
    paths: Mapping[ir.Node, str],
) -> None:
    """Add the converted products to the records."""
    for found in products.values():
        rule = found.rule
        if not rule.convert:
            continue
        node, product = found.nodes[0], rule.product
        path = rewriter.origin(paths[node])
        shape = shape_of(product.weight.origin) or ()
        inputs, outputs = product.inputs, product.outputs
        after = f"1×1 convolution {outputs}×{inputs}" if to == "conv" else f"linear {outputs}×{inputs}"
        rewriter.changes.append(Change(path, node.op_type, LAW[to], f"{node.op_type} {by(shape)}", after))
        sizes = tuple(size if isinstance(size, int) else None for size in product.x.shape or ())
        names = str(product.x.name), str(product.result.name)
        rewriter.layers.append(RewrittenLayer(path, node.op_type, LAW[to], *names, int(inputs), sizes))
