"""What `convolutionalize` returns for PyTorch networks, and how it is written to a file and read again.

The file is an exported program (`.pt2`) or an ONNX model, with free batch size, height and width; a JSON note inside it
(`results/note.py`) holds the geometry, the labels, the outputs and the changes.
"""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic

from onebyone.errors import BadInput
from onebyone.laws.scores import ScoreKind
from onebyone.pytorch.files.exporting import quiet
from onebyone.pytorch.files.onnx_export import save_onnx
from onebyone.pytorch.files.program_file import load_program, save_program
from onebyone.pytorch.lift.window_linear import choose_forms_again
from onebyone.records import Labels, first_line
from onebyone.results.any_size import Convolutionalized
from onebyone.results.note import NOTE, DenseNote, dense_note, optional_dense_note, read_dense_note

_AXES = ("height", "width", "depth")


@dataclass(frozen=True)
class ConvolutionalizedModule(Convolutionalized[nn.Module, nn.Module | ExportedProgram]):
    """An any-size network as a PyTorch module; `original` is the module or the exported program it was made from."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to `path` (`.pt2` or `.onnx`) with its geometry and labels, whole or not at all.

        Batch size, height and width are free in both.

        Raises
        ------
        BadInput
            if the suffix is another one, the file cannot be written, or the network cannot be exported with free sizes.
        """
        suffix = Path(path).suffix
        if suffix not in (".pt2", ".onnx"):
            raise BadInput(f"path={os.fspath(path)!r}: expected a name that ends in .pt2 or .onnx")
        (save_onnx if suffix == ".onnx" else save_program)(export_dense(self), path, dense_note(self))


def export_dense(d: ConvolutionalizedModule) -> ExportedProgram:
    """The any-size network as an exported program with free batch size, height and width.

    Raises
    ------
    BadInput
        if torch.export fixes the input size of some operator to the example's.
    """
    reference = next(d.model.parameters(), torch.empty(0))
    size = [w + 2 * s + 1 for w, s in zip(d.nominal, d.geometry.stride, strict=True)]
    example = torch.zeros(2, d.channels, *size, dtype=reference.dtype, device=reference.device)
    free: dict[int, Any] = {0: Dim("batch", min=1)}
    for axis, (name, least) in enumerate(zip(_AXES, d.geometry.window, strict=False)):
        free[axis + 2] = Dim(name, min=max(2, least))
    # Otherwise torch.export treats a size of one as a special case, and an image of the window's size has one position.
    with quiet(), symbolic.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        try:
            model = _with_contiguous_weights(d.model)
            return torch.export.export(model, (example,), dynamic_shapes=(free,), strict=False)
        except Exception as error:
            raise BadInput(f"the network cannot be exported with free sizes: {first_line(error)}") from error


def _with_contiguous_weights(model: nn.Module) -> nn.Module:
    """The module itself, or a copy if weights are stored channels-last.

    torch.export follows the memory format of weights and then excludes images close to the window's size. Strides are
    compared, because `is_contiguous` ignores axes of size one: a channels-last weight of one input channel passes it.
    """
    if all(tensor.stride() == _row_major(tensor).stride() for tensor in _stored(model)):
        return model
    copied = copy.deepcopy(model)
    for tensor in _stored(copied):
        tensor.data = _row_major(tensor).copy_(tensor)
    return copied


def _stored(model: nn.Module) -> Iterator[torch.Tensor]:
    """The parameters and buffers of a module."""
    return chain(model.parameters(), model.buffers())


def _row_major(tensor: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor like another one, with the strides of row-major order, also of axes of size one."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def load_dense(path: str | os.PathLike[str]) -> ConvolutionalizedModule:
    """Read what `ConvolutionalizedModule.save` wrote. The layer pairs that the verifier probes are not stored.

    Raises
    ------
    BadInput
        if the file is not an exported program, or onebyone did not write it.
    """
    file = load_program(path)
    text = file.extra.get(NOTE)
    if text is None:
        raise BadInput(
            f"{os.fspath(path)}: is an exported program without {NOTE}; write it with `onebyone convolutionalize -o`"
        )
    note = read_dense_note(text, os.fspath(path))
    with quiet():
        network = file.program.module(check_guards=False)
    assert isinstance(network, fx.GraphModule)  # the module of an exported program always is one
    choose_forms_again(network)
    return ConvolutionalizedModule(model=network, original=file.program, **note.fields())


def labels_in(path: str | os.PathLike[str]) -> Labels | None:
    """The labels that the file of an any-size network carries, read without its program; None for any other file."""
    note = _note_in(path)
    return None if note is None else note.labels


def window_in(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """The window that the file of an any-size network states, read without its program; None for any other file."""
    note = _note_in(path)
    return None if note is None else note.nominal


def score_kind_in(path: str | os.PathLike[str]) -> ScoreKind | None:
    """The kind that all outputs of a dense network's file have in common, without loading its program.

    None where they differ or are not known, and for other files.
    """
    note = _note_in(path)
    return None if note is None else note.score_kind


def _note_in(path: str | os.PathLike[str]) -> DenseNote | None:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith(f"/extra/{NOTE}")), None)
            text = None if name is None else archive.read(name).decode("utf-8")
    except (OSError, zipfile.BadZipFile, ValueError):
        return None
    return optional_dense_note(text, os.fspath(path))
