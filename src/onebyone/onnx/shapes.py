"""Infer the shapes and element types of a model's values, by several engines that check each other.

ONNX's own inference (`onnx.shape_inference`) loses ranks where a shape is computed; `onnx-shape-inference` follows such
computations with symbols. Where a rank is still unknown, constant expressions are folded first (onnxscript), and ONNX
Runtime's symbolic inference is asked too. What one engine knows and another does not is taken. Where two contradict
each other nothing is known: a converter that needs the rank then refuses. No engine serialises large tensors, and only
shapes and types change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass, _c_api_utils

from onebyone.errors import MissingExtra
from onebyone.onnx import map_types
from onebyone.onnx.function_bodies import infer_through_calls

_logger = logging.getLogger(__name__)
#: Bytes of the largest tensor that is folded: shapes and the bounds of slices are far smaller, weights larger.
_FOLDED = 1024
#: The name of a value after those of the nodes whose subgraphs it is in: two branches may use one name.
Key: TypeAlias = "tuple[object, ...]"
#: The shape and type of every value that a node computes.
Inferred: TypeAlias = "dict[Key, tuple[ir.Shape | None, ir.DataType | None]]"


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and types of all values as far as the engines agree; what is unknown stays unknown.

    Raises:
        MissingExtra: onnx-shape-inference is not installed.
    """
    if model.functions:
        infer_through_calls(model, _infer_without_calls)
    else:
        _infer_without_calls(model)


def _infer_without_calls(model: ir.Model) -> None:
    plain = map_types.without_maps(model) if map_types.has_maps(model) else model.clone()
    found = [_by_onnx(plain.clone()), _by_symbols(plain.clone())]
    if any(not _shapes(found, key) for key, _ in outputs_of(model.graph)):
        found += [
            _by_symbols_after_folding(plain.clone()),
            _by_onnx_runtime(plain.clone()),
            _by_loading(plain.clone()),
        ]
    for key, value in outputs_of(model.graph):
        types = [inferred[key][1] for inferred in found if key in inferred]
        known = [dtype for dtype in types if dtype is not None]
        if value.dtype is None and known and not _gives_bytes(value):
            value.dtype = known[0]
        if value.shape is None or not value.is_graph_output():
            value.shape = _agreed(_shapes(found, key), str(value.name))


def _gives_bytes(value: ir.Value) -> bool:
    """Whether an operator of ONNX Runtime gives quantised numbers, for which the inferences say float."""
    node = value.producer()
    return node is not None and node.domain == "com.microsoft" and node.op_type.startswith("Q")


def _shapes(found: list[Inferred], key: Key) -> list[ir.Shape]:
    shapes = (inferred[key][0] for inferred in found if key in inferred)
    return [shape for shape in shapes if shape is not None]


def _agreed(shapes: list[ir.Shape], name: str) -> ir.Shape | None:
    """What the shapes say together: None if their ranks differ, and no size where two numbers differ."""
    if len({len(shape) for shape in shapes}) > 1:
        _logger.debug("the rank of %r is contradictory: %s", name, shapes)
        return None
    if not shapes:
        return None
    sizes: list[int | ir.SymbolicDim] = []
    for axis in zip(*shapes, strict=True):
        numbers = {size for size in axis if isinstance(size, int)}
        if len(numbers) == 1:
            sizes.append(numbers.pop())
        else:
            names = [size for size in axis if isinstance(size, ir.SymbolicDim)]
            sizes.append(names[0] if names and not numbers else ir.SymbolicDim(None))
    return ir.Shape(sizes)


def outputs_of(graph: ir.Graph, scope: Key = ()) -> Iterator[tuple[Key, ir.Value]]:
    """Every value that a node of the graph or of its subgraphs computes, with its key."""
    for node in graph:
        for value in node.outputs:
            yield (*scope, value.name), value
        for attribute in node.attributes.values():
            inner = (*scope, node.outputs[0].name if node.outputs else node.name, attribute.name)
            if attribute.type == ir.AttributeType.GRAPH:
                yield from outputs_of(attribute.as_graph(), inner)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for number, subgraph in enumerate(attribute.as_graphs()):
                    yield from outputs_of(subgraph, (*inner, number))


def _inferred(model: ir.Model) -> Inferred:
    return {key: (value.shape, value.dtype) for key, value in outputs_of(model.graph) if value.name}


def _by_onnx(model: ir.Model) -> Inferred:
    with quiet():
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return _inferred(model)


def _by_symbols(model: ir.Model) -> Inferred:
    try:
        from onnx_shape_inference import infer_symbolic_shapes
    except ImportError as error:
        raise MissingExtra("onnx-shape-inference", "onnx", "converting an ONNX model") from error
    try:
        with quiet("onnx_shape_inference"):
            infer_symbolic_shapes(model, warn_on_missing=False)
    except Exception as error:  # on a model that it cannot follow, it says nothing
        _logger.debug("onnx-shape-inference fails: %s", error)
        return {}
    return _inferred(model)


def _by_symbols_after_folding(model: ir.Model) -> Inferred:
    """The same on a model without constant expressions, such as the bounds of slices that TorchScript computes."""
    from onnxscript.optimizer import fold_constants

    try:
        with quiet("onnxscript"):
            fold_constants(model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
    except Exception as error:  # on a model that it cannot follow, it says nothing
        _logger.debug("onnxscript cannot fold constants: %s", error)
        return {}
    return _by_symbols(model)


def _by_onnx_runtime(model: ir.Model) -> Inferred:
    """The same by ONNX Runtime's symbolic inference, for the main graph; nothing if it is not installed."""
    try:
        from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
    except ImportError:
        return {}

    def infer(proto: onnx.ModelProto) -> onnx.ModelProto:
        # what SymbolicShapeInference.infer_shapes does, which leaves a file in the current folder where it fails
        inference = SymbolicShapeInference(2**31 - 1, auto_merge=True, guess_output_rank=False, verbose=0)
        inference._preprocess(proto)
        complete = False
        while inference.run_:
            complete = inference._infer_impl()
        inference._update_output_from_vi()
        if not complete:
            raise ValueError("the inference is incomplete")
        return inference.out_mp_

    try:
        with quiet("onnxruntime.tools.symbolic_shape_infer"):
            proto = _c_api_utils.call_onnx_api(infer, model)
        infos = [ir.serde.deserialize_value_info_proto(info, None) for info in proto.graph.value_info]
    except Exception as error:  # on a model that it cannot follow, it says nothing
        _logger.debug("ONNX Runtime's symbolic inference fails: %s", error)
        return {}
    main = {str(value.name) for node in model.graph for value in node.outputs}
    return {(value.name,): (value.shape, value.dtype) for value in infos if value.name in main}


def _by_loading(model: ir.Model) -> Inferred:
    """What ONNX Runtime knows of a model that it has loaded, which includes its own fused operators.

    Every value of the main graph becomes an output, and large constants become inputs. Nothing is run.
    """
    try:
        import onnxruntime
    except ImportError:
        return {}
    main = [value for node in model.graph for value in node.outputs if value.name]

    def load(proto: onnx.ModelProto) -> dict[str, tuple[str, list[int | str | None] | None]]:
        outputs = {output.name for output in proto.graph.output}
        proto.graph.output.extend(
            onnx.ValueInfoProto(name=value.name) for value in main if value.name not in outputs
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return {output.name: (output.type, output.shape) for output in session.get_outputs()}

    try:
        loaded = _c_api_utils.call_onnx_api(load, model)
    except Exception as error:  # a model that it does not load, it knows nothing of
        _logger.debug("ONNX Runtime does not load the model: %s", error)
        return {}
    return {
        (name,): (ir.Shape(sizes) if sizes else None, None)
        for name, (kind, sizes) in loaded.items()
        if kind.startswith("tensor(")
    }


@contextmanager
def quiet(name: str = "onnx_ir") -> Iterator[None]:
    """Keep a library from logging what it finds wrong with a model; faults that matter become errors of our own."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
