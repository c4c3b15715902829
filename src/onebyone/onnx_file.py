"""Write ONNX models: beside the target, then moved into place, external data with it.

Shared by the front ends: the ONNX front end writes converted models, and the PyTorch front end writes exports.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onebyone.atomic_files import atomic_path

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
        BadInput: the path cannot be written, or a tensor cannot be read any more.
    """
    path = Path(path)
    external = bytes_of_weights(model) > LARGEST_FILE or has_external_data(model)
    data = path.with_name(f"{path.name}.data") if external else None
    existed = data is not None and data.exists()
    try:
        with atomic_path(path) as temporary:
            ir.save(
                model,
                temporary,
                format="protobuf",
                external_data=None if data is None else data.name,
                size_threshold_bytes=SMALLEST_EXTERNAL,
            )
            if finish is not None:
                finish(temporary)
    except BaseException:
        if data is not None and not existed:
            with suppress(OSError):
                data.unlink()
        raise
    return path


def has_external_data(model: ir.Model) -> bool:
    """Whether an initializer is stored in a file beside the model."""
    return any(isinstance(tensor, ir.ExternalTensor) for _, tensor in tensors_of(model))


def bytes_of_weights(model: ir.Model) -> int:
    """Bytes of all initializers, in memory and in files; texts, which have no fixed size, do not count."""
    tensors = (tensor for _, tensor in tensors_of(model))
    return sum(int(tensor.nbytes) for tensor in tensors if tensor.dtype != ir.DataType.STRING)


def tensors_of(model: ir.Model) -> Iterator[tuple[str, Any]]:
    """Every initializer with its name, those of subgraphs included."""
    for graph in model.graphs():
        for value_name, value in graph.initializers.items():
            if value.const_value is not None:
                yield str(value_name), value.const_value
