"""An any-size ONNX model as a file: the model, with its geometry, labels and outputs in its metadata."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onebyone.errors import BadInput
from onebyone.onnx.model_file import open_model, save_model
from onebyone.results.any_size import Convolutionalized
from onebyone.results.note import NOTE, DenseNote, dense_note, optional_dense_note, read_dense_note


@dataclass(frozen=True)
class ConvolutionalizedOnnx(Convolutionalized[ir.Model, ir.Model]):
    """An ONNX model that takes images of any size; see `Convolutionalized`.

    `model` takes `(N, C, H, W)` whatever the layout of the original, and gives `(N, classes, H', W')` for each output.
    An image must be at least as large as the window; the file itself does not check that.

    Attributes
    ----------
    channels_last: whether the original takes `(N, H, W, C)`.
    batch: the only number of samples that the original takes; None if any. `model` takes any number.
    """

    channels_last: bool = False
    batch: int | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as an `.onnx` file, whole or not at all; large tensors go to `PATH.data` (see `save_model`).

        Raises
        ------
        BadInput
            if the name does not end in `.onnx`, or the path cannot be written.
        """
        if Path(path).suffix != ".onnx":
            raise BadInput(f"path={os.fspath(path)!r}: expected a name that ends in .onnx")
        save_model(self.with_note(), path)

    def with_note(self) -> ir.Model:
        """The model with the note of what is known of it in its `metadata_props`."""
        model = self.model
        return ir.Model(
            model.graph,
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            metadata_props={**model.metadata_props, NOTE: dense_note(self)},
        )


def is_dense(model: ir.Model) -> bool:
    """Whether a model carries a note of onebyone."""
    return NOTE in model.metadata_props


def load_dense(path: str | os.PathLike[str]) -> ConvolutionalizedOnnx:
    """Read what `ConvolutionalizedOnnx.save` wrote. The original is not stored: `original` is the dense model.

    Raises
    ------
    BadInput
        if the file is not an ONNX model, or onebyone did not write it.
    """
    model = open_model(path)
    text = model.metadata_props.get(NOTE)
    if text is None:
        raise BadInput(
            f"{os.fspath(path)}: is an ONNX model without {NOTE}; write it with `onebyone convolutionalize -o`"
        )
    note = read_dense_note(text, os.fspath(path))
    return ConvolutionalizedOnnx(model=model, original=model, **note.fields())


def note_in(path: str | os.PathLike[str]) -> DenseNote | None:
    """The note in the file of an any-size model; None for any other file. External data is not read."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf has errors of several kinds
        return None
    text = next((entry.value for entry in proto.metadata_props if entry.key == NOTE), None)
    return optional_dense_note(text, os.fspath(path))
