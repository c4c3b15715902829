"""Convert the fully connected layers of an ONNX model to convolutions, or its 1×1 convolutions to matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import TypeAlias

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from onebyone.errors import BadInput
from onebyone.onnx import linear_products, to_matrix_product
from onebyone.onnx.constant_values import shape_of
from onebyone.onnx.conversion import OnnxConversion
from onebyone.onnx.function_bodies import mark_bodies
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.lifted_constants import lift_constants
from onebyone.onnx.model_rewriting import (
    ModelRewriter,
    Rewriting,
    Write,
    nodes_of,
    restore_value_infos,
    sort_where_needed,
)
from onebyone.onnx.quantised_convolutions import read_quantised_convolution
from onebyone.onnx.quantised_products import read_quantised_product
from onebyone.onnx.runtime_kernels import runtime_warnings
from onebyone.onnx.static_sizes import fill_shapes
from onebyone.onnx.to_convolution import write_convolution
from onebyone.onnx.weight_rewriting import WeightRewriter
from onebyone.onnx_file import bytes_of_weights
from onebyone.records import Refusal, by

#: The first opset in which arithmetic broadcasts its operands.
OLDEST_OPSET = 7
Only: TypeAlias = "str | Sequence[str] | Callable[..., bool] | None"


def convert_model(
    model: ir.Model, to: str = "conv", only: Only = None, freeze_initialisers: bool = False
) -> OnnxConversion:
    """Return a converted copy of a model; the model itself is not changed, and large constants are shared.

    Args:
        model: any model of onnx-ir.
        to: "conv" (products with a constant to convolutions) or "linear" (1×1 convolutions to matrix products).
        only: patterns of paths, as `fnmatch` reads them, or a function of a path; everything where None.
        freeze_initialisers: remove initializers from the graph's inputs first, so that they are constants. Old files
            (IR version 3) list every weight as an input.

    Raises:
        BadInput: `to` has another value, or the model's opset is older than 7, where operands do not broadcast.
    """
    require_supported(model, to)
    copy = prepared(model, freeze_initialisers)
    bytes_before = bytes_of_weights(copy)
    rewriter = ModelRewriter(copy)
    refused = convert_all(rewriter, to, only)
    sort_where_needed(copy)
    warnings = runtime_warnings(copy)
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
        warnings=warnings,
    )


def require_supported(model: ir.Model, to: str | None) -> None:
    """Raise BadInput if `to` has another value, or the model is older than operands that broadcast."""
    if to not in (None, "conv", "linear"):
        raise BadInput(f"to={to!r}: expected 'conv' or 'linear'")
    opset = model.opset_imports.get("", OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise BadInput(
            f"model: has opset {opset}; expected {OLDEST_OPSET} or newer (see onnx.version_converter)"
        )


def convert_all(rewriter: ModelRewriter, to: str, only: Only = None) -> list[Refusal]:
    """Convert every layer of a prepared model to one form. Returns the layers that are refused, with the reasons."""
    refused: list[Refusal] = []
    for path, node, opset in nodes_to_convert(rewriter.model, lambda path, _: wanted(path, only)):
        reason = rewriter.attempt(path, node, opset, to, WRITERS[to])
        if reason is not None:
            refused.append(Refusal(path, node.op_type, reason))
    return refused


def nodes_to_convert(
    model: ir.Model, selected: Callable[[str, ir.Node], bool]
) -> Iterator[tuple[str, ir.Node, int]]:
    """The nodes that are selected, by their path and themselves, with the path and the opset, while others change.

    Left out are nodes that an earlier conversion took in, as the Add of a bias: they are in no graph any more.
    """
    for path, node, opset in list(nodes_of(model)):
        if node.graph is not None and selected(path, node):
            yield path, node, opset


def wanted(path: str, only: Only) -> bool:
    """Whether `only` names the path: patterns as `fnmatch` reads them, or a function; None names every path."""
    if only is None:
        return True
    if callable(only):
        return bool(only(path))
    patterns = [only] if isinstance(only, str) else only
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def prepared(model: ir.Model, freeze_initialisers: bool = False) -> ir.Model:
    """A copy with its constants as initializers, and with shapes and types as far as they can be inferred."""
    copy = model.clone()
    if freeze_initialisers:
        copy.ir_version = max(
            copy.ir_version or 0, 4
        )  # the first version whose initializers need not be inputs
        RemoveInitializersFromInputsPass()(copy)
    lift_constants(copy)
    mark_bodies(copy)
    fill_shapes(copy)
    return copy


def write_as_convolution(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter
) -> Rewriting | str | None:
    """Write a product with a constant as a convolution; see `linear_products.read_product` for the reasons."""
    read = read_quantised_product(node) or linear_products.read_product(node)
    if read is None or isinstance(read, str):
        return read
    terms = prod(read.sizes[label] or 1 for label in read.contracted)
    written, replaced = write_convolution(read, writer, weights)
    return Rewriting(written, replaced, _before(node, read.weight), terms)


def write_as_product(node: ir.Node, writer: GraphWriter, weights: WeightRewriter) -> Rewriting | str | None:
    """Write a 1×1 convolution, or one over its whole map, as a matrix product; see `to_matrix_product`."""
    read = read_quantised_convolution(node) or to_matrix_product.read_convolution(node)
    if read is None or isinstance(read, str):
        return read
    terms = prod((shape_of(read.weight) or (1,))[1:])
    written, replaced = to_matrix_product.write_matrix_product(read, writer, weights)
    return Rewriting(written, replaced, _before(node, read.weight), terms)


def _before(node: ir.Node, weight: ir.Value) -> str:
    return f"{node.op_type} {by(shape_of(weight) or ())}"


#: What writes a layer in each form.
WRITERS: Mapping[str, Write] = {"conv": write_as_convolution, "linear": write_as_product}
