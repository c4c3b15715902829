"""Read ONNX files: an untrusted file is checked before anything of its size is allocated.

Tensors in external files are read only from the model's own folder, links resolved. `onebyone.onnx_file` writes.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from onebyone.atomic_files import kind_of_file, require_file
from onebyone.errors import BadInput
from onebyone.onnx import map_types
from onebyone.onnx.file_checks import require_sound_proto, shortened
from onebyone.onnx.shapes import quiet
from onebyone.onnx_file import tensors_of, write_model
from onebyone.records import first_line, root_cause

#: Another name of the default domain, which onnx-ir (1.1) replaces in nodes, but not where versions are imported.
_ALIAS = "ai.onnx"


def open_model(source: str | os.PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """A model of onnx-ir from a path, a `ModelProto` or such a model itself, which is returned as it is.

    Of a model that imports the default domain as "ai.onnx" it is a copy, which imports it as "".

    Raises:
        BadInput: the file is truncated, not ONNX, or damaged; a tensor's external data is missing, too short or
            outside the model's folder; a node reads a value that nothing computes before it; two versions of the
            default domain are imported.
    """
    if isinstance(source, ir.Model):
        model, name = source, "model"
        if any(_ALIAS in imports for imports in _imports_of(model)):
            model = model.clone()
    elif isinstance(source, onnx.ModelProto):
        model, name = _decoded(source, "model"), "model"
    else:
        model, name = _from_file(Path(source)), str(source)
    _name_default_domain(model, name)
    _require_sound(model, name)
    return model


def save_model(model: ir.Model, path: str | os.PathLike[str]) -> Path:
    """`onnx_file.write_model`, with the types that onnx-ir cannot represent (`map_types`)."""
    return write_model(model, path, finish=partial(map_types.restore_in_file, model))


def _from_file(path: Path) -> ir.Model:
    require_file(path)
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty; an ONNX model was expected")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has errors of several kinds
        kind = kind_of_file(path)
        raise BadInput(f"{path} is not an ONNX model or is damaged (the file is {kind}): {error}") from error
    model = _decoded(proto, str(path))
    for _, tensor in (*tensors_of(model), *_constants(model)):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = path.parent
    return model


def _decoded(proto: onnx.ModelProto, name: str) -> ir.Model:
    require_sound_proto(proto, name)
    try:
        with quiet():
            return map_types.decoded(proto)
    except Exception as error:
        raise BadInput(
            f"{name} is not a valid ONNX model: {shortened(first_line(root_cause(error)))}"
        ) from error


def _imports_of(model: ir.Model) -> list[dict[str, int]]:
    """The versions of the domains that the model and each of its functions import."""
    return [model.opset_imports, *(function.opset_imports for function in model.functions.values())]


def _name_default_domain(model: ir.Model, name: str) -> None:
    """Import the operators of the default domain under the name that their nodes have."""
    for imports in _imports_of(model):
        version = imports.pop(_ALIAS, None)
        if version is not None and imports.setdefault("", version) != version:
            raise BadInput(
                f"{name}: imports the default domain in two versions, {imports['']} and, as {_ALIAS!r}, {version}"
            )


def _require_sound(model: ir.Model, name: str) -> None:
    if not model.graph.inputs:
        raise BadInput(f"{name}: its graph has no input")
    for value_name, tensor in (*tensors_of(model), *_constants(model)):
        if isinstance(tensor, ir.ExternalTensor):
            _require_external(tensor, value_name, name)
    _require_order(model.graph, set(), name)


def _constants(model: ir.Model) -> list[tuple[str, ir.TensorProtocol]]:
    """The tensors in attributes, as Constant nodes hold them."""
    functions = (node for function in model.functions.values() for node in function.all_nodes())
    return [
        (str(node.name or node.op_type), attribute.as_tensor())
        for node in (*model.graph.all_nodes(), *functions)
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
    ]


def _require_external(tensor: ir.ExternalTensor, value_name: str, name: str) -> None:
    """The data of a tensor in another file is there, long enough, and inside the model's folder."""
    what, location = (
        f"{name}: the external data of {shortened(value_name)!r}",
        shortened(str(tensor.location)),
    )
    folder, path = os.path.realpath(tensor.base_dir or "."), os.path.realpath(tensor.path)
    if os.path.isabs(str(tensor.location)) or os.path.commonpath([folder, path]) != folder:
        raise BadInput(f"{what}, {location!r}, lies outside the model's folder; it is not read")
    if not os.path.isfile(path):
        raise BadInput(f"{what} is missing: {location!r} is not a file beside the model")
    offset, size = tensor.offset or 0, os.path.getsize(path)
    count = 1
    for axis in tensor.shape:
        count *= int(axis)  # type: ignore[arg-type]
    needed = -(-count * tensor.dtype.bitwidth // 8)
    if offset < 0 or offset + needed > size:
        raise BadInput(
            f"{what} ends at byte {offset + needed:,} of {location!r}, which has {size:,} bytes; is it truncated?"
        )


def _require_order(graph: ir.Graph, outer: set[ir.Value], name: str) -> None:
    """Every value that a node reads is an input, an initializer, or computed before: no cycle, nothing dangling."""
    known = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        for operand in node.inputs:
            if operand is not None and operand not in known:
                raise BadInput(
                    f"{name}: the node {node.name or node.op_type!r} reads {operand.name!r}, which nothing computes "
                    "before it (a cycle, or a missing node)"
                )
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _require_order(attribute.as_graph(), known, name)
        known |= set(node.outputs)
    for output in graph.outputs:
        if output not in known:
            raise BadInput(f"{name}: its output {output.name!r} is computed by no node")
