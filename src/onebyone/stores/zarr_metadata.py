"""The JSON documents of Zarr stores, read with limits before any library interprets them.

A store is data from elsewhere. Names inside it must not lead out of it, neither by `..` nor by a symbolic link, its
metadata must be of a reasonable size, and a chunk must fit into memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from onebyone.errors import BadInput
from onebyone.stores.axes import short_reason

_MAX_METADATA_BYTES = 2**24


def read_document(root: Path, name: str) -> dict[str, Any] | None:
    """A JSON document of the store at `root`; None where it does not exist.

    Raises BadInput where its path leads out of the store, it is too large, or it is not a JSON object.
    """
    file = inside(root, name)
    if not file.is_file():
        return None
    size = file.stat().st_size
    if size > _MAX_METADATA_BYTES:
        raise BadInput(f"{root}: its {name} has {size:,} bytes; expected at most {_MAX_METADATA_BYTES:,}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise BadInput(f"{root}: its {name} is not valid JSON ({short_reason(error)})") from error
    if not isinstance(document, dict):
        raise BadInput(f"{root}: its {name} is not a JSON object")
    return document


def inside(root: Path, name: str) -> Path:
    """The path of `name` in the store. Raises BadInput where it leads out of it, by `..` or by a symbolic link."""
    relative = PurePosixPath(name)
    path = root / relative
    outside = relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name
    try:
        outside = outside or not path.resolve().is_relative_to(root.resolve())
        path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, or a loop of links
        raise BadInput(f"{root}: the path {name[:60]!r} in it cannot be followed") from error
    if outside:
        raise BadInput(f"{root}: the path {name!r} in it leads out of the store")
    return path


def group_attributes(root: Path) -> dict[str, Any]:
    """The attributes of the root group or array of a Zarr store, of version 2 or 3; {} where it has none.

    Raises BadInput where `root` is not a Zarr store.
    """
    if not root.is_dir():
        raise BadInput(f"{root} is not a Zarr store: expected a folder")
    document = read_document(root, "zarr.json")
    if document is not None:
        attributes = document.get("attributes", {})
    elif any((root / name).is_file() for name in (".zgroup", ".zarray")):
        attributes = read_document(root, ".zattrs") or {}
    else:
        raise BadInput(f"{root} is not a Zarr store: it has no zarr.json, .zgroup or .zarray")
    if not isinstance(attributes, dict):
        raise BadInput(f"{root}: the attributes of the store are not a JSON object")
    return attributes


@dataclass(frozen=True)
class ArrayMetadata:
    """What a Zarr array states: its shape, type, largest unit that is decoded at once, and codecs.

    `chunk_bytes` is the size of a decoded chunk, `codecs` the names of the codecs of a chunk. `shard` is the number of
    chunks in a shard, 0 without sharding, and `index_first` whether the index of a shard is at its start.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_bytes: int
    codecs: tuple[str, ...]
    dimension_names: tuple[Any, ...] | None = None
    shard: int = 0
    index_first: bool = False


#: Codecs that decode numbers and nothing else, and whose decompressed size `zarr_checks` checks.
_V3_CODECS = ("bytes", "blosc", "gzip", "zstd", "crc32c", "transpose")
_V2_CODECS = ("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma")
_V3_TYPES = ("uint8", "uint16", "float16", "float32", "float64")
_MAX_CHUNK_BYTES, _MAX_AXES, _MAX_LENGTH = 2**30, 8, 2**40


def array_metadata(root: Path, name: str) -> ArrayMetadata:
    """The metadata of an array in a store, checked. Raises BadInput where it is missing, damaged or unsupported."""
    folder = inside(root, name) if name else root
    if not folder.is_dir():
        raise BadInput(f"{root}: the array {name!r} that it names does not exist")
    document = read_document(folder, "zarr.json")
    try:
        if document is not None:
            return _v3(folder, document)
        older = read_document(folder, ".zarray")
        if older is not None:
            return _v2(folder, older)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise BadInput(f"{folder}: the metadata of the array are damaged: {short_reason(error)}") from error
    raise BadInput(f"{folder} is not a Zarr array: it has no zarr.json or .zarray of an array")


def _v3(folder: Path, document: dict[str, Any]) -> ArrayMetadata:
    if document.get("node_type") != "array" or document.get("zarr_format") != 3:
        raise BadInput(f"{folder} is not a Zarr array of version 3")
    kind = document["data_type"]
    if kind not in _V3_TYPES:
        raise BadInput(
            f"{folder}: its values are of type {kind!r}; expected one of {', '.join(_V3_TYPES)}"[:300]
        )
    if document["chunk_grid"]["name"] != "regular":
        raise BadInput(
            f"{folder}: its chunk grid is {document['chunk_grid']['name']!r}; expected 'regular'"[:300]
        )
    shape, outer = _sizes(folder, document["shape"]), document["chunk_grid"]["configuration"]["chunk_shape"]
    chunk, codecs, shard, first = _sizes(folder, outer), document["codecs"], 0, False
    _require_chunk(folder, shape, chunk, np.dtype(kind))
    if [c["name"] for c in codecs] == ["sharding_indexed"]:
        settings = codecs[0]["configuration"]
        inner = _sizes(folder, settings["chunk_shape"])
        _require_chunk(folder, shape, inner, np.dtype(kind))
        if [c["name"] for c in settings["index_codecs"]] != ["bytes", "crc32c"]:
            raise BadInput(
                f"{folder}: the index of its shards is encoded in an unusual way; expected bytes and crc32c"
            )
        shard = prod(-(-a // b) for a, b in zip(chunk, inner, strict=True))
        first, chunk, codecs = settings.get("index_location", "end") == "start", inner, settings["codecs"]
    names = tuple(c["name"] for c in codecs)
    _require_codecs(folder, names, _V3_CODECS)
    dimensions = document.get("dimension_names")
    bytes_ = prod(chunk) * np.dtype(kind).itemsize
    named = None if dimensions is None else tuple(dimensions)
    return ArrayMetadata(shape, np.dtype(kind), bytes_, names, named, shard, first)


def _v2(folder: Path, document: dict[str, Any]) -> ArrayMetadata:
    kind = document["dtype"]
    accepted = tuple(f"{o}{t}" for o in "<>|" for t in ("u1", "u2", "f2", "f4", "f8"))
    if kind not in accepted:
        raise BadInput(
            f"{folder}: its values are of type {kind!r}; expected uint8, uint16 or floating point"[:300]
        )
    if document.get("filters"):
        raise BadInput(
            f"{folder}: its chunks have filters {document['filters']!r}, which are not supported"[:300]
        )
    shape, chunk = _sizes(folder, document["shape"]), _sizes(folder, document["chunks"])
    _require_chunk(folder, shape, chunk, np.dtype(kind))
    compressor = document.get("compressor")
    names = () if compressor is None else (str(compressor["id"]),)
    _require_codecs(folder, names, _V2_CODECS)
    return ArrayMetadata(shape, np.dtype(kind), prod(chunk) * np.dtype(kind).itemsize, names)


def _sizes(folder: Path, values: Any) -> tuple[int, ...]:
    valid = isinstance(values, list) and 0 < len(values) <= _MAX_AXES
    if not valid or not all(type(v) is int and 0 < v <= _MAX_LENGTH for v in values):
        raise BadInput(f"{folder}: a size is {values!r}; expected 1 to {_MAX_AXES} positive integers"[:300])
    return tuple(values)


def _require_chunk(
    folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    if len(chunk) != len(shape):
        raise BadInput(f"{folder}: its chunks {chunk} have another number of axes than its shape {shape}")
    if prod(chunk) * dtype.itemsize > _MAX_CHUNK_BYTES:
        raise BadInput(
            f"{folder}: its chunks {chunk} of {dtype} have {prod(chunk) * dtype.itemsize:,} bytes, which are decoded "
            f"at once; expected at most {_MAX_CHUNK_BYTES:,}"
        )


def _require_codecs(folder: Path, names: tuple[Any, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise BadInput(f"{folder}: its chunks have the codec {name!r}; expected {', '.join(known)}"[:300])
