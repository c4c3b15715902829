"""Write exported programs, and read them without running code that a file may contain.

`torch.export.load` trusts its file. Records may be pickles, which are loaded without restriction, or compiled
libraries. Sizes are strings that SymPy evaluates as Python. An operator is any dotted name under `torch` (also
`torch.os.system`). Names and guards are inserted into generated source code. So the archive is checked first, by the
reader that will load it, against what `torch.export.save` writes for an ordinary network, and anything else is refused
by name. The checks do not limit how long the program runs.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch.export import ExportedProgram

from onebyone.atomic_files import atomic_path
from onebyone.errors import BadInput
from onebyone.pytorch.files.exporting import quiet
from onebyone.pytorch.files.program_checks import why_unsafe_payload, why_unsafe_program
from onebyone.results.note import NOTE

if TYPE_CHECKING:
    from torch.export.pt2_archive._package import PT2ArchiveReader

MODEL = "model"  # the name of the one program that torch.export.save writes
MAX_GRAPH_BYTES = 256 * 2**20  # of JSON, about a hundred times the graph of a large transformer
_EXPECTED = ("models/", "data/weights/", "data/constants/", "data/sample_inputs/", "extra/", ".data/")
_EXPECTED_FILES = ("archive_format", "archive_version", "byteorder", "version")


@dataclass(frozen=True)
class ProgramFile:
    """The contents of a `.pt2` file: the program, and the extra files saved with it, as text by name."""

    program: ExportedProgram
    extra: dict[str, str]


def save_program(program: ExportedProgram, path: str | os.PathLike[str], note: str) -> None:
    """Write a program to `path`, with `note` (JSON text) as its extra file `NOTE`. It appears completely or not at all.

    Raises
    ------
    BadInput
        if the file cannot be written.
    """
    with atomic_path(path) as part:
        torch.export.save(program, part, extra_files={NOTE: note})


def load_program(path: str | os.PathLike[str]) -> ProgramFile:
    """The exported program in `path`.

    Raises
    ------
    BadInput
        if the file is missing, truncated or of another format, or holds more than an ordinary program (pickled
        objects, compiled code, operators that are not tensor operators, sizes that are not arithmetic).
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2  # it imports torch.compile

    path = Path(path)
    if not os.path.isfile(path):  # which is false also of a name that is too long for the system
        raise BadInput(f"{path}: {'is a directory' if os.path.isdir(path) else 'there is no such file'}")
    with _as_bad_input(path), path.open("rb") as stream:
        _check_container(stream, path)
        with PT2ArchiveReader(stream) as reader:
            _check_archive(reader, path)
        stream.seek(0)
        with quiet():
            contents = load_pt2(stream)
    return ProgramFile(contents.exported_programs[MODEL], dict(contents.extra_files))


@contextmanager
def _as_bad_input(path: Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error
    except (
        Exception,
        RecursionError,
    ) as error:  # on damaged files torch's readers raise errors of many types
        lines = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]
        raise BadInput(
            f"{path}: damaged, or written by a torch too different from this one ({detail})"
        ) from error


def _check_container(stream: BinaryIO, path: Path) -> None:
    """Require a complete zip archive that unpacks to at most its own size, because torch compresses nothing."""
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        start = _start(stream)
        truncated = start[:2] == b"PK"
        what = "truncated" if truncated else "empty" if not start else "not a .pt2 archive"
        raise BadInput(f"{path}: {what}; expected a program saved by torch.export.save") from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size:
        raise BadInput(f"{path}: its records unpack to {unpacked:,} bytes, more than the file holds")
    names = [entry.filename.casefold() for entry in entries]
    if len(set(names)) != len(names):
        raise BadInput(f"{path}: holds two records of the same name")
    if not any(name.endswith("/archive_format") for name in names):
        raise BadInput(
            f"{path}: a zip archive, but not a program saved by torch.export.save (of torch 2.8 or later)"
        )
    stream.seek(0)


def _start(stream: BinaryIO) -> bytes:
    stream.seek(0)
    return stream.read(4)


def _check_archive(reader: PT2ArchiveReader, path: Path) -> None:
    names: list[str] = reader.get_file_names()
    reason = _why_unexpected(names) or _why_unsafe(names, reader)
    if reason:
        raise BadInput(f"{path}: {reason}")


def _why_unexpected(names: list[str]) -> str | None:
    programs = [n for n in names if n.startswith("models/")]
    if programs != [f"models/{MODEL}.json"]:
        return f"holds {len(programs)} programs; expected one, named {MODEL!r}"
    for name in names:
        if name.startswith("data/aotinductor/"):
            return "holds compiled code, which is not run; save the exported program itself"
        if not name.startswith(_EXPECTED) and name not in _EXPECTED_FILES:
            return f"holds a record that does not belong to an exported program ({name})"
    return None


def _why_unsafe(names: list[str], reader: PT2ArchiveReader) -> str | None:
    read = reader.read_bytes
    for folder, config in (("weights", "model_weights_config"), ("constants", "model_constants_config")):
        legacy = f"data/{folder}/{MODEL}.pt"
        if legacy in names:
            return f"keeps its {folder} as a pickle, which could hold code and was not run"
        stored = [n for n in names if n.startswith(f"data/{folder}/")]
        empty = {n.rsplit("/", 1)[1] for n in stored if not reader.archive_file.get_record_size(n)}
        reason = why_unsafe_payload(_json(read(f"data/{folder}/{config}.json")), folder, empty)
        if reason:
            return reason
    graph = read(f"models/{MODEL}.json")
    if len(graph) > MAX_GRAPH_BYTES:
        return f"its graph takes {len(graph):,} bytes; at most {MAX_GRAPH_BYTES:,} are read"
    return why_unsafe_program(_json(graph)) or _why_unsafe_inputs(read(f"data/sample_inputs/{MODEL}.pt"))


def _json(content: bytes) -> Any:
    return json.loads(content.decode("utf-8"))


def _why_unsafe_inputs(content: bytes) -> str | None:
    """Why the example inputs are not plain tensors; torch would then load them as an unrestricted pickle."""
    if not content:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                return "its example inputs unpack to more than the file holds"
        torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception:  # for any reason, these are not plain tensors
        return "its example inputs are a pickle that holds more than tensors, which was not run"
    return None
