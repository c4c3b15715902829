"""Maps as types of outputs, as scikit-learn's classifiers return their probabilities: onnx-ir (1.1) has no such type.

Such a type is kept in the value's `meta` while the model is in memory, and put back where the model is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

_TYPE = "onebyone map type"


def decoded(proto: onnx.ModelProto) -> ir.Model:
    """The model of onnx-ir; map types of the main graph are set aside in the values' `meta`."""
    types = {value.name: value.type for value in _values(proto) if _has_map(value.type)}
    if types:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto = copy
        for value in _values(proto):
            if value.name in types:
                value.ClearField("type")
    model = ir.serde.deserialize_model(proto)
    for value in _outputs(model):
        if value.name in types:
            value.meta[_TYPE] = types[value.name]
    return model


def model_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as ONNX stores it, with the types that were set aside."""
    proto = ir.serde.serialize_model(model)
    _restore(model, proto)
    return proto


def has_maps(model: ir.Model) -> bool:
    """Whether an output of the model is of a type that was set aside."""
    return any(_TYPE in value.meta for value in model.graph.outputs)


def without_maps(model: ir.Model) -> ir.Model:
    """A copy without the nodes that compute maps, and without the outputs that hold them."""
    copy = model.clone()
    maps = [value for value in copy.graph.outputs if _TYPE in value.meta]
    for value in maps:
        copy.graph.outputs.remove(value)
        producer = value.producer()
        if producer is not None and not value.uses():
            copy.graph.remove(producer, safe=True)
    return copy


def restore_in_file(model: ir.Model, path: Path) -> None:
    """Put the types that were set aside into the file that onnx-ir wrote of the model."""
    if has_maps(model):
        proto = onnx.load(path, load_external_data=False)
        _restore(model, proto)
        path.write_bytes(proto.SerializeToString())


def _restore(model: ir.Model, proto: onnx.ModelProto) -> None:
    types = {value.name: value.meta[_TYPE] for value in model.graph.outputs if _TYPE in value.meta}
    for value in proto.graph.output:
        if value.name in types:
            value.type.CopyFrom(types[value.name])


def _values(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from proto.graph.output
    yield from proto.graph.value_info


def _outputs(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs


def _has_map(kind: onnx.TypeProto) -> bool:
    if kind.HasField("sequence_type"):
        return _has_map(kind.sequence_type.elem_type)
    if kind.HasField("optional_type"):
        return _has_map(kind.optional_type.elem_type)
    return bool(kind.HasField("map_type"))
