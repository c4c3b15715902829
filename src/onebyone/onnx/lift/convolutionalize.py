"""Turn an ONNX classifier of one window into a model that takes images of any size and classifies every window."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onebyone.errors import BadInput, InexactWarning, Refused
from onebyone.laws.scores import ScoreKind, read_kind
from onebyone.lifting.class_map import window_of_class_map
from onebyone.lifting.inexact import far_advice
from onebyone.lifting.output_geometry import common_stride, joint_geometry, may_have_surplus, output_map
from onebyone.lifting.values import Lifted
from onebyone.onnx.lift.class_map import class_map
from onebyone.onnx.lift.dense_file import ConvolutionalizedOnnx
from onebyone.onnx.lift.graph_lifter import OnnxGraphLifter
from onebyone.onnx.lift.input_shapes import InputLayout, read_layout
from onebyone.onnx.lift.outputs import outputs_of
from onebyone.onnx.lift.rules import decoder_for
from onebyone.records import Labels, Refusal, by
from onebyone.results.any_size import CONTEXTS, HEADS, ClassMap

#: The first opset in which Slice, Pad and Clip take their settings as operands.
OLDEST_OPSET = 11
#: The first IR version whose initializers need not be inputs of the graph.
_OLDEST_IR = 4


def convolutionalize(
    model: ir.Model,
    window: int | Sequence[int] | None = None,
    channels: int | None = None,
    *,
    head: str = "window",
    context: str | None = None,
    labels: Labels | None = None,
    score_kind: str | ScoreKind | None = None,
) -> ConvolutionalizedOnnx:
    """Turn a classifier of `window` pixels into a model that classifies every window of a larger image.

    The same rules as for PyTorch (`onebyone.pytorch.lift.convolutionalize`). `auto_pad` is fixed at its amounts for one
    window. Initializers that are inputs of the graph too (in files of IR version 3) are constants of the result.

    Parameters
    ----------
    model: a model of one image `(N, C, *window)`, `(N, *window, C)` or `(N, *window)`, opset 11 or newer. It is not
        changed, and its tensors are shared.
    window: the size in pixels that the model was built for. None takes the sizes that the file states.
    channels: the number of channels of the image, where the file leaves it free and no convolution tells.
    head, context, labels, score_kind: as for PyTorch.

    Raises
    ------
    Refused
        naming every operator that cannot be converted, with its node.
    BadInput
        if the model does not take such a window, is of an older opset, or an argument has an unknown value.
    """
    _check(model, head, context)
    graph, opset = _prepared(model)
    layout = read_layout(graph, window, channels)
    lifter = _lift(graph, opset, layout, head, context, frozenset())
    if context == "image" and lifter.context_pools:
        lifter = _lift(graph, opset, layout, head, context, frozenset(lifter.context_pools))
    elif head == "cam" and lifter.context_pools:
        raise Refused([Refusal("", "head='cam'", "the network has global context inside; use head='window'")])
    leaves = [output_map(lifter, i, lifter.values[v]) for i, v in enumerate(graph.outputs)]
    if lifter.refused:
        what = f"the model cannot be made to take images of any size (window {by(lifter.window)})"
        raise Refused(lifter.refused, what)
    maps = [leaf for leaf in leaves if leaf is not None]  # all of them, since none was refused
    grids = [leaf.grid for leaf in maps]
    stride, smallest, reasons = common_stride(grids), lifter.window, list(lifter.inexact)
    evidence: ClassMap | None = None
    if head == "cam":
        evidence, jump = class_map(lifter)
        smallest = window_of_class_map(evidence.pool, jump, stride, lifter.window)
        reasons.append(evidence.reason)
    handles = [_one_position_per_window(lifter, leaf, smallest, stride) for leaf in maps]
    geometry = joint_geometry(grids, stride, smallest, reasons, bool(lifter.image_wide))
    outputs = outputs_of(lifter, [grid.channels for grid in grids])
    kind = read_kind(score_kind)
    sentences = far_advice(geometry) if evidence is None else ()
    for sentence in sentences:
        warnings.warn(sentence, InexactWarning, stacklevel=2)
    return ConvolutionalizedOnnx(
        model=_model(model, lifter, handles),
        geometry=geometry,
        changes=tuple(lifter.changes),
        original=model,
        channels=layout.channels or 1,
        bare=layout.channels is None,
        nominal=lifter.window,
        head=head,
        context=context,
        class_map=evidence,
        labels=labels or Labels(),
        outputs=tuple(replace(o, kind=kind) for o in outputs) if kind else outputs,
        advice=sentences,
        channels_last=layout.channels_last,
        batch=layout.batch,
    )


def _check(model: ir.Model, head: str, context: str | None) -> None:
    if head not in HEADS:
        raise BadInput(f"head is {head!r}; 'window' or 'cam' was expected")
    if context not in CONTEXTS:
        raise BadInput(f"context is {context!r}; 'window', 'image' or None was expected")
    opset = model.opset_imports.get("", 1)
    if opset < OLDEST_OPSET:
        raise BadInput(
            f"model: has opset {opset}; expected {OLDEST_OPSET} or newer (see onnx.version_converter)"
        )


def _prepared(model: ir.Model) -> tuple[ir.Graph, int]:
    """The graph without functions, and its opset; the model is copied only if it has functions."""
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    return model.graph, model.opset_imports.get("", 1)


def _lift(
    graph: ir.Graph,
    opset: int,
    layout: InputLayout,
    head: str,
    context: str | None,
    image_wide: frozenset[str],
) -> OnnxGraphLifter:
    lifter = OnnxGraphLifter(graph, opset, layout, head, context, image_wide)
    lifter.context_pools |= image_wide
    lifter.run(decoder_for)
    return lifter


def _one_position_per_window(
    lifter: OnnxGraphLifter, value: Lifted, window: tuple[int, ...], stride: tuple[int, ...]
) -> ir.Value:
    """The map at the windows' stride, cropped to the number of windows if it may have more positions."""
    writer, axes = lifter.writer, lifter.axes
    writer.path = "onebyone"
    handle = writer.strided(value.handle, [s // j for s, j in zip(stride, value.grid.jump, strict=True)])
    if may_have_surplus(value.grid, stride, window, lifter.window):
        size = writer.positions(lifter.image, axes)
        beyond = writer.op("Sub", [size, writer.integers(window)])
        steps = writer.op("Div", [beyond, writer.integers(stride)])
        counts = writer.op("Add", [steps, writer.integers([1] * axes)])
        handle = writer.limit(handle, counts, axes)
    result: ir.Value = handle
    return result


def _model(original: ir.Model, lifter: OnnxGraphLifter, handles: Sequence[ir.Value]) -> ir.Model:
    """The emitted graph as a model, without the nodes and constants that no output needs."""
    outputs = []
    for old, handle in zip(lifter.graph.outputs, handles, strict=True):
        # an identity, so that the output has its own name whatever computes it
        result = lifter.writer.op("Identity", [handle])
        result.name = old.name
        outputs.append(result)
    nodes = _needed(lifter.writer.nodes, outputs)
    read = {v for node in nodes for v in node.inputs}
    graph = ir.Graph(
        [lifter.image],
        outputs,
        nodes=nodes,
        initializers=[v for v in lifter.writer.initializers.values() if v in read],
        opset_imports=_opsets(original, nodes),
        name=original.graph.name or "any_size",
        doc_string=original.graph.doc_string,
    )
    return ir.Model(
        graph,
        ir_version=max(original.ir_version or 0, _OLDEST_IR),
        producer_name="onebyone",
        metadata_props=dict(original.metadata_props),
    )


def _opsets(original: ir.Model, nodes: Sequence[ir.Node]) -> dict[str, int]:
    used = {"", *(node.domain for node in nodes)}
    return {domain: version for domain, version in original.opset_imports.items() if domain in used}


def _needed(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that an output depends on, in their order."""
    needed: set[Any] = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            kept.append(node)
            needed.update(value for value in node.inputs if value is not None)
    return kept[::-1]
