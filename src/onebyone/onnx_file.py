"""Write ONNX models: beside the target, then moved into place, external data with it.

Shared by the front ends: the ONNX front end writes converted models, and the PyTorch front end writes exports.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from onebyone.atomic_files import atomic_path
from onebyone.errors import BadInput
from onebyone.records import first_line, root_cause

#: Protocol buffers hold less than 2 GiB; larger models keep their tensors in a file beside.
LARGEST_FILE = 2_000_000_000
#: Tensors smaller than this stay in the model's file.
SMALLEST_EXTERNAL = 1024


def write_model(
    model: ir.Model, path: str | os.PathLike[str], finish: Callable[[Path], object] | None = None
) -> Path:
    """Write a model, whole or not at all; large tensors go to `PATH.data`, where the model is too large or had such.

    `finish` is called with the path of the new file before it is moved into place.

    Raises:
        BadInput: the path cannot be written, or a tensor cannot be read any more, or the model holds a text that is
            not UTF-8.
    """
    path = Path(path)
    if bytes_of_weights(model) > LARGEST_FILE or has_external_data(model):
        return _write_with_data(model, path, finish)
    with atomic_path(path) as temporary:
        _save(model, temporary)
        if finish is not None:
            finish(temporary)
    return path


def _save(model: ir.Model, path: Path, **options: Any) -> None:
    """Serialise; what a damaged file holds may be read first here, such as texts that are not UTF-8."""
    try:
        ir.save(model, path, format="protobuf", **options)
    except ir.serde.SerdeError as error:
        reason = first_line(root_cause(error))
        raise BadInput(f"model: cannot be written as an ONNX file: {reason}") from error


def _write_with_data(model: ir.Model, path: Path, finish: Callable[[Path], object] | None) -> Path:
    """Write the model and its data in a folder beside the target, and move both when they are complete.

    Earlier data moves out of the way before the model is replaced, and the new data follows it. A process that is
    killed between these steps leaves a model whose data is missing, never one that reads the numbers of another.
    """
    with ExitStack() as folders:
        folder: Path | None = None
        try:
            with atomic_path(path) as temporary:
                prefix = f".{path.name}-"
                folder = Path(folders.enter_context(TemporaryDirectory(dir=temporary.parent, prefix=prefix)))
                data = temporary.with_name(f"{path.name}.data")
                written, new, previous = folder / path.name, folder / data.name, folder / "previous"
                _save(model, written, external_data=data.name, size_threshold_bytes=SMALLEST_EXTERNAL)
                if finish is not None:
                    finish(written)
                os.replace(written, temporary)
                if new.exists():
                    with new.open("rb") as file:
                        os.fsync(file.fileno())
                    _keep_mapped(model, data)
                    if data.exists():
                        os.replace(data, previous)
        except BaseException:
            if folder is not None and previous.exists():
                os.replace(previous, data)
            raise
        if new.exists():
            os.replace(new, data)
    return path


def _keep_mapped(model: ir.Model, data: Path) -> None:
    """Map the tensors that a model reads from a file which is about to be replaced; a mapping keeps the old file."""
    for _, tensor in tensors_of(model):
        if isinstance(tensor, ir.ExternalTensor) and Path(os.path.realpath(tensor.path)) == data:
            tensor.numpy()


def has_external_data(model: ir.Model) -> bool:
    """Whether an initializer is stored in a file beside the model."""
    return any(isinstance(tensor, ir.ExternalTensor) for _, tensor in tensors_of(model))


def fed_inputs(graph: ir.Graph) -> list[ir.Value]:
    """The inputs that have no value in the file, so that each call gives them one."""
    return [value for value in graph.inputs if str(value.name) not in graph.initializers]


def bytes_of_weights(model: ir.Model) -> int:
    """Bytes of the weights, in memory and in files. Texts, which have no fixed size, do not count."""
    return sum(int(tensor.nbytes) for tensor in weights_of(model) if tensor.dtype != ir.DataType.STRING)


def weights_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The tensors of all initializers, and of the constants that functions hold."""
    yield from (tensor for _, tensor in tensors_of(model))
    for function in model.functions.values():
        for node in function.all_nodes():
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and not attribute.is_ref():
                yield attribute.as_tensor()


def tensors_of(model: ir.Model) -> Iterator[tuple[str, Any]]:
    """Every initializer with its name, those of subgraphs included."""
    for graph in model.graphs():
        for value_name, value in graph.initializers.items():
            if value.const_value is not None:
                yield str(value_name), value.const_value


def unmapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor of an external file once more, so that its mapped pages are freed with it; any other as it is."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    where = (tensor.location, tensor.offset, tensor.length)
    return ir.ExternalTensor(
        *where, tensor.dtype, shape=tensor.shape, name=str(tensor.name), base_dir=tensor.base_dir
    )
