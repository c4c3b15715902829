"""Read checkpoints without running code in them, load them into networks, and report what does not fit."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from onebyone.errors import BadInput

# The keys under which training frameworks store the tensors of a checkpoint, and their prefixes of tensor names.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "params",
    "weights",
)
PREFIXES = ("module.", "model.", "_orig_mod.", "state_dict.", "network.", "net.", "backbone.")
_STRING_OPCODES = (
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
)
# What torch.save writes around tensors; not listed in messages about other objects in a file.
_TENSOR_MACHINERY = re.compile(
    r"torch\._utils _rebuild_\w+|collections OrderedDict|torch(\.storage)? \w*Storage"
)


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` did: the number of tensors, and the prefix that it removed from their names."""

    tensors: int
    prefix: str


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, from a `.safetensors` file or one of `torch.save` (with
    `weights_only=True`).

    The tensors of nested checkpoints (such as `{"state_dict": ...}`) are returned without the nesting.

    Raises
    ------
    BadInput
        if the file is missing, truncated or of another format, or is a pickle with code in it, which is not run.
    """
    path = Path(path)
    if not os.path.isfile(path):  # which is false also of a name that is too long for the system
        raise BadInput(
            f"weights {path}: {'is a directory' if os.path.isdir(path) else 'there is no such file'}"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except SafetensorError as error:
        raise BadInput(f"weights {path}: not a readable safetensors file ({error})") from error
    except OSError as error:
        raise BadInput(f"weights {path}: cannot be read ({error.strerror or error})") from error
    return _tensors(content, path)


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> LoadedWeights:
    """Load a checkpoint into `network`: all of its tensors or none.

    A prefix of the tensors' names (`module.`, `model.` ...) is removed if more names fit without it.

    Raises
    ------
    BadInput
        if tensors are missing, unexpected or of another shape: how many of each, and the first names.
    """
    expected = network.state_dict()
    tensors, prefix = _without_prefix(read_checkpoint(path), expected)
    problems = _problems(tensors, expected)
    if problems:
        raise BadInput(f"weights {os.fspath(path)} do not fit the network: {'; '.join(problems)}")
    network.load_state_dict(tensors, strict=False)  # the names were checked above
    return LoadedWeights(len(tensors), prefix)


def nonfinite_weights(network: nn.Module | ExportedProgram) -> tuple[str, ...]:
    """The names of parameters and buffers that hold NaN or infinity.

    >>> layer = nn.Linear(2, 2)
    >>> _ = nn.init.constant_(layer.bias, float("nan"))
    >>> nonfinite_weights(layer)
    ('bias',)
    """
    return tuple(name for name, value in named_tensors(network) if not _finite(value))


def named_tensors(network: nn.Module | ExportedProgram) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    state = network.state_dict if isinstance(network, ExportedProgram) else network.state_dict()
    return [(n, v) for n, v in state.items() if isinstance(v, Tensor)]


def _finite(value: Tensor) -> bool:
    if is_lazy(value) or value.is_meta or not value.numel():
        return True
    if not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value.detach()).all())


def _read_pickle(path: Path) -> object:
    _refuse_archive_bomb(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols; failures are reported below
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        named = _foreign_globals(path)
        if named:
            raise BadInput(
                f"weights {path}: is a pickle that holds code or objects ({_few(named)}), which was not run; "
                f"save tensors only, with torch.save(model.state_dict(), ...) or as safetensors"
            ) from error
        raise BadInput(f"weights {path}: not a checkpoint of tensors, or a damaged one") from error
    except (
        Exception
    ) as error:  # torch raises RuntimeError, KeyError, EOFError, ValueError ... on damaged files
        raise BadInput(f"weights {path}: truncated, or not a checkpoint written by torch.save") from error


def _refuse_archive_bomb(path: Path) -> None:
    """Refuse a file whose records unpack to more than its size; torch.save stores records uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return  # an older or another format, which torch.load reports
    if unpacked > path.stat().st_size:
        raise BadInput(f"weights {path}: its records unpack to {unpacked:,} bytes, more than the file holds")


def _foreign_globals(path: Path) -> list[str]:
    """The names that a pickle would import, without importing them; empty if it cannot be read as a pickle."""
    names: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                record = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(record) as stream:
                    _collect_globals(stream, names)
        else:
            with path.open("rb") as stream:
                _collect_globals(stream, names)
    except Exception:  # the file is damaged; the names before the damage are reported
        pass
    return [n.replace(" ", ".") for n in dict.fromkeys(names) if not _TENSOR_MACHINERY.fullmatch(n)]


def _collect_globals(stream: Any, names: list[str]) -> None:
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            names.append(str(argument))
        elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
            names.append(f"{strings[-2]} {strings[-1]}")
        elif opcode.name in _STRING_OPCODES:
            strings.append(str(argument))


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in a checkpoint, which may be nested several times."""
    for _ in range(4):
        if not isinstance(content, Mapping):
            raise BadInput(f"weights {path}: holds {type(content).__name__}, not tensors by name")
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = next((content[w] for w in WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if inner is None or len(tensors) > len(inner):
            break
        content = inner
    if not tensors:
        raise BadInput(f"weights {path}: holds no tensors by name")
    return tensors


def _without_prefix(tensors: dict[str, Tensor], expected: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """The checkpoint without the prefix whose removal makes most names fit, and that prefix; it may be empty."""
    best, best_prefix = tensors, ""
    most = len(expected.keys() & tensors.keys())
    candidates = [""]
    for _ in range(3):  # prefixes can be nested: module.model.
        candidates = [
            c + p for c in candidates for p in PREFIXES if any(n.startswith(c + p) for n in tensors)
        ]
        for prefix in candidates:
            stripped = {n.removeprefix(prefix): v for n, v in tensors.items()}
            count = len(expected.keys() & stripped.keys())
            if count > most:
                best, best_prefix, most = stripped, prefix, count
    return best, best_prefix


def _problems(tensors: Mapping[str, Tensor], expected: Mapping[str, Any]) -> list[str]:
    # Checkpoints of torch before 0.4.1 have no batch counters; load_state_dict keeps the network's.
    missing = [n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in tensors if n not in expected]
    misshapen = [
        f"{n} is {_shape(tensors[n])}, expected {_shape(expected[n])}"
        for n in tensors
        if n in expected and not _fits(tensors[n], expected[n])
    ]
    counts = ((missing, "missing"), (unexpected, "unexpected"), (misshapen, "of another shape"))
    return [f"{len(names)} {word} ({_few(names)})" for names, word in counts if names]


def _fits(tensor: Tensor, expected: Any) -> bool:
    if not isinstance(expected, Tensor) or is_lazy(expected):
        return True
    return tensor.shape == expected.shape


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a single number"


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
