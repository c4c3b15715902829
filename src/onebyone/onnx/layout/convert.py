"""Convert the products of an ONNX model together with the layout of its whole graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onebyone.errors import BadInput
from onebyone.layout.planner import choose_orders
from onebyone.layout.products import MERGE_PENALTIES
from onebyone.layout.token_axis import TokenAxis
from onebyone.layout.values import GraphValue
from onebyone.onnx.computed_constants import evaluate_constants
from onebyone.onnx.constant_values import is_constant, mark_constants, shape_of
from onebyone.onnx.conversion import OnnxConversion, RewrittenLayer
from onebyone.onnx.convert import (
    OLDEST_OPSET,
    Only,
    prepared,
    wanted,
    write_as_convolution,
    write_as_product,
)
from onebyone.onnx.layout.builder import OnnxGraphBuilder
from onebyone.onnx.layout.counting import layout_operators
from onebyone.onnx.layout.decoder import DecodedModel, OnnxDecoder, TokenProduct, needed
from onebyone.onnx.layout.products import ProductDecoder, read_pointwise, read_token_wise
from onebyone.onnx.model_rewriting import ModelRewriter, nodes_of, restore_value_infos, sort_where_needed
from onebyone.onnx.static_sizes import StaticSizes, fill_shapes
from onebyone.onnx.stored_values import StoredValue
from onebyone.onnx_file import bytes_of_weights
from onebyone.records import Change, Refusal, by

#: The cost of a convolution whose tokens are in the batch axis: two Reshapes, and a little more than other plans.
MERGED_CONVOLUTION = 2.02
#: The cost of a convolution whose rows (N, C) are its batch, (N, C, 1, 1). So they become positions (1, C, 1, N), which
#: runtimes compute far faster, unless that takes one more layout operator for fewer than a hundred products.
ROWS_IN_THE_BATCH = 0.01
LAW = {"conv": "linear = pointwise convolution", "linear": "pointwise convolution = linear"}


def convert_with_layout(
    model: ir.Model,
    to: str = "conv",
    only: Only = None,
    freeze_initialisers: bool = False,
    *,
    tokens: str = "last",
) -> OnnxConversion:
    """Return a converted copy of a model in which runs of operators on tokens share one layout.

    Products that map the channels of every position alike are written by the layout planner, together with all other
    operators; the remaining ones are converted each by itself first.

    Args:
        model: any model of onnx-ir; it is not changed.
        to: "conv" (products with a constant to convolutions) or "linear" (1×1 convolutions to matrix products).
        only: which products to convert; see `convert_model`.
        freeze_initialisers: remove initializers from the graph's inputs first, so that they are constants.
        tokens: where a convolution's positions are stored: "last" (N, C, 1, S), "height" (N, C, S, 1) or "batch"
            (N·S, C, 1, 1).

    Raises:
        BadInput: an argument has another value, or the model's opset is older than 7.
    """
    if to not in LAW:
        raise BadInput(f"to={to!r}: expected 'conv' or 'linear'")
    if tokens not in list(TokenAxis):
        raise BadInput(f"tokens={tokens!r}: expected 'last', 'height' or 'batch'")
    opset = model.opset_imports.get("", OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise BadInput(
            f"model: has opset {opset}; expected {OLDEST_OPSET} or newer (see onnx.version_converter)"
        )
    copy = prepared(model, freeze_initialisers)
    bytes_before, before = bytes_of_weights(copy), layout_operators(copy)
    rewriter = ModelRewriter(copy)
    refused: list[Refusal] = []
    write = write_as_convolution if to == "conv" else write_as_product
    read = read_token_wise if to == "conv" else read_pointwise
    for path, node, version in list(nodes_of(copy)):
        if node.graph is None or not wanted(path, only) or (node.graph is copy.graph and read(node)):
            continue
        reason = rewriter.attempt(path, node, version, to, write)
        if reason is not None:
            refused.append(Refusal(path, node.op_type, reason))
    stored = lay_out(rewriter, to, lambda path: wanted(path, only), TokenAxis(tokens), before.total())
    after = layout_operators(copy)
    restore_value_infos(copy, model)
    return OnnxConversion(
        copy,
        tuple(rewriter.changes),
        tuple(refused),
        to=to,
        level="graph",
        layers=tuple(rewriter.layers),
        entries=dict(rewriter.weights.entries),
        weight_bytes=(bytes_before, bytes_of_weights(copy)),
        frozen=freeze_initialisers,
        layout_before=before,
        layout_after=after,
        stored=stored,
    )


def lay_out(
    rewriter: ModelRewriter,
    to: str = "conv",
    selected: Callable[[str], bool] = lambda path: True,
    tokens: TokenAxis = TokenAxis.LAST,
    allowed: int = 0,
) -> dict[str, StoredValue]:
    """Write the main graph of a model again, with few layout operators, and convert its token-wise products.

    The model is changed, and the layers that are converted are added to the rewriter's records.

    Args:
        rewriter: of a model whose constants are initializers (`convert.prepared`). Nodes may have been rewritten.
        to: "conv", or "linear".
        selected: by the path of a product in the original: whether it is to be converted. Others keep their form.
        tokens: where the positions of a convolution are stored. Rows (N, C) are positions too where that takes no
            further layout operators (`ROWS_IN_THE_BATCH`); otherwise they stay in the batch axis.
        allowed: for matrix products, a number of layout operators. Plans are tried from the one with the plainest
            products to the one with the fewest layout operators, until a plan needs at most this many.

    Returns:
        How the new graph stores each value of the old one, by its name.
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
    )
    best = None
    for penalty in (MERGED_CONVOLUTION,) if to == "conv" else MERGE_PENALTIES:
        decoded, products = found.decode(penalty)
        rules = needed(decoded)
        plan = choose_orders(rules, decoded.constants)
        if best is None or plan.permutes < best[3].permutes:
            best = (decoded, products, rules, plan)
        if plan.permutes <= allowed:
            break
    assert best is not None
    decoded, products, rules, plan = best
    _record(rewriter, products, to, paths)
    written = OnnxGraphBuilder(graph, decoded, rules, products, rewriter.weights).build(plan)
    sort_where_needed(model)
    return written


class _Graph:
    """Decodes one graph with different penalties."""

    def __init__(
        self, graph: ir.Graph, opset: int, to: str, tokens: TokenAxis, selected: Callable[[ir.Node], bool]
    ) -> None:
        self.graph, self.opset, self.to, self.tokens, self.selected = graph, opset, to, tokens, selected

    def decode(self, penalty: float) -> tuple[DecodedModel, dict[GraphValue, TokenProduct]]:
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
                product = products.read(node, penalty, ROWS_IN_THE_BATCH)
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
