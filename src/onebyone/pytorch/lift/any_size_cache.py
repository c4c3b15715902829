"""The any-size network of a program file, kept beside that file so that the next run does not make it again.

`classifier.pt2` gets `classifier.pt2.any-size.safetensors`. It holds the tensors, the graph as text (`graph_text`), the
note of an any-size network, and a fingerprint: of the program's bytes, of the arguments, and of the sources and
libraries that made it. It is used only where the fingerprint is the same and the user, or the owner of the program, has
written it; and it is written only where the network read back gives the same bits. It is data: reading it runs no code
that it may contain.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import fx, nn
from torch.utils import _pytree as pytree

from onebyone.atomic_files import atomic_path
from onebyone.errors import BadInput, InexactWarning
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.lift.graph_text import DAMAGED, NotStorable, graph_module, graph_text
from onebyone.results.note import NOTE, dense_note, read_dense_note

SUFFIX = ".any-size.safetensors"
_GRAPH, _FINGERPRINT, _ADVICE, _NAMES = "graph.json", "fingerprint", "advice.json", "names.json"
_CHECKSUM = "crc32"
_ROOMS = ("api", "laws", "lifting", "pytorch", "results")
"""The packages whose sources decide what the network is, with the modules beside them."""


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
    kept = _read(program, fingerprint)
    if kept is not None:
        for sentence in kept.advice:
            warnings.warn(sentence, InexactWarning, stacklevel=3)
        return kept
    made = make()
    with suppress(NotStorable, BadInput, OSError, SafetensorError, *DAMAGED):
        if fingerprint_of(program, arguments) == fingerprint:  # else it was replaced while it was being read
            _write(program, fingerprint, made)
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
    return _digest([content, json.dumps(arguments, sort_keys=True), str(torch.get_default_dtype()), _maker()])


@cache
def _maker() -> str:
    """What makes any-size networks: the versions of the libraries, and the sources of `_ROOMS` and beside them."""
    folder = Path(__file__).parents[2]
    sources = sorted([*folder.glob("*.py"), *(p for room in _ROOMS for p in (folder / room).rglob("*.py"))])
    contents = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sources]
    return _digest([platform.python_version(), metadata.version("torch"), *contents])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(program: Path, fingerprint: str, made: ConvolutionalizedModule) -> None:
    path, network = cache_path(program), made.model
    if path.is_symlink():
        raise NotStorable("a link, whose target is another file")
    if not isinstance(network, fx.GraphModule):
        raise NotStorable(f"a {type(network).__name__}")
    text = graph_text(network)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    named = {**parameters, **dict(network.named_buffers(remove_duplicate=False))}
    if not all(map(_is_plain, named.values())):
        raise NotStorable("tensors in another memory order or on another device")
    tensors, same = _distinct(named)
    notes = {
        _FINGERPRINT: fingerprint,
        NOTE: dense_note(made),
        _GRAPH: text,
        _NAMES: json.dumps([[name, same.get(name, name), name in parameters] for name in named]),
        _ADVICE: json.dumps(made.advice),
    }
    notes[_CHECKSUM] = _checksum(tensors, notes)
    with atomic_path(path, readers_of=program) as part:
        save_file(tensors, part, notes)
        with safe_open(part, "pt") as file:
            read = _network_in(file)
        _require_same_numbers(made, read)
        if graph_text(read) != text:
            raise NotStorable("a graph that is another one when it is read")


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a file restores the tensor as it is; `is_contiguous` ignores the strides of axes of size one."""
    return (
        tensor.device.type == "cpu" and tensor.stride() == torch.empty(tensor.shape, device="meta").stride()
    )


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


def _all(
    tensors: Mapping[str, torch.Tensor], names: Sequence[tuple[str, str, bool]]
) -> dict[str, torch.Tensor]:
    """The tensors by all their names, in the network's order, in which the first one decides the type of images."""
    kept = {first: nn.Parameter(tensors[first], False) if own else tensors[first] for _, first, own in names}
    return {name: kept[first] for name, first, _ in names}


def _require_same_numbers(made: ConvolutionalizedModule, read: fx.GraphModule) -> None:
    """Raise NotStorable unless both networks give the same bits on random images of one window and of several."""
    floating = (t.dtype for t in [*made.model.parameters(), *made.model.buffers()] if t.is_floating_point())
    dtype = next(floating, torch.float32)
    generator = torch.Generator().manual_seed(0)
    for count, steps in ((1, 0), (2, 1)):
        size = [w + steps * s for w, s in zip(made.nominal, made.geometry.stride, strict=True)]
        image = torch.randn(count, made.channels, *size, generator=generator).to(dtype)
        with torch.inference_mode():
            expected, given = pytree.tree_leaves(made.model(image)), pytree.tree_leaves(read(image))
        if len(expected) != len(given) or not all(map(_same_bits, expected, given)):
            raise NotStorable("a network that gives other numbers when it is read")


def _same_bits(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _read(program: Path, fingerprint: str) -> ConvolutionalizedModule | None:
    """The network that is kept beside a program with this fingerprint; None where there is none."""
    path = cache_path(program)
    try:
        if not _is_trusted(path, program):
            return None
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            if notes.get(_FINGERPRINT) != fingerprint:
                return None
            network = _network_in(file)
        note = read_dense_note(notes[NOTE], str(path))
        advice = tuple(str(sentence) for sentence in json.loads(notes[_ADVICE]))
    except (BadInput, SafetensorError, OSError, *DAMAGED):
        return None  # it is made again, and replaced
    return ConvolutionalizedModule(model=network, original=network, advice=advice, **note.fields())


def _is_trusted(path: Path, program: Path) -> bool:
    """Whether a kept network is a file, and no link, of the user or of the program's owner.

    In a folder in which everyone may write, such as `/tmp`, others could put one that gives other numbers.
    """
    status, user = path.lstat(), getattr(os, "getuid", int)()
    return stat.S_ISREG(status.st_mode) and status.st_uid in (user, program.stat().st_uid)


def _network_in(file: Any) -> fx.GraphModule:
    """The network in an open file, with tensors of its own: those of the file are views of it."""
    notes = file.metadata()
    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  no mapping
    names = [(str(name), str(first), bool(own)) for name, first, own in json.loads(notes[_NAMES])]
    if tensors.keys() != {first for _, first, _ in names} or _checksum(tensors, notes) != notes[_CHECKSUM]:
        raise ValueError("tensors without a name, or damaged ones")
    return graph_module(notes[_GRAPH], _all(tensors, names))


def _checksum(tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> str:
    """A checksum of all tensors and notes, such as a program's archive has too: a copy or a disk may be damaged."""
    value = zlib.crc32("\0".join(f"{k}={notes[k]}" for k in sorted(notes.keys() - {_CHECKSUM})).encode())
    for name in sorted(tensors):
        value = zlib.crc32(
            tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), value)
        )
    return f"{value:08x}"
