"""Any-size networks as files: an exported program with free batch, height and width, and its geometry beside it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.export import Dim
from torch.fx.experimental import _config as symbolic

from onebyone.atomic_files import atomic_path
from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.pytorch.files.program_file import load_program
from onebyone.pytorch.lift.class_map import ClassMap
from onebyone.pytorch.lift.exported_graph import quiet
from onebyone.pytorch.lift.outputs import Output
from onebyone.pytorch.lift.window_linear import choose_forms_again
from onebyone.records import Change, Labels, first_line

if TYPE_CHECKING:
    from onebyone.pytorch.lift.convolutionalize import Convolutionalized

#: The extra file that holds the geometry, the labels, the outputs and the changes.
NOTE = "onebyone.json"
_VERSION = 1
_AXES = ("height", "width", "depth")


def save_dense(d: Convolutionalized, path: str | os.PathLike[str]) -> None:
    """Write an any-size network to `path` (`.pt2`), whole or not at all.

    Raises
    ------
    BadInput
        where the suffix is not `.pt2` or the file cannot be written.
    """
    if Path(path).suffix != ".pt2":
        raise BadInput(f"path is {os.fspath(path)!r}; a name ending in .pt2 was expected")
    note = {"version": _VERSION, **d.to_dict()}
    with atomic_path(path) as temporary:
        program = export_dense(d)
        torch.export.save(program, temporary, extra_files={NOTE: json.dumps(note)})


def export_dense(d: Convolutionalized) -> torch.export.ExportedProgram:
    """The any-size network as an exported program with free batch, height and width.

    Raises
    ------
    BadInput
        where torch.export ties the sizes of some operator to the example's.
    """
    reference = next(d.model.parameters(), torch.empty(0))
    size = [w + 2 * s + 1 for w, s in zip(d.nominal, d.geometry.stride, strict=True)]
    example = torch.zeros(2, d.channels, *size, dtype=reference.dtype, device=reference.device)
    free: dict[int, Any] = {0: Dim("batch", min=1)}
    for axis, (name, least) in enumerate(zip(_AXES, d.geometry.window, strict=False)):
        free[axis + 2] = Dim(name, min=max(2, least))
    # Without this, torch.export takes "one place" for a special case, and an image of the window's size is one place.
    with quiet(), symbolic.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        try:
            return torch.export.export(d.model, (example,), dynamic_shapes=(free,), strict=False)
        except Exception as error:
            raise BadInput(f"the network cannot be exported with free sizes: {first_line(error)}") from error


def load_dense(path: str | os.PathLike[str]) -> Convolutionalized:
    """Read what `Convolutionalized.save` wrote; the pairs that the verifier probes are not kept in a file.

    Raises
    ------
    BadInput
        where the file is not an exported program, or was not written by onebyone.
    """
    from onebyone.pytorch.lift.convolutionalize import Convolutionalized

    held = load_program(path)
    text = held.extra.get(NOTE)
    if text is None:
        raise BadInput(
            f"{os.fspath(path)}: is an exported program without {NOTE}; write it with `onebyone convolutionalize -o`"
        )
    note = _note(path, text)
    with quiet():
        network = held.program.module()
    assert isinstance(network, fx.GraphModule)  # what the module of an exported program is
    choose_forms_again(network)
    try:
        return Convolutionalized(
            model=network,
            geometry=Geometry.from_dict(note["geometry"]),
            changes=tuple(Change(**c) for c in note["changes"]),
            original=held.program,
            channels=int(note["channels"]),
            bare=bool(note.get("bare", False)),
            nominal=tuple(int(n) for n in note["nominal"]),
            head=str(note["head"]),
            context=note["context"],
            class_map=ClassMap.from_dict(note["class_map"]) if note["head"] == "cam" else None,
            labels=_labels(note["labels"]),
            outputs=tuple(Output.from_dict(o) for o in note.get("outputs", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{os.fspath(path)}: its {NOTE} is damaged ({error!r})") from error


def labels_in(path: str | os.PathLike[str]) -> Labels | None:
    """The labels that a file carries, without loading its program; None where it is not a dense network's."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith(f"/extra/{NOTE}")), None)
            note = None if name is None else json.loads(archive.read(name))
        return None if note is None or note.get("onebyone") == "conversion" else _labels(note["labels"])
    except (OSError, zipfile.BadZipFile, ValueError, AttributeError, KeyError, TypeError):
        return None


def _note(path: str | os.PathLike[str], text: str) -> Mapping[str, Any]:
    try:
        note = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{os.fspath(path)}: its {NOTE} is not JSON") from error
    if isinstance(note, dict) and note.get("onebyone") == "conversion":
        raise BadInput(
            f"{os.fspath(path)}: is a converted network that takes inputs of one size, not a dense one; "
            "give its window, or make it dense with `onebyone convolutionalize -o`"
        )
    if not isinstance(note, dict) or note.get("version") != _VERSION:
        raise BadInput(f"{os.fspath(path)}: its {NOTE} is of another version than {_VERSION}")
    return note


def _labels(data: Mapping[str, Any]) -> Labels:
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Labels(**given)
