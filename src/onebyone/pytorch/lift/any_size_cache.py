"""The any-size network of a program file, kept beside that file so that the next run does not make it again.

`classifier.pt2` gets `classifier.pt2.any-size.safetensors`. It holds the tensors, the graph as text (`graph_text`), the
note of an any-size network, and a fingerprint: of the program's bytes, of the arguments, and of the sources and
libraries that made it. It is used only where the fingerprint is the same, and it is written only where the network
read back gives the same numbers. It is data: reading it runs no code that it may contain.
"""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import fx
from torch.utils import _pytree as pytree

import onebyone
from onebyone.atomic_files import atomic_path
from onebyone.errors import BadInput, InexactWarning
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.lift.graph_text import NotStorable, graph_module, graph_text
from onebyone.results.note import NOTE, dense_note, read_dense_note

SUFFIX = ".any-size.safetensors"
_GRAPH, _FINGERPRINT, _ADVICE, _SAME = "graph.json", "fingerprint", "advice.json", "same.json"
_ROOMS = ("laws", "lifting", "pytorch", "results")
"""The packages whose sources decide what the network is."""


def cache_path(program: Path) -> Path:
    """Where the any-size network of a program file is kept."""
    return program.with_name(program.name + SUFFIX)


def kept_or_made(
    program: Path, arguments: Mapping[str, Any], make: Callable[[], ConvolutionalizedModule]
) -> ConvolutionalizedModule:
    """The any-size network of a program file: the one that is kept, or what `make` returns, which is then kept.

    `arguments` are those on which `make` depends besides the file, as plain data. Where the file cannot be written, or
    the network has a part that the text has no name for, nothing is kept. Raises what `make` raises.
    """
    fingerprint = fingerprint_of(program, arguments)
    kept = _read(cache_path(program), fingerprint)
    if kept is not None:
        for sentence in kept.advice:
            warnings.warn(sentence, InexactWarning, stacklevel=3)
        return kept
    made = make()
    with suppress(NotStorable, BadInput, OSError, SafetensorError):
        _write(cache_path(program), fingerprint, made)
    return made


def fingerprint_of(program: Path, arguments: Mapping[str, Any]) -> str:
    """The fingerprint of a program's bytes, the arguments, and what makes the network.

    Raises
    ------
    BadInput
        if the program cannot be read.
    """
    try:
        with program.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"cannot read {program}: {error.strerror or error}") from error
    return _digest([content, json.dumps(arguments, sort_keys=True), _maker()])


@cache
def _maker() -> str:
    """What makes any-size networks: the versions of the libraries, and the sources of the packages in `_ROOMS`."""
    folder = Path(onebyone.__file__).parent
    sources = sorted(p for room in _ROOMS for p in (folder / room).rglob("*.py"))
    contents = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sources]
    return _digest([platform.python_version(), metadata.version("torch"), *contents])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(path: Path, fingerprint: str, made: ConvolutionalizedModule) -> None:
    network = made.model
    if not isinstance(network, fx.GraphModule):
        raise NotStorable(f"a {type(network).__name__}")
    text = graph_text(network)
    named: dict[str, torch.Tensor] = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    if any(not t.is_contiguous() or t.device.type != "cpu" for t in named.values()):
        raise NotStorable("tensors in another memory order or on another device")
    tensors, same = _distinct(named)
    _require_same_numbers(made, graph_module(text, _all(tensors, same)))
    notes = {
        _FINGERPRINT: fingerprint,
        NOTE: dense_note(made),
        _GRAPH: text,
        _SAME: json.dumps(same),
        _ADVICE: json.dumps(made.advice),
    }
    with atomic_path(path) as part:
        save_file(tensors, part, notes)


def _distinct(named: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors without further names of the same one, and those names with the first one of each.

    Different tensors that overlap in memory are copied, which a file cannot hold otherwise.
    """
    first: dict[tuple[Any, ...], str] = {}
    tensors, same = {}, {}
    for name, tensor in named.items():
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape))
        if tensor.numel() and key in first:
            same[name] = first[key]
            continue
        first[key] = name
        tensors[name] = tensor.detach().clone()
    return tensors, same


def _all(tensors: Mapping[str, torch.Tensor], same: Mapping[str, str]) -> dict[str, torch.Tensor]:
    return {**tensors, **{name: tensors[first] for name, first in same.items()}}


def _require_same_numbers(made: ConvolutionalizedModule, read: fx.GraphModule) -> None:
    """Raise NotStorable unless both networks give the same bits on a random image."""
    size = [w + s for w, s in zip(made.nominal, made.geometry.stride, strict=True)]
    dtype = next((t.dtype for t in made.model.parameters() if t.is_floating_point()), torch.float32)
    image = torch.randn(1, made.channels, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        expected, given = pytree.tree_leaves(made.model(image)), pytree.tree_leaves(read(image))
    if len(expected) != len(given) or not all(map(_same_bits, expected, given)):
        raise NotStorable("a network that gives other numbers when it is read")


def _same_bits(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


def _read(path: Path, fingerprint: str) -> ConvolutionalizedModule | None:
    """The network that is kept in `path` with this fingerprint; None where there is none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            if notes.get(_FINGERPRINT) != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        same = {str(name): str(first) for name, first in json.loads(notes[_SAME]).items()}
        network = graph_module(notes[_GRAPH], _all(tensors, same))
        note = read_dense_note(notes[NOTE], str(path))
        advice = tuple(str(sentence) for sentence in json.loads(notes[_ADVICE]))
    except (BadInput, SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None  # it is made again, and replaced
    return ConvolutionalizedModule(model=network, original=network, advice=advice, **note.fields())
