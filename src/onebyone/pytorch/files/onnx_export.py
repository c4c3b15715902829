"""Write exported programs as ONNX models, by PyTorch's own exporter (`torch.onnx.export` with `dynamo=True`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from onebyone.errors import BadInput, MissingExtra
from onebyone.pytorch.files.exporting import quiet
from onebyone.records import first_line, root_cause
from onebyone.results.note import NOTE

if TYPE_CHECKING:
    import onnx_ir as ir

#: Names of the axes of positions, counted from the last one.
_POSITIONS = ("width", "height", "depth")


def save_onnx(program: ExportedProgram, path: str | os.PathLike[str], note: str) -> Path:
    """Write a program as an ONNX model with `note` in its metadata. The file appears completely or not at all.

    Axes that are free in the program are free in the model. Weights of more than 2 GB go to `PATH.data`.

    Raises
    ------
    MissingExtra
        if onnx or onnxscript is not installed.
    BadInput
        if the exporter does not know an operator, or the file cannot be written.
    """
    model = onnx_model_of(program, note)
    from onebyone.onnx_file import write_model  # it imports onnx-ir

    return write_model(model, path)


def onnx_model_of(program: ExportedProgram, note: str = "") -> ir.Model:
    """The program as a model of onnx-ir, with `note` (JSON text) under `NOTE` in its metadata; see `save_onnx`."""
    for library in ("onnx", "onnxscript"):
        try:
            __import__(library)
        except ImportError as error:
            raise MissingExtra(library, "onnx", "exporting to ONNX") from error
    try:
        with quiet():
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        # the exporter wraps the error of the operator in errors of its stages
        reason = first_line(root_cause(error))
        raise BadInput(f"model: PyTorch's exporter cannot write it as ONNX: {reason}") from error
    assert exported is not None  # it is None only where a path is given
    model: ir.Model = exported.model
    _name_free_axes(model)
    if note:
        model.metadata_props[NOTE] = note
    return model


def _name_free_axes(model: ir.Model) -> None:
    """Name the free axes of the inputs batch, height and width instead of s77, in every shape of the model."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        sizes = list(value.shape or ())
        for axis, size in enumerate(sizes):
            symbol = size.value if isinstance(size, ir.SymbolicDim) else None
            if symbol is not None and symbol.isidentifier() and symbol not in names:
                names[symbol] = _unused(_axis_name(axis, len(sizes)), set(names.values()))

    def renamed(size: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if not isinstance(size, ir.SymbolicDim) or size.value is None:
            return size
        return ir.SymbolicDim(re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), size.value))

    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*model.graph.inputs, *values):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(size) for size in value.shape])


def _axis_name(axis: int, rank: int) -> str:
    """The usual name of an axis of an image batch (N, C, H, W), or of a sequence batch (N, T, …).

    >>> [_axis_name(axis, 4) for axis in range(4)], [_axis_name(axis, 2) for axis in range(2)]
    (['batch', 'channels', 'height', 'width'], ['batch', 'length'])
    """
    if axis == 0:
        return "batch"
    if rank > 3:
        return "channels" if axis == 1 else _POSITIONS[min(rank - 1 - axis, 2)]
    return "length" if axis == 1 else "features"


def _unused(name: str, used: set[str]) -> str:
    number, unused = 1, name
    while unused in used:
        number, unused = number + 1, f"{name}_{number}"
    return unused
