"""Checks of a decoded ONNX file before onnx-ir reads it, with a sentence for each fault; nothing is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import onnx
import onnx_ir as ir

from onebyone.errors import BadInput

#: The longest name that a message repeats in full.
_LONGEST = 120


def require_sound_proto(proto: onnx.ModelProto, name: str) -> None:
    """Raise BadInput, which names the file `name`, unless tensors, external data and names of values can be right."""
    if proto.ir_version <= 0 or not proto.HasField("graph"):
        raise BadInput(f"{name} is not an ONNX model: it has no IR version or no graph")
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            _require_size(tensor, name)
        names = [value.name for value in graph.input]
        names += [tensor.name for tensor in graph.initializer if tensor.name not in names]
        _require_nodes(graph.node, names, name)
    for function in proto.functions:
        _require_nodes(function.node, list(function.input), name)
        _require_computed(function, name)


def shortened(text: str) -> str:
    """A name for a message, without its middle where it is long.

    >>> shortened("weights.bin"), len(shortened("x" * 5000))
    ('weights.bin', 123)
    """
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 20]}...{text[-20:]}"


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    waiting = [graph]
    for current in waiting:
        yield current
        for node in current.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _require_nodes(nodes: Sequence[onnx.NodeProto], names: Sequence[str], name: str) -> None:
    """Every value is computed once, and the tensors in attributes are sound."""
    known = set(names)
    for node in nodes:
        for output in filter(None, node.output):
            if output in known:
                raise BadInput(
                    f"{name}: the node {_named(node)} computes {shortened(output)!r}, which an input, an initializer "
                    "or another node gives already"
                )
            known.add(output)
        for attribute in node.attribute:
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                _require_size(tensor, name)


def _require_computed(function: onnx.FunctionProto, name: str) -> None:
    """Every value that a function's nodes read is its input or computed before."""
    known = {"", *function.input}
    for node in function.node:
        for operand in node.input:
            if operand not in known:
                raise BadInput(
                    f"{name}: the node {_named(node)} of the function {function.name!r} reads "
                    f"{shortened(operand)!r}, which nothing computes before it"
                )
        known |= set(node.output)
    for output in function.output:
        if output not in known:
            raise BadInput(
                f"{name}: the output {shortened(output)!r} of the function {function.name!r} is computed by no node"
            )


def _named(node: onnx.NodeProto) -> str:
    return repr(shortened(node.name or node.op_type))


def _require_size(tensor: onnx.TensorProto, name: str) -> None:
    """The tensor's data is as long as its shape says."""
    what = f"{name}: the tensor {shortened(tensor.name)!r}"
    if any(size < 0 for size in tensor.dims):
        raise BadInput(f"{what} has a negative size in its shape {list(tensor.dims)}")
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):
        bits = 0
    if tensor.data_type == onnx.TensorProto.STRING:
        if len(tensor.string_data) != prod(tensor.dims):
            raise BadInput(f"{what} of shape {list(tensor.dims)} holds {len(tensor.string_data):,} texts")
        return
    if not bits:
        raise BadInput(f"{what} has an unknown type {tensor.data_type}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _require_entries(tensor, what)
        return
    if tensor.HasField("raw_data"):
        needed, unit, held = -(-prod(tensor.dims) * bits // 8), "bytes", len(tensor.raw_data)
    else:
        needed, unit, held = _values(tensor, bits)
    if held != needed:
        raise BadInput(f"{what} of shape {list(tensor.dims)} needs {needed:,} {unit} and holds {held:,}")


def _values(tensor: onnx.TensorProto, bits: int) -> tuple[int, str, int]:
    """How many entries the field of the tensor's type must have, and how many it has (see onnx.proto)."""
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    complex_types = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    count = prod(tensor.dims) * (2 if tensor.data_type in complex_types else 1)
    return -(-count * bits // 8) if bits < 8 else count, "values", len(getattr(tensor, field))


def _require_entries(tensor: onnx.TensorProto, what: str) -> None:
    """The entries that say where the external data is can be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or "\0" in location:
        raise BadInput(f"{what} has external data, and {shortened(location)!r} names no file for it")
    for key in ("offset", "length"):
        if key in entries and not entries[key].isdecimal():
            raise BadInput(
                f"{what} has external data whose {key} is {shortened(entries[key])!r}; expected a number of bytes"
            )
